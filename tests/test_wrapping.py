"""`wrap` as a clone function, and `wrap_model` on whole graphs."""

import builders
import keras
import numpy as np
import pytest
from builders import BUILDERS, build, clone, leaves, masked_layers
from exactness import assert_close, assert_equal, to_numpy
from keras import layers

import filterprune
from filterprune.layers import (
    Masked,
    MaskedActivation,
    MaskedBatchNormalization,
    MaskedConv1D,
    MaskedConv1DTranspose,
    MaskedConv2D,
    MaskedConv2DTranspose,
    MaskedConv3D,
    MaskedDense,
    MaskedDepthwiseConv2D,
    MaskedLayerNormalization,
    MaskedSeparableConv2D,
    MaskedSoftmax,
)

# A layer, the shape of its input, and what `wrap` is to make of it.
WRAPPED = [
    (layers.Conv1D(4, 3), (8, 2), MaskedConv1D),
    (layers.Conv2D(4, 3), (8, 8, 2), MaskedConv2D),
    (layers.Conv3D(4, 3), (5, 5, 5, 2), MaskedConv3D),
    (layers.Conv1DTranspose(4, 3), (8, 2), MaskedConv1DTranspose),
    (layers.Conv2DTranspose(4, 3), (8, 8, 2), MaskedConv2DTranspose),
    (layers.SeparableConv2D(4, 3), (8, 8, 2), MaskedSeparableConv2D),
    (layers.Dense(4), (3,), MaskedDense),
    (layers.BatchNormalization(), (8, 8, 2), MaskedBatchNormalization),
    (layers.DepthwiseConv2D(3), (8, 8, 2), MaskedDepthwiseConv2D),
    (layers.Activation("sigmoid"), (8, 8, 2), MaskedActivation),
    (layers.Activation("softplus"), (4,), MaskedActivation),
    (layers.Activation("softmax"), (4,), MaskedActivation),
    (layers.Softmax(), (8, 4), MaskedSoftmax),
    (layers.LayerNormalization(), (8, 4), MaskedLayerNormalization),
    (layers.Rescaling(1.0, offset=0.5), (8, 8, 2), Masked),
]
# Layers that pass a closed channel on as zero, or have no channels to close.
COPIED = [
    (layers.Activation("relu"), (8, 8, 2)),
    (layers.ReLU(), (8, 8, 2)),
    (layers.MaxPooling2D(), (8, 8, 2)),
    (layers.Dropout(0.5), (4,)),
    (layers.Flatten(), (8, 8, 2)),
    (layers.Rescaling(2.0), (8, 8, 2)),
    (layers.DepthwiseConv2D(3, use_bias=False), (8, 8, 2)),
    (layers.Activation("log_softmax"), (4,)),  # no gate reaches inside
    (layers.Activation("sparsemax"), (4,)),
    (layers.Activation("glu"), (4,)),
]


def one_layer(layer, shape):
    config = {**layer.get_config(), "name": "only"}
    layer = type(layer).from_config(config)
    inputs = keras.Input(shape)
    return builders.randomise(keras.Model(inputs, layer(inputs)))


def signature(model):
    """Names, shapes and structure of what goes in and comes out."""
    inputs = builders.inputs_of(model)
    return (
        keras.tree.map_structure(lambda t: (t.name, t.shape), inputs),
        getattr(model, "output_names", None),
        [tensor.shape for tensor in model.outputs],
    )


def ids(case):
    return getattr(case, "name", None)


@pytest.mark.parametrize(("layer", "shape", "expected"), WRAPPED, ids=ids)
def test_wrap_masks_layers_that_make_or_revive_channels(layer, shape, expected):
    model = one_layer(layer, shape)
    masked = clone(model)
    assert type(masked.get_layer("only")) is expected
    builders.assert_same_outputs(model, masked)


@pytest.mark.parametrize(("layer", "shape"), COPIED, ids=ids)
def test_wrap_copies_all_other_layers(layer, shape):
    model = one_layer(layer, shape)
    copied = clone(model)
    assert type(copied.get_layer("only")) is type(layer)
    assert copied.get_layer("only") is not model.get_layer("only")
    builders.assert_same_outputs(model, copied)


