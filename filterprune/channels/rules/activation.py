"""Activation layers."""

from keras import layers

from filterprune.channels.activations import activation_of
from filterprune.channels.flow import current
from filterprune.channels.moves import varied_axes
from filterprune.channels.registry import operation, rule
from filterprune.channels.verbs import coupling, fixed, normalise, same


@rule(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU)
def activation(layer, x):
    facts = activation_of(layer)
    if facts.name == "softmax":
        return _softmax(x, [x.ndim - 1])
    if not facts.elementwise:
        return fixed(x, coupling(current(), facts.name))
    return same(x, elementwise=True)


@rule(layers.PReLU)
def prelu(layer, x):
    # One slope for each position; a shared axis has size 1 and is not bound.
    channels = layer.alpha.shape[-1]
    spec = "... in" if channels == x.shape[-1] else "..."
    return same(x, axis=-1, elementwise=True, keeps_zero=True, alpha=spec)


@rule(layers.Softmax)
def softmax(layer, x):
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return _softmax(x, [axis % x.ndim for axis in axes])


@operation("Softmax")
def softmax_operation(op, x):
    axes = op.axis if isinstance(op.axis, (list, tuple)) else [op.axis]
    axes = [axis % x.ndim for axis in axes]
    if any(axis in axes for axis in varied_axes(x)):  # no gate reaches inside it
        return fixed(x, coupling(current(), "softmax"))
    return _softmax(x, axes)


def _softmax(x, axes):
    varied = varied_axes(x)
    if not varied:
        mask = current().mask
        return normalise(x, axis=x.ndim - 1 if mask is None else mask.axis)
    if len(varied) > 1:
        return fixed(x, coupling(current(), "softmax"))
    if varied[0] in axes:
        return normalise(x, axis=varied[0])
    return same(x, axis=varied[0], keeps_zero=False)
