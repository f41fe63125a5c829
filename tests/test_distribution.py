"""Training on several devices: the same gates as on one, on every replica."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
HERE = os.path.dirname(__file__)
COMMON = """
import json, sys
sys.path[:0] = {paths!r}
import keras, numpy as np

def train(scope=None):
    import builders, filterprune
    x, y = builders.digits(256)
    keras.utils.set_random_seed(0)
    model = builders.randomise(builders.plain())
    masked = filterprune.wrap_model(model)
    masked.compile(keras.optimizers.SGD(0.01, momentum=0.9),
                   keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5, end_step=12, power=1)
    callback = filterprune.FilterPruningCallback(schedule, frequency=3)
    masked.fit(x, y, batch_size=32, epochs=2, shuffle=False, callbacks=[callback],
               verbose=0)
    small = filterprune.compact(masked)
    gates = {{path: layer.closed().tolist()
             for path, layer in builders.masked_layers(masked).items()}}
    kernel = keras.ops.convert_to_numpy(masked.get_layer("hidden").layer.kernel)
    return masked, {{"gates": gates, "kernel": kernel.tolist(),
                    "params": small.count_params()}}
"""
ONE = "print(json.dumps(train()[1]))\n"
MIRRORED = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    masked, result = train()
assert strategy.num_replicas_in_sync == 2
for layer in masked.layers:
    if hasattr(layer, "closed"):
        copies = [v.numpy() for v in layer.gate.value.values]
        assert len(copies) == 2 and np.array_equal(*copies), layer.name
print(json.dumps(result))
"""
DATA_PARALLEL = """
import jax
assert len(jax.devices()) == 2
keras.distribution.set_distribution(keras.distribution.DataParallel())
masked, result = train()
for layer in masked.layers:
    if hasattr(layer, "closed"):
        copies = [np.asarray(s.data) for s in layer.gate.value.addressable_shards]
        assert len(copies) == 2 and np.array_equal(*copies), layer.name
print(json.dumps(result))
"""
MODEL_PARALLEL = """
import jax
mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], jax.devices())
layout = keras.distribution.LayoutMap(mesh)
layout["hidden.*kernel"] = (None, "model")
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
masked, result = train()
kernel = masked.get_layer("hidden").layer.kernel.value
assert {s.data.shape for s in kernel.addressable_shards} == {(16, 8)}
print(json.dumps(result))
"""


def run(program, **environment):
    source = COMMON.format(paths=[HERE, os.path.dirname(HERE)]) + program
    result = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "KERAS_BACKEND": BACKEND, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def check(program, **environment):
    expected, found = run(ONE), run(program, **environment)
    assert found["gates"] == expected["gates"]
    assert found["params"] == expected["params"]
    # A batch norm sees the samples of its own replica under MirroredStrategy.
    np.testing.assert_allclose(
        found["kernel"], expected["kernel"], rtol=1e-3, atol=1e-3
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_mirrored_strategy_on_two_devices():
    check(MIRRORED)


TWO = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="a distribution of JAX")


@on_jax
def test_data_parallel_on_two_devices():
    check(DATA_PARALLEL, **TWO)


@on_jax
def test_model_parallel_on_two_devices():
    check(MODEL_PARALLEL, **TWO)
