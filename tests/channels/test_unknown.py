"""Layers of one's own: by a rule, by the probe, or a barrier with a reason."""

import random

import keras
import numpy as np
import pytest
from exactness import assert_equal, check_exact, close_at_random, randomise, to_numpy
from keras import layers, ops

import filterprune
from filterprune import expansion
from filterprune.channels import probing, registry


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    """Tracing is off: these tests are about the probe."""
    monkeypatch.setattr(expansion, "is_traced", lambda layer: False)


class LayerScale(layers.Layer):
    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(input_shape[-1],), name="gamma")

    def call(self, x):
        return x * self.gamma


class SizedScale(layers.Layer):
    """Its width is in its config, as in most zoos."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, _):
        self.gamma = self.add_weight(shape=(self.width,), name="gamma")

    def call(self, x):
        return x * self.gamma

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class Affine(LayerScale):
    def build(self, input_shape):
        super().build(input_shape)
        self.beta = self.add_weight(shape=(input_shape[-1],), name="beta")

    def call(self, x):
        return x * self.gamma + self.beta


class Attention(layers.Layer):
    """Mixes channels once its gain, zero at first, has been trained."""

    gain = "zeros"

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(), initializer=self.gain, name="gamma")

    def call(self, x):
        return x + self.gamma * ops.mean(x, axis=-1, keepdims=True)


class FaintAttention(Attention):
    """Its gain is too small to show in most numbers."""

    gain = keras.initializers.Constant(1e-9)


class NegativeAttention(Attention):
    """Mixes channels for a negative gain only."""

    def call(self, x):
        return x + ops.relu(-self.gamma) * ops.mean(x, axis=-1, keepdims=True)


class OwnBatchNorm(layers.Layer):
    """Has a weight that must not be negative."""

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(shape=shape, initializer="ones")
        self.spread = self.add_weight(shape=shape, initializer="ones", name="variance")

    def call(self, x):
        return x * self.gamma / ops.sqrt(self.spread)


class StochasticDepth(layers.Layer):
    def call(self, x, training=None):
        if training:
            shape = (ops.shape(x)[0], 1, 1, 1)
            return x * ops.floor(keras.random.uniform(shape) + 0.8)
        return x


class ScaledSum(layers.Layer):
    def call(self, inputs):
        return inputs[0] + 0.2 * inputs[1]


class Centre(layers.Layer):
    def call(self, x):
        return x - ops.mean(x, axis=-1, keepdims=True)


class OneNeighbour(layers.Layer):
    """Only the last channel looks at another one."""

    def call(self, x):
        extra = ops.pad(x[..., :1], ((0, 0), (0, 0), (0, 0), (7, 0)))
        return x + ops.relu(extra)


class InTraining(layers.Layer):
    """Channel-wise in inference, not in training."""

    def call(self, x, training=None):
        return x - ops.mean(x, axis=-1, keepdims=True) if training else x


class Hidden(layers.Layer):
    """It uses the weights of a part without calling it."""

    def build(self, input_shape):
        self.conv = layers.Conv2D(8, 1)
        self.conv.build(input_shape)

    def call(self, x):
        return ops.conv(x, self.conv.kernel) + self.conv.bias


class NoConfig(layers.Layer):
    """Does not round-trip through its config."""

    def __init__(self, function, other):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def by_clone(model):
    return keras.models.clone_model(model, clone_function=filterprune.wrap)


def model_with(op, padding="same"):
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    y = op(y)
    y = layers.Conv2D(4, 3, padding=padding, name="second")(y)
    y = layers.GlobalAveragePooling2D()(y)
    return randomise(keras.Model(x, layers.Dense(2, name="head")(y)))


def test_weights_that_hide_mixing_do_not_vouch_for_those_to_come():
    """A gain of zero is what training starts with, not what it ends with."""
    for layer in (Attention, FaintAttention):
        x = keras.Input((6, 6, 3))
        y = layer(name="mine")(layers.Conv2D(8, 3)(x))
        model = keras.Model(x, layers.Conv2D(2, 1)(y))
        (barrier,) = filterprune.analyze(model).barriers
        assert "`mine`" in barrier and "it mixes channels" in barrier


class Mode(layers.Layer):
    """Forgets its argument when it is asked for its config."""

    def __init__(self, mode="plain", **kwargs):
        super().__init__(**kwargs)
        self.mode = mode

    def call(self, x):
        return x * 1.5 if self._mode() == "plain" else ops.roll(x, 1, -1) + x

    def _mode(self):
        return self.mode

    def get_config(self):
        return super().get_config()


class HiddenMode(Mode):
    """Its mode is an object that nothing can be told of."""

    def __init__(self, mode="plain", **kwargs):
        super().__init__(**kwargs)
        self.mode = lambda: mode

    def _mode(self):
        return self.mode()


class Positions(layers.Layer):
    """Adds a number for each position."""

    def build(self, input_shape):
        shape = (1, *input_shape[1:])
        self.table = self.add_weight(shape=shape, name="table")

    def call(self, x):
        return x + self.table


class Token(layers.Layer):
    """Puts a token in front."""

    def build(self, input_shape):
        shape = (1, 1, input_shape[-1])
        self.token = self.add_weight(shape=shape, name="token")

    def call(self, x):
        shape = (ops.shape(x)[0], 1, x.shape[-1])
        return ops.concatenate([ops.broadcast_to(self.token, shape), x], axis=1)


@pytest.mark.parametrize("layer", [Positions, Token])
@pytest.mark.parametrize(
    "wrap",
    [filterprune.wrap_model, by_clone],
)
def test_what_differs_between_positions_before_a_normalisation(layer, wrap):
    x = keras.Input((16, 3))
    y = z = layer()(layers.Dense(8)(x))
    z = layers.LayerNormalization()(z)
    z = layers.Dense(8)(layers.Dense(12, activation="gelu", name="inner")(z))
    model = keras.Model(x, layers.Dense(2)(layers.add([y, z])))
    assert filterprune.analyze(model).barriers == ()
    masked = wrap(model)
    filterprune.prune(masked, 0.5)
    assert check_exact(masked).get_layer("inner").units < 12


@pytest.mark.parametrize("cls", [Mode, HiddenMode])
def test_a_verdict_is_not_that_of_a_layer_of_the_same_config(cls):
    x = keras.Input((6, 6, 3))
    y = cls("plain", name="plain")(layers.Conv2D(8, 3, padding="same")(x))
    y = cls("mix", name="mix")(layers.Conv2D(8, 3, padding="same")(y))
    model = keras.Model(x, layers.Conv2D(2, 1)(y))
    (barrier,) = filterprune.analyze(model).barriers
    assert "`mix`" in barrier and "it mixes channels" in barrier


def test_equal_layers_are_probed_once(monkeypatch):
    probed = []
    real = probing._probe
    monkeypatch.setattr(
        probing, "_probe", lambda *args: probed.append(args) or real(*args)
    )
    monkeypatch.setattr(probing, "_FOUND", {})
    x = y = keras.Input((6, 6, 8))
    for _ in range(5):
        y = SizedScale(8)(layers.Conv2D(8, 3, padding="same")(y))
    filterprune.analyze(keras.Model(x, y))
    assert len(probed) == 1


@pytest.fixture
def studied(monkeypatch):
    """The layers that are studied in every way, with nothing known before."""
    found = []
    real = probing._study
    monkeypatch.setattr(
        probing,
        "_study",
        lambda layer, *args: found.append(layer) or real(layer, *args),
    )
    monkeypatch.setattr(probing, "_FOUND", {})
    return found


def at_widths(make, *widths):
    x = y = keras.Input((6, 6, 3))
    for number, width in enumerate(widths):
        y = make(name=f"mine{number}")(layers.Conv2D(width, 1)(y))
    return randomise(keras.Model(x, layers.Conv2D(2, 1)(y)))


def test_one_of_layers_that_differ_in_their_sizes_alone_is_studied(studied):
    model = at_widths(Affine, 8, 13, 3)
    assert filterprune.analyze(model).barriers == ()
    assert [layer.name for layer in studied] == ["mine0"]
    compacted(model)


class WideMeans(layers.Layer):
    """Mixes channels if they are many, through a gain that is zero at first."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(), initializer="zeros")

    def call(self, x):
        return x + self.gain * ops.mean(x, -1, keepdims=True) * (x.shape[-1] > 8)


