"""Copies are the layer: its config may forget what it likes, and nothing is shared."""

import dataclasses
import functools
import threading
import types
import weakref

import builders
import keras
import numpy as np
import pytest
from exactness import check_exact, close_at_random, difference, randomise
from keras import layers, ops

import filterprune
from filterprune.channels.trace import copy_object

BACKEND = keras.backend.backend()


class Forgetful(layers.Layer):
    """A config without any of its arguments."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.keep(factor)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config()


@dataclasses.dataclass
class Settings:
    factor: float = 1.0

    def scale(self, x):
        return x * self.factor


class Closure(Forgetful):
    def keep(self, factor):
        self.function = lambda x: x * factor

    def call(self, x):
        return self.function(x)


class Dict(Forgetful):
    def keep(self, factor):
        self.kept = {"factors": [factor]}

    def call(self, x):
        return x * self.kept["factors"][0]


class Tensor(Forgetful):
    def keep(self, factor):
        self.factor = ops.convert_to_tensor(factor)

    def call(self, x):
        return x * self.factor


class Scalar(Forgetful):
    def keep(self, factor):
        self.factor = np.float32(factor)

    def call(self, x):
        return x * self.factor


class Dataclass(Forgetful):
    def keep(self, factor):
        self.settings = Settings(factor)

    def call(self, x):
        return self.settings.scale(x)


class Namespace(Forgetful):
    def keep(self, factor):
        self.settings = types.SimpleNamespace(factor=factor)

    def call(self, x):
        return x * self.settings.factor


class Set(Forgetful):
    def keep(self, factor):
        self.kept = set(range(int(factor)))

    def call(self, x):
        return x * float(len(self.kept))


class Partial(Forgetful):
    def keep(self, factor):
        self.function = functools.partial(ops.multiply, factor)

    def call(self, x):
        return self.function(x)


class Method(Forgetful):
    def keep(self, factor):
        self.function = Settings(factor).scale

    def call(self, x):
        return self.function(x)


class Locked(Forgetful):
    """What cannot be copied: locks, and a function that refers to the layer."""

    def keep(self, factor):
        self.factor = factor
        self.lock = threading.Lock()
        self.again = threading.RLock()
        self.local = threading.local()
        self.local.factor = factor
        self.generator = (n for n in range(3))
        me = weakref.ref(self)
        self.function = lambda x: x * me().factor

    def call(self, x):
        with self.lock, self.again:
            return self.function(x)


class Changed(Forgetful):
    """Its `call` is one that this very layer was given."""

    def keep(self, factor):
        before = self.call
        self.call = lambda x: factor * before(x)

    def call(self, x):
        return x


LOSSY = [
    *(Closure, Dict, Tensor, Scalar, Dataclass, Namespace, Set, Partial, Method),
    *(Locked, Changed),
]


def net(middle, width=8):
    """A layer between two convolutions."""
    x = keras.Input((8, 8, 3))
    y = middle(layers.Conv2D(width, 3, name="first")(x))
    y = layers.Conv2D(4, 3, name="second")(y)
    return randomise(keras.Model(x, layers.Dense(2)(layers.GlobalMaxPooling2D()(y))))


WRAPPERS = pytest.mark.parametrize("wrapper", [filterprune.wrap_model, builders.clone])


@pytest.mark.parametrize("cls", LOSSY)
@WRAPPERS
def test_what_a_config_forgets_comes_along(cls, wrapper):
    model = net(cls(3.0))
    masked = wrapper(model)
    assert difference(model, masked) < 1e-6
    close_at_random(masked)
    small = check_exact(masked)
    assert small.get_layer("first").filters == 4


@pytest.mark.parametrize("cls", [Closure, Dict, Locked, Changed])
def test_it_comes_along_in_nested_models_and_wrappers_too(cls):
    x = keras.Input((5, 8))
    inner = keras.Sequential([keras.Input((5, 8)), layers.Dense(8), cls(3.0)])
    y = layers.TimeDistributed(cls(2.0))(inner(layers.Dense(8)(x)))
    model = randomise(keras.Model(x, layers.Dense(2)(layers.Dense(6)(y))))
    masked = filterprune.wrap_model(model)
    assert difference(model, masked) < 1e-6
    close_at_random(masked)
    check_exact(masked)


class ForgetfulConv(layers.Conv2D):
    """Makes channels, and forgets how it scales them."""

    def __init__(self, filters, factor=1.0, **kwargs):
        super().__init__(filters, 3, **kwargs)
        self.settings = types.SimpleNamespace(factor=factor)

    def convolution_op(self, inputs, kernel):
        return self.settings.factor * super().convolution_op(inputs, kernel)

    def get_config(self):
        config = super().get_config()
        del config["kernel_size"]
        return config


class Gain(Forgetful):
    """With weights of its own, and a rule."""

    def keep(self, factor):
        self.settings = [factor]

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(input_shape[-1],), name="gain")

    def call(self, x):
        return x * self.gain * self.settings[0]


@filterprune.rule(Gain)
def gain(layer, x):
    return filterprune.channels.same(x, gain="in", keeps_zero=True)


@filterprune.rule(ForgetfulConv)
def forgetful_conv(layer, x):
    return filterprune.channels.mix(
        x, kernel="... in out", bias="out", resize="filters"
    )


@pytest.mark.parametrize("make", [lambda: Gain(3.0), lambda: ForgetfulConv(8, 3.0)])
@WRAPPERS
@pytest.mark.filterwarnings("ignore::filterprune.PruningWarning")
def test_what_cannot_be_made_smaller_is_kept_and_named(make, wrapper):
    """A rule says which weights to slice; the layer would be another one."""
    model = net(make())
    (reason,) = filterprune.analyze(model).barriers
    assert "its config does not tell all that its `call` uses" in str(reason)
    masked = wrapper(model)
    assert difference(model, masked) < 1e-6
    for layer in builders.masked_layers(masked).values():
        builders.close(layer, 0)
    assert check_exact(masked).get_layer("first").filters == 8


def test_a_rule_for_a_layer_that_is_made_again_faithfully_holds():
    masked = filterprune.wrap_model(net(Gain(1.0)))
    close_at_random(masked)
    assert check_exact(masked).get_layer("first").filters == 4


class Bound(layers.Layer):
    """Its function closes over its weights, and so would a copy's."""

    def build(self, input_shape):
        scale = self.add_weight(shape=(input_shape[-1],), name="scale")
        self.function = lambda x: x * scale
        self.kept = types.SimpleNamespace(scale=scale, owner=self)

    def call(self, x):
        return self.function(x)


