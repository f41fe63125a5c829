"""Masked attention layers: what a closed gate means in each."""

import builders
import keras
import numpy as np
import pytest
from exactness import assert_close, randomise, to_numpy
from keras import layers

import filterprune
from filterprune.channels.remaking import remake

CASES = {
    "multi-head": lambda **kw: layers.MultiHeadAttention(3, 4, **kw),
    "other sizes": lambda **kw: layers.MultiHeadAttention(
        2, 4, value_dim=5, output_shape=7, use_bias=False, **kw
    ),
    "grouped": lambda **kw: layers.GroupQueryAttention(4, 4, 2, **kw),
    "one key head": lambda **kw: layers.GroupQueryAttention(4, 3, 1, **kw),
}
if keras.backend.backend() == "jax":
    del CASES["other sizes"]  # there Keras itself takes keys and values of one size
SHAPE = (6, 8)

every_case = pytest.mark.parametrize("name", CASES)


def masked_layer(name, **kwargs):
    """A layer of random weights, the same masked, and two sequences."""
    layer = CASES[name](**kwargs)
    layer.build((None, *SHAPE), (None, 5, 8))
    masked = filterprune.wrap(randomise(layer))
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, *SHAPE)).astype("float32")
    value = rng.normal(size=(2, 5, 8)).astype("float32")
    masked(query, value)
    return layer, masked, (query, value)


def close(masked, name, *numbers):
    gate = np.ones(masked.gates[name].shape)
    gate[list(numbers)] = 0
    masked.gates[name].assign(gate)


@every_case
def test_open_gates_change_nothing(name):
    layer, masked, data = masked_layer(name)
    assert isinstance(masked, filterprune.layers.MaskedMultiHeadAttention)
    assert_close(masked(*data), layer(*data), 1e-6, 1e-6)
    assert_close(
        masked(*data, use_causal_mask=True), layer(*data, use_causal_mask=True), 1e-6
    )
    outputs = masked(*data, return_attention_scores=True)
    for found, expected in zip(
        outputs, layer(*data, return_attention_scores=True), strict=True
    ):
        assert_close(found, expected, 1e-6, 1e-6)
    assert len(masked.trainable_weights) == len(layer.trainable_weights)
    gates = {id(gate) for gate in masked.gates.values()}
    assert gates == {id(w) for w in masked.non_trainable_weights if "gate" in w.path}


@every_case
def test_closed_channels_of_the_output_are_zero(name):
    layer, masked, data = masked_layer(name)
    builders.close(masked, 1, 4)
    found = to_numpy(masked(*data))
    assert (found[..., [1, 4]] == 0).all()
    kept = [n for n in range(found.shape[-1]) if n not in (1, 4)]
    assert_close(found[..., kept], to_numpy(layer(*data))[..., kept], 1e-6, 1e-6)


@every_case
def test_a_closed_head_adds_nothing_whatever_its_weights(name):
    _, masked, data = masked_layer(name)
    close(masked, "heads", 1)
    before = to_numpy(masked(*data))
    attention = masked.layer
    count = masked.gates["heads"].shape[0]
    for part in (attention._query_dense, attention._value_dense):
        value = np.array(to_numpy(part.kernel))
        share = max(value.shape[1] // count, 1)
        if value.shape[1] >= count:
            value[:, share : 2 * share] = 3.0
            part.kernel.assign(value)
    assert_close(masked(*data), before, 1e-6, 1e-6)


@every_case
def test_nothing_closed_gets_a_gradient(name):
    _, masked, data = masked_layer(name)
    for gate in masked.gates:
        close(masked, gate, 1)
    x, z = keras.Input(SHAPE), keras.Input((5, 8))
    model = keras.Model([x, z], masked(x, z))
    model.compile(keras.optimizers.SGD(1.0), "mse", **builders.WITHOUT_XLA)
    before = to_numpy(masked.layer._output_dense.kernel).copy()
    model.train_on_batch(list(data), np.ones(model.output.shape[1:])[None].repeat(2, 0))
    moved = before - to_numpy(masked.layer._output_dense.kernel)
    dims = moved[:, 1] if moved.shape[1] > 1 else moved
    assert (moved[..., 1] == 0).all() and (dims[..., 0] == 0).all()
    assert (moved != 0).any()


@every_case
def test_config_save_and_load(name, tmp_path):
    _, masked, data = masked_layer(name)
    for gate in masked.gates:
        close(masked, gate, 1)
    again = type(masked).from_config({**masked.get_config()})
    assert again.get_config() == masked.get_config()
    x, z = keras.Input(SHAPE), keras.Input((5, 8))
    model = keras.Model([x, z], masked(x, z))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for gate, value in masked.gates.items():
        assert to_numpy(loaded.layers[-1].gates[gate]).tolist() == (
            to_numpy(value).tolist()
        )
    assert_close(loaded(list(data)), model(list(data)), 1e-6, 1e-6)


@every_case
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(name, policy):
    layer, masked, data = masked_layer(name, dtype=policy)
    expected, found = layer(*data), masked(*data)
    assert found.dtype == expected.dtype
    limit = 1e-6 if policy == "float64" else 5e-2
    near = [keras.ops.cast(x, "float32") for x in (found, expected)]
    assert_close(*near, limit, limit)


@pytest.mark.parametrize("name", CASES)
def test_flash_attention_that_is_asked_for_stays(name):
    """It is called on some accelerators only, and Keras leaves it out of configs."""
    layer = CASES[name](flash_attention=True)
    assert filterprune.wrap(layer).layer._flash_attention is True
    smaller = remake(layer, name="smaller")
    assert smaller._flash_attention is True
    assert not remake(CASES[name]())._flash_attention
