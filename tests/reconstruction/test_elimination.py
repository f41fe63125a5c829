"""What removing inputs costs, against least squares and all subsets."""

import itertools
import types

import keras
import numpy as np
import pytest
from exactness import close_at_random, randomise, to_numpy
from keras import layers

import filterprune
from filterprune.criteria import Reconstruction
from filterprune.reconstruction import elimination
from filterprune.reconstruction.elimination import Elimination, Reading, eliminate
from filterprune.reconstruction.least_squares import Moments
from filterprune.reconstruction.samples import error

CHANNELS, TAPS = 6, 2


@pytest.fixture(autouse=True)
def _next_to_no_ridge(monkeypatch):
    monkeypatch.setattr(elimination, "RIDGE", 1e-10)


def layer(seed=0, bias=False):
    """Inputs that hang together, weights, and the elimination of their channels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(500, CHANNELS * TAPS)) @ rng.normal(size=(12, 12))
    x = x + 2 if bias else x
    weights = rng.normal(size=(CHANNELS * TAPS, 3))
    moments = Moments((1, *weights.shape))
    moments.add(x[None], (x @ weights)[None])
    reader = types.SimpleNamespace(
        bias=0.0 if bias else None, old=lambda: (weights[None].copy(), None)
    )
    numbers = np.tile(np.arange(CHANNELS), TAPS)
    reading = Reading("layer", "kernel", reader, moments)
    return x, weights, Elimination(reading, numbers, CHANNELS)


def off(x, weights, gone, bias=False):
    """How far the best weights without some channels are off, by least squares."""
    wanted = x @ weights
    left = x[:, ~np.isin(np.tile(np.arange(CHANNELS), TAPS), list(gone))]
    if bias:
        left = np.concatenate([left, np.ones((len(x), 1))], axis=1)
    best = left @ np.linalg.lstsq(left, wanted, rcond=None)[0]
    return np.square(wanted - best).sum() / len(x) / wanted.var(axis=0).sum()


@pytest.mark.parametrize("bias", [False, True])
def test_one_channel_costs_what_least_squares_leave(bias):
    x, weights, part = layer(bias=bias)
    wanted = [off(x, weights, [c], bias) for c in range(CHANNELS)]
    np.testing.assert_allclose(part.costs(np.arange(CHANNELS)), wanted, rtol=1e-4)


def test_costs_add_up_when_one_goes_after_another():
    x, weights, part = layer()
    total = 0.0
    for number, channel in enumerate([4, 0, 3]):
        total += part.costs(np.array([channel]))[0]
        part.remove(channel)
        assert total == pytest.approx(off(x, weights, [4, 0, 3][: number + 1]), 1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_near_the_best_of_all_subsets(seed):
    x, weights, part = layer(seed)
    order = np.argsort(eliminate([part], CHANNELS), kind="stable")
    for count in range(1, CHANNELS):
        subsets = itertools.combinations(range(CHANNELS), count)
        best = min(off(x, weights, subset) for subset in subsets)
        assert off(x, weights, order[:count]) <= 1.5 * best


def test_several_readers_add_up():
    parts = [layer(seed)[2] for seed in range(3)]
    every = np.arange(CHANNELS)
    first = sum(part.costs(every) for part in parts)
    costs = eliminate(parts, CHANNELS)
    assert costs.min() == pytest.approx(first.min())


def twins():
    """A net in which each channel of `first` stands there twice."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(6, 3, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    first = model.get_layer("first")
    for weight in first.weights:
        value = to_numpy(weight).copy()
        value[..., 4:] = value[..., :4]
        weight.assign(value)
    return model


def test_of_two_that_stand_in_for_each_other_one_stays():
    """Magnitudes see no difference between channels and their twins."""
    masked = filterprune.wrap_model(twins(), exclude=("second", "head"))
    x = np.random.default_rng(0).normal(size=(64, 6, 6, 3)).astype("float32")
    filterprune.prune(masked, 0.5, criterion=Reconstruction(x, batches=2))
    kept = filterprune.kept_indices(masked)["first"]
    assert sorted(index % 4 for index in kept) == [0, 1, 2, 3]
    report = filterprune.reconstruct(masked, x, refine=0)
    assert report.before > 0.1 and report.after < 1e-3


def test_transformers_and_recurrent_layers_are_ranked_too():
    inputs = keras.Input((7, 6))
    x = layers.Dense(8, name="stream")(inputs)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 4, name="attention")(x, x)])
    x = layers.LSTM(6, name="lstm")(layers.Dense(8, activation="relu")(x))
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    x = np.random.default_rng(0).normal(size=(200, 7, 6)).astype("float32")

    def fitted(prune):
        masked = filterprune.wrap_model(model)
        prune(masked)
        filterprune.reconstruct(masked, x[:100], refine=0)
        return error([[model(x[100:])]], [[masked(x[100:])]])

    chosen = fitted(
        lambda net: filterprune.prune(net, 0.3, criterion=Reconstruction(x[:100]))
    )
    others = [fitted(lambda net, s=s: close_at_random(net, s, 0.3)) for s in range(5)]
    assert chosen < np.median(others)


def test_it_is_known_by_its_name():
    assert "reconstruction" in filterprune.criteria.names(needs_data=True)
    with pytest.raises(ValueError, match="batches"):
        Reconstruction(np.zeros((4, 3)), batches=0)
