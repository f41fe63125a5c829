"""Layers that merge several tensors."""

import functools

import numpy as np
from keras import layers

from filterprune.channels.joining import join
from filterprune.channels.moves import concatenate
from filterprune.channels.registry import rule
from filterprune.channels.verbs import take


def _combine(function):
    return lambda *values: functools.reduce(function, values)


@rule(layers.Add)
def add(layer, xs):
    return join(xs, _combine(np.add))


@rule(layers.Subtract)
def subtract(layer, xs):
    return join(xs, np.subtract)


@rule(layers.Multiply)
def multiply(layer, xs):
    return join(xs, _combine(np.multiply), zero_wins=True)


@rule(layers.Average)
def average(layer, xs):
    return join(xs, lambda *values: sum(values) / len(values))


@rule(layers.Maximum)
def maximum(layer, xs):
    return join(xs, _combine(np.maximum))


@rule(layers.Minimum)
def minimum(layer, xs):
    return join(xs, _combine(np.minimum))


@rule(layers.Concatenate)
def concatenation(layer, xs):
    return take(xs, concatenate(xs, layer.axis))
