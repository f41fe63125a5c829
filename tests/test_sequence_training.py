"""Sequences trained for real: digits that are read row by row."""

import functools

import builders
import keras
import numpy as np
import pytest
from exactness import difference, to_numpy
from keras import layers

import filterprune


@functools.cache
def rows():
    """Digits as sequences of eight rows: images and labels to train on, and to test."""
    images, labels = builders.digits(1797)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order, ..., 0], labels[order]
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def accuracy(model):
    _, _, images, labels = rows()
    return float((to_numpy(model(images)).argmax(axis=-1) == labels).mean())


def trained(model, epochs, *callbacks):
    images, labels, _, _ = rows()
    model.compile(
        keras.optimizers.Adam(5e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **builders.WITHOUT_XLA,
    )
    model.fit(
        images, labels, batch_size=64, epochs=epochs, verbose=0, callbacks=callbacks
    )
    return model


def reader(recurrent):
    x = keras.Input((8, 8))
    return keras.Model(x, layers.Dense(10)(recurrent(x)))


def two_layers(x):
    x = layers.Bidirectional(layers.LSTM(16, return_sequences=True))(x)
    return layers.GRU(32)(x)


def test_half_of_the_units_go_while_it_learns(tmp_path):
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5)
    callback = filterprune.FilterPruningCallback(schedule, frequency=10)
    masked = trained(filterprune.wrap_model(reader(two_layers)), 8, callback)
    small = filterprune.compact(masked)
    assert difference(masked, small) < 1e-4
    assert accuracy(masked) > 0.8
    assert accuracy(small) == pytest.approx(accuracy(masked), abs=0.003)
    units = [small.layers[1].forward_layer.units, small.layers[2].units]
    assert sum(units) == 24
    assert small.count_params() < 0.5 * reader(two_layers).count_params()

    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert accuracy(loaded) == accuracy(small)
    images, labels, _, _ = rows()
    steps = int(to_numpy(small.optimizer.iterations))
    small.fit(images[:128], labels[:128], batch_size=64, verbose=0)
    assert int(to_numpy(small.optimizer.iterations)) == steps + 2


def test_units_that_a_penalty_spared_are_worth_more_than_random_ones():
    """Half of the units, without any training behind it."""
    masked = filterprune.wrap_model(reader(layers.LSTM(48)))
    trained(masked, 25, filterprune.GroupLasso(0.1, end_fraction=1.0))
    weights = masked.get_weights()

    def after(criterion):
        masked.set_weights(weights)
        filterprune.prune(masked, sparsity=0.5, criterion=criterion)
        return accuracy(filterprune.compact(masked, verify=False))

    random = [after(filterprune.criteria.Random(seed)) for seed in range(4)]
    assert after("group") > np.mean(random) + 0.1
