"""What verification sees, and what it takes for rounding."""

import builders
import keras
import numpy as np
import pytest
from builders import randomise
from exactness import close_at_random
from keras import layers, ops

import filterprune
from filterprune import verification
from filterprune.inputs import generate_inputs
from filterprune.verification import compare, fitting_inputs


def changed(model, change):
    """A copy of a model whose layers a function changes."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    change(other)
    return other


def test_an_error_in_a_channel_of_small_numbers_is_seen():
    x = keras.Input((4,))
    heads = [layers.Dense(2, name="small")(x) * 1e-3, layers.Dense(2)(x) * 1e3]
    model = randomise(keras.Model(x, layers.Concatenate()(heads)))

    def spoil(other):
        kernel = other.get_layer("small").kernel
        kernel.assign(1.4 * kernel)

    assert not compare(model, changed(model, spoil)).same
    assert compare(model, changed(model, lambda other: None)).difference == 0


@pytest.mark.parametrize("resized", [False, True])
def test_images_are_resized_in_single_precision(resized):
    keras.config.set_floatx("float64")
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, name="conv")(x)
    y = layers.Resizing(5, 7)(y) if resized else y
    model = randomise(keras.Model(x, layers.Dense(2)(y)))

    def move(other):
        kernel = other.get_layer("conv").kernel
        kernel.assign(kernel * (1 + 1e-7))

    single = resized or keras.backend.backend() != "tensorflow"
    assert compare(model, changed(model, move)).same == single


def test_what_cancels_out_is_rounding():
    """Two large numbers, in another order of summation: their difference is noise."""

    def build(parts):
        x = keras.Input((64,))
        sums = [ops.sum(x[:, i::parts] * x[:, i::parts], -1) for i in range(parts)]
        whole = ops.sum(x * x, -1, keepdims=True)
        return keras.Model(x, sum(sums)[:, None] - whole)

    assert compare(build(3), build(7)).same


@pytest.mark.parametrize("least, halvings", [(382, 7), (1, 0)])
def test_a_size_is_found_that_the_net_takes(least, halvings):
    x = keras.Input((None, None, 3))
    y = layers.Conv2D(4, 1)(x)
    for _ in range(halvings):
        y = layers.MaxPooling2D()(layers.Conv2D(4, 3, activation="relu")(y))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y)))
    masked = filterprune.wrap_model(randomise(model))
    close_at_random(masked)
    filterprune.compact(masked)
    assert min(fitting_inputs(model).shape[1:3]) >= least


def test_ids_and_words_are_those_that_layers_know():
    x, y = keras.Input((5,)), keras.Input((7,), dtype="int32")
    embedded = [layers.Embedding(3, 4)(x), layers.Embedding(50, 4)(y)]
    pooled = [layers.GlobalAveragePooling1D()(e) for e in embedded]
    model = keras.Model([x, y], layers.Add()(pooled))
    few, many = (np.asarray(a) for a in generate_inputs(model, batch_size=32))
    assert set(few.ravel()) == {0, 1, 2}
    assert many.max() > 20 and many.max() < 50


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="strings")
def test_words_of_a_vocabulary():
    lookup = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    x = keras.Input((1,), dtype="string")
    y = layers.Dense(8, activation="relu", name="first")(lookup(x))
    masked = filterprune.wrap_model(keras.Model(x, layers.Dense(2)(y)))
    close_at_random(masked)
    assert filterprune.compact(masked).get_layer("first").units == 4
    words = {w.decode() for w in np.ravel(generate_inputs(masked, batch_size=64))}
    assert {"a", "b"} <= words


class OnlyEven(layers.Layer):
    """Wrong for odd sizes, large numbers, many samples, or in training."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind

    def build(self, input_shape):
        self.width = float(input_shape[-1])

    def call(self, x, training=None):
        wrong = {
            "odd size": x.shape[1] % 2 == 1,
            "large numbers": float(ops.max(ops.abs(x))) > 200,
            "many samples": x.shape[0] > 2,
            "training": bool(training),
            "nothing": False,
        }[self.kind]
        return x / self.width if wrong else x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@pytest.mark.parametrize("kind", ["odd size", "large numbers", "many samples"])
def test_sizes_scales_and_numbers_of_samples_are_tried(kind):
    model, other = (
        randomise(keras.Sequential([keras.Input((None, None, 3)), *inner]))
        for inner in (
            [layers.Conv2D(4, 1, name="first")],
            [layers.Conv2D(4, 1, name="first"), OnlyEven(kind)],
        )
    )
    other.set_weights(model.get_weights())
    assert not compare(model, other).same
    with pytest.raises(filterprune.VerificationError, match="differ"):
        verification.verify_wrapped(model, other)


def test_training_mode_is_tried():
    model, other = (
        randomise(keras.Sequential([keras.Input((8, 8, 3)), *inner]))
        for inner in (
            [layers.Conv2D(4, 1, name="first"), OnlyEven("nothing")],
            [layers.Conv2D(4, 1, name="first"), OnlyEven("training")],
        )
    )
    other.set_weights(model.get_weights())
    assert not verification.is_same(model, other).same
    assert compare(model, other).same  # in inference


class Picky(layers.Layer):
    def call(self, x):
        if not isinstance(x, keras.KerasTensor) and float(ops.max(x)) != 7:
            raise ValueError("only sevens")
        return x

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_your_own_inputs_are_taken_where_none_can_be_generated():
    x = keras.Input((4,))
    y = layers.Dense(6, activation="relu", name="first")(Picky()(x))
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    with pytest.warns(filterprune.PruningWarning, match="Pass `verify=inputs`"):
        filterprune.wrap_model(model)
    sevens = np.full((3, 4), 7.0)
    masked = filterprune.wrap_model(model, verify=sevens)
    builders.close(masked.get_layer("first"), 0, 1)
    assert filterprune.compact(masked, verify=sevens).get_layer("first").units == 4
    assert filterprune.compact(masked, verify=False).get_layer("first").units == 4
    for wrong in (np.ones((3, 5)), [sevens, sevens], "yes", np.ones((0, 4))):
        with pytest.raises(ValueError, match="Expected `verify` to be"):
            filterprune.compact(masked, verify=wrong)
        with pytest.raises(ValueError, match="Expected `verify` to be"):
            filterprune.wrap_model(model, verify=wrong)


def test_a_masked_layer_that_computes_something_else_is_named(monkeypatch):
    model = builders.build("plain")

    def call(self, inputs, training=None, mask=None):
        return 1.5 * self.layer.call(inputs)

    monkeypatch.setattr(filterprune.layers.MaskedConv2D, "call", call)
    with pytest.raises(filterprune.VerificationError, match="first in the layer"):
        filterprune.wrap_model(model)
    filterprune.wrap_model(model, verify=False)
