"""Recurrent layers and embeddings: what a closed unit is, and what must stay."""

import keras
import numpy as np
import pytest
import sequences
from exactness import (
    assert_close,
    assert_equal,
    check_exact,
    close_at_random,
    difference,
    randomise,
    to_numpy,
)
from keras import layers, ops
from sequences import GRU, LSTM, SEQUENCE, both, some, words

import filterprune
from filterprune import channels

PROOFS = {
    "bidirectional LSTM": words(both(LSTM, **SEQUENCE), both(LSTM), mask_zero=True),
    "bidirectional GRU": words(both(GRU, **SEQUENCE), both(GRU), mask_zero=True),
    "ConvLSTM2D": sequences.CASES[layers.ConvLSTM2D][0],
    "stacked cells": sequences.CASES[layers.StackedRNNCells][0],
    "language model": words(some(LSTM, **SEQUENCE), mask_zero=True),
    "tied embeddings": sequences.language_model(),
}


def wrapped(build, seed=0):
    return filterprune.wrap_model(randomise(build(), seed))


def closed(masked, name, *units):
    """Close units of one layer by hand, and the others open."""
    layer = masked.get_layer(name)
    gate = np.ones(layer.gate.shape)
    gate[list(units)] = 0
    layer.gate.assign(gate)
    return layer


@pytest.mark.parametrize("name", PROOFS)
def test_exact_in_double_precision(name):
    keras.config.set_floatx("float64")
    masked = wrapped(PROOFS[name])
    assert filterprune.analyze(masked).barriers == ()
    close_at_random(masked)
    check_exact(masked)


@pytest.mark.parametrize("cls", [LSTM, GRU, layers.SimpleRNN])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("training", [False, True])
def test_a_closed_unit_is_zero_in_every_step_and_state(cls, activation, training):
    x = keras.Input((6, 3))
    layer = cls(5, activation=activation, name="rnn", return_state=True, **SEQUENCE)
    first = layers.Dense(5, name="first")(x[:, 0])
    count = 2 if cls is LSTM else 1
    outputs = layer(x, initial_state=[first] * count)
    model = randomise(keras.Model(x, outputs))
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    closed(masked, "rnn", 1, 3)
    data = np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32")
    sequence, *states = map(to_numpy, masked(data, training=training))
    for found in (sequence, *states):
        assert (found[..., [1, 3]] == 0).all()
        assert (found[..., [0, 2, 4]] != 0).all()
    assert_equal(states[0], sequence[:, -1])

    kept = [0, 2, 4]
    small = cls(3, activation=activation, return_state=True, **SEQUENCE)
    small.build((None, 6, 3))
    for old, new in zip(model.get_layer("rnn").weights, small.weights, strict=True):
        value = to_numpy(old)
        blocks = value.shape[-1] // 5
        columns = np.concatenate([np.array(kept) + 5 * i for i in range(blocks)])
        value = value[..., columns]
        new.assign(value[kept] if old.name == "recurrent_kernel" else value)
    begin = ops.take(model.get_layer("first")(data[:, 0]), kept, axis=-1)
    expected = small(data, initial_state=[begin] * count)
    for a, b in zip((sequence, *states), expected, strict=True):
        assert_close(a[..., kept], b, 1e-5, 1e-5)


@pytest.mark.parametrize("cls", [LSTM, GRU])
def test_what_a_closed_unit_begins_with_is_not_read(cls):
    x, h = keras.Input((4, 3)), keras.Input((6,))
    count = 2 if cls is LSTM else 1
    y = cls(6, name="rnn")(x, initial_state=[h] * count)
    masked = keras.models.clone_model(
        keras.Model([x, h], layers.Dense(2)(y)), clone_function=filterprune.wrap
    )
    closed(masked, "rnn", 2, 5)
    rng = np.random.default_rng(0)
    data, begin = rng.normal(size=(3, 4, 3)), rng.normal(size=(3, 6))
    expected = masked([data, begin])
    begin[:, [2, 5]] = 100.0
    assert_equal(masked([data, begin]), expected)
    report = filterprune.analyze(masked)
    assert "comes from the input" in {g.name: g for g in report.groups}["rnn"].reason


def test_units_closed_by_hand_that_an_output_needs_stay_exactly():
    x = keras.Input((4, 3))
    outputs = LSTM(5, name="rnn", return_state=True, **SEQUENCE)(x)
    model = randomise(keras.Model(x, outputs))
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    closed(masked, "rnn", 0, 4)
    with pytest.warns(filterprune.PruningWarning, match="reaches the output"):
        small = filterprune.compact(masked)
    assert small.get_layer("rnn").units == 5
    assert difference(masked, small) < 1e-5


