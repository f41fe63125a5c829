"""Calls that ask for training mode in the graph itself, as pix2pix does."""

import keras
import numpy as np
import pytest
from exactness import assert_equal, close_at_random, difference, randomise, to_numpy
from keras import layers

import filterprune


def batch_statistics(x):
    return layers.BatchNormalization(name="bn")(x, training=True)


def in_a_nested_model(x):
    y = keras.Input(x.shape[1:])
    inner = keras.Model(y, layers.BatchNormalization(name="bn")(y), name="inner")
    return inner(x, training=True)


def held(x):
    inner = layers.TimeDistributed(layers.BatchNormalization(), name="bn")
    return inner(x, training=True)


def model_with(op):
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 3, padding="same", name="first")(x)
    y = layers.Conv2D(6, 3, name="second")(op(y))
    return randomise(keras.Model(x, layers.Conv2D(2, 3)(y)))


def state(model):
    return [to_numpy(variable).copy() for variable in model.variables]


def by_hand(model):
    """Only convolutions get gates: the normalisation revives what is absent."""

    def wrap(layer):
        if isinstance(layer, layers.Conv2D):
            return filterprune.wrap(layer)
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=wrap)
        return type(layer).from_config(layer.get_config())

    masked = keras.models.clone_model(model, clone_function=wrap)
    weights = iter(model.get_weights())
    masked.set_weights(
        [
            w if "gate" in v.path else next(weights)
            for v, w in zip(masked.weights, masked.get_weights(), strict=True)
        ]
    )
    return masked


@pytest.mark.parametrize("op", [batch_statistics, in_a_nested_model, held])
@pytest.mark.parametrize("wrap", [filterprune.wrap_model, by_hand])
def test_it_moves_no_statistics_and_is_exact_in_both_modes(op, wrap):
    model = model_with(op)
    before = state(model)
    filterprune.analyze(model)
    masked = wrap(model)
    for old, new in zip(before, state(model), strict=True):
        assert_equal(new, old)
    if wrap is by_hand:
        for layer in masked.layers:
            if isinstance(layer, filterprune.layers.Masked) and layer.gate.shape[0] > 2:
                layer.gate.assign(np.arange(layer.gate.shape[0]) % 2)
    else:
        close_at_random(masked)
    before = state(masked)
    filterprune.analyze(masked)
    if wrap is by_hand:
        with pytest.warns(filterprune.PruningWarning, match="more behind than one"):
            small = filterprune.compact(masked)
    else:
        small = filterprune.compact(masked)
    for old, new in zip(before, state(masked), strict=True):
        assert_equal(new, old)
    assert small.get_layer("second").filters == 3
    assert difference(masked, small) < 1e-5
    x = np.random.default_rng(0).normal(1, 2, (4, 6, 6, 3))
    expected, received = to_numpy(masked(x)), to_numpy(small(x))
    np.testing.assert_allclose(received, expected, 1e-4, 1e-4)


def test_a_norm_of_the_kernel_taken_anew_in_each_call_is_a_barrier():
    def op(x):
        inner = layers.Conv2D(8, 1)
        return layers.SpectralNormalization(inner, name="mine")(x, training=True)

    model = model_with(op)
    (barrier,) = filterprune.analyze(model).barriers
    assert "`mine`" in barrier and "whenever it is called" in barrier
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = filterprune.compact(masked)
    assert small.get_layer("second").filters == 3
    x = np.random.default_rng(0).normal(1, 2, (4, 6, 6, 3))
    expected, received = to_numpy(masked(x)), to_numpy(small(x))
    np.testing.assert_allclose(received, expected, 1e-4, 1e-4)