def test_a_copy_shares_no_variable_with_its_original():
    layer = Bound()
    x = np.ones((2, 4), "float32")
    before = keras.ops.convert_to_numpy(layer(x))
    copied = copy_object(layer)
    copied.weights[0].assign(np.full(4, 7.0))
    assert (keras.ops.convert_to_numpy(copied(x)) == 7).all()
    assert np.array_equal(keras.ops.convert_to_numpy(layer(x)), before)
    assert copied.kept.scale is copied.weights[0]
    assert copied.kept.owner is copied


def test_functions_of_keras_are_not_copied():
    """So that what is known of one is known of the copy's."""
    layer = layers.Dense(4, activation="silu")
    assert copy_object(layer).activation is keras.activations.silu


def test_a_model_in_a_layer_is_copied_with_its_graph():
    class Holder(layers.Layer):
        def __init__(self):
            super().__init__()
            y = x = keras.Input((4,))
            for _ in range(2):
                y = layers.Dense(4)(y)
            self.inner = keras.Model(x, y + x)
            self.tail = keras.Sequential([layers.Dense(3, activation="relu")])

        def call(self, x):
            return self.tail(self.inner(x))

    layer, x = Holder(), np.random.default_rng(0).normal(size=(5, 4))
    expected = keras.ops.convert_to_numpy(layer(x))
    copied = copy_object(layer)
    assert np.allclose(keras.ops.convert_to_numpy(copied(x)), expected, atol=1e-6)
    assert len(copied.weights) == len(layer.weights)
    own = {id(v) for v in layer.variables}
    assert own.isdisjoint(id(v) for v in copied.variables)
    again = type(copied.inner).from_config(copied.inner.get_config())
    assert len(again.layers) == len(layer.inner.layers)


