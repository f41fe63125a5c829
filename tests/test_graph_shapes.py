"""Graphs of every shape: nested, shared, many inputs and outputs, open sizes."""

import keras
import pytest
from exactness import (
    assert_equal,
    check_exact,
    close_at_random,
    difference,
    randomise,
    to_numpy,
)
from keras import layers, ops

import filterprune


def conv(x, filters=6, **kwargs):
    return layers.Conv2D(filters, 3, padding="same", activation="relu", **kwargs)(x)


def norm(x):
    return layers.BatchNormalization()(x)


def backbone(name="backbone", channels=3, filters=6):
    x = keras.Input((8, 8, channels))
    return keras.Model(x, norm(conv(norm(conv(x, 8)), filters)), name=name)


def head(x, units=2):
    return layers.Dense(units)(layers.GlobalAveragePooling2D()(x))


def nested():
    x = keras.Input((8, 8, 3))
    return keras.Model(x, head(conv(backbone()(x))))


def frozen_backbone():
    model = backbone()
    model.trainable = False
    x = keras.Input((8, 8, 3))
    return keras.Model(x, head(conv(model(x, training=False))))


def nested_deep():
    inner = backbone()
    x = keras.Input((8, 8, 3))
    middle = keras.Model(x, norm(conv(inner(x))), name="middle")
    outer = keras.Sequential([keras.Input((8, 8, 3)), middle], name="outer")
    x = keras.Input((8, 8, 3))
    return keras.Model(x, head(outer(x)))


def nested_sequential():
    block = keras.Sequential(
        [keras.Input((8, 8, 6)), layers.Conv2D(6, 1), layers.BatchNormalization()]
    )
    x = keras.Input((8, 8, 3))
    return keras.Model(x, head(block(conv(x))))


def submodel_called_twice():
    shared = backbone(channels=6)
    x = keras.Input((8, 8, 3))
    return keras.Model(x, head(shared(shared(conv(x)))))


def siamese():
    shared = backbone()
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    return keras.Model([a, b], head(layers.Subtract()([shared(a), shared(b)])))


def shared_layer():
    layer = layers.Conv2D(6, 3, padding="same")
    x = keras.Input((8, 8, 3))
    y = conv(x)
    return keras.Model(x, head(layer(layer(y)) + y))


def submodel_of_several():
    a, b = keras.Input((8, 8, 4)), keras.Input((8, 8, 4))
    both = keras.Model([a, b], [conv(a + b), conv(a * b)], name="both")
    x = keras.Input((8, 8, 3))
    first, second = both([conv(x, 4), conv(x, 4)])
    return keras.Model(x, head(layers.Concatenate()([first, second])))


def dictionaries():
    x = {"left": keras.Input((8, 8, 3), name="left")}
    x["right"] = keras.Input((8, 8, 3), name="right")
    y = conv(x["left"]) + conv(x["right"])
    return keras.Model(x, {"one": head(conv(y)), "two": head(y)})


def output_in_the_middle():
    x = keras.Input((8, 8, 3))
    middle = conv(conv(x), name="middle")
    return keras.Model(x, [head(conv(middle)), middle])


def open_sizes():
    x = keras.Input((None, None, 3))
    y = norm(conv(x, 8))
    y = layers.UpSampling2D()(layers.MaxPooling2D()(y)) + conv(y, 8)
    return keras.Model(x, conv(ops.flip(y, 1)[..., 2:], 2))


def unused_branch():
    x = keras.Input((8, 8, 3))
    y = conv(x)
    conv(y)  # leads nowhere
    return keras.Model(x, head(conv(y)))


def integers_and_images():
    x = keras.Input((8, 8, 3))
    number = keras.Input((4,), dtype="int32")
    y = layers.Dense(6)(ops.cast(number, "float32"))
    y = layers.Reshape((1, 1, 6))(y)
    return keras.Model([x, number], head(conv(conv(x) * y)))


def plain_sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(8, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(6, activation="sigmoid"),
            layers.Dense(2),
        ]
    )


SHAPES = [
    nested,
    frozen_backbone,
    nested_deep,
    nested_sequential,
    submodel_called_twice,
    siamese,
    shared_layer,
    submodel_of_several,
    dictionaries,
    output_in_the_middle,
    open_sizes,
    unused_branch,
    integers_and_images,
    plain_sequential,
]


@pytest.mark.parametrize("build", SHAPES, ids=lambda fn: fn.__name__)
def test_shape_is_exact(build):
    model = randomise(build())
    masked = filterprune.wrap_model(model)
    assert filterprune.analyze(masked).barriers == ()
    assert difference(model, masked, size=16) < 1e-6
    close_at_random(masked)
    small = check_exact(masked, limit=1e-5)
    assert small.count_params() < model.count_params()
    assert type(small) is type(model)
    names = [tensor.name for tensor in model.inputs]
    assert [layer.name for layer in small.layers] == [
        layer.name for layer in model.layers
    ]
    assert len(small.inputs) == len(names)


