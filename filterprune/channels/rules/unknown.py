"""Layers that no rule is known for: channel-wise if a probe proves it."""

import keras

from filterprune.channels.flow import current
from filterprune.channels.labels import Channels
from filterprune.channels.moves import varied_axes
from filterprune.channels.probing import hidden_layers, probe
from filterprune.channels.registry import for_unknown
from filterprune.channels.verbs import barrier, join_unknown, same

_NO_RULE = "no rule is known for it"


@for_unknown
def unknown(layer, *args):
    call = current()
    xs = [x for x in keras.tree.flatten(args) if isinstance(x, Channels)]
    mask = call.mask
    if len(xs) == 1 and mask is not None and not varied_axes(xs[0]):
        return same(xs[0], axis=mask.axis, keeps_zero=False)
    reason = hidden_layers(layer)
    if reason is None:
        axis, reason = _common_axis(call, args, xs)
    if reason is not None:
        return barrier(f"{_NO_RULE}, and {reason}")
    shapes = [x.shape for x in xs]
    dtypes = [tensor.dtype for tensor in call.node.inputs]
    found = probe(layer, shapes, dtypes, axis)
    if found.reason is not None:
        return barrier(f"{_NO_RULE}, and {found.reason}")
    specs = {
        f"#{number}": " ".join(
            "in" if i == place else "_" for i in range(len(layer.weights[number].shape))
        )
        for number, place in found.weights
    }
    resize = dict.fromkeys(found.config, "in")
    if len(xs) > 1:
        return join_unknown(xs, axis, resize, specs, found.keeps_zero)
    keeps_zero = found.keeps_zero or None
    return same(xs[0], axis=axis, keeps_zero=keeps_zero, resize=resize, bind=specs)


def _common_axis(call, args, xs) -> tuple[int, str | None]:
    """The axis of channels of all inputs and the output, or why there is none."""
    if len(call.outputs) != 1:
        return -1, "it has several outputs"
    if not xs or not all(x.ndim == len(call.outputs[0]) > 1 for x in xs):
        return -1, "its input and output differ in rank"
    if any(x.shape != xs[0].shape for x in xs):
        return -1, "its inputs differ in shape"
    if not _simple(args, len(xs)):
        return -1, "it is called with other arguments"
    # The last of several; what differs along the others is then tied.
    axis = max([axis for x in xs for axis in varied_axes(x)], default=xs[0].ndim - 1)
    if xs[0].shape[axis] is None or call.outputs[0][axis] != xs[0].shape[axis]:
        return -1, "its input and output differ in channels"
    return axis, None


def _simple(args, count) -> bool:
    """Whether a layer is called with one tensor, or one list of tensors."""
    if len(args) != 1:
        return False
    first = args[0]
    return isinstance(first, Channels) or (
        isinstance(first, list) and len(first) == count
    )