class WideHalves(layers.Layer):
    """Does another thing to the last channels if they are many."""

    def call(self, x):
        half = 5 if x.shape[-1] > 8 else x.shape[-1]
        return ops.concatenate([x[..., :half], ops.tanh(x[..., half:])], axis=-1)


@pytest.mark.parametrize("make", [WideMeans, WideHalves])
def test_what_a_layer_does_to_many_channels_alone_is_found(make, studied):
    """After a layer of its kind that does no such thing."""
    x = keras.Input((6, 6, 3))
    y = make(name="mine0")(layers.Conv2D(8, 1)(x))
    y = make(name="mine1")(layers.Conv2D(16, 1)(y))
    model = keras.Model(x, layers.Conv2D(2, 1)(y))
    (barrier,) = filterprune.analyze(model).barriers
    assert f"`mine1` ({make.__name__})" in barrier
    assert [layer.name for layer in studied] == ["mine0", "mine1"]


def compacted(model, wrap=filterprune.wrap_model):
    masked = wrap(model)
    close_at_random(masked)
    return check_exact(masked, limit=1e-5)


@pytest.mark.parametrize(
    "layer",
    [LayerScale(), SizedScale(8), Affine(), StochasticDepth(), OwnBatchNorm()],
    ids=lambda layer: type(layer).__name__,
)
def test_a_channelwise_layer_passes_by_the_probe(layer):
    model = model_with(lambda x: type(layer).from_config(layer.get_config())(x))
    assert filterprune.analyze(model).barriers == ()
    assert compacted(model).get_layer("first").filters == 4


