"""Batch norms folded into the layers before them: the same function, less to run."""

import keras
import numpy as np
import pytest
from exactness import assert_close, difference, randomise, to_numpy
from keras import layers, ops

import filterprune

IMAGE, SIGNAL, VOLUME = (8, 8, 4), (8, 4), (6, 6, 6, 4)


@pytest.fixture
def double(_fresh_keras):
    keras.config.set_floatx("float64")


def exact(limit=1e-9):
    """What is left of a limit where Keras computes some of float64 in float32."""
    return limit if keras.backend.backend() == "tensorflow" else 1e-5


def chain(*ops_, shape=IMAGE):
    x = keras.Input(shape)
    y = x
    for op in ops_:
        y = op(y)
    return randomise(keras.Model(x, y))


def norms(model):
    return [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    ]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda **k: layers.Conv1D(5, 3, **k), SIGNAL),
        (lambda **k: layers.Conv2D(6, 3, groups=2, padding="same", **k), IMAGE),
        (lambda **k: layers.Conv3D(5, 2, **k), VOLUME),
        (lambda **k: layers.Conv1DTranspose(5, 3, **k), SIGNAL),
        (lambda **k: layers.Conv2DTranspose(5, 3, strides=2, **k), IMAGE),
        (lambda **k: layers.Conv3DTranspose(5, 2, **k), VOLUME),
        (lambda **k: layers.DepthwiseConv1D(3, depth_multiplier=2, **k), SIGNAL),
        (lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k), IMAGE),
        (lambda **k: layers.SeparableConv1D(5, 3, **k), SIGNAL),
        (lambda **k: layers.SeparableConv2D(5, 3, **k), IMAGE),
        (lambda **k: layers.Dense(5, **k), (4,)),
        (lambda **k: layers.Dense(5, **k), IMAGE),
    ],
)
def test_every_kind_of_layer(make, shape, bias, double):
    model = chain(
        make(use_bias=bias, name="maker"), layers.BatchNormalization(), shape=shape
    )
    folded = filterprune.fold_batch_norm(model)
    assert [layer.name for layer in folded.layers[1:]] == ["maker"]
    assert folded.layers[1].use_bias
    assert difference(model, folded) < exact()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_it_is_what_the_formula_says(center, scale):
    norm = layers.BatchNormalization(center=center, scale=scale, epsilon=0.01)
    model = chain(layers.Dense(3, name="dense"), norm, shape=(4,))
    kernel, bias = map(to_numpy, model.get_layer("dense").weights)
    mean, variance = to_numpy(norm.moving_mean), to_numpy(norm.moving_variance)
    factor = (to_numpy(norm.gamma) if scale else 1.0) / np.sqrt(variance + 0.01)
    shift = to_numpy(norm.beta) if center else 0.0
    new = filterprune.fold_batch_norm(model).get_layer("dense")
    assert_close(to_numpy(new.kernel), kernel * factor, 1e-6)
    assert_close(to_numpy(new.bias), (bias - mean) * factor + shift, 1e-6)


@pytest.mark.parametrize(
    "name, stay",
    [("ResNet50", 0), ("MobileNetV2", 0), ("EfficientNetB0", 0), ("DenseNet121", 62)],
)
def test_real_nets(name, stay):
    constructor = getattr(keras.applications, name)
    model = randomise(constructor(weights=None, input_shape=(32, 32, 3), classes=10))
    folded = filterprune.fold_batch_norm(model)
    assert len(norms(folded)) == stay  # DenseNet has most of them before convolutions
    assert difference(model, folded, size=32) < 1e-4


def test_a_compact_model_and_its_file(tmp_path):
    model = randomise(
        keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), alpha=0.25)
    )
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, sparsity=0.5)
    small = filterprune.compact(masked)
    folded = filterprune.fold_batch_norm(small)
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    assert not norms(loaded)
    assert difference(masked, loaded, size=32) < 1e-4
    assert len(norms(small)) == 27  # the model given is as it was


def test_nested_and_sequential_models(double):
    inner = keras.Sequential(
        [
            keras.Input(IMAGE),
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
        ],
        name="inner",
    )
    x = keras.Input(IMAGE)
    y = layers.BatchNormalization()(layers.Conv2D(3, 1)(inner(inner(x))))
    model = randomise(keras.Model(x, y))
    folded = filterprune.fold_batch_norm(model)
    assert not norms(folded) and isinstance(folded.get_layer("inner"), keras.Sequential)
    assert difference(model, folded) < exact()


def read_twice(x):
    y = layers.Conv2D(4, 3, padding="same")(x)
    return layers.Add()([y, layers.BatchNormalization()(y)])


def also_an_output(x):
    y = layers.Conv2D(4, 3)(x)
    return [y, layers.BatchNormalization()(y)]


def called_twice(x):
    conv, norm = layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()
    return norm(conv(norm(conv(x))))


def behind_an_activation(x):
    return layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))


def behind_a_sum(x):
    return layers.BatchNormalization()(x + layers.Conv2D(4, 3, padding="same")(x))


def along_another_axis(x):
    return layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3)(x))


@pytest.mark.parametrize(
    "build",
    [
        read_twice,
        also_an_output,
        called_twice,
        behind_an_activation,
        behind_a_sum,
        along_another_axis,
    ],
)
def test_what_cannot_be_folded_stays(build, double):
    x = keras.Input(IMAGE)
    model = randomise(keras.Model(x, build(x)))
    assert filterprune.fold_batch_norm(model) is model  # there is nothing else
    y = layers.Flatten()(keras.tree.flatten(model.outputs)[0])
    y = layers.BatchNormalization(name="last")(layers.Dense(3)(y))
    longer = randomise(keras.Model(x, y))
    folded = filterprune.fold_batch_norm(longer)
    assert set(norms(longer)) - set(norms(folded)) == {"last"}
    assert difference(longer, folded) < exact()


def test_half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = chain(layers.Conv2D(6, 3), layers.BatchNormalization(), layers.ReLU())
    folded = filterprune.fold_batch_norm(model)
    assert folded.layers[1].dtype_policy.name == "mixed_bfloat16"
    assert not norms(folded) and difference(model, folded) < 0.05


def test_it_is_compiled_and_evaluates_alike():
    model = chain(layers.Conv2D(6, 3), layers.BatchNormalization(), layers.Flatten())
    model.compile("adam", "mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(8, *IMAGE))
    y = np.zeros((8, model.output_shape[1]))
    folded = filterprune.fold_batch_norm(model)
    old, new = (m.evaluate(x, y, verbose=0) for m in (model, folded))
    assert_close(np.array(new), np.array(old), 1e-4)


def test_errors():
    model = chain(layers.Conv2D(6, 3), layers.Flatten(), layers.Dense(2))
    with pytest.raises(ValueError, match="compact` first"):
        filterprune.fold_batch_norm(filterprune.wrap_model(model))
    with pytest.raises(TypeError, match="Keras model"):
        filterprune.fold_batch_norm(ops.add)
