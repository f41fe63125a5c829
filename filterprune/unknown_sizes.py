"""Sizes that are unknown before a model runs, while a layer is traced.

`keras.ops.shape` gives None for the length of a sequence of any length, and a layer
that asks for as many positions, or for a mask of that size, cannot be called with
symbolic tensors. Here it gives a size that knows whose it is, and the functions that
take sizes make what they are asked for of that tensor.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras import ops

UNKNOWN = "it needs a size that is unknown before the model runs, as that of a batch"


class UnknownSize:
    """A size that only a real tensor has, times a number, plus another.

    Args:
        tensor: the symbolic tensor that has it; None for what other arithmetic gave.
        axis: along which axis.
        times, plus: the numbers.
    """

    def __init__(self, tensor=None, axis: int = 0, times: int = 1, plus: int = 0):
        self.tensor, self.axis = tensor, axis
        self.times, self.plus = times, plus

    @property
    def is_plain(self) -> bool:
        """Whether it is exactly the size of one axis."""
        return self.tensor is not None and (self.times, self.plus) == (1, 0)

    def as_keras(self):
        """What stands for it in a reshape: None, as in a shape, or what is left."""
        return None if self.is_plain else -1

    def zeros(self, dtype):
        """As many zeros, a symbolic vector."""
        if not self.is_plain:
            raise NotImplementedError(UNKNOWN)
        rest = [axis for axis in range(len(self.tensor.shape)) if axis != self.axis]
        zeros = ops.zeros_like(self.tensor, dtype=dtype)
        return ops.cast(ops.sum(zeros, axis=rest), dtype) if rest else zeros

    def value(self, dtype):
        """The size itself, a symbolic tensor without axes."""
        if self.tensor is None:
            raise NotImplementedError(UNKNOWN)
        plain = UnknownSize(self.tensor, self.axis)
        count = ops.sum(ops.add(plain.zeros("float32"), 1.0), axis=0)
        return ops.cast(ops.add(ops.multiply(count, self.times), self.plus), dtype)

    def _of(self, times, plus):
        if self.tensor is None:
            return UnknownSize()
        return UnknownSize(self.tensor, self.axis, times, plus) if times else plus

    def __add__(self, other):
        if isinstance(other, (int, np.integer)):
            return self._of(self.times, self.plus + int(other))
        same = isinstance(other, UnknownSize) and self.tensor is other.tensor
        if same and self.axis == other.axis:
            return self._of(self.times + other.times, self.plus + other.plus)
        return UnknownSize()

    def __mul__(self, other):
        if isinstance(other, (int, np.integer)):
            return self._of(self.times * int(other), self.plus * int(other))
        return UnknownSize()

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    def __floordiv__(self, other):
        return self if isinstance(other, int) and other == 1 else UnknownSize()

    def _compute(self, other):
        return UnknownSize()

    def _refuse(self, *args):
        raise NotImplementedError(UNKNOWN)

    __radd__, __rmul__ = __add__, __mul__
    __rfloordiv__ = __mod__ = _compute
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _refuse
    __bool__ = __int__ = __float__ = __index__ = _refuse
    __hash__ = None  # type: ignore[assignment]
    dtype = property(_refuse)  # which Keras asks for in arithmetic with a tensor


def sizes_of(x) -> list:
    """The sizes of a symbolic tensor, known or not."""
    return [
        UnknownSize(x, axis) if size is None else size
        for axis, size in enumerate(x.shape)
    ]


def _is_unknown(value) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_unknown, value))
    return isinstance(value, UnknownSize)


def arange(start, stop=None, step=1, dtype=None):
    """`ops.arange` of sizes that may be unknown."""
    start, stop = (0, start) if stop is None else (start, stop)
    count = stop - start
    if not isinstance(count, UnknownSize) or _is_unknown(step) or step != 1:
        raise NotImplementedError(UNKNOWN)
    dtype = keras.backend.standardize_dtype(dtype or "int32")
    numbers = ops.cumsum(ops.add(count.zeros("float32"), 1.0), axis=0) - 1.0
    if isinstance(start, UnknownSize):
        numbers = ops.add(numbers, start.value("float32"))
    elif start:
        numbers = ops.add(numbers, start)
    return numbers if dtype == "float32" else ops.cast(numbers, dtype)


def cast(x, dtype=None):
    """`ops.cast` of a size that may be unknown."""
    return x.value(keras.backend.standardize_dtype(dtype or "int32"))


def full(shape, value, dtype=None):
    """`ops.full` of sizes that may be unknown."""
    dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
    exact = "int32" if dtype == "bool" else dtype
    known = [1 if isinstance(size, UnknownSize) else size for size in shape]
    made = np.full(known, value, exact)
    for axis, size in enumerate(shape):
        if isinstance(size, UnknownSize):
            line = [-1 if i == axis else 1 for i in range(len(known))]
            ones = ops.add(size.zeros(exact), 1)
            # A sum will not do: TensorFlow may take one of two tensors for a bias.
            made = ops.multiply(ops.reshape(ones, line), made)
    return ops.cast(made, dtype) if exact != dtype else made


def broadcast_to(x, shape):
    """`ops.broadcast_to` of sizes that may be unknown."""
    shape = [*shape]
    if not _is_unknown(shape):
        return ops.broadcast_to(x, shape)
    have = (1,) * (len(shape) - len(x.shape)) + tuple(x.shape)
    missing = [
        1 if isinstance(size, UnknownSize) and own is None else size
        for size, own in zip(shape, have, strict=True)
    ]
    dtype = keras.backend.standardize_dtype(x.dtype)
    if dtype == "bool":
        return ops.logical_and(full(missing, 1, "bool"), x)
    return ops.multiply(full(missing, 1, dtype), x)


def reshape(x, newshape):
    """`ops.reshape` to sizes that may be unknown."""
    if isinstance(newshape, (int, UnknownSize)):
        newshape = (newshape,)
    shape = [
        one.as_keras() if isinstance(one, UnknownSize) else one for one in newshape
    ]
    if shape.count(None) == 1 and -1 not in shape:
        shape[shape.index(None)] = -1
    return ops.reshape(x, tuple(shape))


def tile(x, repeats):
    """`ops.tile`, as often as an unknown size along axes of one place."""
    if not _is_unknown(repeats):
        return ops.tile(x, repeats)
    repeats = [repeats] if not isinstance(repeats, (list, tuple)) else [*repeats]
    have = (1,) * (len(repeats) - len(x.shape)) + tuple(x.shape)
    repeats = [1] * (len(have) - len(repeats)) + repeats
    if any(_is_unknown(n) and own != 1 for n, own in zip(repeats, have)):
        raise NotImplementedError(UNKNOWN)
    known = [1 if _is_unknown(n) else n for n in repeats]
    x = ops.tile(x, known) if set(known) != {1} else x
    return broadcast_to(x, [n if _is_unknown(n) else 1 for n in repeats])


def repeat(x, repeats, axis=None):
    """`ops.repeat`, as often as an unknown size along an axis of one place."""
    if not _is_unknown(repeats):
        return ops.repeat(x, repeats, axis)
    if axis is None:
        raise NotImplementedError(UNKNOWN)
    axis %= len(x.shape)
    return tile(x, [repeats if i == axis else 1 for i in range(len(x.shape))])


def first_places(x, key, clips: bool = True):
    """Part of a tensor, up to sizes that may be unknown.

    Args:
        x: the tensor.
        key: what stands in brackets behind it.
        clips: whether a size may be more than there are places.
    """
    parts = [*key] if isinstance(key, (list, tuple)) else [key]
    for where in [i for i, part in enumerate(parts) if part is Ellipsis]:
        rest = len(x.shape) - sum(part is not None for part in parts) + 1
        parts[where : where + 1] = [slice(None)] * rest
    axis = 0
    for number, part in enumerate(parts):
        if isinstance(part, slice) and _is_unknown([part.start, part.stop, part.step]):
            if part.start not in (None, 0) or part.step not in (None, 1):
                raise NotImplementedError(UNKNOWN)
            places = arange(part.stop)
            if clips and x.shape[axis] is None:
                raise NotImplementedError(UNKNOWN)
            if clips:
                places = places[(slice(x.shape[axis]),)]
            x = ops.take(x, places, axis=axis)
            parts[number] = slice(None)
        axis += part is not None
    return x[tuple(parts)]


def _on_values(plain: Callable) -> Callable:
    """A function of numbers that takes unknown sizes for what they are."""

    def ours(*args, **kwargs):
        return plain(
            *[x.value("int32") if isinstance(x, UnknownSize) else x for x in args],
            **kwargs,
        )

    return ours


def part_of(inputs, start_indices, shape):
    """`ops.slice` of sizes that may be unknown, from the first places on."""
    key = tuple(
        slice(
            start, size if _is_unknown(size) else None if size == -1 else start + size
        )
        for start, size in zip(start_indices, shape, strict=True)
    )
    return first_places(inputs, key, clips=False)


class _State(threading.local):
    """Whether this thread traces a layer, and whether sizes stand for themselves."""

    traces = False
    sizes = False


STATE = _State()
_LOCK = threading.Lock()
_TRACES = [0]


def _shape(x):
    return tuple(sizes_of(x))


def _zeros(shape, dtype=None):
    return full(shape, 0, dtype)


def _ones(shape, dtype=None):
    return full(shape, 1, dtype)


_FUNCTIONS: dict[str, Callable] = {
    "arange": arange,
    "broadcast_to": broadcast_to,
    "cast": cast,
    "convert_to_tensor": cast,
    "full": full,
    "ones": _ones,
    "repeat": repeat,
    "reshape": reshape,
    "slice": part_of,
    "tile": tile,
    "zeros": _zeros,
}


# Of the value of a size, and not of a shape.
_OF_NUMBERS = (
    *("add", "divide", "equal", "expand_dims", "floor_divide", "greater"),
    *("greater_equal", "less", "less_equal", "maximum", "minimum", "mod"),
    *("multiply", "not_equal", "power", "sqrt", "subtract", "true_divide"),
)
_FUNCTIONS |= {name: _on_values(getattr(ops, name)) for name in _OF_NUMBERS}


def _answering(ours: Callable) -> Callable:
    """From a function of Keras to one that takes unknown sizes in a thread's trace."""

    def answering(plain):
        @functools.wraps(plain)
        def answer(*args, **kwargs):
            if STATE.sizes and _is_unknown([*args, *kwargs.values()]):
                return ours(*args, **kwargs)
            return plain(*args, **kwargs)

        return answer

    return answering


