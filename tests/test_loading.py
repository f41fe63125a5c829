"""Models that are saved by their class: compact ones load where the original does."""

import warnings

import builders
import keras
import numpy as np
import pytest
from builders import randomise
from exactness import close_at_random
from keras import layers, ops

import filterprune
from filterprune.channels import registry
from filterprune.loading import why_not_loaded

POLICY = keras.DTypePolicy("float32")


def bend(x):
    """An activation that Keras does not find by its name."""
    return x * ops.sigmoid(1.5 * x)


def relu(x):
    """One that Keras would take for its own."""
    return ops.maximum(x, 0.1 * x)


@keras.saving.register_keras_serializable("test_loading")
class Gain(layers.Layer):
    """Without `get_config`: Keras notes no arguments if there is a dtype policy."""

    def __init__(self, power=1, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain**self.power


@keras.saving.register_keras_serializable("test_loading")
class Block(layers.Layer):
    """Holds a layer whose function cannot be found, and saves itself."""

    def build(self, shape):
        self.inner = layers.Dense(9, activation=bend, name="inner")
        self.turn = layers.Activation(relu, name="turn")
        self.same = layers.Identity(dtype=POLICY, name="same")
        self.outer = layers.Dense(shape[-1], name="outer")
        self.inner.build(shape)
        self.outer.build((*shape[:-1], 9))

    def call(self, x):
        return x + self.outer(self.same(self.turn(self.inner(x))))


class Whole(keras.Model):
    """A file of one holds the arguments of its constructor alone."""

    def __init__(self, width=8, **kwargs):
        inputs = keras.Input((5,))
        super().__init__(inputs, self.make(inputs, width), **kwargs)
        self.width = width

    def get_config(self):
        return {"name": self.name, "width": self.width}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("test_loading")
class Functions(Whole):
    def make(self, x, width):
        x = layers.Dense(width, activation=bend, name="first")(x)
        x = layers.Dense(width, activation=relu, name="second")(x)
        x = layers.Activation(lambda x: x / (1.0 + ops.abs(x)), name="third")(x)
        x = layers.Lambda(lambda x: 2.0 * x, name="twice")(x)
        return layers.Dense(3, name="head")(x)


@keras.saving.register_keras_serializable("test_loading")
class Configs(Whole):
    def make(self, x, width):
        x = layers.Dense(width, name="first")(x)
        x = layers.Identity(dtype=POLICY, name="same")(x)
        x = Gain(power=2, dtype=POLICY, name="gain")(x)
        x = ops.roll(x, np.int64(2), axis=-1)
        return layers.Dense(3, name="head")(x)


@keras.saving.register_keras_serializable("test_loading")
class Tied(Whole):
    """Calls a layer in a nested model, in another, and outside of both."""

    def make(self, x, width):
        tied = layers.Dense(width, name="tied")
        bodies = []
        for name in ("body", "twin"):
            inner = keras.Input((width,), name="x")
            y = layers.Dense(6, activation="relu", name="own")(tied(inner))
            y = layers.Dense(width, name="back")(y)
            bodies.append(keras.Model({"x": inner}, y, name=name))
        x = layers.Dense(width, name="first")(x)
        x = tied(bodies[1]({"x": bodies[0]({"x": x})}))
        return layers.Dense(3, name="own")(x)


@keras.saving.register_keras_serializable("test_loading")
class Composed(Whole):
    def make(self, x, width):
        x = layers.Dense(width, name="first")(x)
        return layers.Dense(3, name="head")(Block(name="block")(x))


def plain_with_block():
    inputs = keras.Input((5,))
    x = Block(name="block")(layers.Dense(8, name="first")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def plain_with_a_nested_one():
    inputs = keras.Input((5,))
    x = Functions(name="body")(inputs)
    return keras.Model(inputs, layers.Dense(2, name="top")(x))


MODELS = {
    "functions": Functions,
    "configs": Configs,
    "tied": Tied,
    "composed": Composed,
    "composite": plain_with_block,
    "nested": plain_with_a_nested_one,
}


@pytest.fixture(autouse=True)
def declared(monkeypatch):
    monkeypatch.setattr(registry, "_COMPOSITES", dict(registry._COMPOSITES))
    filterprune.composite(Block)


def loaded(model, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("error::filterprune.PruningWarning")
def test_what_is_made_of_a_model_that_loads_is_loaded_too(name, tmp_path):
    model = randomise(MODELS[name]())
    builders.assert_same_outputs(model, loaded(model, tmp_path))
    whole = filterprune.expand(model)
    builders.assert_same_outputs(model, whole)
    builders.assert_same_outputs(whole, loaded(whole, tmp_path))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    builders.assert_same_outputs(masked, loaded(masked, tmp_path))
    small = filterprune.compact(loaded(masked, tmp_path))
    assert small.count_params() < model.count_params()
    builders.assert_same_outputs(masked, small)
    builders.assert_same_outputs(small, loaded(small, tmp_path))
    assert "filterprune" not in small.to_json()


def test_layers_keep_their_names_when_their_activation_stands_behind_them():
    masked = filterprune.wrap_model(randomise(Functions()))
    names = {layer.name for layer in masked.layers}
    assert {"first", "second", "head"} <= names
    whole = filterprune.expand(randomise(plain_with_block()))
    assert {"block_inner", "block_same", "block_outer"} <= {
        x.name for x in whole.layers
    }


def test_functions_of_a_plain_model_stay_where_they_are():
    """It does not load without them either, and loads with `custom_objects`."""
    inputs = keras.Input((5,))
    x = layers.Dense(8, activation=bend, name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5)
    assert filterprune.compact(masked).get_layer("first").activation is bend


def test_nested_models_that_are_dissolved_can_be_excluded():
    masked = filterprune.wrap_model(randomise(Tied()), exclude="body")
    assert set(builders.closed(masked)) == {"own_2"}  # of the twin
    with pytest.raises(ValueError, match="matches none"):
        filterprune.wrap_model(Tied(), exclude="bodies")


@keras.saving.register_keras_serializable("test_loading")
class Parent(layers.Layer):
    """Makes the weights of its part."""

    def build(self, shape):
        self.part = Child(name="part")
        self.part.gain = self.part.add_weight(shape=(shape[-1],), name="gain")
        self.part.built = True

    def call(self, x):
        return self.part(x)


@keras.saving.register_keras_serializable("test_loading")
class Child(layers.Layer):
    """It draws numbers, and cannot be traced."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        noise = keras.random.normal(ops.shape(x), seed=self.seed) if training else 0.0
        return x * self.gain + noise


class Unknown(layers.Layer):
    """Its class is not registered, and it has weights."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), name="gain")

    def call(self, x):
        return x * self.gain


@keras.saving.register_keras_serializable("test_loading")
class Forgets(layers.Layer):
    """Its config forgets the factor."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super().get_config()


@keras.saving.register_keras_serializable("test_loading")
class Odd(Whole):
    def make(self, x, width):
        x = layers.Dense(width, name="first")(x)
        x = Unknown(name="unknown")(x)
        x = Forgets(3.0, name="forgets")(x)
        x = layers.SimpleRNN(width, activation=bend, name="cell")(x[:, None])
        return layers.Dense(3, name="head")(x)


def test_layers_that_cannot_be_loaded_are_named():
    model = randomise(Odd(name="odd"))
    found = r"of 'odd'.*'unknown' \(.*'forgets' \(its config does not tell.*'cell' \("
    with pytest.warns(filterprune.PruningWarning, match=found):
        masked = filterprune.wrap_model(model)
    close_at_random(masked)
    with warnings.catch_warnings():
        warnings.simplefilter("error", filterprune.PruningWarning)
        small = filterprune.compact(masked)
    builders.assert_same_outputs(masked, small)


@keras.saving.register_keras_serializable("test_loading")
class Closed(Whole):
    def make(self, x, width):
        return layers.Dense(3, name="head")(Unknown(name="unknown")(x))


def test_a_model_of_which_nothing_can_be_pruned_keeps_its_class(tmp_path):
    model = builders.compiled(randomise(Closed()))
    with pytest.warns(filterprune.PruningWarning, match="can be pruned") as caught:
        masked = filterprune.wrap_model(model)
    assert sum(w.category is filterprune.PruningWarning for w in caught) == 1
    assert type(masked) is Closed and masked.compiled
    assert not {id(w) for w in model.weights} & {id(w) for w in masked.weights}
    builders.assert_same_outputs(masked, loaded(masked, tmp_path))


def test_a_part_whose_weights_its_composite_makes_is_named():
    inputs = keras.Input((5,))
    x = Parent(name="parent")(layers.Dense(8, name="first")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    with pytest.warns(filterprune.PruningWarning, match="'parent_part'"):
        filterprune.expand(model, [Parent])


def test_the_function_of_another_name_is_not_taken_for_that_of_keras():
    assert "another function" in why_not_loaded(layers.Dense(2, activation=relu))
    assert why_not_loaded(layers.Dense(2, activation="relu")) is None
    assert "cannot read" in why_not_loaded(layers.Dense(2, activation=bend))