def test_a_stateful_layer_goes_on_from_where_it_is(tmp_path):
    build = sequences.keeping_state(
        lambda: layers.Bidirectional(LSTM(6, stateful=True), name="rnn")
    )
    model = randomise(build())
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(2, 4, 5)).astype("float32") for _ in range(4)]
    model.predict(batches[0], verbose=0)
    masked = filterprune.wrap_model(model)
    for one, other in zip(
        model.get_layer("rnn").states, masked.get_layer("rnn").states, strict=True
    ):
        assert_equal(one, other)
    assert_close(masked.predict(batches[1], verbose=0), model(batches[1]), 1e-5, 1e-5)
    close_at_random(masked)
    masked.predict(batches[2], verbose=0)
    shut = masked.get_layer("rnn").closed()
    for state in masked.get_layer("rnn").states:
        assert (to_numpy(state)[:, shut] == 0).all()
        if keras.backend.backend() != "jax":  # where `predict` keeps no states
            assert (to_numpy(state)[:, ~shut] != 0).all()
    small = filterprune.compact(masked)
    expected = masked.predict(batches[3], verbose=0)
    assert_close(small.predict(batches[3], verbose=0), expected, 1e-5, 1e-5)
    masked.get_layer("rnn").reset_state()
    assert all((to_numpy(s) == 0).all() for s in masked.get_layer("rnn").states)


def test_both_directions_lose_the_same_units():
    layer = layers.Bidirectional(LSTM(8, **SEQUENCE), name="rnn")
    masked = wrapped(words(lambda: layer, some(GRU)))
    close_at_random(masked)
    small = check_exact(masked)
    layer = small.get_layer("rnn")
    assert layer.forward_layer.units == layer.backward_layer.units == 4
    assert layer.output.shape[-1] == 8


def test_states_tie_an_encoder_and_a_decoder():
    build = sequences.handed_over(
        some(LSTM, 6, return_state=True, name="encoder"), some(LSTM, 6, name="decoder")
    )
    masked = wrapped(build)
    (group,) = (g for g in filterprune.analyze(masked).groups if "encoder" in g.layers)
    assert group.layers == ("encoder", "decoder")
    assert group.prunable and group.size == 6


def test_stacked_cells_are_groups_of_their_own():
    build = sequences.over(
        lambda: layers.RNN(
            [layers.LSTMCell(8, name="low"), layers.GRUCell(6, name="high")],
            name="rnn",
        )
    )
    masked = wrapped(build)
    sizes = {g.name: g.size for g in filterprune.analyze(masked).prunable}
    assert (sizes["rnn/low"], sizes["rnn/high"]) == (8, 6)
    filterprune.prune(masked, 0.5, overrides={"rnn/low": 0.25, "rnn/high": 0.5})
    small = check_exact(masked)
    assert [cell.units for cell in small.get_layer("rnn").cell.cells] == [6, 3]


def test_a_layer_of_which_all_gates_are_closed_keeps_a_unit_in_each_cell():
    masked = wrapped(sequences.CASES[layers.StackedRNNCells][0])
    (layer,) = (x for x in masked.layers if isinstance(x, filterprune.layers.MaskedRNN))
    layer.gate.assign(np.zeros(layer.gate.shape))
    with pytest.warns(filterprune.PruningWarning, match="left without channels"):
        small = filterprune.compact(masked)
    assert [cell.units for cell in small.get_layer(layer.name).cell.cells] == [1] * 3
    assert difference(masked, small) < 1e-5


