"""Operations of `keras.ops` that move data about."""

import keras
import numpy as np

from filterprune.channels.calls import current
from filterprune.channels.contraction import same_rows, unlabelled
from filterprune.channels.joining import gate_behind
from filterprune.channels.labels import Channels
from filterprune.channels.moves import concatenate as concatenated
from filterprune.channels.moves import (
    run_on_arrays,
    varied_axes,
    where_equal,
    whole_batch,
)
from filterprune.channels.registry import operation
from filterprune.channels.verbs import barrier, channel_axis, same, take


def _tensors(*args):
    return [x for x in keras.tree.flatten(args) if isinstance(x, Channels)]


@operation("Concatenate")
def concatenate(op, xs):
    return take(xs, concatenated(xs, op.axis))


@operation(
    "Dstack",
    "ExpandDims",
    "Flip",
    "Fliplr",
    "Hstack",
    "Moveaxis",
    "Rot90",
    "Squeeze",
    "Stack",
    "Swapaxes",
    "Tile",
    "Transpose",
)
def move(op, *args):
    xs = _tensors(*args)
    return take(xs, run_on_arrays(xs))


@operation("Repeat")
def repeat(op, x):
    several = np.size(op.repeats) > 1
    if several and op.axis is None:
        return barrier("it repeats a flattened tensor")

    def repeats(survivors, output):
        kept = survivors.along(x, op.axis)
        if kept is None:
            return op.repeats
        left = np.compress(kept, op.repeats)
        return left.tolist() if isinstance(op.repeats, (list, tuple)) else left

    resize = {"repeats": repeats} if several else None
    return take(x, run_on_arrays([x]), resize=resize)


@operation("DepthToSpace", "SpaceToDepth")
def blocks(op, x):
    table = current().flow.table
    axis = channel_axis(op)
    table.tie_along(x.labels, axis)
    output = take(x, run_on_arrays([x]))
    table.tie_along(output.labels, axis)  # type: ignore[union-attr]  # pixels cannot go, channels can
    return output


@operation("Reshape")
def reshape(op, x):
    asked = op.newshape
    if isinstance(asked, int):
        asked = (asked,)

    def newshape(survivors, output):
        return tuple(
            size if size in (-1, None) else survivors.size(output, axis)
            for axis, size in enumerate(asked)
        )

    shape = current().outputs[0]
    if not varied_axes(x):
        return take(x, lambda a: a.reshape((1,) * len(shape)))
    move = run_on_arrays([x], batch=whole_batch(x, shape))
    return take(x, move, resize={"newshape": newshape})


@operation("BroadcastTo")
def broadcast_to(op, x):
    def shape(survivors, output):
        return tuple(
            survivors.size(output, axis) or size for axis, size in enumerate(op.shape)
        )

    return take(x, run_on_arrays([x]), resize={"shape": shape})


@operation("ArraySplit")
def array_split(op, x):
    if op.axis % x.ndim in varied_axes(x):
        return barrier("it takes equal parts of the channels; use `ops.split`")
    return take(x, run_on_arrays([x]))


@operation("Split")
def split(op, x):
    def sections(survivors, *outputs):
        sizes = [survivors.size(output, op.axis) for output in outputs]
        if None in sizes or sizes == [output.shape[op.axis] for output in outputs]:
            return op.indices_or_sections
        return tuple(int(place) for place in np.cumsum(sizes)[:-1])

    return take(x, run_on_arrays([x]), resize={"indices_or_sections": sections})


@operation("Unstack")
def unstack(op, x):
    axis = op.axis % x.ndim
    varied = varied_axes(x)
    if varied == [axis]:
        return barrier("it takes the channels apart, each into a tensor of its own")
    if axis in varied:
        _tie_over(x, axis)
    return take(x, run_on_arrays([x]))


@operation("Roll")
def roll(op, x):
    if op.axis is None:
        return barrier("it rolls a flattened tensor")
    axes = [op.axis] if isinstance(op.axis, int) else list(op.axis)
    shifts = np.broadcast_to(op.shift, len(axes)).tolist()
    if len({axis % x.ndim for axis in axes}) < len(axes):
        return barrier("it rolls one axis twice")

    def shift(survivors, output):
        new = tuple(
            _survivors_wrapped(survivors.along(output, axis), places)
            for axis, places in zip(axes, shifts, strict=True)
        )
        return new[0] if isinstance(op.axis, int) else new

    return take(x, run_on_arrays([x]), resize={"shift": shift})


def _survivors_wrapped(kept, places):
    """By how much the survivors roll where all channels roll by `places`."""
    return places if kept is None else int(kept[: places % kept.size].sum())


