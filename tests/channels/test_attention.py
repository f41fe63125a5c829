"""Attention: heads, dimensions and widths go, and what is left is exact."""

import keras
import numpy as np
import pytest
from builders import close, masked_layers
from exactness import (
    LIMITS,
    assert_close,
    assert_equal,
    check_exact,
    close_at_random,
    randomise,
    to_numpy,
)
from keras import layers, ops

import filterprune
from filterprune.channels.groups import study
from filterprune.slots import Slots, masked_analysis


def head(x):
    return layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x))


def attending(make, length=6, **kwargs):
    """Attention between dense layers."""
    inputs = keras.Input((length, 5))
    x = layers.Dense(12, name="stem")(inputs)
    return randomise(keras.Model(inputs, head(make()(x, x, **kwargs))))


def block(x, attention, **kwargs):
    """A transformer block that normalises first."""
    y = layers.LayerNormalization()(x)
    x = x + attention(y, y, **kwargs)
    y = layers.LayerNormalization()(x)
    y = layers.Dense(20, activation="gelu")(y)
    return x + layers.Dense(x.shape[-1])(y)


def heads_of(x, count, length=6):
    """`(batch, heads, length, dimensions)` of `(batch, length, width)`."""
    x = ops.reshape(x, (-1, length, count, x.shape[-1] // count))
    return ops.transpose(x, (0, 2, 1, 3))


def separate(x, count):
    return [heads_of(layers.Dense(12)(x), count) for _ in "qkv"]


def fused(x, count):
    x = ops.reshape(layers.Dense(36)(x), (-1, 6, 3, count, 12 // count))
    x = ops.transpose(x, (2, 0, 3, 1, 4))
    return x[0], x[1], x[2]


def unstacked(x, count):
    x = layers.Reshape((6, 3, count, 12 // count))(layers.Dense(36)(x))
    return ops.unstack(layers.Permute((2, 3, 1, 4))(x), axis=1)


def split(x, count):
    return [heads_of(y, count) for y in ops.split(layers.Dense(36)(x), 3, axis=-1)]


ANGLES = np.outer(np.arange(6), [1.0, 0.3, 1.0, 0.3])


def rotated(x, count):
    """With rotary embeddings: factors for each position and dimension."""

    def rotate(y):
        first, second = ops.split(y, 2, axis=-1)
        turned = ops.concatenate([-second, first], axis=-1)
        sine, cosine = (f(ANGLES).astype(y.dtype) for f in (np.sin, np.cos))
        return y * cosine + turned * sine[None, None]

    query, key, value = separate(x, count)
    return rotate(query), rotate(key), value


def normalised(x, count):
    """With norms of each query and key."""
    query, key, value = separate(x, count)
    query = layers.LayerNormalization(center=False)(layers.RMSNormalization()(query))
    return query, layers.UnitNormalization()(key), value


def shifted(x, count):
    """With a factor and a bias for each dimension, the same for all heads."""
    query, key, value = separate(x, count)
    vector = np.linspace(0.5, 2.0, 12 // count).astype(query.dtype)
    return query * vector + 1.0, ops.maximum(key, vector), value


CAUSAL = np.triu(np.full((6, 6), -1e9, "float32"), 1)


def vision_transformer(project=separate, softmax=ops.softmax, mask=None):
    """A block out of dense layers, reshapes and matrix products."""
    inputs = keras.Input((6, 5))
    x = layers.Dense(12)(inputs)
    y = layers.LayerNormalization()(x)
    query, key, value = project(y, 3)
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / 2.0
    scores = scores if mask is None else scores + mask
    y = ops.matmul(layers.Dropout(0.1)(softmax(scores)), value)
    y = ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, 6, 12))
    x = x + layers.Dense(12)(y)
    y = layers.LayerNormalization()(x)
    gated = layers.Dense(20, activation="silu")(y) * layers.Dense(20)(y)
    x = x + layers.Dense(12)(gated)
    return randomise(keras.Model(inputs, head(layers.LayerNormalization()(x))))


def kinds(report):
    return {group.kind: group.size for group in report.prunable}


@pytest.mark.parametrize(
    "project", [separate, fused, unstacked, split, rotated, shifted, normalised]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_heads_written_by_hand_are_found_and_pruned(project, dtype):
    keras.config.set_floatx(dtype)
    masked = filterprune.wrap_model(vision_transformer(project, mask=CAUSAL))
    report = filterprune.analyze(masked)
    assert kinds(report) == {"width": 12, "heads": 3, "ffn": 20}
    assert report.barriers == ()
    close_at_random(masked)
    check_exact(masked, LIMITS[dtype])


def test_heads_written_by_hand_are_pruned_layer_by_layer():
    model = vision_transformer(softmax=layers.Softmax())
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    assert kinds(filterprune.analyze(masked))["heads"] == 3
    close_at_random(masked)
    check_exact(masked)


@pytest.mark.parametrize("form", ["einsum", "einsum dots", "operation"])
def test_heads_of_einsum_dense_are_pruned_at_any_length(form):
    inputs = keras.Input((None, 5))
    x = layers.Dense(12)(inputs)
    make = lambda: layers.EinsumDense("btd,dnh->btnh", (None, 3, 4), bias_axes="nh")  # noqa: E731
    query, key, value = make()(x), make()(x), make()(x)
    if form == "operation":
        y = ops.dot_product_attention(query, key, value, is_causal=True)
    else:
        dots = "bt...h,bs...h->b...ts" if form == "einsum dots" else "btnh,bsnh->bnts"
        y = ops.softmax(ops.einsum(dots, query * 0.5, key))
        y = ops.einsum("bnts,bsnh->btnh", y, value)
    x = x + layers.EinsumDense("btnh,nhd->btd", (None, 12), bias_axes="d")(y)
    masked = filterprune.wrap_model(randomise(keras.Model(inputs, head(x))))
    assert kinds(filterprune.analyze(masked)) == {"width": 12, "heads": 3}
    close_at_random(masked)
    small = check_exact(masked)
    assert small.count_params() < 0.5 * masked.count_params()


def test_a_bias_that_keras_may_add_along_another_axis_is_a_barrier():
    inputs = keras.Input((5, 6))
    x = layers.EinsumDense("abc,bd->adc", (4, 8), bias_axes="d")(
        layers.Dense(8)(inputs)
    )
    model = randomise(keras.Model(inputs, head(x)))
    (barrier,) = filterprune.analyze(model).barriers
    assert "bias along one axis that is not the last" in barrier


def test_what_is_left_of_multi_head_attention_is_multi_head_attention(tmp_path):
    model = attending(lambda: layers.MultiHeadAttention(4, 6, value_dim=3, name="mha"))
    masked = filterprune.wrap_model(model)
    mha = masked.get_layer("mha")
    for name, closed in {"heads": [0, 3], "key_dim": [2], "value_dim": [1]}.items():
        gate = np.ones(mha.gates[name].shape)
        gate[closed] = 0
        mha.gates[name].assign(gate)
    small = check_exact(masked)
    left = small.get_layer("mha")
    assert type(left) is layers.MultiHeadAttention
    assert (left.num_heads, left.key_dim, left.value_dim) == (2, 5, 2)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    x = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("float32")
    assert_close(loaded(x), small(x), 1e-5, 1e-6)


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="dimensions of keys and values are one"
)
def test_the_scale_of_scores_stays_that_of_all_key_dimensions():
    model = attending(lambda: layers.MultiHeadAttention(2, 8, name="mha"))
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, sparsity=0.7, kinds="key_dim")
    old, new = masked.get_layer("mha").layer, check_exact(masked).get_layer("mha")
    assert new.key_dim == 2
    kept = masked.get_layer("mha").gates["key_dim"]
    query = to_numpy(old.query_dense.kernel)[..., to_numpy(kept) == 1]
    assert_close(new.query_dense.kernel, query * np.sqrt(2 / 8), 1e-5)
    assert_close(
        new.query_dense.bias,
        to_numpy(old.query_dense.bias)[..., to_numpy(kept) == 1] * np.sqrt(2 / 8),
        1e-5,
    )


def test_a_closed_head_is_absent_already_while_training():
    model = attending(lambda: layers.MultiHeadAttention(3, 4, name="mha"))
    masked = filterprune.wrap_model(model)
    mha = masked.get_layer("mha")
    mha.gates["heads"].assign([1, 0, 1])
    x = np.random.default_rng(0).normal(size=(4, 6, 5)).astype("float32")
    before = to_numpy(masked(x, training=True))
    rng = np.random.default_rng(1)
    for dense in (mha.layer.query_dense, mha.layer.key_dense, mha.layer.value_dense):
        kernel = to_numpy(dense.kernel).copy()
        kernel[:, 1] = rng.normal(size=kernel[:, 1].shape)
        dense.kernel.assign(kernel)
    assert_equal(masked(x, training=True), before)


@pytest.mark.parametrize("group", [False, True])
def test_padding_and_causal_masks_are_kept(group):
    """GPT-like: tokens behind the end and in the future do not count."""

    def attention():
        if group:
            return layers.GroupQueryAttention(3, 4, 2)
        return layers.MultiHeadAttention(4, 3)

    inputs = keras.Input((6, 5))
    x = layers.Masking()(inputs)
    x = layers.Dense(12)(x)
    x = block(x, attention(), use_causal_mask=True)
    x = block(x, attention(), use_causal_mask=True)
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = filterprune.compact(masked)
    x = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("float32")
    x[0, 4:] = 0
    expected = to_numpy(masked(x))
    assert_close(small(x), expected, 1e-4, 1e-5)
    x[1, 5] += 1
    assert_close(small(x)[1, :5], expected[1, :5], 1e-4, 1e-5)


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6), (3, 6, 6)])
def test_a_mask_given_as_a_tensor_is_kept_and_may_tell_heads_apart(shape):
    inputs, mask = keras.Input((6, 5)), keras.Input(shape, dtype="bool")
    x = layers.Dense(12)(inputs)
    x = layers.MultiHeadAttention(3, 4, name="mha")(x, x, attention_mask=mask)
    model = randomise(keras.Model([inputs, mask], head(x)))
    masked = filterprune.wrap_model(model)
    fixed = {group.name: group.reason for group in filterprune.analyze(masked).fixed}
    assert ("mha/heads" in fixed) == (shape[0] == 3)
    if shape[0] == 3:
        assert "tells heads apart" in fixed["mha/heads"]
    close_at_random(masked)
    check_exact(masked)


def test_scores_that_leave_the_model_keep_the_heads():
    inputs = keras.Input((6, 5))
    x = layers.Dense(12)(inputs)
    attention = layers.MultiHeadAttention(4, 4, name="mha")
    y, scores = attention(x, x, return_attention_scores=True)
    seen = randomise(keras.Model(inputs, [head(y), scores]))
    masked = filterprune.wrap_model(seen)
    fixed = {group.name: group.reason for group in filterprune.analyze(masked).fixed}
    assert "reaches the output" in fixed["mha/heads"]
    close_at_random(masked)
    check_exact(masked)
    masked = filterprune.wrap_model(keras.Model(inputs, head(y)))
    assert kinds(filterprune.analyze(masked))["heads"] == 4


def test_a_shared_layer_and_cross_attention_are_exact():
    first, second = keras.Input((6, 5)), keras.Input((4, 7))
    x, y, z = layers.Dense(12)(first), layers.Dense(9)(second), layers.Dense(8)(second)
    shared = layers.MultiHeadAttention(4, 3)
    x = shared(shared(x, x), x)
    x = layers.MultiHeadAttention(2, 4)(query=x, value=y, key=z)
    masked = filterprune.wrap_model(randomise(keras.Model([first, second], head(x))))
    close_at_random(masked)
    check_exact(masked)


def test_attention_over_some_axes_of_a_map_is_exact():
    inputs = keras.Input((3, 4, 5))
    x = layers.Dense(8)(inputs)
    x = layers.MultiHeadAttention(2, 4, attention_axes=(2,))(x, x)
    x = layers.MultiHeadAttention(2, 4, attention_axes=(1, 2))(x, x)
    model = randomise(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    check_exact(masked)


def test_query_heads_go_with_their_key_head():
    model = attending(lambda: layers.GroupQueryAttention(4, 6, 3, name="gqa"))
    masked = filterprune.wrap_model(model)
    masked.get_layer("gqa").gates["heads"].assign([1, 0, 1])
    left = check_exact(masked).get_layer("gqa")
    assert (left.num_query_heads, left.num_key_value_heads) == (4, 2)
    model = attending(lambda: layers.GroupQueryAttention(4, 4, 1, name="gqa"))
    masked = filterprune.wrap_model(model)
    masked.get_layer("gqa").gates["heads"].assign([1, 0, 0, 1])
    left = check_exact(masked).get_layer("gqa")
    assert (left.num_query_heads, left.num_key_value_heads) == (2, 1)


def test_the_cost_counts_scores_and_values():
    model = attending(lambda: layers.MultiHeadAttention(4, 3, value_dim=5, name="mha"))
    masked = filterprune.wrap_model(model)
    costs = {layer.name: layer for layer in filterprune.analyze(masked).layers}
    projections = 6 * 12 * 4 * (3 + 3 + 5 + 5)
    assert costs["mha"].before.macs == projections + 6 * 6 * 4 * (3 + 5)
    filterprune.prune(masked, 0.5, kinds={"heads"})
    costs = {layer.name: layer for layer in filterprune.analyze(masked).layers}
    assert costs["mha"].after.macs == costs["mha"].before.macs // 2
    assert filterprune.analyze(check_exact(masked)).before.macs == sum(
        layer.after.macs for layer in costs.values()
    )


def test_the_cost_counts_products_written_by_hand():
    report = filterprune.analyze(vision_transformer())
    costs = {layer.name: layer.before.macs for layer in report.layers}
    assert costs["matmul"] == costs["matmul_1"] == 6 * 6 * 12


def test_kinds_choose_what_is_pruned():
    inputs = keras.Input((6, 5))
    x = block(layers.Dense(12)(inputs), layers.MultiHeadAttention(4, 3, name="mha"))
    model = randomise(keras.Model(inputs, head(x)))
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, scope="layer", kinds={"heads", "ffn"})
    groups = {g.kind: g for g in filterprune.analyze(masked).prunable}
    assert (groups["heads"].alive, groups["ffn"].alive) == (2, 10)
    assert all(
        g.alive == g.size for g in groups.values() if g.kind not in ("heads", "ffn")
    )
    with pytest.raises(ValueError, match=r"some of \['ffn', 'heads', .*'channels'"):
        filterprune.prune(masked, 0.5, kinds={"channels"})
    with pytest.raises(TypeError, match="kinds"):
        filterprune.prune(masked, 0.5, kinds=3)


def test_a_budget_counts_what_other_kinds_have_lost():
    model = attending(lambda: layers.MultiHeadAttention(4, 4))
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, kinds="width")
    left = filterprune.analyze(masked).after.params
    filterprune.prune(masked, target="params", budget=left * 0.6, kinds="heads")
    assert filterprune.analyze(masked).after.params <= left * 0.6


