"""Sums of products of tensors: what attention written by hand is made of."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from filterprune.channels.binding import bind_constants
from filterprune.channels.calls import current, describe
from filterprune.channels.constants import spread, values_along
from filterprune.channels.joining import gather
from filterprune.channels.labels import Channels
from filterprune.channels.moves import varied_axes
from filterprune.channels.verbs import barrier


def contract(
    xs: Sequence[Any],
    names: Sequence[Sequence[str]],
    output: Sequence[str],
    shape: tuple | None = None,
) -> Channels:
    """Sums of products, the axes of each operand given by name.

    Where operands have an axis in common that the output has too, and channels
    differ along it, those are heads: each is multiplied by itself alone. Else
    channels are summed over, or are those of one operand.

    Args:
        xs: the `Channels` multiplied, and constant arrays.
        names: for each of `xs` the names of its axes.
        output: the names of the output's axes; all others are summed over.
        shape: the shape of what is made, if that is not the call's output.

    Returns:
        The `Channels` of what is made.
    """
    call = current()
    table = call.flow.table
    shape = call.outputs[0] if shape is None else shape
    constants = [(x, n) for x, n in zip(xs, names) if not isinstance(x, Channels)]
    names = [n for x, n in zip(xs, names) if isinstance(x, Channels)]
    xs = [x for x in xs if isinstance(x, Channels)]
    heads = _heads(xs, names, output)
    if heads is not None:
        vector = _tie_heads(xs, names, heads, output)
        _count(xs, names, constants, {heads: vector})
        return _product(xs, names, heads, vector, output.index(heads), shape)
    places: dict[str, list[tuple[int, int]]] = {}
    for number, (x, axes) in enumerate(zip(xs, names, strict=True)):
        varied = varied_axes(x)
        if len(varied) > 1:
            table.tie_along(x.labels, varied[-1])
        if varied:
            places.setdefault(axes[varied[-1]], []).append((number, varied[-1]))
    places = _separable(xs, places, output)
    if places:
        _bind_constants(constants, places, xs)
    if any(name in output for name in places):
        return _kept_channels(xs, names, constants, places, output, shape)
    if not places:
        _count(xs, names, constants, {})
        return unlabelled(xs, shape)
    ((name, found),) = places.items()
    vectors = [table.tie_along(xs[number].labels, axis) for number, axis in found]
    _count(xs, names, constants, {name: vectors[0]})
    operands = [xs[number] for number, _ in found]
    summed = [axis for _, axis in found]
    for number, (x, own) in enumerate(zip(xs, names, strict=True)):
        if name in own and number not in [n for n, _ in found]:
            table.tie(x.labels.ravel()[:1], vectors[0])  # none can be told apart
    for vector in vectors[1:]:
        table.tie(vectors[0], vector)
    if len(vectors) > 1:
        call.flow.marks.append((vectors[0], "key_dim"))
    return gather(operands, vectors[0], summed, shape=shape)


def tensordot_axes(axes, *ranks: int) -> tuple[list[list[str]], list[str]]:
    """The axes of the operands and of the output of a `tensordot`, by name.

    Args:
        axes: those summed over: how many, or for each operand which.
        ranks: how many axes the two operands have.
    """
    if isinstance(axes, int):
        summed: list = [range(ranks[0] - axes, ranks[0]), range(axes)]
    else:
        summed = [[own] if isinstance(own, int) else own for own in axes]
    names = [[f"{letter}{i}" for i in range(n)] for letter, n in zip("pq", ranks)]
    for number, (first, second) in enumerate(zip(*summed, strict=True)):
        names[0][first] = names[1][second] = f"k{number}"
    return names, [name for own in names for name in own if name[0] != "k"]


def _separable(xs, places: dict, output) -> dict:
    """The axis whose channels can be told apart in the output; those of others stay.

    It is the longest of the output's, for a tensor loses channels along one axis.
    """
    if len(places) < 2:
        return places
    call = current()
    sizes = {name: xs[found[0][0]].size(found[0][1]) for name, found in places.items()}
    best = max(places, key=lambda name: (name in output, sizes[name]))
    for name, found in places.items():
        for number, _ in found if name != best else ():
            reason = f"{describe(call.op)} multiplies tensors along several axes"
            call.flow.table.pin(xs[number].labels, f"{reason} of channels")
    return {best: places[best]}


def _heads(xs, names, output) -> str | None:
    """The axis of heads: one that operands have in common with the output."""
    for name in output:
        sizes = [x.shape[n.index(name)] for x, n in zip(xs, names) if name in n]
        varied = any(
            name in own and x.labels.shape[own.index(name)] > 1
            for x, own in zip(xs, names, strict=True)
        )
        if varied and len(sizes) > 1 and _apart(xs, names, name):
            return name
    return None


def _apart(xs, names, name) -> bool:
    """Whether an operand has other axes of channels, or all tell these apart."""
    having = [(x, n.index(name)) for x, n in zip(xs, names) if name in n]
    several = any(len(varied_axes(x)) > 1 for x, _ in having)
    return several or all(
        x.labels.shape[axis] > 1 or x.shape[axis] == 1 for x, axis in having
    )


def _tie_heads(xs, names, heads, output) -> np.ndarray:
    """Tie all channels of a head, in all operands; the labels of heads."""
    call = current()
    table = call.flow.table
    vectors = []
    for x, own in zip(xs, names, strict=True):
        axis = own.index(heads) if heads in own else None
        if axis is None or x.shape[axis] == 1:
            if varied_axes(x):
                table.pin(x.labels, f"all heads share it in {describe(call.op)}")
            continue
        vector = table.tie_along(x.labels, axis)
        vectors.append(np.broadcast_to(vector, (x.size(axis),)))
    widest = max(vectors, key=lambda vector: np.unique(vector).size)
    for vector in vectors:
        table.tie(widest, vector)
    if any(name not in output for own in names for name in own):
        call.flow.marks.append((widest, "heads"))
    return widest


def _product(xs, names, heads, vector, to, shape) -> Channels:
    """What heads give: nothing where one of the factors is nothing."""
    result = Channels(shape, spread(vector, len(shape), to))
    axes = [own.index(heads) if heads in own else None for own in names]

    def worth(valuation, values):
        zero = np.zeros(vector.size, bool)
        for value, axis in zip(values, axes, strict=True):
            if axis is not None:
                zero |= values_along(value, axis, vector.size) == 0
        return [spread(np.where(zero, 0.0, np.nan), len(shape), to)]

    current().step(xs, [result], worth)
    return result


def unlabelled(xs, shape) -> Channels:
    """What is made of tensors without channels to tell apart."""
    call = current()
    result = Channels(shape, call.flow.table.new(*(1,) * len(shape)))
    call.step(xs, [result], lambda *_: [np.full(result.labels.shape, np.nan)])
    return result


def _bind_constants(constants, places, xs) -> None:
    """Let constant operands lose what the tensors lose."""
    ((name, ((number, axis), *_)),) = places.items()
    vector = current().flow.table.tie_along(xs[number].labels, axis)
    for array, names in constants:
        if name not in names or array.shape[names.index(name)] != vector.size:
            continue
        bind_constants(vector, [(array, names.index(name))])


def _kept_channels(xs, names, constants, places, output, shape) -> Channels:
    """One axis of channels that is not summed over."""
    ((name, found),) = places.items()
    if len(found) != 1:
        barrier("it multiplies tensors along several axes of channels")
    ((number, axis),) = found
    vector = current().flow.table.tie_along(xs[number].labels, axis)
    for other, (x, own) in enumerate(zip(xs, names, strict=True)):
        if other != number and name in own and x.shape[own.index(name)] != 1:
            current().flow.table.tie(x.labels.ravel()[:1], vector)
    _count(xs, names, constants, {name: vector})
    if len(xs) > 1:
        current().flow.marks.append((vector, "value_dim"))
    return same_rows(xs, number, axis, output.index(name), shape)


def same_rows(xs, number, axis, to, shape) -> Channels:
    """The output has the channels of one operand, along axis `to`."""
    call = current()
    vector = call.flow.table.tie_along(xs[number].labels, axis)
    result = Channels(shape, spread(vector, len(shape), to))

    def worth(valuation, values):
        rows = np.moveaxis(values[number], axis, -1).reshape(-1, vector.size)
        zero = (rows == 0).all(axis=0)
        return [spread(np.where(zero, 0.0, np.nan), len(shape), to)]

    call.step(list(xs), [result], worth)
    return result


def _count(xs, names, constants, labelled: dict[str, np.ndarray]) -> None:
    """Note the cost: a product for each place along all axes, but the samples'."""
    sizes: dict[str, int] = {}
    for x, own in [*zip(xs, names, strict=True), *constants]:
        for name, size in zip(own, x.shape, strict=True):
            sizes[name] = max(sizes.get(name, 1), size or 1)
    samples = {own[0] for x, own in zip(xs, names, strict=True) if x.shape[0] is None}
    rest = [
        size
        for name, size in sizes.items()
        if name not in labelled and name not in samples
    ]
    current().products.append((tuple(labelled.values()), math.prod(rest)))
