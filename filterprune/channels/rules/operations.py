"""Operations of `keras.ops` that compute element by element."""

from collections.abc import Callable
from typing import Any

import numpy as np

from filterprune.channels.binding import bind_constants
from filterprune.channels.calls import current
from filterprune.channels.joining import constant, join
from filterprune.channels.labels import Channels
from filterprune.channels.registry import operation
from filterprune.channels.verbs import along, barrier, same, take


def operands(*values):
    """Every operand as `Channels`; a constant array is sliced with its tensor."""
    call = current()
    tensors = [value for value in values if isinstance(value, Channels)]
    ndim = max(x.ndim if isinstance(x, Channels) else np.ndim(x) for x in values)
    if any(x.ndim != ndim for x in tensors):
        barrier("it broadcasts tensors of different rank")
    found = []
    for value in values:
        if not isinstance(value, Channels):
            array = value
            value = constant(np.asarray(array), beside=tensors)
            if value.ndim:
                call.flow.binding(call).arguments[id(array)] = value
        found.append(value)
    return found


def _joined(function, *, zero_wins=False):
    def rule(op, x1, x2):
        return join(operands(x1, x2), function, zero_wins=zero_wins)

    return rule


# A zero among the operands (of a quotient: the first) makes the result zero.
_PRODUCTS: dict[str, Callable] = {
    "Multiply": np.multiply,
    "Divide": np.divide,
    "TrueDivide": np.divide,
    "DivideNoNan": lambda a, b: np.where(b == 0, 0.0, a / b),
    "FloorDivide": np.floor_divide,
    "Mod": np.mod,
    "LogicalAnd": np.logical_and,
    "Fmod": np.fmod,
}
_JOINS: dict[str, Callable] = {
    "Add": np.add,
    "Subtract": np.subtract,
    "Power": np.power,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Equal": np.equal,
    "NotEqual": np.not_equal,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "Less": np.less,
    "LessEqual": np.less_equal,
    "LogicalOr": np.logical_or,
    "LogicalXor": np.logical_xor,
    "Fmax": np.fmax,
    "Fmin": np.fmin,
    "Logaddexp2": np.logaddexp2,
    "Arctan2": np.arctan2,
    "Hypot": np.hypot,
    "Logaddexp": np.logaddexp,
}


def _known(function):
    """The function on floats, unknown where an operand is."""

    def combine(*values):
        result = np.asarray(function(*values), "float64")
        for value in values:
            result = np.where(np.isnan(value), np.nan, result)
        return result

    return combine


for _name, _function in _JOINS.items():
    operation(_name)(_joined(_known(_function)))
for _name, _function in _PRODUCTS.items():
    operation(_name)(_joined(_known(_function), zero_wins=True))


def _choose(condition, x1, x2):
    """Two values that are equal are known, whichever is chosen."""
    unsure = np.where(x1 == x2, x1, np.nan)
    return np.where(np.isnan(condition), unsure, np.where(condition, x1, x2))


@operation("Where")
def where(op, condition, x1, x2):
    return join(operands(condition, x1, x2), _choose)


@operation("Glu")
def glu(op, x):
    halves: Any = [
        take(x, lambda array, number=number: _halves(array, op.axis)[number])
        for number in range(2)
    ]
    return join(halves, lambda a, b: a / (1 + np.exp(-b)), zero_wins=True)


def _halves(array, axis):
    return [array] * 2 if array.shape[axis] == 1 else np.split(array, 2, axis)


@operation("FullLike")
def full_like(op, x, fill_value):
    if isinstance(fill_value, Channels) or np.ndim(fill_value):
        return barrier("it fills with more than a number")
    return same(x, elementwise=True)


@operation("BatchNorm")
def batch_norm(op, x, mean, variance, offset=None, scale=None):
    given = [v for v in (mean, variance, offset, scale) if v is not None]
    bind_constants(along(x, op.axis), [(array, 0) for array in given])
    return same(x, axis=op.axis, keeps_zero=False, even=True)


@operation(
    "Absolute",
    "Arcsinh",
    "Arctan",
    "Arctanh",
    "Cast",
    "Cbrt",
    "Ceil",
    "Celu",
    "Clip",
    "ConvertToTensor",
    "Copy",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Erfc",
    "Exp",
    "Exp2",
    "Expm1",
    "Floor",
    "Gelu",
    "HardShrink",
    "HardSigmoid",
    "HardSilu",
    "HardTanh",
    "Isfinite",
    "Isinf",
    "Isnan",
    "LeakyRelu",
    "Log",
    "Log10",
    "Log1p",
    "Log2",
    "LogSigmoid",
    "LogicalNot",
    "NanToNum",
    "Negative",
    "OnesLike",
    "Reciprocal",
    "Relu",
    "Relu6",
    "Round",
    "Rsqrt",
    "SaturateCast",
    "Selu",
    "Sigmoid",
    "Sign",
    "Silu",
    "Sin",
    "Sinc",
    "Sinh",
    "SoftShrink",
    "Softplus",
    "Softsign",
    "SparsePlus",
    "SparseSigmoid",
    "Sqrt",
    "Square",
    "Squareplus",
    "StopGradient",
    "Tan",
    "Tanh",
    "TanhShrink",
    "Threshold",
    "Trunc",
    "ZerosLike",
)
def elementwise(op, x):
    return same(x, elementwise=True)