@pytest.mark.parametrize(("layer", "shape", "expected"), WRAPPED, ids=ids)
def test_wrap_takes_a_layer_built_or_not(layer, shape, expected):
    for is_built in (False, True):
        fresh = type(layer).from_config(layer.get_config())
        if is_built:
            fresh.build((None, *shape))
        before = [to_numpy(weight) for weight in fresh.weights]
        masked = filterprune.wrap(fresh)
        assert type(masked) is expected
        assert masked(np.ones((2, *shape))).shape[0] == 2
        assert masked.gate.shape == (expected_size(masked, shape),)
        for old, new in zip(before, fresh.weights, strict=True):
            assert_equal(old, new)


def expected_size(masked, shape):
    return masked.compute_output_shape((None, *shape))[-1]


def test_wrap_is_a_clone_function_for_an_unbuilt_sequential():
    masked = clone(keras.Sequential([layers.Dense(4), layers.Dense(2)]))
    assert masked(np.ones((2, 3))).shape == (2, 2)
    assert [layer.alive for layer in masked.layers] == [4, 2]


@pytest.mark.parametrize("wrapper", [clone, filterprune.wrap_model])
@pytest.mark.parametrize("name", BUILDERS)
class TestEveryModel:
    def test_computes_the_same_with_weights_and_names_kept(self, name, wrapper):
        model = build(name)
        masked = wrapper(model)
        builders.assert_same_outputs(model, masked)
        assert masked.name == model.name
        assert type(masked) is type(model)
        assert list(leaves(masked)) == list(leaves(model))
        assert signature(masked) == signature(model)
        assert masked_layers(masked)
        assert all(layer.alive for layer in masked_layers(masked).values())

    def test_never_touches_the_original(self, name, wrapper):
        model = build(name)
        before = builders.snapshot(model)
        masked = wrapper(model)
        builders.randomise(masked, seed=7)
        for layer in masked_layers(masked).values():
            layer.gate.assign(np.zeros(layer.gate.shape))
        assert builders.snapshot(model) == before

    def test_shares_nothing_with_the_original(self, name, wrapper):
        model = build(name)
        masked = wrapper(model)
        ours = {id(w) for w in model.weights} | {id(x) for x in leaves(model).values()}
        theirs = {id(w) for w in masked.weights}
        theirs |= {id(layer) for layer in leaves(masked).values()}
        assert not ours & theirs


