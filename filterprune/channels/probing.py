"""Probing a layer that no rule is known for: is it channel-wise?

A layer is taken to work on each channel alone only if that is proved by
running it. Channels are changed in groups, two for each bit of their number, at
several random points: if an output channel depended on another input channel,
one of the groups would hold the one and not the other. Then a copy with half
of the channels is built, by slicing weights and config, and must give half of
the outputs. A layer that fails, or hides other layers, is a barrier.

All of this is done with the weights that the layer has and with random ones: a
gain that is zero when training starts hides what it will let through.
"""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Iterator

import keras
import numpy as np

from filterprune.channels.likeness import likeness, likeness_of_arguments
from filterprune.channels.trace import Node, copy_object, parts_of, without_mask

_POINTS = 3
_OPEN = 6
_MOST = 2**22  # elements: a larger tensor is not probed


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        reason: why the layer is not channel-wise; `None` if it is.
        weights: for each weight that has an axis of channels (by its number
            in `layer.weights`) that axis.
        config: the names of the config entries that count channels.
        keeps_zero: whether zeros become zeros, whatever the weights.
        whole: whether a copy of the layer as it is works on fewer channels too.
    """

    reason: str | None = None
    weights: tuple[tuple[int, int], ...] = ()
    config: tuple[str, ...] = ()
    keeps_zero: bool = False
    whole: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Trial:
    """Inputs and weights to run a layer with.

    Attributes:
        point: an array for each input.
        weights: an array for each weight; `None` for those that the layer has.
        nan: whether outputs may be no numbers, as roots of negative weights are.
    """

    point: list
    weights: list | None = None
    nan: bool = False


_FOUND: dict[tuple, Finding] = {}
# What was found of layers of which nothing tells that another is alike.
_FOUND_OF: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def probe(layer, node: Node, axis: int, training: bool = False) -> Finding:
    """Find out by running it whether a layer works on each channel alone.

    Args:
        layer: a built layer.
        node: a call of it; all its tensors have the channels of the output
            along `axis`.
        axis: the axis of channels.
        training: whether it is called in training mode whatever the model is.

    Returns:
        A `Finding`. The layer is not changed.
    """
    alike, tells_all = likeness(layer)
    weights = tuple((tuple(w.shape), w.dtype) for w in layer.weights)
    arguments, tell_all = likeness_of_arguments(node)
    key = (alike, weights, arguments, axis, training)
    known = _FOUND if tells_all and tell_all else _FOUND_OF.setdefault(layer, {})
    if key not in known:
        try:
            # A call may change attributes of a layer, so a copy is called.
            known[key] = _probe(copy_object(layer), node, axis, training)
        except Exception as error:
            known[key] = Finding(f"it cannot be run on its own: {error}")
    return known[key]


def hidden_layers(layer) -> str | None:
    """Why a layer that is made of others is not probed; None for any other."""
    inner = {type(part).__name__ for part in parts_of(layer)}
    if not inner:
        return None
    return (
        f"it is a composite layer, which hides {', '.join(sorted(inner))}; "
        "declare it by `filterprune.composite`, write a rule for it, or call those "
        "layers in a functional model"
    )


def _probe(layer, node, axis, training) -> Finding:
    hidden = hidden_layers(layer)
    if hidden is not None:
        return Finding(hidden)
    sizes = [
        tuple(_OPEN if n is None else n for n in tensor.shape[1:])
        for tensor in node.inputs
    ]
    if sum(np.prod(size) for size in sizes) > _MOST:
        return Finding("it is too large to be probed")
    rng = np.random.default_rng(0)
    points = [
        [rng.normal(0, scale, (2, *size)) for size in sizes]
        for scale in np.geomspace(0.3, 3, _POINTS)
    ]
    trials = [_Trial(point) for point in points]
    if layer.weights:
        middle = points[_POINTS // 2]
        trials += [
            _Trial(middle, _values(layer, draw), nan=low < 0)
            for low, draw in (
                (0, lambda shape: rng.uniform(0.5, 1.5, shape)),
                (-1, lambda shape: rng.uniform(-1.5, -0.5, shape)),
                (-1, lambda shape: rng.normal(0, 1, shape)),
            )
        ]
    count = points[0][0].shape[axis]
    steady = _is_steady(layer, node, points[0])
    if training and not steady:
        return Finding("it is called in training mode, where it is random")
    for mode in [False] + [True] * steady:
        for trial in trials:
            if not _is_channelwise(layer, node, trial, axis, rng, mode):
                return Finding("it mixes channels")
    keeps_zero = _keeps_zero(layer, node, points[0], rng)
    return _without_half(layer, node, trials, axis, count, rng, keeps_zero)


def _values(layer, draw) -> list:
    """Random values for a layer's weights; integers, such as indices, stay."""
    return [
        draw(tuple(weight.shape))
        if "float" in weight.dtype
        else keras.ops.convert_to_numpy(weight)
        for weight in layer.weights
    ]


