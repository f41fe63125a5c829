"""Settings for the whole test suite: set before Keras is imported."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On some CPUs TensorFlow leaves oneDNN out, and has no channels-first Conv2D then.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX takes float64 for float32 if not
# XLA takes longer to optimise programs this small than they take to run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import keras
import pytest


def pytest_configure(config):
    """Warnings of ours are errors: here, since `setup.cfg` would import Keras first."""
    category = "filterprune.errors.PruningWarning"
    config.addinivalue_line("filterwarnings", f"error::{category}")
    # Keras' own, a hundred thousand times: among them no other would be seen.
    for start in ("__array__ implementation", "__array_wrap__ must"):
        config.addinivalue_line("filterwarnings", f"ignore:{start}:DeprecationWarning")
    # Many tests wrap, or compact, a model of which nothing goes, and mean it.
    for start in ("Nothing in the model", "No gate of"):
        config.addinivalue_line("filterwarnings", f"ignore:{start}:{category}")


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Same names and seeds in every test, whatever ran before."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_floatx("float32")
    yield
    keras.config.set_floatx("float32")
    # Fixtures of a module are made before the next test clears what is left.
    keras.config.set_dtype_policy("float32")
