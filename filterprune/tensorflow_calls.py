"""TensorFlow's functions on symbolic tensors: `keras.ops` does what they do.

Only while a layer is traced, and only in the thread that traces it.
"""

import contextlib
import functools
import inspect
import itertools
import math
import operator
import string
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Union

import keras
import numpy as np
from keras import ops

from filterprune import unknown_sizes
from filterprune.unknown_sizes import STATE, UNKNOWN, UnknownSize, sizes_of


@contextlib.contextmanager
def tensorflow_as_keras() -> Iterator[None]:
    """Within it TensorFlow's functions take symbolic tensors of Keras.

    A function or an option without a counterpart raises, and the message names it.
    Real tensors go to TensorFlow as ever. On other backends nothing changes.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    _register()
    before, STATE.traces = STATE.traces, True
    try:
        yield
    finally:
        STATE.traces = before


class _Sizes(Sequence):
    """What `tf.shape` gives where some of the sizes are unknown."""

    def __init__(self, values: list):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        found = self.values[key]
        return _sizes(found) if isinstance(key, slice) else found

    def _refuse(self, *args):
        raise NotImplementedError(UNKNOWN)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __floordiv__ = __mod__ = __eq__ = __ne__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def _sizes(values):
    """Sizes, as an array if all of them are known."""
    values = [v if isinstance(v, UnknownSize) else int(v) for v in values]
    known = not any(isinstance(value, UnknownSize) for value in values)
    return np.array(values, "int32") if known else _Sizes(values)


class _Shape(tuple):
    """A shape that answers as a `tf.TensorShape` does."""

    rank = ndims = property(len)

    def __getitem__(self, key):
        found = super().__getitem__(key)
        return _Shape(found) if isinstance(key, slice) else found

    def as_list(self) -> list:
        return [*self]

    def is_fully_defined(self) -> bool:
        return None not in self


def _register() -> None:
    """Tell TensorFlow who answers for symbolic tensors, once in a process.

    They answer as TensorFlow's tensors do, too: `x.shape.as_list()`, `x.get_shape()`.
    Calls with real tensors take as long as before, and where nothing is traced
    TensorFlow and Keras answer themselves.
    """
    with _LOCK:
        if _NAMES:
            return
        import tensorflow as tf

        # `tf.experimental.dispatch_for_api` is public, but takes no class that
        # TensorFlow has not been told of, and to tell it is not.
        from tensorflow.python.util import dispatch

        for cls in _SYMBOLIC:
            dispatch.register_dispatchable_type(cls)
        plain = keras.KerasTensor.shape.fget

        def shape(tensor):
            return _Shape(plain(tensor)) if STATE.traces else plain(tensor)

        def get_shape(tensor):
            if not STATE.traces:
                raise AttributeError("'KerasTensor' object has no 'get_shape'")
            return lambda: tensor.shape

        def answering(plain, ours):
            return lambda x, y: ours(x, y) if STATE.traces else plain(x, y)

        operators = {"__add__": _sum, "__radd__": lambda x, y: _sum(y, x)}
        for name, ours in operators.items():
            plain_one = getattr(keras.KerasTensor, name)
            setattr(keras.KerasTensor, name, answering(plain_one, ours))
        keras.KerasTensor.shape = keras.KerasTensor.shape.getter(shape)
        keras.KerasTensor.get_shape = property(get_shape)
        names: dict[Callable, str] = {}  # a function has several, the first is short
        for prefix in ("", *_MODULES):
            module = getattr(tf, prefix[:-1]) if prefix else tf
            for name, api in vars(module).items():
                if inspect.isfunction(api) and not name.startswith("_"):
                    names.setdefault(api, f"tf.{prefix}{name}")
        tables = [
            {operator.attrgetter(name)(tf): ours for name, ours in table.items()}
            for table in (_OF_TENSORS, _OF_SIZES)
        ]
        for api, name in names.items():
            _take_calls(tf, api, name, *(table.get(api) for table in tables))
        _NAMES.update(names)


def _take_calls(tf, api, name: str, of_tensors, of_sizes) -> None:
    """Answer for a function where an argument, or one of a list, is symbolic."""

    def answer(*args, **kwargs):
        if not STATE.traces:
            return NotImplemented
        flat = keras.tree.flatten((args, kwargs))
        symbolic = any(isinstance(value, keras.KerasTensor) for value in flat)
        unknown = any(isinstance(value, (UnknownSize, _Sizes)) for value in flat)
        if not symbolic and not unknown:
            return NotImplemented
        if symbolic and of_tensors is None:
            raise NotImplementedError(
                f"it calls `{name}`, of which filterprune knows no counterpart"
            )
        ours = of_tensors if symbolic else of_sizes
        if unknown and ours not in _TAKE_SIZES:
            raise NotImplementedError(f"`{name}`: {UNKNOWN}")
        return _call(name, ours, inspect.signature(api).bind(*args, **kwargs))

    class Fallback(tf.__internal__.dispatch.OpDispatcher):
        """For functions of `*args`, of which no types can be stated."""

        def handle(self, args, kwargs):
            found = answer(*args, **kwargs)
            return self.NOT_SUPPORTED if found is NotImplemented else found

    signatures = [{key: _ARGUMENT} for key in inspect.signature(api).parameters]
    with contextlib.suppress(ValueError):
        tf.experimental.dispatch_for_api(api, *signatures)(answer)
        return
    with contextlib.suppress(AssertionError):  # it lets nobody else answer
        Fallback().register(api)


def _call(name: str, ours: Callable, given: inspect.BoundArguments):
    """Call a counterpart.

    Positional parameters of the counterpart get TensorFlow's arguments in order, and
    keyword-only ones get those of the same name. All others must have their defaults.
    """
    given.apply_defaults()
    parameters = inspect.signature(ours).parameters.values()
    count = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    rest = {key: _plain(key, value) for key, value in given.arguments.items()}
    rest.pop("name", None)
    named = {key: rest.pop(key) for key in by_name}
    own = [rest.pop(key) for key in list(rest)[:count]]
    for key, value in rest.items():
        default = given.signature.parameters[key].default
        if value is not default and value != {} and _plain(key, default) != value:
            raise NotImplementedError(
                f"it calls `{name}({key}={value!r})`, of which filterprune knows no "
                "counterpart"
            )
    return ours(*own, **named)


def _plain(name: str, value):
    """An argument in Python's and Keras' own types."""
    if name in _INTEGERS and ops.is_tensor(value):
        value = ops.convert_to_numpy(value)
    if isinstance(value, (np.ndarray, np.integer)) and name in _INTEGERS:
        value = value.tolist()
    if isinstance(value, list) and name not in ("values", "inputs", "value"):
        value = tuple(value)
    if isinstance(value, tuple) and name in _INTEGERS:
        return tuple(_plain(name, one) for one in value)
    return value.name if hasattr(value, "as_numpy_dtype") else value


def _last(function: Callable) -> Callable:
    """Along the last axis, if none is given."""
    return lambda x, axis: function(x, -1 if axis is None else axis)


def _first(function: Callable) -> Callable:
    """Along the first axis, if none is given; the positions are 64-bit integers."""
    return lambda x, axis, output_type: ops.cast(
        function(x, 0 if axis is None else axis), output_type
    )


def _shape(x):
    return _sizes(sizes_of(x))


def _slice(x, begin, size):
    def part(start, size):
        if isinstance(size, UnknownSize):
            if start or size.tensor is None:
                raise NotImplementedError(f"`tf.slice`: {UNKNOWN}")
            return slice(None)
        return slice(start, None if size == -1 else start + size)

    return x[tuple(map(part, begin, size))]


def _split(x, sizes, axis):
    if isinstance(sizes, int):
        return ops.split(x, sizes, axis)
    left = x.shape[axis]
    known = sum(size for size in sizes if size != -1)
    sizes = [left - known if size == -1 else size for size in sizes]
    return ops.split(x, tuple(itertools.accumulate(sizes[:-1])), axis)


def _pad(x, paddings, mode, constant_values):
    mode = mode.lower()
    return ops.pad(x, paddings, mode, constant_values if mode == "constant" else None)


def _where(condition, x, y):
    if x is None:
        raise NotImplementedError("it calls `tf.where` with a condition alone")
    return ops.where(condition, x, y)


def _matmul(a, b, transpose_a, transpose_b):
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


def _mean(x, axis, keepdims):
    if "int" in x.dtype:
        raise NotImplementedError("it calls `tf.reduce_mean` of integers")
    return ops.mean(x, axis, keepdims)


def _moments(x, axes, *, keepdims):
    mean = ops.mean(x, axes, keepdims=True)
    variance = ops.mean(ops.square(ops.subtract(x, mean)), axes, keepdims=True)
    if not keepdims:
        mean, variance = ops.squeeze(mean, axes), ops.squeeze(variance, axes)
    return mean, variance


def _einsum(equation, inputs):
    """Keras knows no capitals and no spaces where it looks for the shape."""
    free = iter(sorted(set(string.ascii_lowercase) - set(equation)))
    small = {letter: next(free) for letter in set(equation) if letter.isupper()}
    equation = equation.replace(" ", "").translate(str.maketrans(small))
    return ops.einsum(equation, *inputs)


def _sum(x, y):
    """The sum of two tensors, broadcast as TensorFlow does it.

    On TensorFlow `ops.add` treats its second operand as a bias if only one of its axes
    is longer than 1, and that is as long as the last axis of the first operand, or as
    its axis 1. Then it adds along the wrong axis where NumPy's rules name another.
    """
    if not _may_pass_for_bias(y, x):
        return ops.add(x, y)
    if not _may_pass_for_bias(x, y):
        return ops.add(y, x)
    return ops.subtract(x, ops.negative(y))


def _may_pass_for_bias(x, other) -> bool:
    """Whether a tensor may be added to another along an axis that is not its own."""
    shape, sizes = (tuple(getattr(one, "shape", ())) for one in (x, other))
    if len(sizes) < 2:
        return False
    several = [axis for axis, size in enumerate(shape) if size != 1]
    for axis in several:
        if any(shape[rest] is not None for rest in several if rest != axis):
            continue  # it has several places along that one too
        own = axis - len(shape) + len(sizes)
        for taken in (len(sizes) - 1, 1):
            if None in (shape[axis], sizes[taken]) or shape[axis] == sizes[taken]:
                if own != taken:
                    return True
                if None not in (shape[axis], sizes[taken]):
                    break  # it is that for sure
    return False


def _band_part(x, lower, upper):
    rows, columns = (
        unknown_sizes.arange(size)
        if isinstance(size, UnknownSize)
        else np.arange(size, dtype="int32")
        for size in sizes_of(x)[-2:]
    )
    distance = ops.expand_dims(rows, 1) - ops.expand_dims(columns, 0)
    inside = ops.ones_like(x, dtype="bool")
    for most, far in ((lower, distance), (upper, -distance)):
        if not isinstance(most, int) or most >= 0:  # a negative one keeps all
            inside = ops.logical_and(inside, ops.less_equal(far, most))
    if x.dtype == "bool":
        return ops.logical_and(x, inside)
    return ops.multiply(x, ops.cast(inside, x.dtype))


def _norm(x, ord, axis, keepdims):
    if ord not in ("euclidean", 2) or (ord == 2 and np.ndim(axis)):
        raise NotImplementedError(f"it calls `tf.norm(ord={ord!r})`")
    return ops.sqrt(ops.sum(ops.square(x), axis, bool(keepdims)))


def _l2_normalize(x, axis, epsilon):
    squares = ops.sum(ops.square(x), axis, keepdims=True)
    return ops.multiply(x, ops.rsqrt(ops.maximum(squares, epsilon)))


def _standardize(x, mean, variance, offset, scale, epsilon):
    factor = ops.rsqrt(ops.add(variance, epsilon))
    factor = factor if scale is None else ops.multiply(factor, scale)
    shift = ops.multiply(mean, factor)
    shift = ops.negative(shift) if offset is None else ops.subtract(offset, shift)
    return ops.add(ops.multiply(x, factor), shift)


def _silu(x, beta):
    return ops.silu(x) if beta == 1 else x * ops.sigmoid(x * beta)


def _bias_add(x, bias, data_format):
    if data_format and data_format.startswith("NC"):
        bias = ops.reshape(bias, (-1, *[1] * (x.ndim - 2)))
    return ops.add(x, bias)


def _resize(images, size, method, *, antialias):
    if method != "nearest":  # they come as float32
        images = ops.cast(images, "float32")
    return ops.image.resize(
        images, size, method, antialias, data_format="channels_last"
    )


def _extract_patches(images, sizes, strides, rates, padding):
    window, steps, rates = (_spatial(n, images, None) for n in (sizes, strides, rates))
    return ops.image.extract_patches(
        images, window, steps, rates[0], padding.lower(), "channels_last"
    )


def _format(data_format) -> str:
    first = data_format is not None and data_format.startswith("NC")
    return "channels_first" if first else "channels_last"


def _spatial(numbers, x, data_format):
    """Strides and the like for the axes of space, of which TensorFlow takes four."""
    if numbers is None or isinstance(numbers, int):
        return numbers or 1
    if len(numbers) == x.ndim:
        own = numbers[2:] if _format(data_format) == "channels_first" else numbers[1:-1]
        if math.prod(numbers) != math.prod(own):
            raise NotImplementedError("it strides over the batch or the channels")
        numbers = own
    return numbers * (x.ndim - 2) if len(numbers) == 1 else numbers


def _padding(padding) -> str:
    if not isinstance(padding, str):
        raise NotImplementedError("it gives a padding for each side to a convolution")
    return padding.lower()


def _conv(function: Callable, kernels: int = 1) -> Callable:
    def convolve(x, kernels, strides, padding, data_format, dilations):
        return function(
            x,
            *kernels,
            _spatial(strides, x, data_format),
            _padding(padding),
            _format(data_format),
            _spatial(dilations, x, data_format),
        )

    if kernels == 2:
        return lambda x, depth, point, strides, padding, data_format, dilations: (
            convolve(x, (depth, point), strides, padding, data_format, dilations)
        )
    return lambda x, kernel, strides, padding, data_format, dilations: convolve(
        x, (kernel,), strides, padding, data_format, dilations
    )


def _pool(function: Callable) -> Callable:
    return lambda x, ksize, strides, padding, data_format: function(
        x,
        _spatial(ksize, x, data_format),
        _spatial(strides, x, data_format),
        _padding(padding),
        _format(data_format),
    )


_SYMBOLIC = (keras.KerasTensor, UnknownSize, _Sizes)
# TensorFlow takes an argument for ours if the argument, or one of a list, is symbolic.
# It does not read `X | Y`.
_ONE: Any = Union[keras.KerasTensor, UnknownSize, _Sizes]  # noqa: UP007
_ARGUMENT: Any = Union[_ONE, list[Union[_ONE, object]]]  # noqa: UP007
_LOCK = threading.Lock()
_NAMES: dict[Callable, str] = {}
_MODULES = "math.", "nn.", "linalg.", "image.", "signal.", "random.", "debugging."

# Arguments that are integers, or nothing.
_INTEGERS = {
    *("axis", "axes", "perm", "shape", "paddings", "multiples", "repeats", "shift"),
    *("num_or_size_splits", "begin", "size", "sizes", "strides", "ksize", "dilations"),
}

# The same name, and the same arguments.
_ALIKE = (
    "abs ceil cos cosh divide divide_no_nan equal erf erfinv exp expm1 floor "
    "greater greater_equal less less_equal log log1p logical_and logical_not "
    "logical_or logical_xor maximum minimum multiply negative not_equal reciprocal "
    "round rsqrt sigmoid sign sin sinh softplus sqrt square subtract tan tanh"
)
_OF_TENSORS: dict[str, Callable] = {
    **{f"math.{name}": getattr(ops, name) for name in _ALIKE.split()},
    "math.acos": ops.arccos,
    "math.acosh": ops.arccosh,
    "math.asin": ops.arcsin,
    "math.asinh": ops.arcsinh,
    "math.atan": ops.arctan,
    "math.atan2": ops.arctan2,
    "math.atanh": ops.arctanh,
    "math.floordiv": ops.floor_divide,
    "math.floormod": ops.mod,
    "math.is_finite": ops.isfinite,
    "math.is_inf": ops.isinf,
    "math.is_nan": ops.isnan,
    "math.log_sigmoid": ops.log_sigmoid,
    "math.pow": ops.power,
    "math.squared_difference": lambda x, y: ops.square(ops.subtract(x, y)),
    "math.truediv": ops.true_divide,
    "math.l2_normalize": _l2_normalize,
    "math.add": _sum,
    "add_n": lambda inputs: functools.reduce(_sum, inputs),
    "clip_by_value": ops.clip,
    "where": _where,
    "cast": ops.cast,
    "convert_to_tensor": lambda x, dtype: x if dtype is None else ops.cast(x, dtype),
    "identity": lambda x: x,
    "stop_gradient": ops.stop_gradient,
    "ensure_shape": lambda x, shape: x,
    "zeros_like": ops.zeros_like,
    "ones_like": ops.ones_like,
    "one_hot": lambda x, depth, *, axis, dtype: ops.one_hot(
        x, depth, -1 if axis is None else axis, dtype or "float32"
    ),
    # Reductions.
    "reduce_all": ops.all,
    "reduce_any": ops.any,
    "reduce_max": ops.max,
    "reduce_mean": _mean,
    "reduce_min": ops.min,
    "reduce_prod": ops.prod,
    "reduce_sum": ops.sum,
    "reduce_logsumexp": ops.logsumexp,
    "math.reduce_std": ops.std,
    "math.reduce_variance": ops.var,
    "argmax": _first(ops.argmax),
    "argmin": _first(ops.argmin),
    "norm": _norm,
    "nn.moments": _moments,
    "math.cumsum": lambda x, axis: ops.cumsum(x, axis),
    "math.cumprod": lambda x, axis: ops.cumprod(x, axis),
    # Moves.
    "shape": lambda x, out_type: _shape(x),
    "size": lambda x, out_type: math.prod(_shape(x)),
    "rank": lambda x: np.int32(len(x.shape)),
    "reshape": unknown_sizes.reshape,
    "transpose": ops.transpose,
    "expand_dims": ops.expand_dims,
    "squeeze": ops.squeeze,
    "concat": ops.concatenate,
    "stack": ops.stack,
    "unstack": ops.unstack,
    "split": _split,
    "slice": _slice,
    "gather": lambda x, indices, *, axis: ops.take(x, indices, axis or 0),
    "nn.embedding_lookup": lambda x, indices: ops.take(x, indices, 0),
    "tile": unknown_sizes.tile,
    "repeat": unknown_sizes.repeat,
    "broadcast_to": unknown_sizes.broadcast_to,
    "roll": ops.roll,
    "reverse": ops.flip,
    "pad": _pad,
    "sort": ops.sort,
    "nn.depth_to_space": lambda x, size, data_format: ops.depth_to_space(
        x, size, _format(data_format)
    ),
    "nn.space_to_depth": lambda x, size, data_format: ops.space_to_depth(
        x, size, _format(data_format)
    ),
    "image.resize": _resize,
    "image.flip_left_right": lambda x: ops.flip(x, -2),
    "image.flip_up_down": lambda x: ops.flip(x, -3),
    "image.extract_patches": _extract_patches,
    # Products.
    "matmul": _matmul,
    "linalg.matvec": lambda a, b: ops.squeeze(
        ops.matmul(a, ops.expand_dims(b, -1)), -1
    ),
    "linalg.band_part": _band_part,
    "linalg.matrix_transpose": lambda x: ops.swapaxes(x, -1, -2),
    "tensordot": ops.tensordot,
    "einsum": _einsum,
    # Of neural networks.
    "nn.relu": ops.relu,
    "nn.relu6": ops.relu6,
    "nn.elu": ops.elu,
    "nn.selu": ops.selu,
    "nn.gelu": ops.gelu,
    "nn.silu": _silu,
    "nn.leaky_relu": ops.leaky_relu,
    "nn.softsign": ops.softsign,
    "nn.softmax": _last(ops.softmax),
    "nn.log_softmax": _last(ops.log_softmax),
    "nn.bias_add": _bias_add,
    "nn.batch_normalization": _standardize,
    "nn.conv1d": _conv(ops.conv),
    "nn.conv2d": _conv(ops.conv),
    "nn.conv3d": _conv(ops.conv),
    "nn.depthwise_conv2d": _conv(ops.depthwise_conv),
    "nn.separable_conv2d": _conv(ops.separable_conv, kernels=2),
    **{f"nn.avg_pool{n}": _pool(ops.average_pool) for n in ("", "1d", "2d", "3d")},
    **{f"nn.max_pool{n}": _pool(ops.max_pool) for n in ("", "1d", "2d", "3d")},
}

# Of sizes that `tf.shape` gave, where some are unknown.
_OF_SIZES: dict[str, Callable] = {
    "concat": lambda values, axis: _sizes(itertools.chain(*values)),
    "stack": lambda values: _sizes(values),
    "unstack": lambda value, num: list(value),
    "cast": lambda x, dtype: x,
    "identity": lambda x: x,
    "range": unknown_sizes.arange,
    "zeros": lambda shape, dtype: unknown_sizes.full(shape, 0, dtype),
    "ones": lambda shape, dtype: unknown_sizes.full(shape, 1, dtype),
    "tile": unknown_sizes.tile,
    "repeat": unknown_sizes.repeat,
    "broadcast_to": unknown_sizes.broadcast_to,
}
_TAKE_SIZES = {
    *(_slice, unknown_sizes.reshape, unknown_sizes.tile, unknown_sizes.repeat),
    *(unknown_sizes.broadcast_to, *_OF_SIZES.values()),
}
