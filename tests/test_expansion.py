"""Composite layers are taken apart, and what is in them is pruned."""

import keras
import numpy as np
import pytest
from builders import WITHOUT_XLA
from exactness import (
    assert_close,
    assert_untouched,
    check_exact,
    close_at_random,
    randomise,
    state_of,
    to_numpy,
)
from keras import layers, ops

import filterprune
from filterprune import inlining
from filterprune.channels import registry


@keras.saving.register_keras_serializable("tests")
class FeedForward(layers.Layer):
    def build(self, shape):
        self.inner = layers.Dense(8, activation="gelu", name="inner")
        self.outer = layers.Dense(shape[-1], name="outer")
        self.inner.build(shape)
        self.outer.build((*shape[:-1], 8))

    def call(self, x):
        return self.outer(self.inner(x))


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """Attention and two feed-forward parts, of which it keeps a list."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.attention = layers.MultiHeadAttention(4, 2, name="attention")
        self.norms = [layers.LayerNormalization(name=f"norm{i}") for i in range(3)]
        self.parts = [FeedForward(name=f"part{i}") for i in range(2)]
        self.dropout = layers.Dropout(0.2, name="dropout")

    def build(self, shape):
        self.attention.build(shape, shape)
        for part in (*self.norms, *self.parts):
            part.build(shape)

    def call(self, x, training=None):
        y = self.norms[0](x)
        x = x + self.dropout(self.attention(y, y), training=training)
        for norm, part in zip(self.norms[1:], self.parts, strict=True):
            y = part(norm(x))
            # A size that a symbolic tensor does not know.
            x = x + ops.reshape(y, (ops.shape(x)[0], -1, x.shape[-1]))
        return x


class Indexed(layers.Layer):
    def build(self, shape):
        self.dense = layers.Dense(shape[-1])
        self.dense.build(shape)
        about = {"dtype": "int32", "initializer": "zeros"}
        self.index = self.add_weight(shape=(shape[-1],), name="index", **about)

    def call(self, x):
        return ops.take(self.dense(x), self.index, axis=-1)


class Moody(layers.Layer):
    def build(self, shape):
        self.first, self.second = layers.Dense(shape[-1]), layers.Dense(shape[-1])
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x, training=None):
        return self.first(x) if training else self.second(self.first(x))


@pytest.fixture
def declared(monkeypatch):
    """What is declared in a test is forgotten after it."""
    monkeypatch.setattr(registry, "_COMPOSITES", dict(registry._COMPOSITES))


def model_of(*composites, masking=False):
    inputs = keras.Input((6, 5))
    x = layers.Masking()(inputs) if masking else inputs
    x = layers.Dense(8, name="stem")(x)
    for layer in composites:
        x = layer(x)
    x = layers.GlobalAveragePooling1D()(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def data(seed=0):
    return np.random.default_rng(seed).normal(size=(4, 6, 5)).astype("float32")


def test_a_composite_is_expanded_on_demand_and_computes_the_same():
    model = model_of(Block(name="block"), Block(name="again"))
    whole = filterprune.expand(model, [Block, FeedForward])
    assert_close(whole(data()), model(data()), 1e-5, 1e-6)
    names = [layer.name for layer in whole.layers]
    assert {"block_attention", "block_part0_inner", "again_part1_outer"} <= set(names)
    assert [layer.name for layer in model.layers].count("block") == 1


class Powers(layers.Layer):
    """A part, so many times in a row."""

    def __init__(self, times, **kwargs):
        super().__init__(**kwargs)
        self.times = times
        self.part = layers.Dense(8, name="part")

    def build(self, shape):
        self.part.build(shape)

    def call(self, x):
        for _ in range(self.times):
            x = ops.tanh(self.part(x))
        return x


def test_composites_that_are_alike_are_tried_once(monkeypatch):
    tried = []
    real = inlining.Trial.why_not
    monkeypatch.setattr(
        inlining.Trial,
        "why_not",
        lambda self, layer, *args: tried.append(layer.name) or real(self, layer, *args),
    )
    blocks = [Powers(1 + n // 2, name=f"block{n}") for n in range(4)]
    model = model_of(*blocks)
    whole = filterprune.expand(model, [Powers])
    assert tried == ["block0", "block2"]
    assert_close(whole(data()), model(data()), 1e-5, 1e-6)
    parts = [whole.get_layer(f"block{n}_part").get_weights()[0] for n in range(4)]
    for block, kernel in zip(blocks, parts, strict=True):
        assert np.array_equal(kernel, block.part.get_weights()[0])


def test_parts_are_told_of_training_as_the_composite_is():
    model = model_of(Block(name="block"))
    whole = filterprune.expand(model, [Block])
    outputs = [to_numpy(whole(data(), training=mode)) for mode in (True, True, False)]
    assert not np.allclose(outputs[0], outputs[1])  # dropout
    assert_close(outputs[2], model(data()), 1e-5, 1e-6)


def test_a_composite_that_keras_hands_a_mask_is_kept():
    model = model_of(Block(name="block"), masking=True)
    with pytest.raises(ValueError, match="hands it a mask"):
        filterprune.expand(model, [Block])


def test_declared_composites_are_pruned_inside(declared, tmp_path):
    filterprune.composite(Block)
    filterprune.composite(FeedForward)
    model = model_of(Block(name="block"))
    model.compile("adam", "mse", **WITHOUT_XLA)
    report = filterprune.analyze(model)
    sizes = {group.kind: group.size for group in report.prunable}
    inner = {"key_dim": 2, "value_dim": 2}
    if keras.backend.backend() == "jax":  # where the two have one size
        inner = {"head_dim": 2}
    assert sizes == {"width": 8, "heads": 4, "ffn": 8, **inner}
    masked = filterprune.wrap_model(model)
    assert masked.compiled
    masked.fit(data(), np.zeros((4, 3)), verbose=0)
    close_at_random(masked)
    small = check_exact(masked)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert_close(loaded(data()), small(data()), 1e-5, 1e-6)
    assert small.get_layer("block_attention").num_heads == 2


def test_a_composite_that_is_excluded_is_kept():
    masked = filterprune.wrap_model(
        model_of(Block(name="block"), layers.Dense(7)), exclude=("block",)
    )
    assert isinstance(masked.get_layer("block"), Block)


def test_a_sequential_model_with_a_composite_becomes_functional(declared):
    model = keras.Sequential([keras.Input((6, 5)), FeedForward(), layers.Flatten()])
    whole = filterprune.expand(model, FeedForward)
    assert not isinstance(whole, keras.Sequential)
    assert_close(whole(data()), model(data()), 1e-5, 1e-6)


@keras.saving.register_keras_serializable("tests")
class Branches(layers.Layer):
    """A composite that holds models."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.branches = [
            keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(4)])
            for _ in range(2)
        ]

    def build(self, shape):
        for branch in self.branches:
            branch.build(shape)

    def call(self, x):
        return ops.concatenate([branch(x) for branch in self.branches], axis=-1)