def test_a_sum_of_two_passes_by_the_probe():
    model = model_with(lambda x: ScaledSum()([x, layers.Conv2D(8, 1, name="b")(x)]))
    assert filterprune.analyze(model).barriers == ()
    small = compacted(model)
    assert small.get_layer("first").filters == small.get_layer("b").filters == 4


class Blend(layers.Layer):
    def call(self, x, other, share=0.5):
        return (1 - share) * x + share * other


class BlendOfDict(layers.Layer):
    def call(self, inputs):
        return inputs["a"] - inputs["b"]


class Shifted(layers.Layer):
    """Turns zero into something else, and calls what it reads `x`."""

    def build(self, input_shape):
        self.shift = self.add_weight(shape=(input_shape[-1],), name="shift")

    def call(self, x, scale=1.0):
        return scale * x + self.shift


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: Blend()(a, b),
        lambda a, b: Blend()(a, b, share=0.2),
        lambda a, b: Blend()(x=a, other=b),
        lambda a, b: Blend()(a, other=b),
        lambda a, b: ScaledSum()((a, b)),
        lambda a, b: BlendOfDict()({"a": a, "b": b}),
        lambda a, b: layers.add([LayerScale()(x=a), b]),
        lambda a, b: layers.add([layers.Conv2D(8, 1)(inputs=a), b]),
        lambda a, b: layers.add([layers.BatchNormalization()(inputs=a), b]),
    ],
)
@pytest.mark.parametrize("wrap", [filterprune.wrap_model, by_clone])
def test_tensors_may_be_given_in_any_way(call, wrap):
    model = model_with(lambda x: call(x, layers.Conv2D(8, 1, name="b")(x)))
    assert filterprune.analyze(model).barriers == ()
    small = compacted(model, wrap)
    assert small.get_layer("first").filters == small.get_layer("b").filters == 4


def test_a_layer_that_no_gate_fits_keeps_its_channels():
    small = compacted(model_with(lambda x: Shifted()(x, scale=2.0)))
    assert small.get_layer("first").filters == 8
    assert small.get_layer("second").filters == 2


def test_a_gate_fits_whatever_its_layer_calls_what_it_reads():
    assert (
        compacted(model_with(lambda x: Shifted()(x=x))).get_layer("first").filters == 4
    )


def test_arguments_that_mix_are_told_from_those_that_do_not():
    class Rolled(layers.Layer):
        def call(self, x, by=0):
            return ops.roll(x, by, axis=-1)

    assert filterprune.analyze(model_with(lambda x: Rolled()(x))).barriers == ()
    (barrier,) = filterprune.analyze(model_with(lambda x: Rolled()(x, by=1))).barriers
    assert "it mixes channels" in barrier


