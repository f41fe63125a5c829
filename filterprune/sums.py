"""Reading weights fast: without copies, and each of them once."""

from collections.abc import Sequence

import keras
import numpy as np

# How many weights are squared at a time: those stay in a processor's cache, where
# whole kernels would go through memory again and again.
BLOCK = 1 << 18
# How many are added in float32 before the sum goes on in float64.
ROWS = 512


def peek(variable) -> np.ndarray:
    """The value of a variable, without a copy where the backend can do so.

    It is to be read at once, not to be kept and never to be written.
    """
    if keras.backend.backend() == "tensorflow":
        try:
            return np.asarray(memoryview(variable.value.value()))
        except (AttributeError, BufferError, TypeError, ValueError):
            pass  # such as bfloat16, which has no buffer that NumPy knows
    return keras.ops.convert_to_numpy(variable)


def poke(variable, value: np.ndarray) -> None:
    """Assign an array of the variable's shape and dtype, without delay."""
    if keras.backend.backend() == "tensorflow":
        variable.value.assign(value, read_value=False)
    else:
        variable.assign(value)


def power_sums(variable, axes: Sequence[int], p: int = 2) -> list[np.ndarray]:
    """The sums of |w| ** p over all but one axis of a weight, in float64.

    Args:
        variable: the weight.
        axes: the axes, each as a number from 0.
        p: the power.

    Returns:
        For each axis an array of its size. Equal slices have equal sums.
    """
    value = peek(variable)
    shape = value.shape
    rows = value.reshape(-1, shape[-1])
    columns, others = np.zeros(shape[-1]), np.empty(len(rows))
    step = min(ROWS, max(1, BLOCK // max(shape[-1], 1)))
    squares = np.empty((min(step, len(rows)), shape[-1]), "float32")
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if p == 2 and block.dtype == "float32":  # exact to 1e-6
            block = np.multiply(block, block, out=squares[: len(block)])
        else:
            block = np.abs(block.astype("float64")) ** p
        columns += block.sum(axis=0)
        others[start : start + step] = np.einsum("ij->i", block)  # sooner than `sum`
    last = len(shape) - 1
    table = others.reshape(shape[:-1])
    return [
        columns
        if axis == last
        else table.sum(axis=tuple(i for i in range(last) if i != axis))
        for axis in axes
    ]
