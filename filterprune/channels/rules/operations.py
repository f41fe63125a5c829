"""Operations of `keras.ops` that compute element by element."""

import numpy as np

from filterprune.channels.flow import current
from filterprune.channels.labels import Channels
from filterprune.channels.registry import operation
from filterprune.channels.verbs import barrier, constant, join, same


def operands(*values):
    """Every operand as `Channels`; a constant array is sliced with its tensor."""
    call = current()
    tensors = [value for value in values if isinstance(value, Channels)]
    found = []
    for value in values:
        if not isinstance(value, Channels):
            array = value
            value = constant(np.asarray(array), beside=tensors)
            if value.ndim:
                call.flow.binding(call).arguments[id(array)] = value
        found.append(value)
    ndim = max(x.ndim for x in found)
    if any(x.constant is None and x.ndim != ndim for x in found):
        barrier("it broadcasts tensors of different rank")
    return found


def _joined(function, *, zero_wins=False):
    def rule(op, x1, x2):
        return join(operands(x1, x2), function, zero_wins=zero_wins)

    return rule


# A zero among the operands (of a quotient: the first) makes the result zero.
_PRODUCTS = {
    "Multiply": np.multiply,
    "Divide": np.divide,
    "TrueDivide": np.divide,
    "DivideNoNan": lambda a, b: np.where(b == 0, 0.0, a / b),
    "FloorDivide": np.floor_divide,
    "Mod": np.mod,
    "LogicalAnd": np.logical_and,
}
_JOINS = {
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


@operation("Where")
def where(op, condition, x1, x2):
    return join(operands(condition, x1, x2), _known(np.where))


@operation(
    "Absolute",
    "Arctan",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Copy",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Expm1",
    "Floor",
    "Gelu",
    "HardShrink",
    "HardSigmoid",
    "HardSilu",
    "HardTanh",
    "LeakyRelu",
    "Log",
    "Log1p",
    "LogSigmoid",
    "LogicalNot",
    "Negative",
    "Reciprocal",
    "Relu",
    "Relu6",
    "Round",
    "Rsqrt",
    "Selu",
    "Sigmoid",
    "Sign",
    "Silu",
    "Sin",
    "SoftShrink",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Square",
    "Squareplus",
    "StopGradient",
    "Tanh",
    "TanhShrink",
    "Threshold",
)
def elementwise(op, x):
    return same(x, elementwise=True)