def test_one_call_that_is_a_barrier_fixes_the_other_calls_of_its_layer():
    class RolledScale(LayerScale):
        def call(self, x, by=0):
            return ops.roll(x * self.gamma, by, axis=-1)

    layer = RolledScale(name="mine")

    def op(x):
        y = layers.Conv2D(8, 1, name="b")(layer(x))
        return layer(layers.Conv2D(8, 1, name="c")(y), by=1)

    small = compacted(model_with(op))
    for name, filters in (("first", 8), ("b", 4), ("c", 8), ("second", 2)):
        assert small.get_layer(name).filters == filters


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Centre, "it mixes channels"),
        (OneNeighbour, "it mixes channels"),
        (NegativeAttention, "it mixes channels"),
        (InTraining, "it mixes channels"),
        (Hidden, "it is a composite layer, which hides Conv2D"),
    ],
)
def test_any_other_layer_is_a_barrier_with_a_reason(layer, words):
    model = model_with(lambda x: layer(name="mine")(x))
    report = filterprune.analyze(model)
    assert len(report.barriers) == 1 and words in report.barriers[0]
    assert "`mine`" in report.fixed[0].reason
    small = compacted(model)
    assert small.get_layer("first").filters == 8
    assert small.get_layer("second").filters == 2


def test_a_layer_that_needs_a_gate_in_double_precision():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        assert compacted(model_with(lambda x: Affine()(x))).get_layer("first")
    finally:
        keras.config.set_floatx(before)


@pytest.mark.parametrize(
    ("function", "filters"),
    [(lambda y: y - 1.0, 4), (ops.relu, 4), (lambda y: ops.flip(y, -1), 8)],
    ids=["shift", "relu", "flip"],
)
def test_a_layer_that_has_no_config_is_carried_along(function, filters):
    model = model_with(lambda x: NoConfig(function, other=object())(x))
    small = compacted(model)
    assert small.get_layer("first").filters == filters
    assert small.get_layer("second").filters == 2


class HiddenNoConfig(layers.Layer):
    """Made of layers, in a list and a dict, and no config that makes it again."""

    def __init__(self, *parts):
        super().__init__(name="mine")
        self.parts = list(parts)
        self.named = {"last": parts[-1]}

    def build(self, input_shape):
        for part in self.parts:
            part.build(input_shape)
        self.built = True

    def call(self, x):
        for part in self.parts:
            x = ops.conv(x, part.kernel) + part.bias
        return x


def test_a_composite_layer_that_has_no_config_is_copied_whole():
    parts = [layers.Conv2D(8, 1, name=name) for name in ("p", "q")]
    model = model_with(lambda x: HiddenNoConfig(*parts)(x))
    small = compacted(model)
    mine, copied = model.get_layer("mine"), small.get_layer("mine")
    assert copied is not mine and copied.parts[1] is not mine.parts[1]
    assert copied.named["last"] is copied.parts[1]
    old = [to_numpy(weight).copy() for weight in mine.weights]
    small.compile("sgd", "mse")
    small.fit(np.ones((4, 6, 6, 3)), np.ones((4, 2)), verbose=0)
    for weight, before in zip(mine.weights, old, strict=True):
        assert_equal(weight, before)
    changed = [np.abs(to_numpy(w) - b).max() for w, b in zip(copied.weights, old)]
    assert max(changed) > 0


def test_a_rule_teaches_a_layer(monkeypatch):
    monkeypatch.setattr(registry, "_LAYER_RULES", dict(registry._LAYER_RULES))

    class Twice(layers.Layer):
        """Each channel twice, side by side: the probe cannot know it."""

        def call(self, x):
            return ops.concatenate([x, -x], axis=-1)

    model = model_with(lambda x: Twice(name="twice")(x))
    assert filterprune.analyze(model).barriers != ()

    @filterprune.rule(Twice)
    def twice(layer, x):
        return filterprune.channels.take(x, lambda a: np.concatenate([a, a], axis=-1))

    assert filterprune.analyze(model).barriers == ()
    assert compacted(model).get_layer("first").filters == 4


def test_a_subclass_of_a_known_layer_must_opt_in():
    class MyConv(layers.Conv2D):
        def call(self, x):
            return ops.flip(super().call(x), -1)

    model = model_with(lambda x: MyConv(8, 1, name="mine")(x))
    assert "`mine`" in filterprune.analyze(model).barriers[0]
    assert compacted(model).get_layer("mine").filters == 8