class Scaled(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs * 3.0, training=training, mask=mask)


class ScaledStack(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs * 3.0, training=training, mask=mask)


def overriding(name):
    """A model that computes something else than its graph."""
    x = keras.Input((8, 8, 3))
    if name == "functional":
        return Scaled(x, layers.Conv2D(8, 3, name="conv")(x), name="inner")
    if name == "sequential":
        return ScaledStack([x, layers.Conv2D(8, 3, name="conv")], name="inner")
    model = keras.Model(x, layers.Conv2D(8, 3, name="conv")(x), name="inner")
    before = model.call
    model.call = lambda inputs, **kwargs: before(inputs * 3.0, **kwargs)
    return model


OVERRIDES = ["functional", "sequential", "instance"]


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_model_that_overrides_call_is_traced(name):
    model = randomise(overriding(name))
    with pytest.warns(filterprune.PruningWarning, match="Nothing .* can be pruned"):
        masked = filterprune.wrap_model(model)
    assert difference(model, masked) < 1e-6


@pytest.mark.parametrize(
    ("name", "conv", "filters"),
    [
        ("functional", "inner_conv", 4),
        ("sequential", "inner_conv", 4),
        ("instance", "inner", 8),  # a class of Keras, which is kept whole
    ],
)
def test_a_nested_model_that_overrides_call_is_traced(name, conv, filters):
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3)(overriding(name)(x))
    y = layers.Dense(2)(layers.GlobalMaxPooling2D()(layers.Conv2D(8, 1)(y)))
    model = randomise(keras.Model(x, y))
    masked = filterprune.wrap_model(model)
    assert difference(model, masked) < 1e-6
    close_at_random(masked)
    found = check_exact(masked).get_layer(conv)
    assert getattr(found, "layers", [found])[-1].filters == filters


@pytest.mark.parametrize("name", OVERRIDES)
def test_other_functions_refuse_a_model_that_overrides_call(name):
    with pytest.raises(ValueError, match=r"'inner'.*call"):
        filterprune.fold_batch_norm(overriding(name))


class Counter(layers.Layer):
    calls = 0

    def call(self, x):
        self.calls += 1
        return x * 2.0


def test_a_layer_that_counts_its_calls_does_not_see_the_analysis():
    model = net(Counter(name="counter"))
    before = model.get_layer("counter").calls
    filterprune.analyze(model)
    filterprune.wrap_model(model)
    assert model.get_layer("counter").calls == before


class Penalty(layers.Layer):
    def call(self, x):
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x


def test_a_layer_that_adds_losses_after_training():
    x, y = np.zeros((4, 8, 8, 3), "float32"), np.zeros((4, 2), "float32")
    model = net(Penalty())
    model.compile("sgd", "mse")
    model.fit(x, y, verbose=0)
    masked = filterprune.wrap_model(model)
    masked.fit(x, y, verbose=0)
    close_at_random(masked)
    small = check_exact(masked)
    small.fit(x, y, verbose=0)
    assert len(small.losses) == len(model.losses)


@pytest.mark.parametrize("name", ["sin", "cos", "square"])
def test_operations_are_activations_too(name):
    model = net(layers.Conv2D(8, 1, activation=getattr(ops, name)))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    assert check_exact(masked).get_layer("first").filters == 4


class Maybe(layers.Layer):
    def call(self, x, other=None):
        return x if other is None else x + ops.mean(other)

    def compute_output_spec(self, x, other=None):
        return keras.KerasTensor(x.shape, x.dtype)


