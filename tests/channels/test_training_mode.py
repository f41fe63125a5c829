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


@pytest.mark.parametrize(
    "inner",
    [
        lambda: layers.Conv2D(6, 3),
        lambda: layers.Conv2D(6, 3, activation="sigmoid"),
        lambda: layers.Conv2D(6, 3, groups=2),
        lambda: layers.Conv2D(16, 3, groups=8),
        lambda: layers.Conv2DTranspose(6, 3, strides=2),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        lambda: layers.DepthwiseConv2D(3, activation="softplus"),
        lambda: layers.Dense(6),
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_spectral_normalization_is_exact_in_training(inner, steps):
    """The norm of the kernel leaves out closed channels, read and made."""
    norm = layers.SpectralNormalization(inner(), power_iterations=2, name="norm")
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    model = randomise(keras.Model(x, layers.Conv2D(2, 3)(norm(y))))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = filterprune.compact(masked)
    assert small.get_layer("first").filters == 4
    images = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    for _ in range(steps):  # each divides the kernel, and goes on from the last
        found, expected = small(images, training=True), masked(images, training=True)
        np.testing.assert_allclose(to_numpy(found), to_numpy(expected), 1e-4, 1e-5)
    assert difference(masked, small) < 1e-5


def test_open_gates_leave_spectral_normalization_as_it_is():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 3, activation="relu")(x)
    y = layers.SpectralNormalization(layers.Conv2D(6, 3))(y)
    model = randomise(keras.Model(x, layers.Conv2D(2, 2)(y)))
    masked = filterprune.wrap_model(model)
    images = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    for _ in range(2):
        found, expected = masked(images, training=True), model(images, training=True)
        np.testing.assert_allclose(to_numpy(found), to_numpy(expected), 1e-4, 1e-5)


def test_closed_filters_keep_their_weights_in_spectral_normalization():
    """But for the common factor, so that they can open again."""
    x = keras.Input((5,))
    y = layers.Dense(8, activation="relu", name="first")(x)
    y = layers.SpectralNormalization(layers.Dense(6), name="norm")(y)
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    before = to_numpy(masked.get_layer("norm").layer.kernel).copy()
    masked(np.ones((4, 5)), training=True)
    after = to_numpy(masked.get_layer("norm").layer.kernel)
    np.testing.assert_allclose(after / before, (after / before)[0, 0], 1e-4)


def test_a_channel_that_an_open_gate_reads_stays_in_the_norm():
    x = keras.Input((5,))
    y = layers.Dense(8, activation="relu", name="first")(x)
    y = layers.SpectralNormalization(layers.Dense(6), name="norm")(y)
    masked = filterprune.wrap_model(randomise(keras.Model(x, layers.Dense(2)(y))))
    masked.get_layer("first").gate.assign([0.0, 0.0, *[1.0] * 6])
    with pytest.warns(filterprune.PruningWarning, match="`norm`.* statistics over it"):
        small = filterprune.compact(masked)
    inputs = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    found, expected = small(inputs, training=True), masked(inputs, training=True)
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), 1e-4, 1e-5)