class SameConv(layers.Conv2D):
    """A constructor and a helper of its own, and nothing else."""

    def __init__(self, filters, kernel_size=3, padding="same", **kwargs):
        super().__init__(filters, kernel_size, padding=padding, **kwargs)

    def describe(self):
        return f"{self.filters} filters"


class FixedConv(layers.Conv2D):
    """Cannot be made from its own config."""

    def __init__(self, filters, **kwargs):
        super().__init__(filters, 3, padding="same", **kwargs)


class EvenConv(SameConv):
    """Rounds the number of filters."""

    def __init__(self, filters, **kwargs):
        super().__init__(filters + filters % 2, **kwargs)


class NoBiasConv(SameConv):
    """Its config says `use_bias`, and its constructor does not listen."""

    def __init__(self, filters, use_bias=False, **kwargs):
        super().__init__(filters, use_bias=False, **kwargs)


class OwnNorm(layers.LayerNormalization):
    def __init__(self, epsilon=1e-6, **kwargs):
        super().__init__(epsilon=epsilon, **kwargs)


class OwnBatch(layers.BatchNormalization):
    def __init__(self, momentum=0.9, **kwargs):
        super().__init__(momentum=momentum, **kwargs)


@pytest.mark.parametrize("wrap", [filterprune.wrap_model, by_clone])
def test_a_subclass_that_computes_what_its_parent_does_follows_its_rule(wrap):
    def op(x):
        y = SameConv(8, name="mine")(OwnBatch()(x))
        y = OwnNorm()(layers.Conv2D(8, 1)(y))
        return SameConv(8, groups=8, name="depthwise")(y)

    model = model_with(op)
    assert filterprune.analyze(model).barriers == ()
    small = compacted(model, wrap)
    for name in ("first", "mine", "depthwise"):
        assert small.get_layer(name).filters == 4
    assert type(small.get_layer("mine")) is SameConv


@pytest.mark.parametrize("cls", [FixedConv, EvenConv, NoBiasConv])
@pytest.mark.parametrize("wrap", [filterprune.wrap_model, by_clone])
def test_a_subclass_that_cannot_be_made_smaller_stays(cls, wrap):
    model = model_with(lambda x: cls(8, name="mine")(x))
    (barrier,) = filterprune.analyze(model).barriers
    assert "cannot be made from its config with other sizes" in barrier
    small = compacted(model, wrap)
    assert small.get_layer("mine").filters == small.get_layer("first").filters == 8
    assert small.get_layer("second").filters == 2


def test_a_layer_whose_method_was_replaced_is_a_barrier():
    mine = SameConv(8, name="mine")
    mine.call = lambda x: ops.flip(SameConv.call(mine, x), -1)
    (barrier,) = filterprune.analyze(model_with(mine)).barriers
    assert "`call` of this SameConv was replaced" in barrier


def test_what_a_subclass_may_have_of_its_own():
    class WithProperty(layers.Conv2D):
        strides = property(lambda self: (1, 1), lambda self, value: None)

    class WithMethod(layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            return super().convolution_op(inputs, -kernel)

    class Mixin:
        def compute_output_shape(self, shape):
            return shape

    class Mixed(layers.Conv2D, Mixin):
        pass

    class MixedFirst(Mixin, layers.Conv2D):
        pass

    assert registry.known_type(SameConv) is layers.Conv2D
    assert registry.known_type(EvenConv) is layers.Conv2D
    for cls in (WithProperty, WithMethod, Mixed, MixedFirst):
        assert registry.known_type(cls) is cls


def test_a_rule_needs_a_class():
    with pytest.raises(TypeError, match="layer classes"):
        filterprune.rule("Conv2D")


@pytest.mark.parametrize(
    "layer",
    [LayerScale(), layers.TimeDistributed(layers.Conv1D(3, 1))],
    ids=["LayerScale", "TimeDistributed"],
)
def test_channels_that_were_spread_over_pixels(layer):
    """Found by the fuzzer: they lie along two axes, and are tied, not barred."""
    x = keras.Input((6, 6, 3))
    y = ops.depth_to_space(layers.Conv2D(12, 3, padding="same")(x), 2)
    y = layer(y)
    model = randomise(keras.Model(x, layers.Conv2D(2, 3)(y)))
    assert filterprune.analyze(model).barriers == ()
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = check_exact(masked)
    assert small.count_params() < model.count_params()


def test_behind_a_mean_over_fewer_channels_shapes_are_known():
    """Keras takes a product with a number to be sparse: it is a quotient instead."""
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(4, 3)(x)
    y = y * ops.mean(y, axis=-1, keepdims=True)
    y = layers.Flatten()(LayerScale()(y))
    masked = filterprune.wrap_model(randomise(keras.Model(x, layers.Dense(3)(y))))
    close_at_random(masked)
    assert check_exact(masked).layers[1].filters == 2


@keras.saving.register_keras_serializable("test")
class Colourful(keras.layers.Layer):
    """Raises as Keras and TensorFlow do, in colours and several lines."""

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x):
        raise ValueError(
            "\x1b[1mIt\x1b[0m cannot\n\n\tbe \x1b]8;;u\x07run\x1b[38;5;1m."
        )