def test_models_in_a_composite_are_pruned_too(declared):
    filterprune.composite(Branches)
    model = model_of(Branches(name="branches"))
    masked = filterprune.wrap_model(model)
    assert_close(masked(data()), model(data()), 1e-5, 1e-6)
    assert len(filterprune.analyze(masked).prunable) == 5
    close_at_random(masked)
    check_exact(masked)
    nested = [part for part in masked.layers if isinstance(part, keras.Model)]
    weights = {id(weight) for weight in masked.trainable_weights}
    assert len(nested) == 2
    for part in nested:
        assert weights.issuperset(id(w) for w in part.trainable_weights)


def test_a_nested_model_is_expanded_inside():
    inner = model_of(Block(name="block"))
    inputs = keras.Input((6, 5))
    model = keras.Model(inputs, layers.Dense(2)(inner(inputs)))
    whole = filterprune.expand(model, [Block])
    assert_close(whole(data()), model(data()), 1e-5, 1e-6)
    nested = next(part for part in whole.layers if isinstance(part, keras.Model))
    assert "block_norm0" in [layer.name for layer in nested.layers]


def test_a_shared_composite_stays_shared():
    block = FeedForward(name="block")
    inputs = keras.Input((6, 5))
    x = layers.Dense(8)(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(2)(block(block(x)))))
    whole = filterprune.expand(model, [FeedForward])
    assert whole.count_params() == model.count_params()
    assert_close(whole(data()), model(data()), 1e-5, 1e-6)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [(Indexed, "`index` is of dtype int32"), (Moody, "other parts in training")],
)
def test_what_cannot_be_expanded_says_why(cls, reason, declared):
    model = model_of(cls(name="odd"))
    with pytest.raises(ValueError, match=f"'odd'.*{reason}"):
        filterprune.expand(model, [cls])
    filterprune.composite(cls)
    with pytest.warns(filterprune.PruningWarning, match=reason):
        whole = filterprune.expand(model)
    assert whole is model  # of its own class, which can be saved as before


