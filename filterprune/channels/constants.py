"""What real operations make of constants: the values of dead channels."""

import itertools
import math
from collections.abc import Iterator

import keras
import numpy as np

from filterprune.channels.labels import Channels

# What stands for "some constant, not zero" while weights may still change.
GENERIC = 0.5772156649

# Sizes for the axes of a map that the model leaves open, if the rule of a layer says
# that they do not matter: large enough for most kernels.
_OPEN_SIZES = ((19, 23, 13), (67, 49, 35))


def spread(vector: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    """A vector along one axis of an array of so many axes."""
    shape = [1] * ndim
    shape[axis] = vector.size
    return vector.reshape(shape)


def values_along(value: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Values along `axis`; unknown where they differ along another axis."""
    rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
    first = np.where((rows == rows[:1]).all(axis=0), rows[0], np.nan)
    return np.broadcast_to(first, (size,))


def count_positions(x: Channels, axis: int) -> int:
    """How many positions one sample has; an unknown size counts once."""
    sizes = [size or 1 for size in x.shape]
    sizes[0] = sizes[axis] = 1
    return math.prod(sizes)


def rounded(number: float) -> float:
    """A Python number as the backend's operations take it: TensorFlow in float32."""
    return float(keras.ops.convert_to_numpy(keras.ops.cast(number, "float64")))


def _arguments(call, x: Channels, array) -> list:
    """One tensor for each of the call's: `array` for the channels read."""
    # TensorFlow does not broadcast what it clips to the bounds.
    shapes = [own.shape for own in call.arrays]
    array = np.broadcast_to(array, np.broadcast_shapes(array.shape, *shapes))
    arrays = [
        array if given is x else np.zeros([size or 1 for size in given.shape])
        for given in call.inputs
    ]
    return [
        keras.ops.cast(array, _dtype(tensor))
        for array, tensor in zip(arrays, call.node.inputs, strict=True)
    ]


def _dtype(tensor) -> str:
    """The dtype of a tensor when the model runs.

    Keras 3.15 does not always know: it says float32 of what `ops.normalize` makes
    of float64. More precision than there is does no harm.
    """
    exact = keras.config.floatx() == "float64"
    return "float64" if exact and tensor.dtype == "float32" else tensor.dtype


def largest_at_zero(call, x: Channels) -> float:
    """The largest value that the bare operation makes of zero."""
    zeros = np.zeros((1,) * x.ndim)
    return float(np.abs(call.run(*_arguments(call, x, zeros))).max())


def run_elementwise(call, x: Channels, value: np.ndarray) -> np.ndarray:
    filled = np.where(np.isnan(value), 1.0, value)
    result = call.run(*_arguments(call, x, filled))
    return np.where(np.isnan(value) | ~np.isfinite(result), np.nan, result)


def any_weights(layer) -> list[tuple]:
    """Pairs of a weight and what it might as well be: positive, all different."""
    rng = np.random.default_rng(0)
    return [
        (weight, rng.uniform(0.5, 1.5, tuple(weight.shape)))
        for weight in layer.weights
        if "float" in weight.dtype
    ]


def run_constant_map(
    call, x, vector, axis, to, repeat, elementwise, even, weights=()
) -> np.ndarray:
    """What the real layer makes of channels that are constant over the map.

    A map of known size tells all by being run. Where sizes are open, nothing is
    known of a layer whose rule does not say that it is `even`.

    Returns:
        One value for each channel made, NaN where several come out, or where
        another size would give another one.
    """
    unknown = np.repeat(np.isnan(vector), repeat)
    found: list[np.ndarray] = []
    for shape in _shapes(x, axis, vector.size, elementwise, even):
        if unknown.all() or len(found) == 2:
            break
        try:
            rows = _run_map(call, x, vector, axis, to, shape, weights)
        except Exception:  # too small, for one
            continue
        found.append(np.where(_is_even(rows), rows[0], np.nan))
    if not found:
        return np.full(unknown.shape, np.nan)
    alike = _is_even(np.stack(found))
    return np.where(alike & ~unknown, found[0], np.nan)


def _shapes(x, axis, count, elementwise, even) -> Iterator[list[int]]:
    """Shapes of a map on which to run a layer."""
    if elementwise:
        shapes = [[1] * x.ndim]
    elif None not in x.shape[1:]:
        shapes = [list(x.shape)] * 2
    else:
        shapes = (
            [[1, *shape] for shape in open_shapes(x.shape, _OPEN_SIZES)] if even else []
        )
    for batch, shape in enumerate(shapes, 1):
        shape = list(shape)
        shape[0], shape[axis] = batch, count
        yield shape


def open_shapes(shape, several) -> list[tuple[int, ...]]:
    """Shapes of a sample of which some sizes are open, with these in their places."""
    found = []
    for sizes in several:
        given = itertools.cycle(sizes)
        found.append(tuple(next(given) if n is None else n for n in shape[1:]))
    return found


def _run_map(call, x, vector, axis, to, shape, weights) -> np.ndarray:
    """The outputs at all positions, `(positions, channels)`."""
    filled = np.where(np.isnan(vector), 0.0, vector)
    array = np.broadcast_to(spread(filled, x.ndim, axis), shape)
    result = call.run(*_arguments(call, x, array), weights=weights)
    return np.moveaxis(result, to, -1).reshape(-1, result.shape[to])


def _is_even(rows: np.ndarray) -> np.ndarray:
    """Which channels are the same at all positions, `(channels,)` bool."""
    apart = np.ptp(rows, axis=0)
    return apart <= 1e-6 * np.maximum(np.abs(rows).max(axis=0), 1e-30)
