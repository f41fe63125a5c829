"""Layers as people publish them are pruned through, and nobody declares them."""

import functools
import importlib.util
import re

import keras
import numpy as np
import published_layers as published
import pytest
from builders import EAGERLY
from exactness import (
    assert_close,
    assert_untouched,
    check_exact,
    close_at_random,
    randomise,
    state_of,
)
from keras import layers, ops
from published_layers import Weighted

import filterprune

WITH_TENSORFLOW = (
    keras.backend.backend() == "tensorflow"
    and importlib.util.find_spec("filterprune.tensorflow_calls") is not None
)


KINDS = {
    "image": """
        SqueezeExcite SqueezeExciteWeights SqueezeExciteTF CBAM CBAMWeights CBAMTF
        ECA ECAWeights ECATF BAM SimAM SimAMTF
        CoordinateAttention CoordinateAttentionWeights CoordinateAttentionTF
        NonLocal NonLocalWeights NonLocalTF GlobalContext SpatialAndChannel
        SelectiveKernel InstanceNorm InstanceNormTF GroupNorm GRN GRNTF
        LayerScale FiLM FiLMWeights FiLMTF GeM GeMTF
        ConvNormReLU ConvNormReLUWeights ConvNormReLUTF Residual ResidualTF
        InvertedResidual InvertedResidualTF Ghost GhostTF ConvNeXtBlock Fire
        DepthwiseSeparable DepthwiseSeparableWeights DepthwiseSeparableTF
        SeparableWeights DenseBlock Patches PatchesTF PatchEncoder PatchEncoderTF
        StandardisedConv StandardisedConvWeights StandardisedConvTF
        EqualisedConv EqualisedConvTF CoordConv CoordConvTF
        PixelShuffle PixelShuffleTF ChannelShuffle ChannelShuffleTF
        ReflectionPadding ReflectionPaddingTF BlurPool BlurPoolTF DropPath DropPathTF
        Mish MishTF Swish MaxPoolByReshape MaxPoolByReshapeTF
        PReLU PReLUMaximum MinibatchDeviation
    """,
    "sequence": """
        SelfAttention SelfAttentionTF SelfAttentionWeights
        SplitHeads SplitHeadsWeights SplitHeadsTF Bahdanau BahdanauWeights BahdanauTF
        Luong LuongWeights LuongTF AttentionPool AttentionPoolWeights AttentionPoolTF
        ContextPool RMSNorm RMSNormTF LayerNorm LayerNormTF
        L2Norm L2NormByHand L2NormTF ScaleNorm MLP MLPWeights MLPTF
        SwiGLU SwiGLUWeights SwiGLUTF PostNormBlock PreNormBlock PreNormBlockTF
        Mixer ClassToken ClassTokenTile ClassTokenRepeat ClassTokenTF NormedTokens
        PositionTable PositionTableSliced
        PositionEmbedding PositionEmbeddingTF SinePositions SinePositionsByOps
        SinePositionsTF Squash
    """,
    "vector": "Highway HighwayWeights Maxout MaxoutWeights MaxoutTF EqualisedDense",
    "tokens": "TokenAndPosition TokenAndPositionWeights",
}


def net(name, before=8, after=8, **kwargs):
    """A layer between two others.

    Args:
        name: of the class.
        before: how many channels the layer reads.
        after: how many channels the layer behind it makes.
        **kwargs: the layer's.
    """
    cls = getattr(published, name)
    kind = next(key for key, names in KINDS.items() if name in names.split())
    if kind == "tokens":
        inputs = keras.Input((6,), dtype="int32")
        x = cls(width=before, name="layer")(inputs)
    elif kind == "image":
        inputs = keras.Input((6, 6, 3))
        x = layers.Conv2D(before, 3, padding="same", name="before")(inputs)
        if "FiLM" in name:
            inputs = [inputs, keras.Input((5,))]
            x = [x, inputs[1]]
        x = cls(name="layer", **kwargs)(x)
    else:
        inputs = keras.Input((5,) if kind == "vector" else (6, 5))
        x = layers.Dense(before, name="before")(inputs)
        x = cls(name="layer", **kwargs)(x)
    if len(x.shape) == 4:
        x = layers.Conv2D(after, 1, name="after")(x)
        x = layers.GlobalAveragePooling2D()(x)
    else:
        x = layers.Dense(after, name="after")(x)
    if len(x.shape) == 3:
        x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