def _asked_for_shape(plain: Callable) -> Callable:
    @functools.wraps(plain)
    def answer(x):
        if STATE.sizes and isinstance(x, keras.KerasTensor):
            return _shape(x)
        return plain(x)

    return answer


def _taking_part(plain: Callable) -> Callable:
    @functools.wraps(plain)
    def answer(x, key):
        parts = key = key if isinstance(key, (tuple, list)) else (key,)
        ends = [one for p in parts if isinstance(p, slice) for one in (p.start, p.stop)]
        if STATE.sizes and _is_unknown(ends):
            return first_places(x, key)
        return plain(x, key)

    return answer


@contextlib.contextmanager
def sizes_as_keras(wanted: bool = True) -> Iterator[None]:
    """Within it unknown sizes stand for themselves in `keras.ops`, in this thread.

    Args:
        wanted: whether they do; else Keras answers None, as ever.
    """
    with _LOCK:
        _TRACES[0] += 1
        if _TRACES[0] == 1:
            for place, name, answering in _ANSWERS:
                _PLAIN[name] = getattr(place, name)
                setattr(place, name, answering(_PLAIN[name]))
    before, STATE.sizes = STATE.sizes, wanted
    try:
        yield
    finally:
        STATE.sizes = before
        with _LOCK:
            _TRACES[0] -= 1
            if not _TRACES[0]:
                for place, name, _ in _ANSWERS:
                    setattr(place, name, _PLAIN[name])


# Where a function is, its name, and what answers in its place.
_ANSWERS: list[tuple] = [
    *((ops, name, _answering(ours)) for name, ours in _FUNCTIONS.items()),
    (ops, "shape", _asked_for_shape),
    (keras.KerasTensor, "__getitem__", _taking_part),
]
_PLAIN: dict[str, Callable] = {}  # what was there before
