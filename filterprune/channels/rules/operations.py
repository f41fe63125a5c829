"""Operations of `keras.ops` that compute element by element."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from filterprune.channels.binding import bind_constants
from filterprune.channels.calls import current
from filterprune.channels.constants import spread
from filterprune.channels.joining import constant, join
from filterprune.channels.labels import Channels
from filterprune.channels.registry import operation
from filterprune.channels.verbs import along, barrier, same, take


def operands(*values):
    """Every operand as `Channels`; a constant array is sliced with its tensor."""
    call = current()
    ndim = max(x.ndim if isinstance(x, Channels) else np.ndim(x) for x in values)
    wide = [  # as NumPy, from the last axis on
        _of_rank(value, ndim)
        if isinstance(value, Channels) and value.ndim < ndim
        else value
        for value in values
    ]
    tensors = [value for value in wide if isinstance(value, Channels)]
    found = []
    for value in wide:
        if not isinstance(value, Channels):
            array = value
            value = constant(np.asarray(array), beside=tensors)
            if value.ndim:
                call.flow.binding(call).arguments[id(array)] = value
        found.append(value)
    return found


def _of_rank(x: Channels, ndim: int) -> Channels:
    """A tensor with axes of size 1 in front."""
    ones = (1,) * (ndim - x.ndim)
    wide = Channels(ones + x.shape, x.labels.reshape(ones + x.labels.shape))
    current().step([x], [wide], lambda _, values: [values[0][(None,) * len(ones)]])
    return wide


def is_taken_for_bias(value) -> bool:
    """Whether Keras may add an array along another axis than its own.

    TensorFlow's `ops.add` takes a vector along any axis for a bias of the last one,
    or of the second, if that is as long as the vector.
    """
    shape = value.shape if isinstance(value, Channels) else np.shape(value)
    if len(shape) < 2 or None in shape:
        return False
    return shape[-1] == 1 and 1 < max(shape) == math.prod(shape)


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


@operation("Add")
def add(op, x1, x2):
    return join(operands(x1, _as_added(x1, x2)), _known(np.add))


def _as_added(x, value):
    """A vector along the axis along which Keras adds it.

    Once channels are gone it stands in front, and is never taken for a bias: there
    may be as many channels left as the vector has entries.
    """
    if not is_taken_for_bias(value):
        return value
    call = current()
    if isinstance(value, Channels):
        return barrier("Keras may add a vector along another axis than its own")
    zeros = np.zeros([size or 1 for size in x.shape], "float32")
    found = keras.ops.convert_to_numpy(call.move(keras.ops.convert_to_tensor(zeros)))
    vector = np.ravel(value)
    own = x.ndim - np.ndim(value) + int(np.argmax(np.shape(value)))
    for axis in (own, 1, x.ndim - 1):
        moved = spread(vector, x.ndim, axis)
        fits = found.shape[axis] == vector.size
        if fits and np.allclose(found, np.broadcast_to(moved, found.shape)):
            break
    if axis != own and max(x.labels.shape[axis], x.labels.shape[own]) > 1:
        barrier("Keras adds its constant along another axis than the constant's")
    given = value if axis == own else moved
    call.flow.binding(call).rewrite = lambda _, args, kwargs: ((given, args[0]), kwargs)
    return given


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


@operation("ZerosLike")
def zeros_like(op, x):
    output = Channels(current().outputs[0], x.labels)
    current().step([x], [output], lambda *_: [np.zeros(x.labels.shape)])
    return output


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
    "ReLU",
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
)
def elementwise(op, x):
    resize = {}
    for name, value in vars(op).items():
        if name[0] != "_" and np.ndim(value) and np.asarray(value).dtype.kind in "fiu":
            current().arrays.append(np.asarray(value))
            resize[name] = _kept_of(x, name, value)
    return same(x, elementwise=True, resize=resize)


def _kept_of(x, name, value):
    """What survives of an array that an operation broadcasts with its input."""
    shape = np.shape(value)
    sizes = x.shape[x.ndim - len(shape) :]
    if len(shape) > x.ndim or any(n not in (1, size) for n, size in zip(shape, sizes)):
        barrier(f"its `{name}` has the shape {shape}, which its input does not fit")

    def kept(survivors):
        axes = [survivors.along(x, axis - len(shape)) for axis in range(len(shape))]
        array = np.asarray(value)
        for axis, alive in enumerate(axes):
            if alive is not None and shape[axis] > 1:
                array = np.compress(alive, array, axis)
        return value if array.shape == shape else array

    return kept
