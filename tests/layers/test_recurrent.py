"""Masked recurrent layers and embeddings, by themselves."""

import builders
import keras
import numpy as np
import pytest
from exactness import assert_close, assert_equal, randomise, to_numpy
from keras import layers
from sequences import CELLS, both, some, stack

import filterprune
from filterprune.layers import Masked

SEQUENCE = {"return_sequences": True}
CASES = {
    "LSTM": (some(layers.LSTM, **SEQUENCE), (4, 5), "MaskedLSTM"),
    "LSTM sigmoid": (some(layers.LSTM, activation="sigmoid"), (4, 5), "MaskedLSTM"),
    "GRU": (some(layers.GRU), (4, 5), "MaskedGRU"),
    "GRU before": (some(layers.GRU, reset_after=False), (4, 5), "MaskedGRU"),
    "SimpleRNN": (some(layers.SimpleRNN, **SEQUENCE), (4, 5), "MaskedSimpleRNN"),
    "RNN": (lambda: layers.RNN(layers.LSTMCell(6)), (4, 5), "MaskedRNN"),
    "Bidirectional": (both(layers.LSTM), (4, 5), "MaskedBidirectional"),
    **{
        f"ConvLSTM{rank}D": (
            some(getattr(layers, f"ConvLSTM{rank}D"), kernel_size=2),
            (3,) + (4,) * rank + (2,),
            f"MaskedConvLSTM{rank}D",
        )
        for rank in (1, 2, 3)
    },
}
every_case = pytest.mark.parametrize("name", CASES)
CLOSED = [1, 4]


def masked_layer(name, shut=CLOSED, **policy):
    make, shape, _ = CASES[name]
    layer = make()
    if policy:
        config = layer.get_config()
        layer = type(layer).from_config({**config, **policy})
    layer.build((None, *shape))
    randomise(layer)
    masked = filterprune.wrap(layer)
    masked.build((None, *shape))
    builders.close(masked, *shut)
    data = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    return layer, masked, data


def test_every_masked_layer_has_a_case():
    tested = {CASES[name][2] for name in CASES}
    ours = {
        name
        for name in filterprune.layers.__all__
        if issubclass(getattr(filterprune.layers, name), filterprune.layers.MaskedRNN)
    }
    assert ours == tested


@every_case
def test_it_is_wrapped_and_open_gates_change_nothing(name):
    layer, masked, data = masked_layer(name, shut=())
    assert type(masked).__name__ == CASES[name][2]
    assert masked.alive == 6
    assert_close(masked(data), layer(data), 1e-6, 1e-6)
    assert len(masked.trainable_weights) == len(layer.trainable_weights)


@every_case
def test_closed_units_get_no_gradient_and_open_ones_get_theirs(name):
    _, masked, data = masked_layer(name)
    inputs = keras.Input(data.shape[1:])
    model = keras.Model(inputs, masked(inputs))
    before = [to_numpy(weight).copy() for weight in masked.trainable_weights]
    model.compile(
        keras.optimizers.SGD(1.0), lambda y, found: y * found, **builders.WITHOUT_XLA
    )
    shape = (3, *model.output.shape[1:])
    model.train_on_batch(data, np.random.default_rng(1).normal(size=shape))
    for old, weight in zip(before, masked.trainable_weights, strict=True):
        moved = old - to_numpy(weight)
        units = moved.reshape(-1, moved.shape[-1] // 6, 6)
        assert (units[..., CLOSED] == 0).all(), weight.path
        assert (units[..., [0, 2, 3, 5]] != 0).any(axis=(0, 1)).all(), weight.path
        if weight.name == "recurrent_kernel":
            assert (moved[..., CLOSED, :] == 0).all()


@every_case
def test_config_save_and_load(name, tmp_path):
    _, masked, data = masked_layer(name)
    again = type(masked).from_config({**masked.get_config()})
    assert again.get_config() == masked.get_config()
    inputs = keras.Input(data.shape[1:])
    model = keras.Model(inputs, masked(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].closed().tolist() == masked.closed().tolist()
    assert_close(loaded(data), model(data), 1e-6, 1e-6)


@pytest.mark.parametrize("name", ["LSTM", "GRU before", "Bidirectional"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(name, policy):
    layer, masked, data = masked_layer(name, shut=(), dtype=policy)
    expected, found = layer(data), masked(data)
    assert found.dtype == expected.dtype
    limit = 1e-6 if policy == "float64" else 5e-2
    near = [keras.ops.cast(x, "float32") for x in (found, expected)]
    assert_close(*near, limit, limit)
    builders.close(masked, *CLOSED)
    outputs = to_numpy(keras.ops.cast(masked(data), "float32"))
    units = outputs.reshape(-1, outputs.shape[-1] // 6, 6)
    assert (units[..., CLOSED] == 0).all()


@pytest.mark.parametrize("kind", ["dropout", "recurrent_dropout"])
def test_dropout_draws_anew_in_every_call(kind):
    layer = layers.LSTM(6, **{kind: 0.5})
    layer.build((None, 4, 5))
    masked = filterprune.wrap(layer)
    data = np.ones((3, 4, 5), "float32")
    first, second = (to_numpy(masked(data, training=True)) for _ in range(2))
    assert (first != second).any()
    assert_equal(masked(data), masked(data))


def test_masks_are_those_of_the_plain_layers():
    x = np.array([[3, 1, 0, 0], [2, 0, 0, 0], [1, 1, 1, 1]])
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(5, 6, mask_zero=True),
            layers.Bidirectional(layers.LSTM(4, **SEQUENCE)),
            stack(*CELLS, **SEQUENCE)(),
            layers.GRU(3),
        ]
    )
    masked = keras.models.clone_model(randomise(model), clone_function=filterprune.wrap)
    assert all(isinstance(layer, Masked) for layer in masked.layers)
    assert_close(masked(x), model(x), 1e-6, 1e-6)
    for stage in (model, masked):
        value = keras.ops.convert_to_tensor(x)
        for layer in stage.layers[:3]:
            value = layer(value)
            assert_equal(value._keras_mask, x != 0)


@pytest.mark.parametrize("tie", [True, False])
def test_a_reversible_embedding_is_closed_in_both_directions(tie):
    layer = layers.ReversibleEmbedding(7, 5, tie_weights=tie)
    layer.build((None, 3))
    masked = filterprune.wrap(randomise(layer))
    assert isinstance(masked, filterprune.layers.MaskedReversibleEmbedding)
    numbers = np.array([[1, 2, 6]])
    assert_close(masked(numbers), layer(numbers), 1e-6, 1e-6)
    builders.close(masked, 0, 3)
    found = to_numpy(masked(numbers))
    assert (found[..., [0, 3]] == 0).all()
    assert_equal(found[..., [1, 2, 4]], to_numpy(layer(numbers))[..., [1, 2, 4]])
    given = np.random.default_rng(0).normal(size=(1, 3, 5)).astype("float32")
    scores = to_numpy(masked(given, reverse=True))
    assert scores.shape == (1, 3, 7)
    given[..., [0, 3]] = 50.0
    assert_close(masked(given, reverse=True), scores, 1e-6, 1e-6)
