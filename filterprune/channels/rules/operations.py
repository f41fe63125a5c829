"""Operations of `keras.ops` that a functional graph records."""

import numpy as np

from filterprune.channels.flow import current
from filterprune.channels.labels import Channels
from filterprune.channels.moves import concatenate as concatenated
from filterprune.channels.registry import operation
from filterprune.channels.verbs import barrier, constant, join, same, take


def _operands(*values):
    """Every operand as `Channels`; a constant array is sliced with its tensor."""
    call = current()
    found = []
    for value in values:
        if not isinstance(value, Channels):
            array = value
            value = constant(np.asarray(array))
            if value.ndim:
                call.flow.binding(call).arguments[id(array)] = value
        found.append(value)
    ndim = max(x.ndim for x in found)
    if any(x.constant is None and x.ndim != ndim for x in found):
        barrier("it broadcasts tensors of different rank")
    return found


@operation("Add")
def add(op, x1, x2):
    return join(_operands(x1, x2), np.add)


@operation("Subtract")
def subtract(op, x1, x2):
    return join(_operands(x1, x2), np.subtract)


@operation("Multiply")
def multiply(op, x1, x2):
    return join(_operands(x1, x2), np.multiply, zero_wins=True)


@operation("Divide", "TrueDivide")
def divide(op, x1, x2):
    return join(_operands(x1, x2), np.divide)


@operation("Maximum")
def maximum(op, x1, x2):
    return join(_operands(x1, x2), np.maximum)


@operation("Minimum")
def minimum(op, x1, x2):
    return join(_operands(x1, x2), np.minimum)


@operation("Negative", "Absolute", "Abs", "Relu", "Relu6", "Silu", "Gelu", "Tanh")
def zero_keeping(op, x):
    return same(x, elementwise=True)


@operation("Sigmoid", "HardSigmoid", "Softplus", "Exp", "Square", "Sqrt", "HardSilu")
def elementwise(op, x):
    return same(x, elementwise=True)


@operation("Concatenate")
def concatenate(op, xs):
    return take(xs, concatenated(xs, op.axis))
