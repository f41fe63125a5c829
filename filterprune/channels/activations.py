"""What an activation function does to a channel that is zero."""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np

from filterprune.channels.constants import open_shapes
from filterprune.channels.trace import copy_object, is_layer, is_of_keras


@dataclasses.dataclass(frozen=True)
class ActivationFacts:
    """What was found by running the function.

    Attributes:
        name: the function's name, for the report.
        elementwise: whether each element of the output depends on that
            element of the input alone.
        keeps_zero: whether zero is turned into zero.
    """

    name: str
    elementwise: bool
    keeps_zero: bool


LINEAR = ActivationFacts("linear", True, True)


_OPEN_SIZES = ((5, 7, 3), (13, 11, 5))
_BATCHES = (1, 2, 5, 60)
_SCALES = (1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)
_MOST = 2**16  # elements of a sample
_CLOSE = 1e-5


def activation_of(op, name: str = "activation", shape=None) -> ActivationFacts:
    """The facts on the activation that `op` applies to its own output.

    Args:
        op: a layer or operation.
        name: the attribute that holds the function.
        shape: the static shape of that output.
    """
    function = getattr(op, name, None)
    if function is None or function is keras.activations.linear:
        return LINEAR
    if shape is None or is_of_keras(function):  # these take no account of shapes
        shape = ()
    try:
        return _cached(function, tuple(shape))
    except TypeError:  # not hashable
        return examine(function, shape)


def examine(function, shape=()) -> ActivationFacts:
    """Run an activation function on a few numbers and see what it does.

    Args:
        function: a callable that keeps shapes, such as `keras.ops.relu`.
        shape: a static shape that it is called with.

    Returns:
        `ActivationFacts`. A function counts as element-wise if it makes the same of
        a number wherever that stands: among few numbers and many, at any position,
        in any channel and sample, beside small numbers and large ones. A layer with
        weights, such as `PReLU`, does not count: nothing says what runs along their
        axes.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if is_layer(function):  # which calling would build for the shape tried here
        function = copy_object(function)
        if not function.weights:
            function(keras.ops.zeros((1, 4, 6)))
        if function.weights:
            return ActivationFacts(name, False, False)

    def run(array):
        result = function(keras.ops.convert_to_tensor(array.astype("float32")))
        return keras.ops.convert_to_numpy(result)

    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.normal(0, scale, 60) for scale in _SCALES])
    numbers = rng.permutation(numbers)
    expected = np.full(numbers.size, np.nan)
    seen = np.zeros(numbers.size, bool)
    elementwise = keeps_zero = True
    for sizes in _sizes(shape):
        places = rng.integers(0, numbers.size, sizes)
        result = run(numbers[places])
        if result.shape != sizes:  # such as `glu`, which halves the channels
            return ActivationFacts(name, elementwise=False, keeps_zero=False)
        fresh = ~seen[places]
        expected[places[fresh]] = result[fresh]
        seen[places] = True
        elementwise &= np.allclose(
            result, expected[places], _CLOSE, _CLOSE, equal_nan=True
        )
        keeps_zero &= not run(np.zeros(sizes)).any()
    return ActivationFacts(name, bool(elementwise), bool(keeps_zero))


def _sizes(shape) -> list[tuple[int, ...]]:
    """Shapes of arrays to try: of any rank, or those that are called for."""
    if not shape:
        return [(9, 8, 5), *((batch, 5, 7) for batch in _BATCHES), (5, 6), (2, 3, 5, 8)]
    samples = [tuple(shape[1:])]
    if None in samples[0]:
        samples = open_shapes(shape, _OPEN_SIZES)
    batches = _BATCHES if shape[0] is None else (shape[0],)
    return [
        (batch, *sample)
        for sample in samples
        for batch in (batches[:1] if np.prod(sample) > _MOST else batches)
    ]


_cached = functools.lru_cache(maxsize=1024)(examine)


def activation_layer(op):
    """The layer with state that `op` has for an activation function, or None."""
    function: Any = getattr(op, "activation", None)
    is_keras = type(op).__module__.split(".", 1)[0] == "keras"
    if is_keras and is_layer(function) and function.variables:
        return function if "activation" in op.get_config() else None
    return None
