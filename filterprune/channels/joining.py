"""The verb `join`, and its kin: several tensors become one."""

from collections.abc import Callable, Sequence

import numpy as np

from filterprune.channels.binding import bind_weights, gate_output, note_resizing
from filterprune.channels.calls import current
from filterprune.channels.constants import GENERIC, spread, values_along
from filterprune.channels.labels import Channels, fit
from filterprune.channels.verbs import along, gated_axis


def join(
    xs: Sequence[Channels], combine: Callable, *, zero_wins: bool = False
) -> Channels:
    """The operation joins tensors element by element.

    Args:
        xs: the `Channels` read, of one rank, sizes equal or 1.
        combine: a function of as many numpy arrays that does what the
            operation does.
        zero_wins: whether one zero makes the result zero whatever the rest,
            as in a product, or the numerator in a quotient.

    Returns:
        The `Channels` of the output.
    """
    call = current()
    shape = call.outputs[0]
    table = call.flow.table
    given = xs
    xs = [_of_rank(x, len(shape)) for x in xs]
    sizes = [
        max((x.labels.shape[axis] for x in xs), default=1) for axis in range(len(shape))
    ]
    # A single channel spread over the others (a spatial gate) does not tie.
    ties = [
        x.labels.size > 1
        or all(
            size == 1 or x.shape[axis] != 1 or shape[axis] == 1
            for axis, size in enumerate(sizes)
        )
        for x in xs
    ]
    if not any(ties):  # an outer product of several broadcast operands
        ties = [True] * len(xs)
    led = _led(xs, ties)
    tied = [
        x.labels for x, is_tied, is_led in zip(xs, ties, led) if is_tied and not is_led
    ]
    for labels in tied[1:]:
        table.tie(tied[0], labels)
    labels = np.broadcast_arrays(*tied)[0] if len(tied) > 1 else tied[0]
    for x, is_led in zip(given, led):
        if is_led:
            x.labels = labels
    output = Channels(shape, labels)
    if any(x.constant is not None for x in xs):
        _gate_behind(output, xs, combine)
    elif not (all(ties) or zero_wins):  # such as a mean that is subtracted
        gate_behind(output)

    def worth(valuation, values):
        operands = []
        for x, value, is_tied in zip(xs, values, ties):
            if x.constant is None:
                value = value.reshape(x.labels.shape)
            if not is_tied and valuation.hypothetical and x.constant is None:
                value = np.full(value.shape, np.nan)
            operands.append(value)
        with np.errstate(all="ignore"):
            result = np.asarray(combine(*operands), "float64")
            if zero_wins:
                zero = _zero_whatever(combine, xs, operands, ties)
                result = np.where(zero, 0.0, result)
        result = np.where(np.isfinite(result), result, np.nan)
        result = fit(
            result.reshape((1,) * (len(shape) - result.ndim) + result.shape),
            labels.shape,
        )
        valuation.changed(call, labels, result)
        return [result]

    call.step(given, [output], worth)
    return output


def _led(xs, ties) -> list[bool]:
    """Which constants lose what the output loses, and tie none of its channels.

    A factor for each dimension of a head is none that makes heads die together.
    """
    tensors = [x for x, is_tied in zip(xs, ties) if is_tied and x.constant is None]

    def is_met(x) -> bool:
        """Whether tensors tell apart all that it tells apart."""
        return all(
            size == 1 or any(tensor.labels.shape[axis] > 1 for tensor in tensors)
            for axis, size in enumerate(x.labels.shape)
        )

    return [x.constant is not None and bool(tensors) and is_met(x) for x in xs]


def _gate_behind(output: Channels, xs, combine) -> None:
    """Let gates close what a constant makes of absent channels, if not zeros."""
    operands = [0.0 if x.constant is None else x.constant for x in xs]
    with np.errstate(all="ignore"):
        made = np.asarray(combine(*operands), "float64")
    if made.any() and np.isfinite(made).all():  # zero times infinity is no zero
        gate_behind(output)


def gate_behind(output: Channels) -> None:
    """Let gates close channels of the output of an operation, where that frees any."""
    if not output.shape:  # a single number has no axis of channels
        return
    call = current()
    axis = gated_axis(call, output)
    whole = list(output.labels.shape)
    whole[axis] = output.size(axis)
    if "float" in call.node.outputs[0].dtype and whole[axis] != 1:
        labels = np.broadcast_to(output.labels, whole)
        gate_output(labels, axis % output.ndim, (), {}, makes=False, behind=True)