def test_a_function_given_for_a_composite_is_checked(declared):
    filterprune.composite(
        FeedForward, call=lambda layer, x: layer.outer(layer.inner(x))
    )
    assert "ffn_inner" in [
        layer.name
        for layer in filterprune.expand(model_of(FeedForward(name="ffn"))).layers
    ]
    filterprune.composite(
        FeedForward, call=lambda layer, x: layer.outer(layer.inner(2 * x))
    )
    with pytest.warns(filterprune.PruningWarning, match="compute something else"):
        filterprune.expand(model_of(FeedForward(name="ffn")))


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="layer class"):
        filterprune.composite("Block")
    with pytest.raises(TypeError, match="function"):
        filterprune.composite(Block, call=3)
    with pytest.raises(TypeError, match="layer classes"):
        filterprune.expand(model_of(), ["Block"])


def test_the_original_is_not_touched():
    model = model_of(Block(name="block"))
    before = [to_numpy(weight).copy() for weight in model.weights]
    whole = filterprune.expand(model, [Block])
    for weight in whole.weights:
        weight.assign(to_numpy(weight) + 1)
    for weight, old in zip(model.weights, before, strict=True):
        assert_close(weight, old)
    assert model.get_layer("block").attention.name == "attention"


class ConvBlock(layers.Layer):
    """As people write it; what it does besides is up to a subclass."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = layers.Conv1D(filters, 3, padding="same")
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], self.filters))

    def call(self, x, training=None):
        return keras.activations.relu(self.norm(self.conv(x), training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class AddsLoss(ConvBlock):
    def call(self, x, training=None):
        self.add_loss(ops.mean(x))
        return super().call(x, training)


class Measures(ConvBlock):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mean = keras.metrics.Mean()

    def call(self, x, training=None):
        self.mean.update_state(ops.mean(x))
        return super().call(x, training)


class Draws(ConvBlock):
    """A number that NumPy draws when it is called is no constant."""

    def call(self, x, training=None):
        return super().call(x, training) + np.random.normal(size=self.filters)


class Counts(ConvBlock):
    """Another factor with every call."""

    def call(self, x, training=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().call(x, training) * self.calls


class Borrows(ConvBlock):
    """It hands a weight to an operation, and calls the part too: they stay tied."""

    def call(self, x, training=None):
        y = super().call(x, training)
        return y + ops.matmul(x, self.conv.kernel[0] * 2.0)


class BorrowsAsItIs(ConvBlock):
    def call(self, x, training=None):
        y = super().call(x, training)
        return y + ops.conv(x, self.conv.kernel, padding="same")


class Noisy(ConvBlock):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        y = super().call(x, training)
        return y + keras.random.normal(ops.shape(y), seed=self.seed) if training else y


def net_of(cls, **kwargs):
    x = keras.Input((6, 5))
    y = cls(8, name="block", **kwargs)(layers.Conv1D(6, 3, name="before")(x))
    y = layers.Conv1D(4, 1, name="after")(y)
    return randomise(keras.Model(x, layers.Dense(2)(layers.Flatten()(y))))


def test_layers_made_of_layers_are_pruned_inside_undeclared():
    model = net_of(ConvBlock)
    before = state_of(model)
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = check_exact(masked)
    assert small.get_layer("block_conv1d").filters == 4
    assert small.get_layer("before").filters == 3
    assert_untouched(model, before)


@pytest.mark.parametrize(
    "cls",
    [AddsLoss, Measures, Draws, Counts, Borrows, BorrowsAsItIs, Noisy],
    ids=lambda c: c.__name__,
)
def test_a_layer_that_does_more_than_call_its_parts_is_kept(cls):
    """Nobody declared it, so the model keeps the layer whole."""
    model = net_of(cls)
    before = state_of(model)
    masked = filterprune.wrap_model(model, verify=cls not in (Draws, Counts))
    block = masked.get_layer("block")
    assert type(block) is cls
    (barrier,) = filterprune.analyze(masked).barriers
    assert "`block`" in barrier and "Conv1D" in barrier
    assert not hasattr(masked.get_layer("before"), "gate")
    assert_untouched(model, before)


def test_an_activity_regularizer_of_the_whole_is_kept():
    masked = filterprune.wrap_model(net_of(ConvBlock, activity_regularizer="l2"))
    assert isinstance(masked.get_layer("block"), ConvBlock)


def test_layers_that_share_a_part_are_warned_of():
    class Around(layers.Layer):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def call(self, x):
            return ops.relu(self.part(x))

    part = layers.Dense(5)
    x = keras.Input((6, 5))
    model = keras.Model(x, layers.Dense(2)(Around(part)(Around(part)(x))))
    with pytest.warns(filterprune.PruningWarning, match="'around'.*share weights"):
        masked = filterprune.wrap_model(model)
    close_at_random(masked)
    check_exact(masked)
