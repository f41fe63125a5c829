"""Activations that are layers: `Conv2D(8, 3, activation=PReLU())`."""

import keras
import numpy as np
import pytest
from exactness import assert_equal, check_exact, close_at_random, randomise, to_numpy
from keras import layers, ops

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


def half(x):
    """Treats channels otherwise in one half than in the other."""
    count = x.shape[-1] // 2
    return ops.concatenate([x[..., :count], ops.tanh(x[..., count:])], -1)


def even(x):
    return x * ops.cast(ops.arange(x.shape[-1]) % 2, x.dtype)


def soft_clip(x):
    """Couples channels of large inputs only."""
    return x / ops.maximum(1.0, ops.mean(ops.abs(x), -1, keepdims=True) / 30.0)


def of_eight(x):
    """Couples channels if there are eight."""
    return x - (ops.mean(x, -1, keepdims=True) if x.shape[-1] == 8 else 0.0)


def of_five_samples(x):
    return x - (ops.mean(x, -1, keepdims=True) if x.shape[0] == 5 else 0.0)


def ramp(x):
    """Adds something at the sixth row and behind it."""
    rows = ops.cast(ops.reshape(ops.arange(x.shape[1]), (1, -1, 1, 1)), x.dtype)
    return x + ops.relu(rows - 4.0)


def bounded(x):
    return x / (1.0 + ops.abs(x)) + 0.1 * ops.sin(x)


COUPLING = [half, even, soft_clip, of_eight, of_five_samples, ramp]


@pytest.mark.parametrize("function", COUPLING)
@pytest.mark.parametrize("as_layer", [False, True])
def test_a_function_that_is_not_the_same_everywhere_keeps_its_channels(
    function, as_layer
):
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(
        8, 3, activation=None if as_layer else function, padding="same", name="mine"
    )(x)
    y = layers.Activation(function)(y) if as_layer else y
    model = keras.Model(x, layers.Conv2D(4, 3)(y))
    (mine, _) = filterprune.analyze(model).groups
    assert f"couples its channels by `{function.__name__}`" in mine.reason


def test_a_function_that_is_the_same_everywhere_does_not():
    model = model_with(layers.Conv2D(8, 3, activation=bounded, name="mine"))
    groups = filterprune.analyze(model).groups
    assert {g.name: g.reason for g in groups}["mine"] is None
