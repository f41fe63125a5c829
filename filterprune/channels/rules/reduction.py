"""Operations of `keras.ops` that reduce over axes."""

import keras
import numpy as np

from filterprune.channels.calls import current
from filterprune.channels.constants import spread, values_along
from filterprune.channels.joining import gather
from filterprune.channels.labels import Channels
from filterprune.channels.moves import varied_axes
from filterprune.channels.registry import operation
from filterprune.channels.verbs import along, barrier, same, take

_REDUCTIONS = (
    *("Sum", "Mean", "Max", "Min", "Amax", "Amin", "Var", "Std", "Any", "All"),
    *("Logsumexp", "Median", "Norm", "Prod", "Ptp"),
)

# What they make of a constant depends on how often it is there.
_COUNTING = ("Sum", "Prod", "Norm", "Logsumexp")

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
    name = type(op).__name__
    initial = getattr(op, "initial", None) or 0
    keeps_zero = name != "Logsumexp" and not initial
    counts = name in _COUNTING and any(x.shape[i] is None for i in axes)
    to = kept.index(axis)
    return same(x, axis=axis, to=to, keeps_zero=keeps_zero, even=not counts)


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

    if name == "Mean":  # over fewer channels then, of which none was zero
        binding.after = mean
    elif name in _WITH_ZERO:
        binding.after = extreme
    elif name in _PADDED:
        binding.rewrite = _padded(x, axis, labels)
    return gather([x], labels, [axis])


def _padded(x, axis, labels):
    """A way to put absent zeros back, before the channels are reduced."""

    def rewrite(survivors, args, kwargs):
        absent = labels.size - survivors.count(labels)
        if not absent:
            return args, kwargs
        width = [(0, absent if i == axis else 0) for i in range(x.ndim)]
        return (keras.ops.pad(args[0], width), *args[1:]), kwargs

    return rewrite


def _counts_zeros(order) -> bool:
    return isinstance(order, (int, float)) and order < 0


@operation("Moments")
def moments(op, x):
    axes = [axis % x.ndim for axis in _several(op.axes)]
    varied = varied_axes(x)
    left = [axis for axis in varied if axis not in axes]
    if left:
        along(x, left[-1])  # all else is tied
    elif varied:
        call, labels = current(), along(x, varied[-1])
        call.flow.binding(call).rewrite = _padded(x, varied[-1], labels)
        return [gather([x], labels, varied[-1:]) for _ in call.outputs]

    def reduced(array, unequal):
        for axis in axes:
            first = np.take(array, [0], axis)
            even = (array == first).all(axis, keepdims=True)
            array = first if unequal is None else np.where(even, first, unequal)
        return array if op.keepdims else np.squeeze(array, tuple(axes))

    def move(array):  # the variance of a constant is none
        mean = reduced(array, np.nan)
        return [mean, np.where(np.isnan(mean), np.nan, 0.0)]

    return take(x, move, labels=[reduced(x.labels, None)] * 2)


@operation("Cumprod", "Cumsum", "Diff", "Sort")
def along_positions(op, x):
    varied = varied_axes(x)
    if op.axis is None or op.axis % x.ndim in varied:
        return barrier("it goes through the channels in order")
    even = type(op).__name__ in ("Diff", "Sort")
    return same(x, axis=varied[-1] if varied else -1, keeps_zero=True, even=even)


@operation("Normalize")
def normalize(op, x):
    return normalised(x, _several(op.axis))


def normalised(x: Channels, axes) -> Channels:
    """A tensor divided by its norms along axes: zeros stay, and add nothing to one."""
    axes = [axis % x.ndim for axis in axes]
    varied = varied_axes(x)
    left = [axis for axis in varied if axis not in axes]
    given = [x]
    if varied:
        axis = (left or varied)[-1]  # all else is tied, as in a sum
        labels = along(x, axis)
        if not left:
            given.append(gather([x], labels, [axis], shape=(1,) * x.ndim))
    result = Channels(x.shape, spread(labels, x.ndim, axis) if varied else x.labels)

    def worth(_, values):
        vector = values_along(values[0], axis, labels.size)
        return [spread(np.where(vector == 0, 0.0, np.nan), x.ndim, axis)]

    unknown = np.full(x.labels.shape, np.nan)
    current().step(given, [result], worth if varied else lambda *_: [unknown])
    return result
