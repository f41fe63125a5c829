"""Activation layers."""

from keras import layers

from filterprune.channels.activations import activation_of
from filterprune.channels.flow import current
from filterprune.channels.registry import rule
from filterprune.channels.verbs import coupling, fixed, same


@rule(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU)
def activation(layer, x):
    facts = activation_of(layer)
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
    return fixed(x, coupling(current(), "softmax"))
