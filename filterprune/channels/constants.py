"""What real operations make of constants: the values of dead channels."""

import math

import keras
import numpy as np

from filterprune.channels.labels import Channels

# What stands for "some constant, not zero" while weights may still change.
GENERIC = 0.5772156649


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


def _arguments(call, x: Channels, array) -> list:
    """One tensor for each of the call's: `array` for the channels read."""
    arrays = [
        array if given is x else np.zeros([size or 1 for size in given.shape])
        for given in call.inputs
    ]
    return [
        keras.ops.cast(array, tensor.dtype)
        for array, tensor in zip(arrays, call.node.inputs, strict=True)
    ]


def _numpy(tensor) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor), "float64")


def largest_at_zero(call, x: Channels) -> float:
    """The largest value that the bare operation makes of zero."""
    zeros = np.zeros((1,) * x.ndim)
    return float(np.abs(_numpy(call.run(*_arguments(call, x, zeros)))).max())


def run_elementwise(call, x: Channels, value: np.ndarray) -> np.ndarray:
    filled = np.where(np.isnan(value), 1.0, value)
    result = _numpy(call.run(*_arguments(call, x, filled)))
    return np.where(np.isnan(value) | ~np.isfinite(result), np.nan, result)


def run_constant_map(call, x, vector, axis, to, repeat, elementwise) -> np.ndarray:
    """What the real layer makes of channels that are constant over the map."""
    shape = [1 if elementwise or size is None else size for size in x.shape]
    shape[0] = 1
    if not elementwise:  # an unknown size: large enough to show its borders
        shape[1:] = [
            64 if size is None else known
            for size, known in zip(x.shape[1:], shape[1:], strict=True)
        ]
    shape[axis] = vector.size
    filled = np.where(np.isnan(vector), 0.0, vector)
    array = np.broadcast_to(spread(filled, x.ndim, axis), shape)
    result = _numpy(call.run(*_arguments(call, x, array)))
    rows = np.moveaxis(result, to, -1).reshape(-1, result.shape[to])
    even = np.ptp(rows, axis=0) <= 1e-6 * np.maximum(np.abs(rows).max(axis=0), 1e-30)
    unknown = np.repeat(np.isnan(vector), repeat)
    return np.where(even & ~unknown, rows[0], np.nan)
