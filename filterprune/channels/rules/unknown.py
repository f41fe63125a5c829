"""Layers that no rule is known for: channel-wise if a probe proves it."""

import keras

from filterprune.channels.calls import current
from filterprune.channels.joining import join_unknown
from filterprune.channels.labels import Channels
from filterprune.channels.moves import varied_axes
from filterprune.channels.probing import hidden_layers, probe
from filterprune.channels.registry import for_unknown, why_whole
from filterprune.channels.trace import Node, parts_of, without_mask
from filterprune.channels.verbs import barrier, same

_NO_RULE = "no rule is known for it"


@for_unknown
def unknown(layer, *args, **kwargs):
    call = current()
    xs = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Channels)]
    mask = call.mask
    if len(xs) == 1 and mask is not None and not varied_axes(xs[0]):
        return same(xs[0], axis=mask.axis, keeps_zero=False)
    reason = hidden_layers(layer)
    if reason is None:
        axis, reason = _common_axis(call, xs)
    if reason is not None:
        return barrier(f"{_NO_RULE}, and {reason}{_untraced(layer)}")
    found = probe(layer, _without_mask(layer, call.node), axis, call.training)
    if found.reason is not None:
        return barrier(f"{_NO_RULE}, and {found.reason}{_untraced(layer)}")
    call.flow.binding(call).whole = found.whole
    specs = {
        f"#{number}": " ".join(
            "in" if i == place else "_" for i in range(len(layer.weights[number].shape))
        )
        for number, place in found.weights
    }
    resize = dict.fromkeys(found.config, "in")
    if len(xs) > 1:
        return join_unknown(xs, axis, resize, specs, found.keeps_zero)
    zero = found.keeps_zero
    return same(xs[0], axis=axis, keeps_zero=zero, resize=resize, bind=specs)


def _untraced(layer) -> str:
    """Why what the layer computes could not be looked into, if that was tried."""
    reason = None if parts_of(layer) else why_whole(layer)
    return f"; what it computes cannot be traced: {reason}" if reason else ""


def _common_axis(call, xs) -> tuple[int, str | None]:
    """The axis of channels of all inputs and the output, or why there is none."""
    if len(call.outputs) != 1:
        return -1, "it has several outputs"
    if not xs or not all(x.ndim == len(call.outputs[0]) > 1 for x in xs):
        return -1, "its input and output differ in rank"
    if any(x.shape != xs[0].shape for x in xs):
        return -1, "its inputs differ in shape"
    # The last of several; what differs along the others is then tied.
    axis = max([axis for x in xs for axis in varied_axes(x)], default=xs[0].ndim - 1)
    if xs[0].shape[axis] is None or call.outputs[0][axis] != xs[0].shape[axis]:
        return -1, "its input and output differ in channels"
    return axis, None


def _without_mask(layer, node: Node) -> Node:
    """The call without a mask that the layer takes no notice of."""
    kwargs = without_mask(layer, node.kwargs)
    left = {id(value) for value in keras.tree.flatten((node.args, kwargs))}
    inputs = tuple(tensor for tensor in node.inputs if id(tensor) in left)
    return Node(node.op, node.args, kwargs, inputs, node.outputs)