def test_reasons_are_one_line_without_colours():
    x = keras.Input((8, 8, 3))
    y = Colourful()(layers.Conv2D(4, 3)(x))
    report = filterprune.analyze(keras.Model(x, layers.Conv2D(2, 1)(y)))
    assert "It cannot be run." in str(report.barriers)
    for text in (str(report), report.to_json(), report.to_html()):
        assert "\x1b" not in text and "\\u001b" not in text
    assert all("\n" not in reason for reason in report.barriers)


def mean_of(x):
    return ops.mean(x, axis=-1, keepdims=True)


def has(found):
    """A condition as a factor: one where it holds, else zero."""
    return ops.cast(found, "float32")


class Weighted(layers.Layer):
    def build(self, input_shape):
        self.w = self.add_weight(shape=(), initializer="zeros", name="w")


class TinyWeights(Weighted):
    """Mixes channels where a weight is small, but not zero."""

    def call(self, x):
        size = ops.abs(self.w)
        return x + mean_of(x) * has(ops.logical_and(size > 1e-6, size < 1e-2))


class LargeWeights(Weighted):
    def call(self, x):
        return x + mean_of(x) * ops.relu(ops.abs(self.w) - 5.0)


class SoftClip(layers.Layer):
    """Mixes channels of large inputs only."""

    def call(self, x):
        return x / ops.maximum(1.0, mean_of(ops.abs(x)) / 30.0)


class SmallInputs(layers.Layer):
    def call(self, x):
        return x + mean_of(x) * has(ops.max(ops.abs(x)) < 0.5)


class PositiveInputs(layers.Layer):
    def call(self, x):
        return x + mean_of(x) * has(ops.min(x, axis=(1, 2, 3), keepdims=True) >= 0)


class LargeBatch(layers.Layer):
    def call(self, x):
        return x - mean_of(x) if (x.shape[0] or 0) > 2 else x


class OneSample(layers.Layer):
    def call(self, x):
        return x - mean_of(x) if x.shape[0] == 1 else x


class OverSamples(layers.Layer):
    """Channel by channel, but each sample sees the others."""

    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


class AtTheBorder(layers.Layer):
    def call(self, x):
        rows = ops.reshape(ops.arange(x.shape[1]), (1, -1, 1, 1))
        return x - mean_of(x) * has(rows == x.shape[1] - 1)


class ByWidth(layers.Layer):
    """Remembers how many channels it was built for."""

    def build(self, input_shape):
        self.width = float(input_shape[-1])

    def call(self, x):
        return x / self.width


class OneIsOther(layers.Layer):
    def call(self, x):
        return x * 2.0 if x.shape[-1] == 1 else x


class SevenIsOther(layers.Layer):
    def call(self, x):
        return x * 2.0 if x.shape[-1] == 7 else x


class RoundedScale(SizedScale):
    """Cannot be made for an odd number of channels."""

    def __init__(self, width, **kwargs):
        super().__init__(width + width % 2, **kwargs)


MIXING = [
    TinyWeights,
    LargeWeights,
    SoftClip,
    PositiveInputs,
    AtTheBorder,
]
OTHERS = [
    (LargeBatch, "depends on the others"),
    (SmallInputs, "depends on the others"),
    (OneSample, "depends on the others"),
    (OverSamples, "depends on the others"),
    (ByWidth, "no copy of it with fewer channels"),
    (OneIsOther, "no copy of it with fewer channels"),
    (SevenIsOther, "no copy of it with fewer channels"),
    (lambda **kwargs: RoundedScale(8, **kwargs), "no copy of it with fewer channels"),
]


