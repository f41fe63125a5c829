"""What criteria see of recurrent layers: blocks of kernels, and effects on the loss."""

import builders
import keras
import numpy as np
import pytest
import sequences
from exactness import assert_close, close_at_random, randomise, to_numpy
from keras import layers
from sequences import CELLS, both, some, stack

import filterprune
from filterprune.criteria import evidence
from filterprune.slots import Slots, masked_analysis

UNITS = 6


def wrapped(layer, seed=0):
    x = keras.Input((4, 5))
    y = layers.Dense(2, name="head")(layer()(x))
    masked = filterprune.wrap_model(randomise(keras.Model(x, y), seed))
    masked.compile("sgd", "mse", **builders.WITHOUT_XLA)
    return masked


def only(masked):
    (layer,) = (x for x in masked.layers if isinstance(x, filterprune.layers.MaskedRNN))
    return layer


@pytest.mark.parametrize(
    ("layer", "blocks"),
    [(some(layers.LSTM), 4), (some(layers.GRU), 3), (some(layers.SimpleRNN), 1)],
)
def test_a_unit_is_scored_by_all_blocks_of_all_its_weights(layer, blocks):
    masked = wrapped(layer)
    cell = only(masked).layer.cell
    weights = [cell.kernel, cell.recurrent_kernel, cell.bias]
    rows = np.concatenate([to_numpy(w).reshape(-1, UNITS) for w in weights])
    assert cell.kernel.shape[-1] == blocks * UNITS
    slots = Slots(masked_analysis(masked))
    for name, expected in {
        "l1": np.abs(rows).sum(axis=0),
        "l2": np.sqrt(np.square(rows).sum(axis=0)),
    }.items():
        found = filterprune.criteria.get(name).score(slots)
        assert_close(found, expected / expected.mean(), rtol=1e-6)


def test_two_directions_are_scored_together():
    masked = wrapped(both(layers.GRU))
    layer = only(masked).layer
    rows = np.concatenate(
        [
            to_numpy(w).reshape(-1, UNITS)
            for side in (layer.forward_layer, layer.backward_layer)
            for w in (side.cell.kernel, side.cell.recurrent_kernel, side.cell.bias)
        ]
    )
    expected = np.sqrt(np.square(rows).sum(axis=0))
    found = filterprune.criteria.get("l2").score(Slots(masked_analysis(masked)))
    assert_close(found, expected / expected.mean(), rtol=1e-6)


def test_the_group_criterion_counts_what_reads_a_unit():
    masked = wrapped(some(layers.LSTM))
    cell, head = only(masked).layer.cell, masked.get_layer("head")
    columns = [cell.kernel, cell.recurrent_kernel, cell.bias]
    squares = sum(
        np.square(to_numpy(w)).reshape(-1, UNITS).sum(axis=0) for w in columns
    )
    squares = squares + np.square(to_numpy(cell.recurrent_kernel)).sum(axis=1)
    squares = squares + np.square(to_numpy(head.kernel)).sum(axis=1)
    criterion = filterprune.criteria.GroupMagnitude(normalization="mean")
    found = criterion.score(Slots(masked_analysis(masked)))
    assert_close(found, np.sqrt(squares) / np.sqrt(squares).mean(), rtol=1e-5)


LAYERS = {
    "LSTM": some(layers.LSTM),
    "GRU": some(layers.GRU, return_sequences=True),
    "GRU before": some(layers.GRU, reset_after=False, activation="sigmoid"),
    "Bidirectional": both(layers.LSTM),
    "stacked cells": stack(*CELLS),
}


@pytest.mark.parametrize("name", LAYERS)
def test_effects_are_derivatives_of_the_loss_by_gates(name):
    """Through the time steps too: gates there are what removal takes away."""
    if keras.backend.backend() == "tensorflow":
        keras.config.set_floatx("float64")
    masked = wrapped(LAYERS[name])
    rng = np.random.default_rng(0)
    data = rng.normal(size=(3, 4, 5))
    targets = rng.normal(size=(3, *masked.output.shape[1:]))
    batch = [
        keras.ops.convert_to_tensor(v.astype(keras.config.floatx()))
        for v in (data, targets)
    ]
    slots = Slots(masked_analysis(masked))
    loss = evidence.own_loss(keras.losses.MeanSquaredError())
    found = evidence.effects(slots, evidence.readers(slots), loss, (*batch, None))
    step = 1e-4 if keras.config.floatx() == "float64" else 1e-2
    gates = [gate for gate in slots.analysis.masks if gate.makes]
    for place, number in [(g, number) for g in gates for number in range(g.size)]:
        values, gate = [], place.variable
        for change in (step, -step):
            moved = np.ones(gate.shape)
            moved[number] += change
            gate.assign(moved)
            value = loss(batch[0], batch[1], masked(batch[0]), None)
            values.append(3 * float(keras.ops.convert_to_numpy(value)))
        gate.assign(np.ones(gate.shape))
        slope = (values[0] - values[1]) / (2 * step)
        slot = slots.of_gate(place)[number]
        near = 1e-6 if keras.config.floatx() == "float64" else 2e-2
        assert_close(found[:, slot].sum(), slope, near, near)


def test_looking_at_data_leaves_the_model_as_it_was():
    masked = wrapped(stack(*CELLS))
    cell = only(masked).layer.cell
    x, y = np.ones((4, 4, 5)), np.ones((4, 2))
    expected = to_numpy(masked(x))
    criterion = filterprune.criteria.Taylor((x, y), batches=1)
    filterprune.prune(masked, 0.0, criterion=criterion)
    assert all("call" not in vars(part) for part in (cell, *cell.cells))
    assert_close(masked(x), expected, 1e-6, 1e-6)


@pytest.mark.parametrize("cls", ["Taylor", "Fisher", "ActivationMean"])
def test_criteria_with_data_take_models_of_sequences(cls):
    masked = filterprune.wrap_model(
        randomise(
            sequences.handed_over(
                some(layers.LSTM, return_state=True), some(layers.LSTM)
            )()
        )
    )
    masked.compile("sgd", "mse", **builders.WITHOUT_XLA)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(8, n, 5)).astype("float32") for n in (4, 3)]
    data = (x, rng.normal(size=(8, 3)))
    criterion = getattr(filterprune.criteria, cls)(data, batches=1)
    filterprune.prune(masked, 0.5, criterion=criterion)
    filterprune.compact(masked)


def test_group_lasso_shrinks_whole_units():
    masked = wrapped(some(layers.LSTM))
    close_at_random(masked, fraction=0.0)
    cell = only(masked).layer.cell
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4, 5)), rng.normal(size=(32, 2))
    callback = filterprune.GroupLasso(20.0, frequency=1, end_step=4)
    masked.optimizer.learning_rate = 0.05
    masked.fit(x, y, batch_size=8, verbose=0, callbacks=[callback])
    blocks = to_numpy(cell.kernel).reshape(5, 4, UNITS)
    gone = (blocks == 0).all(axis=(0, 1))
    assert gone.any()
    assert (to_numpy(cell.recurrent_kernel)[gone] == 0).all()
    assert (to_numpy(cell.bias).reshape(4, UNITS)[:, gone] == 0).all()