def test_gradient_criteria_see_inside_of_attention():
    """The derivative by a gate, against what the loss does when it moves."""
    inputs = keras.Input((6, 5))
    attention = layers.GroupQueryAttention(4, 6, 3)
    x = block(block(layers.Dense(12)(inputs), attention), attention)
    x = block(x, layers.MultiHeadAttention(3, 4, value_dim=2))
    masked = filterprune.wrap_model(randomise(keras.Model(inputs, head(x))))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6, 5)).astype("float32"), rng.integers(0, 3, 8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    slots = Slots(masked_analysis(masked))
    criterion = filterprune.criteria.GateGradient((x, y), loss=loss)
    scores = criterion.score(slots)
    inside = ("heads", "key_dim", "value_dim", "head_dim")
    for group, part in zip(slots.groups, slots.slices, strict=True):
        if group.kind not in inside:
            continue
        found = []
        for number in range(part.start, part.stop):
            moved = np.arange(slots.count) == number
            values = []
            for size in (0.99, 1.01):
                slots.set_gates(moved, size)
                values.append(float(to_numpy(loss(y, masked(x)))))
            slots.set_gates(np.zeros(slots.count, bool))
            found.append(abs(values[1] - values[0]) / 0.02)
        assert_close(scores[part], found, 0.02, 2e-3)


def test_activations_and_all_criteria_rank_heads():
    model = attending(lambda: layers.MultiHeadAttention(4, 3))
    masked = filterprune.wrap_model(model)
    x = np.random.default_rng(0).normal(size=(4, 6, 5)).astype("float32")
    criteria = filterprune.criteria
    for criterion in ("l2", "lamp", "group", criteria.ActivationMean(x)):
        assert filterprune.prune(masked, 0.3, criterion, scope="layer") > 0.2


def test_gates_of_attention_are_listed_and_set_again():
    model = attending(lambda: layers.MultiHeadAttention(4, 3, name="mha"))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    kept = filterprune.kept_indices(masked)
    assert len(kept["mha/heads"]) == 2 and len(kept["mha"]) == 6
    again = filterprune.replay(model, kept)
    assert filterprune.kept_indices(again) == kept


def test_a_masked_model_with_attention_is_saved_and_loaded(tmp_path):
    masked = filterprune.wrap_model(attending(lambda: layers.MultiHeadAttention(4, 3)))
    close_at_random(masked)
    masked.save(tmp_path / "masked.keras")
    loaded = keras.models.load_model(tmp_path / "masked.keras")
    assert filterprune.kept_indices(loaded) == filterprune.kept_indices(masked)
    x = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("float32")
    assert_close(loaded(x), masked(x), 1e-5, 1e-6)


def test_attention_left_out_keeps_its_heads():
    inputs = keras.Input((6, 5))
    x = layers.Dense(12)(inputs)
    x = block(x, layers.MultiHeadAttention(4, 3, name="mha"))
    model = randomise(keras.Model(inputs, head(x)))
    masked = filterprune.wrap_model(model, exclude=("mha",))
    assert "heads" not in kinds(filterprune.analyze(masked))
    assert "mha" not in masked_layers(masked)
    close_at_random(masked)
    check_exact(masked)


def test_gates_closed_by_hand_along_positions_are_refused():
    model = vision_transformer(softmax=layers.Softmax(name="softmax"))
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    assert "heads" in kinds(filterprune.analyze(masked))
    close(masked.get_layer("softmax"), 0)
    (barrier,) = study(masked).flow.barriers.values()
    assert "another axis" in barrier
