"""Activations that are layers: `Conv2D(8, 3, activation=PReLU())`."""

import keras
import numpy as np
import pytest
from exactness import assert_equal, check_exact, close_at_random, randomise, to_numpy
from keras import layers

import filterprune


def prelu():
    return layers.PReLU(shared_axes=[1, 2])


MAKERS = {
    "conv": lambda: layers.Conv2D(8, 3, activation=prelu(), name="mine"),
    "dense": lambda: layers.Dense(8, activation=prelu(), name="mine"),
    "separable": lambda: layers.SeparableConv2D(8, 3, activation=prelu(), name="mine"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, activation=prelu(), name="mine"),
    "activation": lambda: layers.Activation(prelu(), name="mine"),
    "relu": lambda: layers.Conv2D(8, 3, activation=layers.ReLU(), name="mine"),
    "leaky": lambda: layers.Dense(8, activation=layers.LeakyReLU(0.3), name="mine"),
}


def model_with(layer):
    x = keras.Input((8, 8, 3))
    y = layer(layers.Conv2D(8, 3, name="first")(x))
    y = layers.Conv2D(6, 3, name="last")(y)
    return keras.Model(x, layers.Conv2D(2, 1)(y))


def clone(model):
    return keras.models.clone_model(model, clone_function=filterprune.wrap)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("wrap", [filterprune.wrap_model, clone])
def test_it_is_left_as_it_is_and_comes_along(make, called, wrap):
    model = model_with(make())
    activation = model.get_layer("mine").activation
    if called:
        model(np.zeros((1, 8, 8, 3)))
    built = activation.built
    randomise(model)
    before = [to_numpy(weight).copy() for weight in model.weights]
    filterprune.analyze(model)
    masked = wrap(model)
    assert activation.built is built
    masked(np.zeros((1, 8, 8, 3)))
    close_at_random(masked)
    small = check_exact(masked)
    assert small.get_layer("last").filters == 3
    for weight, old in zip(model.weights, before, strict=True):
        assert_equal(weight, old)
    model(np.zeros((1, 8, 8, 3)))  # it can still be called


def test_it_keeps_the_channels_it_has_weights_for():
    model = model_with(MAKERS["conv"]())
    groups = filterprune.analyze(model).groups
    reasons = {group.name: group.reason for group in groups}
    assert "PReLU" in reasons["mine"] and reasons["first"] is None
    assert {
        group.name: group.reason
        for group in filterprune.analyze(model_with(MAKERS["relu"]())).groups
    }["mine"] is None