@pytest.mark.parametrize("wrapper", [clone, filterprune.wrap_model])
class TestCompiled:
    def test_stays_compiled(self, wrapper):
        model = builders.mlp(4, 8, 3)
        model.compile(keras.optimizers.SGD(0.125), "mse", metrics=["mae"])
        model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
        before = builders.snapshot(model)
        masked = wrapper(model)
        assert masked.compiled
        assert masked.get_compile_config() == model.get_compile_config()
        assert masked.optimizer is not model.optimizer
        expected = model.evaluate(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
        found = masked.evaluate(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
        assert_close(found, expected, rtol=1e-5)
        assert builders.snapshot(model) == before

    def test_not_compiled_stays_not_compiled(self, wrapper):
        assert not wrapper(builders.mlp(4, 8, 3)).compiled


def test_compiled_with_a_loss_of_ones_own_can_be_wrapped():
    def my_loss(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred))

    model = builders.mlp(4, 8, 3)
    model.compile("sgd", my_loss)
    masked = filterprune.wrap_model(model)
    builders.assert_same_outputs(model, masked)


@pytest.mark.parametrize("wrapper", [clone, filterprune.wrap_model])
class TestDetails:
    def test_operations_that_are_no_layers_pass_through(self, wrapper):
        masked = wrapper(build("operations"))
        builders.close(masked.get_layer("c"), 0, 1, 2, 3)
        builders.close(masked.get_layer("b"), 0, 1, 2, 3, 4, 5)
        pooled = keras.Model(masked.input, masked.get_layer("pool").output)
        (found,) = builders.outputs(pooled, builders.sample(masked))
        assert (found[:, 6:] == 0).all()
        assert (found[:, :6] != 0).any()

    def test_a_shared_layer_stays_shared(self, wrapper):
        model = build("shared")
        masked = wrapper(model)
        assert len(masked_layers(masked)["tower"]._inbound_nodes) == 2
        assert len(masked_layers(masked)["again"]._inbound_nodes) == 3

    def test_nested_models_stay_nested_and_are_masked(self, wrapper):
        masked = wrapper(build("nested"))
        assert isinstance(masked.get_layer("top"), keras.Sequential)
        expected = {"backbone/conv1", "backbone/conv1_bn", "top/hidden"}
        assert expected <= set(masked_layers(masked))

    @pytest.mark.parametrize("frozen", ["conv1", "conv1_bn", "hidden"])
    def test_frozen_layers_stay_frozen(self, wrapper, frozen):
        model = build("plain")
        model.get_layer(frozen).trainable = False
        masked = wrapper(model)
        expected = [tuple(w.shape) for w in model.trainable_weights]
        assert [tuple(w.shape) for w in masked.trainable_weights] == expected
        assert not masked.get_layer(frozen).trainable

    def test_frozen_models_stay_frozen(self, wrapper):
        model = build("nested")
        model.get_layer("backbone").trainable = False
        masked = wrapper(model)
        assert len(masked.trainable_weights) == len(model.trainable_weights)

    def test_gates_are_not_trainable(self, wrapper):
        masked = wrapper(build("plain"))
        trainable = {id(weight) for weight in masked.trainable_weights}
        for layer in masked_layers(masked).values():
            assert id(layer.gate) not in trainable


class Shift(layers.Layer):
    """A user's layer: a number added to each channel, no method but `call`."""

    def build(self, input_shape):
        self.shift = self.add_weight(shape=(input_shape[-1],), name="bias")

    def call(self, x):
        return x + self.shift


@filterprune.rule(Shift)
def shift(layer, x):
    return filterprune.channels.same(x, shift="in")


def test_layers_shared_with_a_nested_model_stay_so_or_it_is_told():
    """Keras clones a nested model apart from the rest, by layers of its own."""
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    inner = keras.Model(inputs, layers.Dense(4)(shared(inputs)), name="inner")
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(inner(shared(layers.Dense(4)(x)))))
    whole = filterprune.wrap_model(model)
    assert len(whole.trainable_weights) == len(model.trainable_weights)
    with pytest.warns(filterprune.PruningWarning, match="'inner'.*'shared'"):
        cloned = clone(model)
    assert len(cloned.trainable_weights) > len(model.trainable_weights)