@pytest.mark.parametrize(
    ("make", "words"), [(cls, "it mixes channels") for cls in MIXING] + OTHERS
)
def test_a_layer_that_fools_a_few_samples_is_a_barrier(make, words):
    model = model_with(lambda x: make(name="mine")(x))
    (barrier,) = filterprune.analyze(model).barriers
    assert "`mine`" in barrier and words in barrier


class FromSize(layers.Layer):
    """Mixes channels of maps of this many rows and more."""

    def __init__(self, rows):
        super().__init__(name="mine")
        self.rows = rows

    def call(self, x):
        return x - mean_of(x) if (x.shape[1] or 0) >= self.rows else x


@pytest.mark.parametrize(("size", "rows"), [(None, 2), (None, 11), (64, 64), (64, 2)])
def test_mixing_on_large_maps_only_is_found(size, rows):
    x = keras.Input((size, size, 3))
    y = FromSize(rows)(layers.Conv2D(8, 1)(x))
    model = keras.Model(x, layers.Conv2D(2, 1)(y))
    (barrier,) = filterprune.analyze(model).barriers
    assert "it mixes channels" in barrier


class NegativeBias(layers.Layer):
    """Keeps zero as long as its weights are positive."""

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(input_shape[-1],), name="bias")

    def call(self, x):
        return x + ops.minimum(self.bias, 0.0)


class Ramp(layers.Layer):
    """Keeps zero at the first position."""

    def call(self, x):
        columns = ops.cast(ops.arange(x.shape[2]), x.dtype)
        return x + 0.1 * ops.reshape(columns, (1, 1, -1, 1))


class LastColumn(layers.Layer):
    def call(self, x):
        columns = ops.reshape(ops.arange(x.shape[2]), (1, 1, -1, 1))
        return x + has(columns == x.shape[2] - 1)


class NoiseInTraining(layers.Layer):
    def call(self, x, training=None):
        return x + keras.random.normal(ops.shape(x)) if training else x


@pytest.mark.parametrize("make", [NegativeBias, Ramp, LastColumn, NoiseInTraining])
@pytest.mark.parametrize("size", [6, None])
def test_what_comes_of_zero_is_looked_at_everywhere(make, size):
    if size is None and make in (Ramp, LastColumn):
        pytest.skip("it must know the size")
    x = keras.Input((size, size, 3))
    y = make(name="mine")(layers.Conv2D(8, 3, padding="same", name="first")(x))
    model = randomise(keras.Model(x, layers.Conv2D(2, 3, padding="same")(y)))
    for weight in model.get_layer("mine").weights:
        weight.assign(-ops.ones(weight.shape))
    assert filterprune.analyze(model).barriers == ()
    masked = filterprune.wrap_model(model)
    assert hasattr(masked.get_layer("mine"), "gate")
    close_at_random(masked)
    assert check_exact(masked, limit=1e-5).get_layer("first").filters == 4


def test_a_sum_that_adds_something_of_its_own_keeps_its_channels():
    class Lowered(Weighted):
        def call(self, a, b):
            return a + b + ops.minimum(self.w, 0.0)

    model = model_with(lambda x: Lowered(name="mine")(x, layers.ReLU()(x)))
    model.get_layer("mine").w.assign(-1.0)
    assert compacted(model).get_layer("first").filters == 8


