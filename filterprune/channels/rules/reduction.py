"""Operations of `keras.ops` that reduce over axes, or sum over channels."""

import math

import keras
import numpy as np
from keras import layers

from filterprune.channels.binding import bind_constants
from filterprune.channels.flow import current
from filterprune.channels.joining import gather, join
from filterprune.channels.labels import Channels
from filterprune.channels.moves import varied_axes
from filterprune.channels.registry import operation, rule
from filterprune.channels.verbs import along, barrier, same, take

_REDUCTIONS = (
    *("Sum", "Mean", "Max", "Min", "Amax", "Amin", "Var", "Std", "Any", "All"),
    *("Logsumexp", "Median", "Norm", "Prod", "Ptp"),
)

# Over channels they make nothing of the others, where absent ones are zeros.
_SPOILED = {"All": "asks all channels", "Prod": "multiplies channels"}

# Where absent zeros count: they are put back before the channels are reduced.
_PADDED = ("Logsumexp", "Median", "Ptp", "Std", "Var")

# What absent channels, which are zeros, add to the result over the others.
_WITH_ZERO = {"Max": keras.ops.relu, "Amax": keras.ops.relu}
_WITH_ZERO |= dict.fromkeys(("Min", "Amin"), lambda x: -keras.ops.relu(-x))


@operation(*_REDUCTIONS)
def reduce(op, x):
    every = range(x.ndim)
    axes = every if op.axis is None else [axis % x.ndim for axis in _several(op.axis)]
    varied = varied_axes(x)
    kept = [axis for axis in every if op.keepdims or axis not in axes]
    if not varied:
        ndim = len(current().outputs[0])
        return take(x, lambda a: a.reshape((1,) * ndim))
    left = [axis for axis in varied if axis not in axes]
    if not left:
        return _over_channels(op, x, varied)
    axis = left[-1]  # all else is tied
    keeps_zero = type(op).__name__ != "Logsumexp"
    return same(x, axis=axis, to=kept.index(axis), keeps_zero=keeps_zero)


def _several(axis):
    return [axis] if isinstance(axis, int) else axis


def _over_channels(op, x, varied):
    name = type(op).__name__
    if name in _SPOILED:
        return barrier(f"it {_SPOILED[name]}, and absent ones are zero")
    if name == "Norm" and _counts_zeros(op.ord):
        return barrier(f"in its norm of order {op.ord} absent channels would count")
    axis = varied[-1]
    call = current()
    labels = call.flow.table.tie_along(x.labels, axis)
    binding = call.flow.binding(call)

    def absent(survivors) -> int:
        return labels.size - survivors.count(labels)

    def mean(survivors):
        if not absent(survivors):
            return None
        # A quotient: Keras takes the product of a tensor and a number to be sparse,
        # and then loses the shape of what a layer of one's own makes of it.
        count = labels.size / survivors.count(labels)
        return lambda outputs: outputs / count

    def extreme(survivors):
        return _WITH_ZERO[name] if absent(survivors) else None

    def padded(survivors, args, kwargs):
        width = [(0, absent(survivors) if i == axis else 0) for i in range(x.ndim)]
        if not absent(survivors):
            return args, kwargs
        return (keras.ops.pad(args[0], width), *args[1:]), kwargs

    if name == "Mean":  # over fewer channels then, of which none was zero
        binding.after = mean
    elif name in _WITH_ZERO:
        binding.after = extreme
    elif name in _PADDED:
        binding.rewrite = padded
    return gather([x], labels, [axis])


def _counts_zeros(order) -> bool:
    return isinstance(order, (int, float)) and order < 0


@operation("Moments")
def moments(op, x):
    axes = [axis % x.ndim for axis in _several(op.axes)]
    if any(axis in axes for axis in varied_axes(x)):
        return barrier("its mean and variance run over channels")

    def mean(array):
        return array if op.keepdims else np.squeeze(array, tuple(axes))

    def move(array):  # the variance of a constant is none
        return [mean(array), mean(np.where(np.isnan(array), np.nan, 0.0))]

    return take(x, move, labels=[mean(x.labels)] * 2)


@operation("Cumprod", "Cumsum", "Diff", "Sort")
def along_positions(op, x):
    varied = varied_axes(x)
    if op.axis is None or op.axis % x.ndim in varied:
        return barrier("it goes through the channels in order")
    return same(x, axis=varied[-1] if varied else -1, keeps_zero=True)


@operation("Normalize")
def normalize(op, x):
    varied = varied_axes(x)
    axes = [axis % x.ndim for axis in _several(op.axis)]
    axis = varied[-1] if varied else -1
    if axis not in axes:
        return same(x, axis=axis, keeps_zero=True)
    norms = gather([x], along(x, axis), [axis], shape=(1,) * x.ndim)
    return join([x, norms], np.divide, zero_wins=True)  # zeros add nothing to a norm


@operation("Matmul")
def matmul(op, x1, x2):
    ranks = [len(x.shape) for x in (x1, x2)]
    if min(ranks) < 2:
        return barrier("it multiplies by a vector")
    batch = [f"b{i}" for i in range(max(ranks) - 2)]
    names1 = [*batch[len(batch) - ranks[0] + 2 :], "i", "k"]
    names2 = [*batch[len(batch) - ranks[1] + 2 :], "k", "j"]
    return contract([x1, x2], [names1, names2], [*batch, "i", "j"])