@pytest.mark.parametrize("wrapper", [clone, filterprune.wrap_model])
def test_a_layer_of_ones_own_with_a_rule_is_masked(wrapper):
    inputs = keras.Input((4,))
    x = Shift(name="shift")(layers.Dense(6, name="dense")(inputs))
    model = builders.randomise(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    masked = wrapper(model)
    builders.assert_same_outputs(model, masked)
    assert {"dense", "shift"} <= set(masked_layers(masked))
    builders.close(masked.get_layer("shift"), 2)
    part = keras.Model(masked.inputs[0], masked.get_layer("shift").output)
    assert (to_numpy(part(np.ones((1, 4))))[:, 2] == 0).all()


def test_a_subclass_with_a_training_step_of_its_own_is_kept():
    class Mine(keras.Model):
        def greet(self):
            return "hello"

    inputs = keras.Input((4,))
    model = Mine(inputs, layers.Dense(2)(layers.Dense(6)(inputs)))
    assert filterprune.wrap_model(model).greet() == "hello"


class TestWrapModelGates:
    """Gates are put where they can close something, and nowhere else."""

    def test_no_gate_on_filters_that_reach_an_output(self):
        masked = filterprune.wrap_model(build("multi_io"))
        assert set(masked_layers(masked)) == {"conv", "conv_bn", "embed"}

    @pytest.mark.parametrize(
        ("name", "free"),
        [
            ("plain", {"head"}),
            ("sequential", {"head"}),
            ("residual", {"head"}),
            ("depthwise", {"head"}),
            ("nested", {"top/logits"}),
        ],
    )
    def test_only_the_last_layer_is_left_alone(self, name, free):
        model = build(name)
        masked = filterprune.wrap_model(model)
        makers = {
            path
            for path, layer in leaves(model).items()
            if type(layer).__name__ in ("Dense", "Conv2D", "SeparableConv2D")
        }
        assert makers - set(masked_layers(masked)) == free

    def test_no_gate_on_a_normalisation_before_all_filters(self):
        inputs = keras.Input((8, 8, 3))
        x = layers.BatchNormalization(name="first")(inputs)
        x = layers.Conv2D(4, 3, name="conv")(x)
        x = layers.Dense(2, name="head")(layers.Flatten()(x))
        masked = filterprune.wrap_model(keras.Model(inputs, x))
        assert set(masked_layers(masked)) == {"conv"}

    def test_gates_run_along_the_channels_of_channels_first_activations(self):
        inputs = keras.Input((3, 8, 5))
        x = layers.Conv2D(4, 3, data_format="channels_first", name="conv")(inputs)
        x = layers.Activation("sigmoid", name="act")(x)
        x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
        masked = filterprune.wrap_model(
            keras.Model(inputs, layers.Dense(2, name="head")(x))
        )
        assert masked.get_layer("act").gate.shape == (4,)
        builders.close(masked.get_layer("act"), 1)
        part = keras.Model(masked.input, masked.get_layer("act").output)
        (found,) = builders.outputs(part, builders.sample(masked))
        assert (found[:, 1] == 0).all()
        assert (found[:, [0, 2, 3]] != 0).all()


class TestExclude:
    @pytest.mark.parametrize(
        ("exclude", "gone"),
        [
            ("hidden", {"hidden"}),
            (("hidden",), {"hidden"}),
            (["conv1", "hidden"], {"conv1", "conv1_bn", "hidden"}),
            (layers.Dense, {"hidden"}),
            (
                layers.Conv2D,
                {"conv1", "conv1_bn", "conv2", "conv2_bn", "conv2_sigmoid"},
            ),
            (lambda layer: layer.name.endswith("1"), {"conv1", "conv1_bn"}),
            (lambda layer: getattr(layer, "units", 0) == 16, {"hidden"}),
            (("conv1", layers.Dense), {"conv1", "conv1_bn", "hidden"}),
            (("head",), set()),
        ],
    )
    def test_by_name_type_or_predicate(self, exclude, gone):
        model = build("plain")
        every = set(masked_layers(filterprune.wrap_model(model)))
        masked = filterprune.wrap_model(model, exclude=exclude)
        assert set(masked_layers(masked)) == every - gone
        builders.assert_same_outputs(model, masked)

    @pytest.mark.parametrize(
        ("exclude", "left"),
        [
            ("backbone", {"top/hidden"}),
            ("top", {"backbone/conv1", "backbone/conv2"}),
            ("backbone/conv2", {"backbone/conv1", "top/hidden"}),
            ("conv2", {"backbone/conv1", "top/hidden"}),
            (("backbone/conv1", "top/hidden"), {"backbone/conv2"}),
        ],
    )
    def test_by_the_name_of_or_in_a_nested_model(self, exclude, left):
        masked = filterprune.wrap_model(build("nested"), exclude=exclude)
        makers = {
            path
            for path, layer in masked_layers(masked).items()
            if isinstance(layer, (MaskedConv2D, MaskedDense))
        }
        assert makers == left

    def test_takes_all_layers_along_that_are_tied_to_it(self):
        masked = filterprune.wrap_model(build("residual"), exclude="outer")
        assert set(masked_layers(masked)) == {"inner", "inner_bn"}

    def test_of_a_layer_that_is_shared(self):
        masked = filterprune.wrap_model(build("shared"), exclude="tower")
        assert "tower" not in masked_layers(masked)
