"""The five verbs that every rule is written in.

| verb | for | labels | a dead channel is then worth |
|---|---|---|---|
| `mix` | convolution, dense | new | zero, by the gate |
| `same` | activation, batch norm, pooling | kept | what the layer makes of it |
| `take` | reshape, concatenate, slice | moved | moved |
| `join` (`joining.py`) | add, multiply | tied | the operation on dead values |
| `barrier` | what is not understood | fixed | unknown |

Weights are bound by keyword, `kernel="... in out"`: one word an axis, `in` and
`out` for the labels the call reads and makes, `_` for an axis along which
nothing is removed, `...` for any number of those.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from filterprune.channels.activations import activation_of
from filterprune.channels.binding import (
    bind_weights,
    gate_output,
    makes_channels,
    note_resizing,
    with_outputs,
)
from filterprune.channels.calls import Ambiguous, current, describe
from filterprune.channels.constants import (
    GENERIC,
    any_weights,
    count_positions,
    largest_at_zero,
    run_constant_map,
    run_elementwise,
    spread,
    values_along,
)
from filterprune.channels.labels import Channels, fit, squeeze_uniform
from filterprune.channels.registry import weight_of


def channel_axis(layer) -> int:
    """The axis of channels of a layer with a `data_format`, else the last."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def along(x: Channels, axis: int) -> np.ndarray:
    """The labels of `x` along `axis`, of shape `(size,)`; all else is tied."""
    labels = current().flow.table.tie_along(x.labels, axis)
    return np.broadcast_to(labels, (x.size(axis),))


