"""Binding weights to labels, noting what to resize, and placing gates."""

import numpy as np

from filterprune.channels.activations import activation_of
from filterprune.channels.constants import spread
from filterprune.channels.flow import Ambiguous, Gate, current
from filterprune.channels.labels import Channels
from filterprune.channels.registry import weight_of


def words_of(spec: str, ndim: int) -> list[str]:
    """The axes of a weight by name, `_` where nothing is removed."""
    words = spec.split()
    free = ndim - len(words) + words.count("...")
    found = []
    for word in words:
        found += ["_"] * free if word == "..." else [word]
    return found


def bind_weights(names: dict[str, str], known: dict[str, np.ndarray]) -> None:
    """Bind the weights of the current call by their specs."""
    call = current()
    for name, spec in names.items():
        weight = weight_of(call.op, name)
        if weight is None:
            continue
        words = words_of(spec, len(weight.shape))
        if not set(words) <= {"_", *known}:
            raise ValueError(
                f"Expected the axes of `{name}` to be named by {sorted(known)}, "
                f"`_` or `...`. Received: '{spec}'"
            )
        axes = [known.get(word) for word in words]
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
    shapes = {}
    for name in gates:
        weight = weight_of(call.op, name)
        if weight is not None:
            shapes[name] = _gate_shape(tuple(weight.shape), specs[name], size)
    factors: tuple = ()
    if gates and gates[0] in shapes:
        axis_words = words_of(specs[gates[0]], len(shapes[gates[0]]))
        word = "out" if "out" in axis_words else "in"
        factors = ((gates[0], axis_words.index(word)),)
    if not factors or not activation_of(call.op).keeps_zero:
        shapes = {}  # only the output can be gated
    call.gate = Gate(labels, axis, shapes, factors, makes, keeps_zero, **about)


def _gate_shape(shape: tuple, spec: str, size: int) -> tuple:
    """The shape in which `size` gates broadcast to a weight."""
    words = words_of(spec, len(shape))
    for word in ("out", "in"):
        if word in words:
            axis = words.index(word)
            wide = 1 if shape[axis] == size else 2  # a depthwise multiplier
            ones = (1,) * axis
            return ones + shape[axis : axis + wide] + (1,) * (len(shape) - axis - wide)
    raise ValueError(f"Expected an axis `out` or `in`. Received: '{spec}'")