@operation("Take")
def gather(op, x, indices):
    if op.axis is None or not isinstance(x, Channels):
        return barrier("it gathers from a flattened tensor, or from constants")
    axis = op.axis % x.ndim
    if isinstance(indices, Channels):
        return _places(x, indices, axis)
    if axis in varied_axes(x):
        chosen = np.asarray(indices)
        if chosen.ndim != 1:
            return barrier("it gathers channels by indices of several axes")
        chosen = chosen % x.shape[axis]

        def rewrite(survivors, args, kwargs):
            kept = survivors.along(x, axis)
            if kept is None:
                return args, kwargs
            places = np.cumsum(kept) - 1
            return (args[0], places[chosen[kept[chosen]]]), {}

        call = current()
        call.flow.binding(call).rewrite = rewrite
    return take(x, run_on_arrays([x]))


def _places(x, indices, axis):
    """What stands at places that are computed, as those of a sequence."""
    shape, varied = current().outputs[0], varied_axes(x)
    if axis in varied:
        return barrier("the channels that it gathers are computed")
    if not varied:
        return unlabelled([x, indices], shape)
    to = varied[-1] + (indices.ndim - 1 if varied[-1] > axis else 0)
    return same_rows([x, indices], 0, varied[-1], to, shape)


@operation("GetItem")
def get_item(op, x, key):
    call = current()
    parts = list(key) if isinstance(key, (tuple, list)) else [key]
    if not all(part is None or isinstance(part, _PARTS) for part in parts):
        return barrier("its index is an array")
    axes = _axes_of(parts, x.ndim)
    varied = varied_axes(x)
    for part, axis in zip(parts, axes):
        if axis not in varied:
            continue
        if isinstance(part, int) and len(varied) > 1:  # channels are along another
            _tie_over(x, axis)
        elif isinstance(part, int):
            index = np.take(x.labels, part, axis)
            call.flow.table.pin(index, f"picked by its number by `{op.name}`")
        elif isinstance(part, slice) and part.step not in (None, 1):
            whole = part == slice(None, None, -1)
            if not whole:
                return barrier("it takes every so many channels")

    def rewrite(survivors, args, kwargs):
        new = [
            _slice_survivors(part, survivors.along(x, axis), x.shape[axis])
            if axis in varied
            else part
            for part, axis in zip(parts, axes)
        ]
        return (args[0], tuple(new)), {}

    call.flow.binding(call).rewrite = rewrite
    return take(x, run_on_arrays([x]))


def _tie_over(x, axis):
    """Tie what differs along an axis, such as that of query, key and value."""
    current().flow.table.tie(x.labels, np.take(x.labels, [0], axis))


_PARTS = (int, slice, type(Ellipsis))


def _axes_of(parts, ndim) -> list[int | None]:
    """The axis of the tensor that each part of an index is about."""
    used = sum(isinstance(part, (int, slice)) for part in parts)
    axes: list[int | None] = []
    axis = 0
    for part in parts:
        if part is None:
            axes.append(None)
        elif part is Ellipsis:
            axes.append(None)
            axis += ndim - used
        else:
            axes.append(axis)
            axis += 1
    return axes


def _slice_survivors(part, kept, size):
    """A slice or index that takes of the survivors what `part` took of all."""
    if kept is None or part == slice(None, None, -1):
        return part
    before = np.concatenate([[0], np.cumsum(kept)])
    if isinstance(part, int):
        return int(before[part % size])
    start, stop, _ = part.indices(size)
    return slice(int(before[start]), int(before[max(stop, start)]))


@operation("Pad")
def pad(op, x, constant_values=None):
    widths = [tuple(pair) for pair in op.pad_width]
    if len(widths) == 1:
        widths *= x.ndim
    varied = varied_axes(x)
    padded = [axis for axis in varied if any(widths[axis])]
    fill = 0.0 if constant_values is None else constant_values
    if not isinstance(fill, (int, float)):
        return barrier("it pads with a tensor")
    if not padded:
        even = op.mode != "constant" or not any(map(any, widths))
        axis = varied[-1] if varied else -1
        return same(x, axis=axis, keeps_zero=fill == 0, even=even)
    if len(varied) > 1 or op.mode != "constant":
        return barrier(f"it pads channels in mode '{op.mode}'")
    (axis,) = padded
    table = current().flow.table
    shape = [1] * x.ndim
    edges = []
    for width in widths[axis]:
        shape[axis] = width
        edges.append(table.new(*shape))
    labels = np.concatenate([edges[0], x.labels, edges[1]], axis)

    def move(values):
        if any(any(pair) for i, pair in enumerate(widths) if i != axis):
            values = where_equal(values, fill)
        edge = [np.full(e.shape, float(fill)) for e in edges]
        return np.concatenate([edge[0], values, edge[1]], axis)

    def pad_width(survivors, output):
        new = tuple(survivors.count(edge) for edge in edges)
        return tuple(new if i == axis else width for i, width in enumerate(widths))

    output = take(x, move, labels=[labels], resize={"pad_width": pad_width})
    if fill and isinstance(output, Channels):
        gate_behind(output)
    return output