class Counting(layers.Layer):
    """Changes its own attributes whenever it is called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = 0
        self.seen = []

    def call(self, x):
        self.calls += 1
        self.seen.append(tuple(x.shape))
        return x * 2.0


def test_probing_does_not_touch_the_layer():
    model = model_with(lambda x: Counting(name="mine")(x))
    layer = model.get_layer("mine")
    before = layer.calls, list(layer.seen)
    states = random.getstate(), np.random.get_state()[1].copy()
    assert filterprune.analyze(model).barriers == ()
    assert (layer.calls, list(layer.seen)) == before
    assert random.getstate() == states[0]
    assert_equal(np.random.get_state()[1], states[1])


class DropSamples(layers.Layer):
    """Stochastic depth with random numbers that Keras knows nothing of."""

    def call(self, x, training=None):
        if not training:
            return x
        kept = np.random.uniform(size=(len(x), 1, 1, 1)) > 0.1
        return x / 0.9 * ops.cast(kept, x.dtype)


class DropBatches(layers.Layer):
    def call(self, x, training=None):
        return x * 0.0 if training and random.random() < 0.1 else x


class DropElements(layers.Layer):
    def call(self, x, training=None):
        if not training:
            return x
        return x * ops.cast(np.random.uniform(size=tuple(x.shape)) > 0.5, x.dtype) * 2.0


class NoiseAndMean(layers.Layer):
    def call(self, x, training=None):
        noise = np.random.uniform(size=(x.shape[0] or 1, 1, 1, 1)) > 0.1
        return (x - mean_of(x)) * ops.cast(noise, x.dtype) if training else x


class DropAndMean(layers.Layer):
    """The same with random numbers of Keras."""

    def call(self, x, training=None):
        noise = keras.random.uniform((ops.shape(x)[0], 1, 1, 1)) > 0.1
        return (x - mean_of(x)) * ops.cast(noise, x.dtype) if training else x


RANDOM = [
    (StochasticDepth, None),
    (NoiseInTraining, None),
    (DropSamples, None),
    (DropBatches, None),
    (DropElements, None),
    (NoiseAndMean, "without a seed of Keras"),
    (DropAndMean, "it mixes channels"),
]


@pytest.mark.parametrize(("make", "words"), RANDOM)
def test_a_verdict_on_what_is_random_does_not_depend_on_chance(make, words):
    for seed in range(6):
        keras.utils.set_random_seed(seed)
        model = model_with(lambda x: make(name="mine")(x))
        barriers = filterprune.analyze(model).barriers
        probing._FOUND.clear()
        assert [words in b for b in barriers] == [True] * bool(words)


def test_a_random_layer_in_training_mode_for_ever_is_a_barrier():
    model = model_with(lambda x: StochasticDepth()(x, training=True))
    (barrier,) = filterprune.analyze(model).barriers
    assert "where it is random" in barrier


def test_a_table_as_long_as_it_is_wide():
    """Which of its axes is that of channels shows in a copy with fewer."""
    x = keras.Input((8, 3))
    y = Positions(name="mine")(layers.Dense(8, name="first")(x))
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    assert filterprune.analyze(model).barriers == ()
    small = compacted(model)
    assert small.get_layer("mine").table.shape == (1, 8, 4)


def test_large_maps_are_probed_at_a_smaller_size(monkeypatch):
    sizes = []
    run = probing._Subject.run

    def counted(self, points, *args, **kwargs):
        sizes.append(sum(array.size for array in points))
        return run(self, points, *args, **kwargs)

    monkeypatch.setattr(probing._Subject, "run", counted)
    monkeypatch.setattr(probing, "_FOUND", {})
    x = keras.Input((48, 48, 48, 3))
    y = Affine()(layers.Conv3D(16, 1)(x))
    y = StochasticDepth3D()(y)
    assert filterprune.analyze(keras.Model(x, layers.Conv3D(2, 1)(y))).barriers == ()
    sample = 48**3 * 16
    assert sum(size for size in sizes if size >= sample / 2) < 40 * sample


class StochasticDepth3D(layers.Layer):
    def call(self, x, training=None):
        if not training:
            return x
        return x * ops.floor(keras.random.uniform((ops.shape(x)[0], 1, 1, 1, 1)) + 0.8)


class Halves(layers.Layer):
    """Does another thing to the first channels than to the last."""

    def call(self, x):
        half = x.shape[-1] // 2
        return ops.concatenate([x[..., :half], ops.tanh(x[..., half:])], axis=-1)


@pytest.mark.parametrize("count", range(2, 9))
def test_a_layer_that_goes_by_the_place_of_a_channel_is_a_barrier(count):
    """Whatever subset of channels is drawn to look at."""
    x = keras.Input((4, 4, 3))
    y = Halves(name="mine")(layers.Conv2D(count, 1)(x))
    model = keras.Model(x, layers.Conv2D(2, 1)(y))
    (barrier,) = filterprune.analyze(model).barriers
    assert "`mine` (Halves)" in barrier