@keras.saving.register_keras_serializable("tests")
class LeakyCell(layers.Layer):
    """A cell of one's own: what it was, and a little of what it could be."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="w")
        self.recurrent = self.add_weight(shape=(self.units, self.units), name="r")
        self.rate = self.add_weight(shape=(self.units,), name="rate")

    def call(self, x, states):
        (h,) = states
        new = ops.matmul(x, self.kernel) + ops.matmul(h, self.recurrent)
        h = h + ops.sigmoid(self.rate) * (ops.tanh(new) - h)
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def leaky(units=6, **kwargs):
    return lambda: layers.RNN(LeakyCell(units), **kwargs)


def test_a_cell_that_no_rule_is_known_for_is_named():
    model = sequences.over(leaky())()
    (barrier,) = filterprune.analyze(model).barriers
    assert "LeakyCell" in barrier and "no rule is known" in barrier
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    assert type(masked.layers[2]) is layers.RNN


@pytest.mark.parametrize(
    "build",
    [
        sequences.over(leaky(**SEQUENCE)),
        sequences.over(lambda: layers.Bidirectional(leaky()())),
        sequences.over(lambda: layers.RNN([LeakyCell(6), layers.GRUCell(5)])),
    ],
)
def test_a_cell_of_ones_own_with_a_rule(build, monkeypatch):
    from filterprune.channels import registry

    monkeypatch.setattr(registry, "_LAYER_RULES", dict(registry._LAYER_RULES))

    @filterprune.rule(LeakyCell)
    def rule(cell, x, states):
        return channels.recur(
            x,
            states,
            kernel="in out",
            recurrent="state out",
            rate="out",
            resize="units",
        )

    masked = wrapped(build)
    assert filterprune.analyze(masked).barriers == ()
    close_at_random(masked)
    small = check_exact(masked, limit=1e-5)
    assert small.count_params() < build().count_params() / 2


def test_a_cell_that_is_called_on_its_own_is_kept_and_the_rest_goes():
    x, h = keras.Input((5,)), keras.Input((6,))
    y, _ = layers.GRUCell(6)(layers.Dense(8, name="before")(x), [h])
    model = randomise(keras.Model([x, h], layers.Dense(2)(y)))
    masked = filterprune.wrap_model(model)
    (group,) = filterprune.analyze(masked).prunable
    assert group.layers == ("before",)
    close_at_random(masked)
    check_exact(masked)


REFUSED = {
    "couples its channels by `softmax`": some(LSTM, recurrent_activation="softmax"),
    "one cell stands in it twice": lambda: layers.RNN([layers.GRUCell(6)] * 2),
    "different units": lambda: layers.Bidirectional(
        GRU(6), backward_layer=GRU(4, go_backwards=True), merge_mode=None
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_pruned_says_why(reason):
    x = keras.Input((4, 6))
    y = REFUSED[reason]()(layers.Dense(6, name="before")(x))
    y = layers.Concatenate()(y) if isinstance(y, (list, tuple)) else y
    report = filterprune.analyze(keras.Model(x, layers.Dense(3)(y)))
    reasons = [*report.barriers, *(str(group.reason) for group in report.fixed)]
    assert any(reason in text for text in reasons)


def test_the_cost_counts_every_time_step():
    x = keras.Input((7, 5))
    y = LSTM(6, name="lstm", **SEQUENCE)(x)
    y = layers.Bidirectional(GRU(4), name="both")(y)
    model = keras.Model(x, layers.Dense(3, name="head")(y))
    found = {layer.name: layer.before for layer in filterprune.analyze(model).layers}
    assert found["lstm"].macs == 7 * 4 * 6 * (5 + 6)
    assert found["both"].macs == 7 * 2 * 3 * 4 * (6 + 4)
    assert found["head"].macs == 8 * 3
    assert sum(cost.params for cost in found.values()) == model.count_params()


def test_the_cost_of_embeddings_is_that_of_scoring_words():
    x = keras.Input((7,), dtype="int32")
    table = layers.ReversibleEmbedding(11, 6, name="table")
    y = layers.Embedding(11, 6, name="other")(x) + table(x)
    model = keras.Model(x, table(y, reverse=True))
    found = {layer.name: layer.before for layer in filterprune.analyze(model).layers}
    assert (found["other"].macs, found["other"].params) == (0, 66)
    assert (found["table"].macs, found["table"].params) == (7 * 6 * 11, 66)


def test_the_cost_of_a_model_in_every_step_is_that_of_the_compact_one():
    masked = wrapped(sequences.clips(sequences.frame_model))
    close_at_random(masked)
    small = check_exact(masked)
    assert filterprune.analyze(masked).after == filterprune.analyze(small).before
    assert filterprune.analyze(small).before.params == small.count_params()


def test_layers_of_a_model_in_every_step_have_gates_of_their_own():
    masked = wrapped(sequences.clips(sequences.frame_model))
    names = {name for g in filterprune.analyze(masked).prunable for name in g.layers}
    assert {"time_distributed/stem", "time_distributed/block"} <= names
    kept = filterprune.kept_indices(masked)
    assert kept["time_distributed/stem"] == list(range(6))
    fixed = filterprune.wrap_model(
        randomise(sequences.clips(sequences.frame_model)()),
        exclude="time_distributed_1",
    )
    names = {name for g in filterprune.analyze(fixed).prunable for name in g.layers}
    assert not any(name.startswith("time_distributed") for name in names)
