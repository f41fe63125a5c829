"""Training on several devices: the same gates as on one, on every replica."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
HERE = os.path.dirname(__file__)
COMMON = """
import json, sys
sys.path[:0] = {paths!r}
import builders, filterprune, keras, numpy as np

class Record(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.gates = []

    def on_train_batch_end(self, batch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        self.gates.append(builders.closed(self.model))

def train(rows=slice(None), batch_size=32):
    x, y = builders.digits(256)
    x, y = x[rows], y[rows]
    keras.utils.set_random_seed(0)
    model = builders.randomise(builders.plain())
    masked = filterprune.wrap_model(model)
    masked.compile(keras.optimizers.SGD(0.01, momentum=0.9),
                   keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5, end_step=12, power=1)
    callback = filterprune.FilterPruningCallback(schedule, frequency=3)
    record = Record()
    masked.fit(x, y, batch_size=batch_size, epochs=2, shuffle=False,
               callbacks=[callback, record], verbose=0)
    return masked, result(masked, record.gates)

def result(masked, gates):
    small = filterprune.compact(masked)
    kernel = keras.ops.convert_to_numpy(masked.get_layer("hidden").layer.kernel)
    return {{"gates": gates, "kernel": kernel.tolist(),
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
PROCESSES = """
import jax
keras.distribution.initialize()
assert jax.process_count() == 2 and jax.local_device_count() == 1
keras.distribution.set_distribution(
    keras.distribution.DataParallel(auto_shard_dataset=False))
mine = np.arange(256).reshape(8, 2, 16)[:, jax.process_index()].ravel()
masked, result = train(mine, batch_size=16)
for weight in masked.weights:
    assert len(weight.value.sharding.device_set) == 2, weight.path
keras.distribution.set_distribution(None)
if jax.process_index() == 0:  # each worker is on its own now
    assert filterprune.compact(masked).count_params() == result["params"]
print(json.dumps(result))
"""
LOOP = """
import os, torch
from filterprune.selection import Selector
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

def plain():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    x = keras.layers.Conv2D(16, 3, activation="sigmoid")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))

def loop(model, wrapper):
    x, y = builders.digits(256)
    masked = filterprune.wrap_model(builders.randomise(model, seed=rank))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    masked.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    parallel = wrapper(masked)
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5, end_step=12, power=1)
    selector = Selector(masked)
    variables = masked.trainable_variables
    gates = []
    for step in range(16):
        if step % 3 == 0 or step == schedule.end_step:
            selector.update(schedule(step))
            gates.append(builders.closed(masked))
        mine = np.arange(32).reshape(world, -1)[rank] + step % 8 * 32
        parallel.zero_grad()
        loss(y[mine], parallel(x[mine], training=True)).backward()
        with torch.no_grad():
            masked.optimizer.apply([v.value.grad for v in variables], variables)
    return masked, gates
"""
ONE_LOOP = LOOP + "print(json.dumps(result(*loop(plain(), lambda masked: masked))))\n"
DDP = (
    LOOP
    + """
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
normed, gates = loop(builders.plain(), DistributedDataParallel)
for weight in normed.weights:
    if weight.name.startswith("moving_"):
        dist.all_reduce(weight.value)
        weight.assign(weight / world)
small = filterprune.compact(normed)
weights = [keras.ops.convert_to_numpy(w).tolist() for w in small.weights]
found = result(*loop(plain(), DistributedDataParallel))
dist.destroy_process_group()
print(json.dumps({**found, "normed": [gates, weights]}))
"""
)


def run(program, *environments, timeout=300):
    """What processes print, one for each environment."""
    source = COMMON.format(paths=[HERE, os.path.dirname(HERE)]) + program
    with contextlib.ExitStack() as stack:
        workers, files = [], []
        for environment in environments:
            out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in "oe")
            worker = subprocess.Popen(
                [sys.executable, "-c", source],
                env={**os.environ, "KERAS_BACKEND": BACKEND, **environment},
                stdout=out,
                stderr=err,
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers.append(worker)
            files.append((out, err))
        end = time.monotonic() + timeout
        codes = [None]
        while None in codes and not any(codes) and time.monotonic() < end:
            time.sleep(0.1)
            codes = [worker.poll() for worker in workers]
        texts = [[_text(file) for file in pair] for pair in files]
    assert not any(codes) and None not in codes, (codes, *(e[-3000:] for _, e in texts))
    return [json.loads(out.splitlines()[-1]) for out, _ in texts]


def _text(file):
    file.seek(0)
    return file.read().decode(errors="replace")


def check(program, *environments, one=ONE, atol=1e-5):
    (expected,), (found, *others) = run(one, {}), run(program, *environments)
    assert found["gates"] == expected["gates"]
    assert found["params"] == expected["params"]
    np.testing.assert_allclose(
        found["kernel"], expected["kernel"], rtol=1e-3, atol=atol
    )
    assert all(other == found for other in others)


def two_workers():
    """The environments of two processes that find each other on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    names = ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
    for number in "01":
        values = (f"127.0.0.1:{port}", "2", number)
        jax = {f"KERAS_DISTRIBUTION_{n}": v for n, v in zip(names, values, strict=True)}
        yield {**torch, "RANK": number, **jax}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_mirrored_strategy_on_two_devices():
    # A batch norm sees the samples of its own replica.
    check(MIRRORED, {}, atol=2e-3)


TWO = {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
}
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="a distribution of JAX")


@on_jax
def test_data_parallel_on_two_devices():
    check(DATA_PARALLEL, TWO)


@on_jax
def test_model_parallel_on_two_devices():
    check(MODEL_PARALLEL, TWO)


@on_jax
def test_data_parallel_in_two_processes():
    check(PROCESSES, *two_workers())


@pytest.mark.skipif(BACKEND != "torch", reason="a wrapper of PyTorch")
def test_distributed_data_parallel_in_two_processes():
    check(DDP, *two_workers(), one=ONE_LOOP)