def _zero_whatever(combine, xs, values, ties) -> np.ndarray:
    """Where a product or quotient is zero, whatever is unknown in it.

    An unknown operand may be zero itself. One that all channels share may not:
    divided by zero none of them is a number, in a model without gates neither.
    """

    def filled(unknown):
        return [
            np.where(
                np.isnan(value) & (x.constant is None),
                unknown if is_tied else GENERIC,
                value,
            )
            for x, value, is_tied in zip(xs, values, ties, strict=True)
        ]

    return (combine(*filled(GENERIC)) == 0) & (combine(*filled(0.0)) == 0)


def gather(
    xs: Sequence[Channels],
    labels: np.ndarray,
    axes: Sequence[int],
    output: np.ndarray | None = None,
    shape: tuple | None = None,
    every: bool = False,
) -> Channels:
    """The operation sums products over channels, without weights of its own.

    Args:
        xs: the `Channels` multiplied.
        labels: the labels summed over, `(channels,)`.
        axes: the axis of each of `xs` that is summed over.
        output: the labels of the output, of its rank; none can be removed by
            default.
        shape: the shape of what is summed, if that is not the call's output.
        every: whether a channel adds nothing only where all of `xs` are zero, and
            not where one is.

    Returns:
        The `Channels` of the output. A channel can be removed if it adds
        nothing.
    """
    call = current()
    shape = call.outputs[0] if shape is None else shape
    if output is None:
        output = call.flow.table.new(*(1,) * len(shape))
    result = Channels(shape, output)

    def worth(valuation, values):
        vectors = [
            values_along(value, axis, labels.size)
            for value, axis in zip(values, axes, strict=True)
        ]
        reduce = np.logical_and.reduce if every else np.logical_or.reduce
        zero = reduce([vector == 0 for vector in vectors])
        valuation.read(call, labels, np.where(zero, 0.0, np.nan), fold=False)
        return [np.full(output.shape, np.nan)]

    call.step(xs, [result], worth)
    return result


def join_unknown(xs, axis: int, resize, weights, keeps_zero: bool) -> Channels:
    """A layer of several inputs that a probe proved to be channel-wise."""
    call = current()
    table = call.flow.table
    read = along(xs[0], axis)
    for x in xs[1:]:
        table.tie(read, along(x, axis))
    known = {"in": read}
    bind_weights(weights, known)
    note_resizing(resize, known)
    shape = call.outputs[0]
    output = Channels(shape, spread(read, len(shape), axis))

    def worth(valuation, values):
        vectors = [values_along(value, axis, read.size) for value in values]
        zero = np.logical_and.reduce([vector == 0 for vector in vectors])
        result = np.where(zero & keeps_zero, 0.0, np.nan)
        valuation.changed(call, read, result)
        return [spread(result, len(shape), axis)]

    call.step(xs, [output], worth)
    return output


def constant(value, beside: Sequence[Channels] = ()) -> Channels:
    """The channels of a constant operand, such as the `2.0` in `x * 2.0`.

    Args:
        value: a number or an array.
        beside: the tensors that it meets, of a rank not below its own. It has
            labels only where they tell channels apart: what differs from
            position to position, such as a window function, ties no channels.
    """
    call = current()
    array = np.asarray(value)
    axes = range(-array.ndim, 0)
    varied = {axis for axis in axes for x in beside if x.labels.shape[axis] > 1}
    if not varied:  # then it may make several channels of one
        varied = {axis for axis in axes if all(x.shape[axis] == 1 for x in beside)}
    shape = [array.shape[axis] if axis in varied else 1 for axis in axes]
    labels = call.flow.table.new(*shape)
    return Channels(array.shape, labels, constant=array.astype("float64"))


def _of_rank(x: Channels, ndim: int) -> Channels:
    """`x` with axes of size 1 put behind the batch axis, as Keras merges do."""
    missing = ndim - x.ndim
    if not missing:
        return x
    if x.constant is not None or not x.ndim:
        ones = (1,) * missing
        labels = x.labels.reshape(ones + x.labels.shape)
        return Channels(ones + x.shape, labels, x.constant)
    shape = x.shape[:1] + (1,) * missing + x.shape[1:]
    old = x.labels.shape
    labels = x.labels.reshape(old[:1] + (1,) * missing + old[1:])
    return Channels(shape, labels, x.constant)