# An expert who halves all that can go has the net of half the width. But for these:
HEADS = {"heads": 2}  # of which each stays as large
ALL_READ = {"before": 8}  # a convolution over channels, or statistics of a kernel
EXPERT = {
    "ECA": ALL_READ,
    "StandardisedConv": {**ALL_READ, "filters": 4},
    "GroupNorm": {"groups": 2},
    "SelfAttention": HEADS,
    "SelfAttentionWeights": {},
    "SplitHeads": HEADS,
    "PostNormBlock": {"heads": 2, "size": 2},
    "PreNormBlock": HEADS,
    "Mixer": {"hidden": 2},
    "Maxout": {"units": 4},
}

GAPS = {
    "SeparableWeights": "no rule for ops.separable_conv",
    "Mixer": "a functional mixer ties all channels too",
    "MaxoutWeights": "of two axes of an EinsumDense one is pruned",
}
if keras.backend.backend() != "tensorflow":
    GAPS["CoordinateAttention"] = "keras.activations.hard_swish wants real tensors"


def expert(name):
    """How many parameters an expert leaves."""
    base = name.removesuffix("TF")
    about = EXPERT.get(base, EXPERT.get(base.removesuffix("Weights"), {}))
    return net(name, **{"before": 4, "after": 4, **about}).count_params()


@functools.cache
def pruned(name):
    """How many parameters half the channels leave, once the rest is proved."""
    model = randomise(net(name))
    before = state_of(model)
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, scope="layer")
    small = check_exact(masked, verify=False)  # it compares them itself
    assert_untouched(model, before)
    return small.count_params()


def cases(gaps=()):
    found = []
    for name in " ".join(KINDS.values()).split():
        marks = []
        if name.endswith("TF"):
            reason = "TensorFlow's functions"
            marks.append(pytest.mark.skipif(not WITH_TENSORFLOW, reason=reason))
        if name in gaps:
            marks.append(pytest.mark.xfail(strict=True, reason=gaps[name]))
        found.append(pytest.param(name, marks=marks))
    return found


@pytest.mark.parametrize("name", cases())
def test_masked_and_compact_compute_the_same(name):
    pruned(name)


@pytest.mark.parametrize("name", cases(GAPS))
def test_half_of_the_channels_go_as_an_expert_would_have_it(name):
    assert pruned(name) == expert(name)


# Layers that try the limits -----------------------------------------------------------


class Tied(Weighted):
    """One matrix to and fro."""

    def build(self, shape):
        self.weight("kernel", shape[-1], shape[-1])

    def call(self, x):
        return ops.matmul(
            ops.tanh(ops.matmul(x, self.kernel)), ops.transpose(self.kernel)
        )


class TiedProducts(Tied):
    def call(self, x):
        return ops.matmul(ops.tanh(ops.matmul(x, self.kernel)), self.kernel)


class Helper:
    def __init__(self, weight):
        self.weight = weight

    def scale(self, x):
        return x * self.weight


class HandsToObject(Weighted):
    def build(self, shape):
        self.vector("scale", shape[-1])
        self.helper = Helper(self.scale)

    def call(self, x):
        return self.helper.scale(x) + self.scale


class HandsToClosure(Weighted):
    def build(self, shape):
        self.vector("scale", shape[-1])
        scale = self.scale
        self.function = lambda x: x * scale

    def call(self, x):
        return self.function(x)


class Collections(Weighted):
    def build(self, shape):
        size = (shape[-1],)
        self.shifts = [self.add_weight(shape=size, name=f"s{n}") for n in range(2)]
        self.scales = {"one": self.add_weight(shape=size, name="one")}
        self.pairs = [(self.add_weight(shape=size, name="pair"), 2.0)]

    def call(self, x):
        for shift in self.shifts:
            x = x + shift
        for weight, factor in self.pairs:
            x = x - factor * weight
        return x * self.scales["one"]