@operation("Tensordot")
def tensordot(op, x1, x2):
    ranks = [len(x.shape) for x in (x1, x2)]
    if isinstance(op.axes, int):
        summed = [range(ranks[0] - op.axes, ranks[0]), range(op.axes)]
    else:
        summed = [_several(axes) for axes in op.axes]
    names = [[f"{letter}{i}" for i in range(n)] for letter, n in zip("pq", ranks)]
    for number, (first, second) in enumerate(zip(*summed, strict=True)):
        names[0][first] = names[1][second] = f"k{number}"
    output = [name for own in names for name in own if name[0] != "k"]
    return contract([x1, x2], names, output)


@rule(layers.Dot)
def dot(layer, xs):
    if layer.normalize:
        return barrier("`normalize=True` takes a norm over channels")
    x1, x2 = xs
    axes = layer.axes
    axes = (axes, axes) if isinstance(axes, int) else tuple(axes)
    names1 = ["b", *(f"p{i}" for i in range(1, x1.ndim))]
    names2 = ["b", *(f"q{i}" for i in range(1, x2.ndim))]
    names1[axes[0]] = names2[axes[1]] = "k"
    output = ["b", *(n for n in names1[1:] + names2[1:] if n != "k")]
    return contract([x1, x2], [names1, names2], output)


@operation("Einsum")
def einsum(op, *xs):
    text = op.subscripts.replace(" ", "")
    if "..." in text or "->" not in text:
        return barrier(f"its subscripts '{op.subscripts}' are not spelled out")
    inputs, output = text.split("->")
    return contract(xs, [list(names) for names in inputs.split(",")], list(output))


def contract(xs, names, output):
    """Sums of products, the axes of each operand given by name.

    Args:
        xs: the `Channels` multiplied, and constant arrays.
        names: for each of `xs` the names of its axes.
        output: the names of the output's axes; all others are summed over.
    """
    table = current().flow.table
    constants = [(x, n) for x, n in zip(xs, names) if not isinstance(x, Channels)]
    names = [n for x, n in zip(xs, names) if isinstance(x, Channels)]
    xs = [x for x in xs if isinstance(x, Channels)]
    places: dict[str, list[tuple[int, int]]] = {}
    for number, (x, axes) in enumerate(zip(xs, names, strict=True)):
        varied = varied_axes(x)
        if len(varied) > 1:
            table.tie_along(x.labels, varied[-1])
        if varied:
            places.setdefault(axes[varied[-1]], []).append((number, varied[-1]))
    if len(places) == 1:
        _bind_constants(constants, places, xs)
    if len(places) > 1 or any(name in output for name in places):
        return _kept_channels(xs, names, places, output)
    shape = current().outputs[0]
    if not places:
        unknown = np.full((1,) * len(shape), np.nan)
        return take(list(xs), lambda *_: unknown, labels=[table.new(*unknown.shape)])
    ((name, found),) = places.items()
    vectors = [table.tie_along(xs[number].labels, axis) for number, axis in found]
    operands = [xs[number] for number, _ in found]
    axes = [axis for _, axis in found]
    for number, (x, own) in enumerate(zip(xs, names, strict=True)):
        if name in own and number not in [n for n, _ in found]:
            table.tie(x.labels.ravel()[:1], vectors[0])  # none can be told apart
    for vector in vectors[1:]:
        table.tie(vectors[0], vector)
    return gather(operands, vectors[0], axes)


def _bind_constants(constants, places, xs) -> None:
    """Let constant operands lose what the tensors lose."""
    ((name, ((number, axis), *_)),) = places.items()
    vector = current().flow.table.tie_along(xs[number].labels, axis)
    for array, names in constants:
        if name not in names or array.shape[names.index(name)] != vector.size:
            continue
        bind_constants(vector, [(array, names.index(name))])


def _kept_channels(xs, names, places, output):
    """One axis of channels that is not summed over; more are not separable."""
    kept = [name for name in places if name in output]
    if len(places) > 1 or len(places[kept[0]]) != 1:
        return barrier("it multiplies tensors along several axes of channels")
    (name,) = kept
    ((number, axis),) = places[name]
    vector = current().flow.table.tie_along(xs[number].labels, axis)
    for other, (x, own) in enumerate(zip(xs, names, strict=True)):
        if other != number and name in own and x.shape[own.index(name)] != 1:
            current().flow.table.tie(x.labels.ravel()[:1], vector)
    return same_rows(xs, number, axis, output.index(name))


def same_rows(xs, number, axis, to):
    """The output has the channels of one operand, along axis `to`."""
    call = current()
    shape = call.outputs[0]
    vector = call.flow.table.tie_along(xs[number].labels, axis)
    spread = [1] * len(shape)
    spread[to] = vector.size
    rank = math.prod(spread)

    def move(*arrays):
        rows = np.moveaxis(arrays[number], axis, -1).reshape(-1, rank)
        zero = (rows == 0).all(axis=0)
        return np.where(zero, 0.0, np.nan).reshape(spread)

    return take(list(xs), move, labels=[vector.reshape(spread)])
