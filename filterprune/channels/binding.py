"""Binding weights to labels, noting what to resize, and placing gates."""

import re

import numpy as np

from filterprune.channels.activations import activation_of
from filterprune.channels.calls import Ambiguous, Gate, Place, current
from filterprune.channels.constants import spread
from filterprune.channels.labels import Channels
from filterprune.channels.registry import weight_of

_WORD = re.compile(r"\([^)]*\)|\S+")
_BLOCKS = re.compile(r"\(\s*(\d+)\s+(\w+)\s*\)")


def words_of(spec: str, ndim: int) -> list[str]:
    """The axes of a weight by name, `_` where nothing is removed."""
    words = _WORD.findall(spec)
    free = ndim - len(words) + words.count("...")
    found = []
    for word in words:
        found += ["_"] * free if word == "..." else [word]
    return found


def blocks_of(word: str) -> tuple[int, str]:
    """How many times channels stand side by side along an axis, and which.

    `"(4 out)"` are 4 blocks of `out`, as the kernel of an LSTM has one for each of
    its four inner gates; `"out"` is one.
    """
    found = _BLOCKS.fullmatch(word)
    return (int(found[1]), found[2]) if found else (1, word)


def axis_named(words: list[str], *names: str) -> int | None:
    """The first axis that is named by one of `names`, in their order, or None."""
    plain = [blocks_of(word)[1] for word in words]
    return next((plain.index(name) for name in names if name in plain), None)


def makes_channels(spec: str) -> bool:
    """Whether a weight with axes of these names has one of channels made."""
    return any(blocks_of(word)[1] == "out" for word in words_of(spec, 0))


def bind_weights(names: dict[str, str], known: dict[str, np.ndarray]) -> None:
    """Bind the weights of the current call by their specs."""
    call = current()
    for name, spec in names.items():
        weight = weight_of(call.op, name)
        if weight is None:
            continue
        words = [blocks_of(word) for word in words_of(spec, len(weight.shape))]
        if not {word for _, word in words} <= {"_", *known}:
            raise ValueError(
                f"Expected the axes of `{name}` to be named by {sorted(known)}, "
                f"`_`, `...` or blocks such as `(4 out)`. Received: '{spec}'"
            )
        axes = [
            np.tile(known[word], count) if word in known else None
            for count, word in words
        ]
        sizes = [None if axis is None else axis.size for axis in axes]
        if len(sizes) != len(weight.shape) or any(
            size not in (None, real) for size, real in zip(sizes, weight.shape)
        ):
            raise ValueError(
                f"Expected `{name}` of shape {tuple(weight.shape)} to fit "
                f"'{spec}', whose axes have the sizes {sizes}"
            )
        call.flow.bind(call, name, tuple(axes))


def bind_constants(vector: np.ndarray, arrays) -> None:
    """Let constant arguments of the current call lose what its tensors lose.

    Args:
        vector: the labels of the channels, `(channels,)`.
        arrays: pairs of an array and its axis that runs along them.
    """
    call = current()
    for array, axis in arrays:
        if isinstance(array, Channels):
            raise Ambiguous("its weights are computed")
        shape = tuple(array.shape)
        if shape[axis] != vector.size:
            raise Ambiguous(f"its weights have the shape {shape}")
        channels = Channels(shape, spread(vector, len(shape), axis))
        call.flow.binding(call).arguments[id(array)] = channels


def note_resizing(resize, known: dict[str, np.ndarray]) -> None:
    """Note which entries of the layer's config count channels."""
    if resize is None:
        return
    if isinstance(resize, str):
        resize = {resize: "out"}
    call = current()
    for key, what in resize.items():
        if isinstance(what, str):
            labels = known[what]
            call.flow.binding(call).config[key] = _counter(labels)
        else:
            call.flow.binding(call).config[key] = what


def _counter(labels):
    return lambda survivors: survivors.count(labels)


def with_outputs(function, outputs):
    return lambda survivors: function(survivors, *outputs)


def gate_output(
    labels, axis, gates, specs, *, makes, keeps_zero=False, **about
) -> None:
    """Note how the current call's output is gated."""
    call = current()
    mask = None if makes else call.mask
    if mask is not None and mask.gated_axis not in (None, axis):
        if mask.closed().any():
            raise Ambiguous("its gates run along another axis than that of channels")
        return  # all open, they do nothing: it has no gates along this axis
    size = labels.shape[axis]
    numbers, makers = {}, {}
    for name in gates:
        weight = weight_of(call.op, name)
        if weight is not None:
            numbers[name], made = gates_along(weight, specs[name], size)
            if name == gates[0]:
                makers[name] = made
    outputs: tuple[Place, ...] = ()
    if not makers or not activation_of(call.op, shape=call.outputs[0]).keeps_zero:
        numbers = {}  # only the output can be gated
        outputs = (Place(0, axis, np.arange(size)),)
    gate = Gate(labels, axis, numbers, makers, makes, keeps_zero, outputs, **about)
    call.gates[:] = [gate]


def gates_along(weight, spec: str, size: int, *names: str) -> tuple[np.ndarray, int]:
    """The number of the gate of each entry of a weight, and their axis.

    Args:
        weight: a weight.
        spec: the names of its axes.
        size: how many gates there are.
        *names: the names of axes that may have gates, in order of precedence;
            `out` and `in` by default.

    Returns:
        An array that broadcasts to the weight, and the axis.
    """
    shape = tuple(weight.shape)
    words = words_of(spec, len(shape))
    axis = axis_named(words, *(names or ("out", "in")))
    if axis is None:
        raise ValueError(f"Expected an axis `out` or `in`. Received: '{spec}'")
    count, _ = blocks_of(words[axis])
    numbers = np.tile(np.arange(size), count)
    wide = 1 if shape[axis] == numbers.size else 2  # a depthwise multiplier
    ones = (1,) * axis
    found = ones + shape[axis : axis + wide] + (1,) * (len(shape) - axis - wide)
    return numbers.reshape(found), axis