class Regularized(Weighted):
    def build(self, shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(shape[-1], shape[-1]),
            regularizer=keras.regularizers.L2(0.1),
            constraint=keras.constraints.NonNeg(),
        )
        self.scale = self.add_weight(
            name="scale",
            shape=(shape[-1],),
            regularizer="l1",
            constraint=keras.constraints.MaxNorm(0.5, axis=0),
        )

    def call(self, x):
        return ops.matmul(x, self.kernel) * self.scale


class Frozen(Weighted):
    def build(self, shape):
        self.table = self.add_weight(
            name="table", shape=shape[1:], initializer="normal", trainable=False
        )

    def call(self, x):
        return x + self.table


class IntegerTable(Weighted):
    def build(self, shape):
        self.order = self.add_weight(
            name="order", shape=(shape[1],), dtype="int32", initializer="zeros"
        )

    def call(self, x):
        return ops.take(x, self.order, axis=1)


class ReversedChannels(Weighted):
    """An integer table that says which channel goes where."""

    def build(self, shape):
        self.order = self.add_weight(
            name="order", shape=(shape[-1],), dtype="int32", initializer="zeros"
        )
        self.order.assign(np.arange(shape[-1])[::-1])

    def call(self, x):
        return ops.take(x, self.order, axis=-1)


class OtherType(Weighted):
    def __init__(self, kept_as="float64", **kwargs):
        super().__init__(**kwargs)
        self.kept_as = kept_as

    def build(self, shape):
        self.scale = self.add_weight(
            name="scale", shape=(shape[-1],), dtype=self.kept_as, autocast=False
        )

    def call(self, x):
        return ops.cast(ops.cast(x, self.kept_as) * self.scale, x.dtype)


class HalfType(OtherType):
    def __init__(self, **kwargs):
        super().__init__("float16", **kwargs)


class Scalars(Weighted):
    def build(self, shape):
        self.weight("shift", init="normal")
        self.weight("scale", 1, init="normal")

    def call(self, x):
        return self.scale * x + self.shift


class CountsInWeight(Weighted):
    def build(self, shape):
        self.count = self.add_weight(
            name="count", shape=(), initializer="zeros", trainable=False
        )
        self.vector("scale", shape[-1])

    def call(self, x, training=None):
        if training:
            self.count.assign_add(1.0)
        return x * self.scale


class RunningMean(Weighted):
    """Batch renormalisation by hand."""

    def build(self, shape):
        self.mean = self.add_weight(
            name="mean", shape=(shape[-1],), initializer="zeros", trainable=False
        )

    def call(self, x, training=None):
        if training:
            found = ops.mean(x, axis=(0, 1))
            self.mean.assign(0.9 * self.mean + 0.1 * found)
        return x - self.mean


class AlwaysAssigns(RunningMean):
    def call(self, x):
        self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x, axis=(0, 1)))
        return x - self.mean


