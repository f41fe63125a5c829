"""Layers that merge several tensors."""

import functools

import numpy as np
from keras import layers

from filterprune.channels.joining import join
from filterprune.channels.labels import Channels
from filterprune.channels.moves import concatenate
from filterprune.channels.registry import rule
from filterprune.channels.rules.operations import is_taken_for_bias, operands
from filterprune.channels.verbs import barrier, take


def _combine(function):
    return lambda *values: functools.reduce(function, values)


def _operands(xs):
    """The tensors, and constants of their rank; Keras adds axes in the middle."""
    constants = [x for x in xs if not isinstance(x, Channels)]
    if constants and len({len(x.shape) for x in xs}) > 1:
        barrier("it merges a constant of another rank")
    return operands(*xs) if constants else xs


@rule(layers.Add)
def add(layer, xs):
    if any(map(is_taken_for_bias, xs)):
        return barrier("it adds a vector along another axis than the last")
    return join(_operands(xs), _combine(np.add))


@rule(layers.Subtract)
def subtract(layer, xs):
    return join(_operands(xs), np.subtract)


@rule(layers.Multiply)
def multiply(layer, xs):
    return join(_operands(xs), _combine(np.multiply), zero_wins=True)


@rule(layers.Average)
def average(layer, xs):
    return join(_operands(xs), lambda *values: sum(values) / len(values))


@rule(layers.Maximum)
def maximum(layer, xs):
    return join(_operands(xs), _combine(np.maximum))


@rule(layers.Minimum)
def minimum(layer, xs):
    return join(_operands(xs), _combine(np.minimum))


@rule(layers.Concatenate)
def concatenation(layer, xs):
    return take(xs, concatenate(xs, layer.axis))
