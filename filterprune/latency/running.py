"""Running something again and again as the backend runs it, and timing that."""

import functools
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras

from filterprune.channels.trace import is_layer


def runner(op, call: Callable, tensors: Sequence) -> Callable[[], Any]:
    """A function that runs an operation in inference mode, and waits for it.

    Compiled as the backend does for `predict`, apart from XLA on TensorFlow:
    a `tf.function`, `jax.jit`, or as it is on PyTorch.

    Args:
        op: a built layer or model, or an operation that is no layer.
        call: `call(function, tensors)` calls `function`, which does what `op`
            does, with its arguments.
        tensors: the tensors among those.

    Returns:
        A function without arguments.
    """
    return _RUNNERS[keras.backend.backend()](op, call, list(tensors))


def _tensorflow(op, call, tensors):
    tf: Any = importlib.import_module("tensorflow")

    @tf.function(autograph=False, jit_compile=False)
    def function(tensors):
        return call(op, tensors)

    on_device = bool(tf.config.list_logical_devices("GPU"))
    wait = tf.test.experimental.sync_devices

    def run():
        outputs = function(tensors)
        if on_device:
            wait()
        return outputs

    return run


def _jax(op, call, tensors):
    jax: Any = importlib.import_module("jax")
    state: tuple = ()
    if is_layer(op):
        # As arguments, as `predict` has them: XLA computes with constants beforehand.
        state = tuple(
            [variable.value for variable in variables]
            for variables in (op.trainable_variables, op.non_trainable_variables)
        )

    @jax.jit
    def function(state, tensors):
        if not is_layer(op):
            return call(op, tensors)
        return call(functools.partial(op.stateless_call, *state), tensors)[0]

    return lambda: jax.block_until_ready(function(state, tensors))


def _torch(op, call, tensors):
    torch: Any = importlib.import_module("torch")
    on_device = any(tensor.is_cuda for tensor in tensors)

    def run():
        with torch.no_grad():
            outputs = call(op, tensors)
        if on_device:
            torch.cuda.synchronize()
        return outputs

    return run


_RUNNERS: dict[str, Callable] = {
    "tensorflow": _tensorflow,
    "jax": _jax,
    "torch": _torch,
}


def devices() -> list[str]:
    """The kinds of devices beside the processor that the backend runs on."""
    return _DEVICES[keras.backend.backend()]()


def _tensorflow_devices():
    config: Any = importlib.import_module("tensorflow").config
    found = config.list_physical_devices("GPU")
    details = map(config.experimental.get_device_details, found)
    return [str(each.get("device_name")) for each in details]


def _jax_devices():
    return [each.device_kind for each in importlib.import_module("jax").devices()]


def _torch_devices():
    cuda: Any = importlib.import_module("torch").cuda
    return [cuda.get_device_name(number) for number in range(cuda.device_count())]


_DEVICES: dict[str, Callable[[], list[str]]] = {
    "tensorflow": _tensorflow_devices,
    "jax": _jax_devices,
    "torch": _torch_devices,
}


def shortest(runs: Sequence[Callable], least: int = 5, budget: float = 0.03) -> list:
    """The shortest time that each run takes: all else a machine does only adds.

    They take turns, so that a machine which slows down slows all of them.

    Args:
        runs: functions without arguments.
        least: how many times to run each at least.
        budget: for how many seconds each is run.

    Returns:
        Seconds, one for each.
    """
    for run in (*runs, *runs):  # what is compiled, and memory, is there by then
        run()
    found = [float("inf")] * len(runs)
    turns = 0
    end = time.perf_counter() + budget * len(runs)
    while turns < least or time.perf_counter() < end:
        turns += 1
        for number, run in enumerate(runs):
            started = time.perf_counter()
            run()
            found[number] = min(found[number], time.perf_counter() - started)
    return found
