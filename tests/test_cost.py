"""Parameters, multiply-accumulates and bytes against figures made by hand."""

import builders
import keras
import numpy as np
import pytest
from builders import BUILDERS, build
from keras import layers

import filterprune
from filterprune.cost import Cost


def zoo():
    """One of each layer that multiplies, on a feature map of 8x8x3."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, 2, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(6, 3, padding="same", use_bias=False, name="sep")(x)
    x = layers.Conv2DTranspose(5, 2, strides=2, name="transpose")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(7, name="dense")(x))


# Layer: its parameters, its multiply-accumulates.
BY_HAND = {
    "conv": (3 * 3 * 3 * 4 + 4, 8 * 8 * 3 * 3 * 3 * 4),
    "depthwise": (3 * 3 * 4 + 4, 4 * 4 * 3 * 3 * 4),
    "sep": (3 * 3 * 4 + 4 * 6, 4 * 4 * (3 * 3 * 4 + 4 * 6)),
    "transpose": (2 * 2 * 6 * 5 + 5, 4 * 4 * 2 * 2 * 6 * 5),
    "norm": (4 * 5, 0),
    "dense": (5 * 7 + 7, 5 * 7),
}


def test_every_layer_costs_what_it_does_by_hand():
    report = filterprune.analyze(zoo())
    found = {layer.name: layer.before for layer in report.layers}
    assert list(found) == list(BY_HAND)
    for name, (params, macs) in BY_HAND.items():
        assert found[name] == Cost(params, macs, 4 * params), name
    assert report.before == Cost(399, 10403, 1596)
    assert report.after == report.before


def test_after_pruning_the_layers_cost_what_their_smaller_ones_do():
    masked = filterprune.wrap_model(zoo())
    gates = {"conv": (0, 3), "depthwise": (0, 3), "sep": (1, 2, 4), "transpose": (0,)}
    for name, indices in {**gates, "norm": (0,)}.items():
        builders.close(masked.get_layer(name), *indices)
    report = filterprune.analyze(masked)
    assert {layer.name: layer.after for layer in report.layers} == {
        "conv": Cost(56, 3456, 224),
        "depthwise": Cost(3 * 3 * 2 + 2, 16 * 18, 80),
        "sep": Cost(3 * 3 * 2 + 2 * 3, 16 * (18 + 6), 96),
        "transpose": Cost(2 * 2 * 3 * 4 + 4, 16 * 48, 208),
        "norm": Cost(16, 0, 64),
        "dense": Cost(4 * 7 + 7, 28, 140),
    }
    assert report.before == Cost(399, 10403, 1596)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (layers.Conv1D(4, 3), (10, 2), 8 * 3 * 2 * 4),
        (layers.Conv2D(6, 3, groups=2), (6, 6, 4), 4 * 4 * 3 * 3 * 2 * 6),
        (layers.Conv2D(4, 3, strides=2), (9, 7, 2), 4 * 3 * 3 * 3 * 2 * 4),
        (layers.Conv2D(4, 3, dilation_rate=2), (8, 8, 2), 4 * 4 * 3 * 3 * 2 * 4),
        (layers.Conv3D(2, 2), (4, 4, 4, 3), 27 * 8 * 3 * 2),
        (layers.Dense(5), (6, 7, 3), 6 * 7 * 3 * 5),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 3), 16 * 9 * 6),
        (
            layers.Conv2D(4, 3, data_format="channels_first"),
            (2, 8, 6),
            6 * 4 * 3 * 3 * 2 * 4,
        ),
        (layers.Conv2D(4, 3), (None, None, 2), 3 * 3 * 2 * 4),  # open: counts as 1
        (layers.BatchNormalization(), (6, 6, 4), 0),
    ],
    ids=lambda case: getattr(case, "name", None),
)
def test_multiply_accumulates_of_one_layer(layer, shape, macs):
    layer = type(layer).from_config(layer.get_config())
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    cost = filterprune.analyze(model).before
    assert cost == Cost(model.count_params(), macs, 4 * model.count_params())


def test_a_shared_layer_has_one_set_of_weights_and_runs_every_time():
    layer = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    report = filterprune.analyze(keras.Model(inputs, layer(layer(layer(inputs)))))
    (found,) = report.layers
    assert (found.before.params, found.before.macs) == (20, 3 * 16)
    assert report.before == found.before


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float64", 8), ("float16", 2), ("bfloat16", 2), ("mixed_float16", 4)],
)
def test_bytes_are_those_of_the_weights_as_stored(dtype, size):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype=dtype)])
    assert filterprune.analyze(model).before == Cost(15, 12, 15 * size)


@pytest.mark.parametrize("name", BUILDERS)
def test_totals_are_those_of_keras_before_and_after_compaction(name):
    model = build(name)
    plain = filterprune.analyze(model)
    assert plain.before.params == model.count_params()
    assert plain.before.bytes == 4 * model.count_params()

    masked = filterprune.wrap_model(model)
    assert filterprune.analyze(masked).before == plain.before  # gates cost nothing
    filterprune.prune(masked, 0.5)
    report = filterprune.analyze(masked)
    small = filterprune.compact(masked)
    again = filterprune.analyze(small)
    assert report.after == again.before
    assert report.after.params == small.count_params() < model.count_params()
    assert report.after.macs < report.before.macs
    after = {layer.name: layer.after for layer in report.layers}
    assert after == {layer.name: layer.before for layer in again.layers}


def test_costs_add_up():
    report = filterprune.analyze(zoo())
    assert sum((each.before for each in report.layers), Cost()) == report.before


def test_half_the_filters_of_a_stack_leave_a_quarter_of_its_cost():
    inputs = x = keras.Input((8, 8, 16))
    for index in range(6):
        x = layers.Conv2D(16, 3, padding="same", name=f"conv{index}")(x)
    masked = filterprune.wrap_model(keras.Model(inputs, x))
    filterprune.prune(masked, 0.5, scope="layer")
    found = filterprune.analyze(masked).layers
    macs = [layer.after.macs / layer.before.macs for layer in found]
    np.testing.assert_allclose(macs, [0.5, 0.25, 0.25, 0.25, 0.25, 0.5])


def test_a_nested_model_keeps_the_sizes_that_it_knows():
    """An open size around it is no reason to lose them: its MACs would go with them."""
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(image)
    inner = keras.Model(image, layers.Conv2D(4, 3, name="second")(x), name="inner")
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(inner(inputs))
    masked = filterprune.wrap_model(keras.Model(inputs, layers.Dense(2)(x)))
    filterprune.prune(masked, 0.5)
    small = filterprune.compact(masked)
    report = filterprune.analyze(masked)
    assert report.before.macs > 2 * report.after.macs > 10_000
    assert filterprune.analyze(small).before == report.after
    assert small.get_layer("inner").input_shape == (None, 16, 16, 3)