@pytest.mark.parametrize("build", SHAPES, ids=lambda fn: fn.__name__)
def test_clone_function_sees_nested_models(build):
    model = randomise(build())
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    assert difference(model, masked, size=16) < 1e-6
    close_at_random(masked)
    check_exact(masked, limit=1e-5)


def test_a_frozen_backbone_is_pruned_and_stays_frozen():
    masked = filterprune.wrap_model(randomise(frozen_backbone()))
    close_at_random(masked)
    small = check_exact(masked, limit=1e-5)
    inner = small.get_layer("backbone")
    assert not inner.trainable and not inner.trainable_weights
    assert inner.layers[1].filters == 4
    assert small.get_layer("backbone").layers[1].trainable is False


def test_channels_first():
    # Filters and width differ: Keras 3.15 adds a bias along the wrong axis if not.
    x = keras.Input((3, 10, 10))
    kwargs = {"data_format": "channels_first", "padding": "same"}
    y = layers.Conv2D(8, 3, **kwargs)(x)
    y = layers.BatchNormalization(axis=1)(y)
    y = layers.Activation("sigmoid")(y)
    y = layers.AveragePooling2D(2, data_format="channels_first")(y)
    y = layers.Permute((2, 3, 1))(y)
    y = layers.Conv2D(6, 3, padding="same")(y)
    y = layers.Permute((3, 1, 2))(y)
    y = layers.Flatten(data_format="channels_first")(y)
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    masked = filterprune.wrap_model(model)
    assert filterprune.analyze(masked).barriers == ()
    close_at_random(masked)
    small = check_exact(masked, limit=1e-5)
    assert small.count_params() < 0.6 * model.count_params()


def test_what_is_kept_of_a_layer():
    x = keras.Input((8, 8, 3))
    layer = layers.Conv2D(
        8,
        3,
        name="mine",
        kernel_regularizer=keras.regularizers.L2(0.1),
        kernel_constraint="max_norm",
        bias_initializer="ones",
        dtype="mixed_bfloat16",
    )
    model = keras.Model(x, head(layers.Conv2D(4, 3)(layer(x))))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    new = filterprune.compact(masked).get_layer("mine")
    assert new.filters == 4
    assert float(new.kernel_regularizer.l2) == pytest.approx(0.1)
    assert isinstance(new.kernel_constraint, keras.constraints.MaxNorm)
    assert isinstance(new.bias_initializer, keras.initializers.Ones)
    assert new.dtype_policy.name == "mixed_bfloat16"
    gate = to_numpy(masked.get_layer("mine").gate) == 1
    assert_equal(
        to_numpy(new.kernel), to_numpy(masked.get_layer("mine").layer.kernel)[..., gate]
    )


def test_a_shared_layer_reads_two_constants():
    """Found by the fuzzer: it has one bias, which cannot take in both.

    The first call of the block reads a closed channel as zero, the second as
    what its own batch norm makes of it.
    """
    inner = keras.Input((8, 8, 4))
    y = layers.Conv2D(4, 1, name="inside")(inner)
    block = keras.Model(inner, layers.BatchNormalization()(y), name="block")
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, padding="same", name="before")(x)
    y = block(block(y))
    model = randomise(keras.Model(x, head(y)))
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    masked.get_layer("before").gate.assign([1, 0, 1, 1])
    masked.get_layer("block").get_layer("inside").gate.assign([1, 0, 1, 1])
    with pytest.warns(filterprune.PruningWarning, match="stay"):
        check_exact(masked, limit=1e-5)


@pytest.mark.parametrize(
    "part",
    [
        lambda x: ops.take(x, [0, 5], axis=-1),
        lambda x: x[..., 2:4],
        lambda x: ops.split(x, [2], axis=-1)[0],
    ],
    ids=["take", "slice", "split"],
)
def test_no_tensor_in_the_middle_is_left_without_channels(part):
    x = keras.Input((8, 8, 3))
    y = conv(x, 6, name="whole")
    gate = ops.sigmoid(ops.max(part(y), axis=-1, keepdims=True))
    masked = filterprune.wrap_model(randomise(keras.Model(x, head(y * gate))))
    sizes = [group.size for group in filterprune.analyze(masked).groups]
    assert sorted(sizes[:-1]) == [2, 4]
    filterprune.prune(masked, sparsity=2 / 3)  # all but one channel of each part
    small = check_exact(masked, limit=1e-5)
    assert small.get_layer("whole").filters == 2


@pytest.mark.parametrize(
    "number",
    [
        lambda x: ops.sqrt(ops.sum(ops.square(x))),
        lambda x: ops.mean(ops.square(x)) + 1.0,
        lambda x: ops.exp(ops.mean(x)),
        lambda x: ops.sigmoid(ops.max(x)),
    ],
)
def test_one_number_of_the_whole_batch(number):
    x = keras.Input((6,))
    y = layers.Dense(8, name="hidden")(x)
    model = keras.Model(x, layers.Dense(2)(y / number(y)))
    masked = filterprune.wrap_model(randomise(model))
    close_at_random(masked)
    assert check_exact(masked).get_layer("hidden").units == 4