class Lazy(layers.Layer):
    """Builds a part when it is called, and has one that it never calls."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.unused = layers.Dense(8), layers.Dense(8)

    def call(self, x):
        if not self.dense.built:
            self.dense.build(x.shape)
        return ops.relu(self.dense(x))


class ByTraining(Weighted):
    """Two weights, one for each mode."""

    def build(self, shape):
        self.vector("train", shape[-1])
        self.vector("infer", shape[-1])

    def call(self, x, training=None):
        return x * (self.train if training else self.infer)


class TwoOutputs(Weighted):
    def build(self, shape):
        self.weight("left", shape[-1], shape[-1])
        self.weight("right", shape[-1], 1)

    def call(self, x):
        return {"left": ops.matmul(x, self.left), "right": (x, ops.dot(x, self.right))}


class Optional(Weighted):
    """None among what it gives to the layer around it."""

    def build(self, shape):
        self.vector("scale", shape[-1])

    def call(self, x, with_scores=False):
        return x * self.scale, (ops.softmax(x, axis=1) if with_scores else None)


class Optionals(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [Optional(), Optional()]

    def call(self, x):
        x, scores = self.parts[0](x)
        y, more = self.parts[1](x, with_scores=scores is None)
        return y * more


class NamedTensor(Weighted):
    def build(self, shape, *_):
        self.weight("kernel", shape[-1], shape[-1])

    def call(self, x, *, context=None):
        return ops.matmul(x, self.kernel) * ops.mean(context, axis=1, keepdims=True)


class NegativeAxes(Weighted):
    def build(self, shape):
        self.weight("kernel", shape[-1], shape[-1])

    def call(self, x):
        y = ops.tensordot(x, self.kernel, axes=[[-1], [-2]])
        y = ops.moveaxis(ops.swapaxes(y, -1, -2), -1, -2)
        return ops.concatenate([y, ops.flip(x, axis=-1)], axis=-1)


class ChannelsFirst(Weighted):
    """Its own operations want the channels in front."""

    def build(self, shape):
        self.weight("kernel", shape[-1], shape[-1])
        self.weight("scale", shape[-1], 1)

    def call(self, x):
        y = ops.transpose(x, (0, 2, 1)) * self.scale
        y = ops.einsum("bct,cd->bdt", y, self.kernel)
        return ops.transpose(ops.relu(y), (0, 2, 1))


class AnyArguments(Weighted):
    def __init__(self, size=8, **kwargs):
        super().__init__(**kwargs)
        self.weight("kernel", size, size)

    def call(self, *args, **kwargs):
        return ops.matmul(*args, self.kernel)


class Unequal(Weighted):
    """Treats the channels by their number."""

    def build(self, shape):
        self.vector("scale", shape[-1])

    def call(self, x):
        half = self.scale.shape[0] // 2
        return ops.concatenate([x[..., :half], x[..., half:] * self.scale[half:]], -1)


class SumsWeights(Weighted):
    """Reads a weight over all channels."""

    def build(self, shape):
        self.vector("scale", shape[-1])

    def call(self, x):
        return x * ops.softmax(self.scale) + ops.mean(self.scale)


class Spectral(Weighted):
    """A kernel divided by its norm."""

    def build(self, shape):
        self.weight("kernel", shape[-1], shape[-1])

    def call(self, x):
        norm = ops.sqrt(ops.sum(ops.square(self.kernel)))
        return ops.matmul(x, self.kernel / norm)


PRODUCT = "multiplies tensors along several axes"
# Why the channels that a layer reads stay; None if half of them go.
LIMITS = {
    Tied: PRODUCT,
    TiedProducts: None,
    HandsToObject: None,
    HandsToClosure: None,
    Collections: None,
    Regularized: None,
    Frozen: None,
    IntegerTable: None,
    ReversedChannels: "`layer` .* mixes channels",
    OtherType: None,
    HalfType: None,
    Scalars: None,
    CountsInWeight: None,
    RunningMean: None,
    AlwaysAssigns: "for one sample depends on the others",
    Lazy: None,
    ByTraining: None,
    TwoOutputs: None,
    Optionals: None,
    NamedTensor: None,
    NegativeAxes: None,
    ChannelsFirst: None,
    AnyArguments: None,
    Unequal: None,
    SumsWeights: "couples its channels",
    Spectral: PRODUCT,
}


def model_of(call, batch=None, length=6):
    """What a call makes of a sequence, read by dense layers."""
    inputs = keras.Input(batch_shape=(batch, length, 5))
    made = call(layers.Dense(8, name="before")(inputs))
    pooled = [
        layers.GlobalAveragePooling1D()(layers.Dense(6)(x))
        for x in keras.tree.flatten(made)
    ]
    model = keras.Model(inputs, layers.Dense(3, name="head")(sum(pooled)))
    return randomise(model)


def calling(cls):
    layer = cls(name="layer")
    return (lambda x: layer(x, context=x)) if cls is NamedTensor else layer


def halved(model, **kwargs):
    """The masked and the compact model, of which the first layer has half."""
    before = state_of(model)
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = check_exact(masked, verify=False, **kwargs)
    assert_untouched(model, before)
    assert small.get_layer("before").units == 4
    return masked, small


def data(seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(8, 6, 5)), rng.normal(size=(8, 3))
    return x.astype("float32"), y.astype("float32")


@pytest.mark.parametrize("cls", LIMITS, ids=lambda cls: cls.__name__)
def test_what_tries_the_limits_is_exact_or_named(cls):
    model = model_of(calling(cls))
    if LIMITS[cls] is None:
        halved(model)
        return
    before = state_of(model)
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = check_exact(masked, verify=False)
    assert_untouched(model, before)
    assert small.get_layer("before").units == 8
    report = filterprune.analyze(masked)
    reasons = [*report.barriers, *(group.reason for group in report.fixed)]
    assert any(re.search(LIMITS[cls], reason) for reason in reasons), reasons


@pytest.mark.parametrize("cls", [Collections, Regularized, ChannelsFirst])
def test_a_layer_is_called_twice(cls):
    layer = cls(name="layer")
    halved(model_of(lambda x: layer(ops.relu(layer(x)))))


@pytest.mark.parametrize("name", ["ClassToken", "ClassTokenTile", "SelfAttention"])
def test_a_batch_of_fixed_size(name):
    halved(model_of(getattr(published, name)(), batch=3))


@pytest.mark.parametrize(
    "name",
    ["SplitHeadsWeights", "ClassToken", "SplitHeads"],
)
def test_a_sequence_of_any_length(name):
    halved(model_of(getattr(published, name)(name="layer"), length=None))


@pytest.mark.parametrize("name", ["ClassToken", "ClassTokenTile"])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_a_batch_of_as_many_samples_as_channels(name, batch_size):
    """On TensorFlow `ops.add` takes one for the other."""
    model = model_of(getattr(published, name)(name="layer"))
    halved(model, batch_size=batch_size)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_weights_under_a_policy(policy):
    keras.config.set_dtype_policy(policy)
    parts = [
        cls(name=cls.__name__)
        for cls in (published.PositionTable, published.LayerNorm, published.MLPWeights)
    ]
    model = model_of(lambda x: functools.reduce(lambda x, part: part(x), parts, x))
    halved(model, limit={"float64": 1e-6, "mixed_float16": 1e-3}.get(policy, 1e-2))


@pytest.mark.parametrize("cls", [Regularized, RunningMean, TwoOutputs])
def test_a_masked_model_trains_as_the_original_does(cls):
    model = model_of(calling(cls))
    masked = filterprune.wrap_model(model)
    for one in (model, masked):
        one.compile(keras.optimizers.SGD(0.05), "mse", **EAGERLY)
        one.fit(*data(), batch_size=4, epochs=2, shuffle=False, verbose=0)
    x, _ = data(1)
    assert_close(masked(x), model(x), 1e-4, 1e-5)


@pytest.mark.parametrize(
    "cls", [Regularized, HandsToObject, published.SplitHeadsWeights]
)
def test_pruned_in_training_it_stays_exact(cls):
    model = model_of(calling(cls))
    model.compile("adam", "mse", **EAGERLY)
    before = state_of(model)
    masked = filterprune.wrap_model(model)
    schedule = filterprune.PolynomialDecay(0.5, begin_step=0, end_step=2)
    callback = filterprune.FilterPruningCallback(schedule, frequency=1)
    masked.fit(*data(), batch_size=4, verbose=0, callbacks=[callback])
    small = check_exact(masked)
    assert small.count_params() < 0.7 * model.count_params()
    assert_untouched(model, before)


@pytest.mark.parametrize("name", ["ClassToken", "MLPWeights", "SplitHeadsWeights"])
def test_a_compact_model_is_loaded_without_the_classes(name, tmp_path):
    _, small = halved(model_of(getattr(published, name)(name="layer")))
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    x, _ = data()
    assert_close(loaded(x), small(x), 1e-5, 1e-6)
