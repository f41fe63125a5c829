"""Settings for the whole test suite: set before Keras is imported."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX takes float64 for float32 if not

import keras
import pytest


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Same names and seeds in every test, whatever ran before."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_floatx("float32")
    yield
    keras.config.set_floatx("float32")