def _keeps_zero(layer, node, point, rng) -> bool:
    zeros = [np.zeros_like(array) for array in point]
    return not any(
        _run(layer, node, zeros, _values(layer, draw)).any()
        for draw in [lambda shape: rng.normal(1, 0.3, shape)] * 2
    )


def _filled(node, arrays) -> tuple[tuple, dict]:
    """The arguments of a call with arrays in place of its tensors."""
    tensors = {
        id(tensor): keras.ops.cast(array, tensor.dtype)
        for tensor, array in zip(node.inputs, arrays, strict=True)
    }
    args, kwargs = node.fill(tensors)
    return args, {key: value for key, value in kwargs.items() if key != "training"}


def _run(layer, node, arrays, weights=None, **mode) -> np.ndarray:
    """The layer's one output; its state is left as it was."""
    args, kwargs = _filled(node, arrays)
    with keras.StatelessScope(
        list(zip(layer.weights, weights or layer.weights, strict=True))
    ):
        output = layer.call(*args, **without_mask(layer, kwargs), **mode)
    return np.asarray(keras.ops.convert_to_numpy(output), "float64")


def _is_steady(layer, node, arrays) -> bool:
    """Whether the layer can be run in training mode with equal results twice."""
    try:
        first, second = (_run(layer, node, arrays, training=True) for _ in range(2))
    except Exception:
        return False
    return np.array_equal(first, second)


def _is_channelwise(layer, node, trial, axis, rng, training) -> bool:
    mode = {"training": True} if training else {}
    point = trial.point
    base = _run(layer, node, point, trial.weights, **mode)
    count = point[0].shape[axis]
    if base.shape != point[0].shape and (
        base.ndim != point[0].ndim or base.shape[axis] != count
    ):
        return False
    numbers = np.arange(count)
    for bit in range(max(count - 1, 1).bit_length()):
        for value in (0, 1):
            chosen = (numbers >> bit) & 1 == value
            moved = [array.copy() for array in point]
            for array in moved:
                part = np.moveaxis(array, axis, -1)
                part[..., chosen] += rng.normal(0, 2, part[..., chosen].shape)
            result = _run(layer, node, moved, trial.weights, **mode)
            change = result != base
            if trial.nan:
                change &= ~(np.isnan(result) & np.isnan(base))
            if np.moveaxis(change, axis, -1)[..., ~chosen].any():
                return False
    return True


def _without_half(layer, node, trials, axis, count, rng, keeps_zero) -> Finding:
    """Build the layer with half of the channels and compare."""
    axes = []
    for number, weight in enumerate(layer.weights):
        wide = [i for i, size in enumerate(weight.shape) if size == count]
        if len(wide) > 1:
            return Finding("a weight of it has several axes of that many channels")
        axes += [(number, wide[0])] if wide else []
    kept = np.sort(rng.permutation(count)[: max(count // 2, 1)])
    for make, entries, whole in _copies(layer, count, kept.size, axes):
        try:
            small = make()
            narrow = [np.take(array, kept, axis) for array in trials[0].point]
            args, kwargs = _filled(node, narrow)
            small(*args, **without_mask(small, kwargs))  # builds it
            for trial in trials:
                values = [keras.ops.convert_to_numpy(w) for w in layer.weights]
                values = list(trial.weights or values)
                for number, place in axes:
                    values[number] = np.take(values[number], kept, place)
                small.set_weights(values)
                narrow = [np.take(array, kept, axis) for array in trial.point]
                expected = _run(layer, node, trial.point, trial.weights)
                expected = np.take(expected, kept, axis)
                received = _run(small, node, narrow)
                if not np.allclose(received, expected, 1e-4, 1e-5, trial.nan):
                    raise ValueError("other outputs")
        except Exception:
            continue
        return Finding(None, tuple(axes), entries, keeps_zero, whole)
    return Finding("no copy of it with fewer channels could be built from its config")


def _copies(layer, count: int, fewer: int, axes) -> Iterator[tuple]:
    """How to copy with fewer channels, entries that this changes, and if as it is."""
    if not axes:
        yield lambda: copy_object(layer), (), True
    with contextlib.suppress(Exception):
        config = layer.get_config()
        type(layer).from_config(config)
        same_number = tuple(
            key
            for key, value in config.items()
            if type(value) is int and value == count and count > 1
        )
        for entries in ((), same_number):
            changed = {**config, **dict.fromkeys(entries, fewer)}
            yield functools.partial(type(layer).from_config, changed), entries, False