def test_inputs_stay_optional():
    image = keras.Input((16,), name="image")
    other = keras.Input((5,), name="other", optional=True)
    y = layers.Dense(8, name="inside")(layers.Dense(8, activation="relu")(image))
    y = layers.Dense(3)(Maybe()(y, other))
    model = randomise(keras.Model([image, other], y))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = filterprune.compact(masked)
    x = np.random.default_rng(0).normal(size=(2, 16)).astype("float32")
    for second in (None, np.ones((2, 5), "float32")):
        outputs = [m([x, second]) for m in (masked, small)]
        a, b = map(keras.ops.convert_to_numpy, outputs)
        assert np.allclose(a, b, atol=1e-5)


def test_names_that_are_taken():
    x = keras.Input((8, 8, 3))
    y = ops.sigmoid(layers.Conv2D(8, 3)(x))
    y = layers.Conv2D(8, 1, name=f"{y._keras_history.operation.name}_gate")(y)
    model = randomise(keras.Model(x, layers.Conv2D(4, 1)(y)))
    masked = filterprune.wrap_model(model)
    assert difference(model, masked) < 1e-6
    close_at_random(masked)
    check_exact(masked)
    indices = filterprune.kept_indices(masked)
    again = filterprune.replay(model, indices)
    assert builders.closed(again) == builders.closed(masked)


@filterprune.composite
class Block(layers.Layer):
    def build(self, input_shape):
        self.inner = layers.Dense(8, name="a")
        self.outer = layers.Dense(input_shape[-1], name="b")
        self.inner.build(input_shape)
        self.outer.build((*input_shape[:-1], 8))

    def call(self, x):
        return x + self.outer(self.inner(x))


def test_names_of_parts_that_are_taken():
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 1, name="blk_a")(Block(name="blk")(layers.Conv2D(8, 3)(x)))
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    masked = filterprune.wrap_model(model)
    names = [layer.name for layer in masked.layers]
    assert {"blk_a", "blk_a_1", "blk_b"} <= set(names)
    close_at_random(masked)
    check_exact(masked)


def lookups():
    """Layers whose vocabulary is no weight, each with an input and its width."""
    words = np.array(["the cat sat", "a dog ran away", "the dog"])
    text = layers.TextVectorization(output_sequence_length=4)
    strings = layers.StringLookup()
    integers = layers.IntegerLookup()
    text.adapt(words)
    strings.adapt(np.array(["a", "b", "c"]))
    integers.adapt(np.array([5, 7, 9]))
    given = layers.StringLookup(vocabulary=["a", "b"])
    return {
        "text": (text, (), "string", np.array(["the cat", "a fish"])),
        "strings": (strings, (1,), "string", np.array([["a"], ["z"]])),
        "integers": (integers, (1,), "int64", np.array([[5], [8]])),
        "given": (given, (1,), "string", np.array([["a"], ["z"]])),
    }


@pytest.mark.skipif(BACKEND != "tensorflow", reason="strings are TensorFlow's")
@pytest.mark.parametrize("name", ["text", "strings", "integers", "given"])
@WRAPPERS
def test_the_tables_of_lookups_come_along(name, wrapper):
    import tensorflow as tf

    layer, shape, dtype, values = lookups()[name]
    x = keras.Input(shape, dtype=dtype)
    y = layers.Flatten()(layers.Embedding(32, 4)(layer(x)))
    model = randomise(keras.Model(x, layers.Dense(2)(layers.Dense(8)(y))))
    values = tf.constant(values, dtype)
    masked = wrapper(model)
    expected = model(values)
    np.testing.assert_allclose(masked(values), expected, atol=1e-6)
    close_at_random(masked)
    small = filterprune.compact(masked, verify=False)
    np.testing.assert_allclose(small(values), masked(values), atol=1e-5)
    if name != "given":  # the copy can be adapted, and the original stays
        copied = next(x for x in small.layers if type(x) is type(layer))
        copied.adapt(values)
        np.testing.assert_allclose(model(values), expected)
