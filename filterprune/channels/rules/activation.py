"""Activation layers."""

from keras import layers

from filterprune.channels.activations import activation_of
from filterprune.channels.calls import current, describe
from filterprune.channels.labels import Channels
from filterprune.channels.moves import varied_axes
from filterprune.channels.registry import known_type, operation, rule
from filterprune.channels.verbs import barrier, coupling, fixed, normalise, same


@rule(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU)
def activation(layer, x):
    facts = activation_of(layer, shape=current().outputs[0])
    if facts.name == "softmax":
        return _softmax(x, [x.ndim - 1])
    if not facts.elementwise:
        return fixed(x, coupling(current(), facts.name))
    # A function was run once, for all layers that have it.
    known = facts.keeps_zero and known_type(type(layer)) is layers.Activation
    return same(x, elementwise=True, keeps_zero=known or None)


@rule(layers.PReLU)
def prelu(layer, x):
    # One slope for each position; a shared axis has size 1 and is not bound.
    axis = _axis_of_channels(x)
    bound = layer.alpha.shape[axis - 1] == x.shape[axis] != 1
    axes = range(1, x.ndim)
    spec = " ".join("in" if bound and i == axis else "_" for i in axes)
    return same(x, axis=axis, elementwise=True, keeps_zero=True, alpha=spec)


@rule(layers.Softmax)
def softmax(layer, x, mask=None):
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = [axis % x.ndim for axis in axes]
    if mask is None:
        return _softmax(x, axes)
    axis = _axis_of_channels(x)
    if axis in axes or not isinstance(mask, Channels) or varied_axes(mask):
        return barrier("it is called with a mask of channels")
    return same(x, axis=axis, keeps_zero=False)


@operation("Softmax", "LogSoftmax", "Sparsemax")
def softmax_operation(op, x):
    name = type(op).__name__
    axes = op.axis if isinstance(op.axis, (list, tuple)) else [op.axis]
    axis = _axis_of_channels(x)
    if axis in [axis % x.ndim for axis in axes]:
        reason = f"{describe(op)} couples its channels, and no gate reaches inside it"
        hint = "; `layers.Softmax` can be masked" if name == "Softmax" else ""
        return fixed(x, reason + hint)
    return same(x, axis=axis, keeps_zero=False)


def _softmax(x, axes):
    mask = current().mask
    axis = _axis_of_channels(x)
    if not varied_axes(x) and mask is not None:
        axis = mask.axis % x.ndim
    if axis in axes or not varied_axes(x):
        return normalise(x, axis=axis)
    return same(x, axis=axis, keeps_zero=False)


def _axis_of_channels(x):
    """The axis of channels: of several the longest, the others are branches."""
    varied = varied_axes(x) or [x.ndim - 1]
    return max(varied, key=lambda axis: (x.labels.shape[axis], axis))