def mix(
    x: Channels,
    *,
    resize=None,
    groups: int = 1,
    repeat: int = 1,
    axis: int | None = None,
    to: int | None = None,
    fold: bool = False,
    gates: Sequence[str] | None = None,
    positions: str | int | None = "out",
    kind: str = "channels",
    bind: dict[str, str] | None = None,
    **weights: str,
) -> Channels:
    """The layer mixes the channels it reads and makes new ones.

    Args:
        x: the `Channels` read.
        resize: the config entry that counts the new channels, such as
            `"filters"`, or a dict from entries to `"in"` or `"out"`.
        groups: in how many groups the channels are mixed.
        repeat: how many channels each one is first turned into (depthwise
            multiplier); weights then call the channels before that `read`.
        axis: the axis of channels; defaults to what `data_format` says.
        fold: whether a constant channel adds the same to every position (no
            padding with zeros), so that it can move into the bias.
        gates: the weights that a closed gate zeroes, the factor first.
            Defaults to all weights with an `out` axis.
        to: the axis of the new channels, if it is not that of those read.
        positions: `"out"` or `"in"`: at which positions the weights are
            multiplied, for the cost; how many those are; or `None` if the weights
            are not multiplied, but looked up.
        kind: what sort of channels it makes: `"channels"` of a convolution, or
            those of a `"dense"` layer.
        bind: the same as `weights`, as a dict.
        **weights: for each weight the names of its axes.

    Returns:
        The `Channels` of the output.
    """
    weights = {**(bind or {}), **weights}
    call = current()
    activation = activation_of(call.op, shape=call.outputs[0])
    axis = channel_axis(call.op) if axis is None else axis
    to = axis if to is None else to
    shape = call.outputs[0]
    table = call.flow.table
    read = along(x, axis)
    mixed = np.repeat(read, repeat)
    made = table.new(shape[to])
    if groups > 1:
        rows = mixed.reshape(groups, -1)
        table.tie(rows[1:], rows[:1])
        columns = made.reshape(groups, -1)
        table.tie(columns[1:], columns[:1])
    known = {"read": read, "in": mixed[: mixed.size // groups], "out": made}
    bind_weights(weights, known)
    note_resizing(resize, known)
    output = Channels(shape, spread(made, len(shape), to))
    if isinstance(positions, str):
        at, of = (output, to) if positions == "out" else (x, axis)
        positions = count_positions(at, of)
    for name in weights:
        wide = len(getattr(weight_of(call.op, name), "shape", ())) > 1
        if wide and positions is not None:
            call.products.append((name, positions))
    if gates is None:
        gates = [name for name, spec in weights.items() if makes_channels(spec)]
    about: dict[str, Any] = {"makes": True, "kind": kind, "reads": read}
    gate_output(output.labels, to % len(shape), gates, weights, **about)
    if not activation.elementwise:
        table.pin(made, coupling(call, activation.name))

    def worth(valuation, values):
        constants = values_along(values[0], axis, read.size)
        valuation.read(call, read, constants, fold and call.holder is None)
        return [np.full(output.labels.shape, np.nan)]

    call.step([x], [output], worth)
    return output


def same(
    x: Channels,
    *,
    axis: int | None = None,
    to: int | None = None,
    repeat: int = 1,
    elementwise: bool = False,
    even: bool = False,
    keeps_zero: bool | None = None,
    gates: Sequence[str] = (),
    resize=None,
    product: str | None = None,
    bind: dict[str, str] | None = None,
    **weights: str,
) -> Channels:
    """The layer works on each channel alone.

    Args:
        x: the `Channels` read.
        axis: the axis of channels of the input; defaults to what
            `data_format` says.
        to: the axis of channels of the output, if it is another.
        repeat: how many channels are made out of each (depthwise multiplier).
        elementwise: whether it even works on each element alone: then labels
            may differ along any axis.
        even: whether a channel that is constant over the map comes out as one
            constant, whatever the sizes that the model leaves open: nothing that
            is read lies outside of the map, and nothing depends on how many
            positions there are. Otherwise a layer is run to find that out, which
            tells nothing of maps of unknown size.
        keeps_zero: `True` if zeros become zeros whatever the weights, `False`
            if they never do; by default the layer is asked.
        gates: the weights that a closed gate zeroes, the factor first.
        resize: config entries that count channels, as in `mix`.
        product: the weight that is multiplied at every output position, for
            the cost.
        bind: the same as `weights`, as a dict.
        **weights: for each weight the names of its axes, `in` and `out`.

    Returns:
        The `Channels` of the output.
    """
    weights = {**(bind or {}), **weights}
    call = current()
    activation = activation_of(call.op, shape=call.outputs[0])
    if not activation.elementwise:
        raise Ambiguous(f"its activation `{activation.name}` couples channels")
    shape = call.outputs[0]
    axis = channel_axis(call.op) if axis is None else axis
    to = axis if to is None else to
    if elementwise and not weights:
        labels = x.labels
        read = made = np.zeros(0, int)
        to = gated_axis(call, x)
        note_resizing(resize, {})
    else:
        read = along(x, axis)
        made = np.repeat(read, repeat)
        labels = x.labels if elementwise else spread(made, len(shape), to)
        known = {"in": read, "out": made}
        bind_weights(weights, known)
        note_resizing(resize, known)
    output = Channels(shape, labels)
    if product is not None:
        call.products.append((product, count_positions(output, to)))
    at_zero = 0.0
    if keeps_zero is None:
        at_zero = largest_at_zero(call, x) if not weights else np.inf
        keeps_zero = at_zero == 0
    keeps_zero = keeps_zero and activation.keeps_zero
    gateable = weights or np.isfinite(at_zero)  # zero times infinity is no zero
    gateable = gateable and shape  # a single number has no axis of channels
    if gateable and (shape[to] is not None or labels.shape[to] > 1):
        whole = list(labels.shape)
        whole[to] = output.size(to)
        gated = np.broadcast_to(labels, whole)
        gate_output(
            gated,
            to % len(shape),
            gates,
            weights,
            makes=False,
            keeps_zero=keeps_zero,
        )

    def worth(valuation, values):
        value = values[0]
        if keeps_zero and not (value[~np.isnan(value)] != 0).any():
            if elementwise:
                return [value]
            vector = values_along(value, axis, x.size(axis))
            return [spread(np.repeat(vector, repeat), len(shape), to)]
        if not read.size:
            return [run_elementwise(call, x, value)]
        vector = values_along(value, axis, x.size(axis))
        weighted = valuation.hypothetical and weights
        zeros = not (vector[~np.isnan(vector)] != 0).any()
        # A convolution makes its bias of zeros, even at the border.
        biased = zeros and product is not None
        if weighted and (biased or (zeros and elementwise and not call.training)):
            result = np.repeat(vector, repeat)
        elif valuation.is_closed(call, ~np.isnan(np.repeat(vector, repeat))):
            result = np.repeat(vector * 0.0, repeat)  # and its gate makes zero of it
        else:  # a weight may yet become different from one position to another
            values = any_weights(call.op) if weighted else ()
            result = run_constant_map(
                call, x, vector, axis, to, repeat, elementwise, even or biased, values
            )
        if weighted:
            result = np.where(np.isnan(result), np.nan, GENERIC)
        valuation.changed(call, np.repeat(read, repeat), result)
        return [spread(result, len(shape), to)]

    call.step([x], [output], worth)
    return output


def normalise(
    x: Channels,
    *,
    axis: int,
    groups: int = 1,
    gates: Sequence[str] = (),
    **weights: str,
) -> Channels:
    """The layer takes statistics over its channels.

    Its masked kin takes them over open gates only, so that it computes what
    the layer computes once the others are gone. Without gates no channel of it
    can be removed.

    Args:
        x: the `Channels` read.
        axis: the axis of channels.
        groups: in how many equal groups the statistics are taken.
        gates: the weights that a closed gate zeroes, the factor first.
        **weights: for each weight the names of its axes, `in`.

    Returns:
        The `Channels` of the output.
    """
    call = current()
    table = call.flow.table
    if call.holder is not None:
        raise Ambiguous(f"it holds {describe(call.op)}, which takes statistics")
    read = along(x, axis)
    if groups > 1:
        rows = read.reshape(groups, -1)
        table.tie(rows[1:], rows[:1])
    bind_weights(weights, {"in": read})
    labels = spread(read, x.ndim, axis)
    output = Channels(call.outputs[0], squeeze_uniform(labels))
    gate_output(labels, axis % x.ndim, gates, weights, makes=False)

    def worth(valuation, values):
        valuation.agree(call, read)
        return [np.full(output.labels.shape, np.nan)]

    call.step([x], [output], worth)
    return output


def take(
    xs: Channels | Sequence[Channels],
    move: Callable,
    *,
    labels: Sequence[np.ndarray] | None = None,
    resize=None,
) -> Channels | list[Channels]:
    """The operation moves channels about and computes nothing.

    Args:
        xs: the `Channels` read.
        move: a function of as many arrays as there are `xs`, each of which
            broadcasts to its tensor, that returns the array (or list of
            arrays) of the output. It is run on labels and on values alike.
        labels: the labels of the outputs, where `move` makes new values.
        resize: config entries to rewrite: a dict from names to functions of
            `survivors`, which has `count(labels)` and `size(channels, axis)`.

    Returns:
        The `Channels` of the output, or a list of them.
    """
    call = current()
    xs = [xs] if isinstance(xs, Channels) else list(xs)
    moved = labels or move(*[x.labels for x in xs])
    several = isinstance(moved, (list, tuple)) and len(call.outputs) > 1
    moved = list(moved) if isinstance(moved, (list, tuple)) else [moved]
    arrays = [squeeze_uniform(np.asarray(a)) for a in moved]
    outputs = [
        Channels(shape, labels)
        for shape, labels in zip(call.outputs, arrays, strict=True)
    ]
    if resize is not None:
        note_resizing(
            {key: with_outputs(fn, outputs) for key, fn in resize.items()}, {}
        )

    def worth(valuation, values):
        full = [np.broadcast_to(v, x.labels.shape) for v, x in zip(values, xs)]
        result = move(*full)
        result = result if isinstance(result, (list, tuple)) else [result]
        for channels, value in zip(outputs, result, strict=True):
            valuation.changed(call, channels.labels, fit(value, channels.labels.shape))
        return [np.asarray(a) for a in result]

    call.step(xs, outputs, worth)
    return outputs if several else outputs[0]


def coupling(call, name: str) -> str:
    """Why the channels that a function such as softmax couples must stay."""
    return f"{describe(call.op)} couples its channels by `{name}`"


def fixed(x: Channels, reason: str) -> Channels:
    """The operation is understood, and its channels cannot be removed.

    Args:
        x: the `Channels` read, of the shape of the output.
        reason: why, as a sentence for the report.

    Returns:
        The `Channels` of the output.
    """
    call = current()
    call.flow.table.pin(x.labels, reason)
    return Channels(call.outputs[0], x.labels)


def barrier(reason: str) -> Channels:
    """The call is not understood: what it reads and makes is never removed.

    Args:
        reason: why, in words that complete "`name` ...".

    Raises:
        Ambiguous: always; the analysis turns it into a barrier.
    """
    raise Ambiguous(reason)


def gated_axis(call, x: Channels) -> int:
    """The axis that a gate on an element-wise layer runs along."""
    if call.mask is not None:
        return call.mask.axis
    several = [axis for axis, size in enumerate(x.labels.shape) if size > 1]
    return several[0] if len(several) == 1 else -1
