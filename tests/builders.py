"""Small models of every shape that the tests need, and how to look at them."""

import json

import keras
import numpy as np
from exactness import assert_close, to_numpy
from keras import layers

import filterprune

# On TensorFlow Keras compiles by XLA unless told otherwise, which takes seconds for
# every `fit`; `test_training.py` and `test_distribution.py` do train with it.
WITHOUT_XLA = {"jit_compile": False} if keras.backend.backend() == "tensorflow" else {}
# A dozen steps of a small model take less time than building a graph for them.
EAGERLY = {**WITHOUT_XLA, "run_eagerly": True} if WITHOUT_XLA else {}


def randomise(model, seed=0):
    """Give all weights random values, BatchNormalization statistics included.

    A fresh model has zero biases and unit statistics, behind which a channel
    that is not really closed would not show.
    """
    rng = np.random.default_rng(seed)
    for weight in {id(w): w for w in model.weights}.values():
        name, shape = weight.path.split("/")[-1], tuple(weight.shape)
        if name in ("gate", "seed_generator_state"):
            continue
        if name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 2.0, shape)
        elif name in ("beta", "bias", "moving_mean"):
            value = rng.normal(0.0, 0.5, shape)
        else:
            fan_in = max(np.prod(shape[:-1]), 1)
            value = rng.normal(0.0, fan_in**-0.5, shape)
        weight.assign(value)
    return model


def _conv_block(x, filters, name, activation="relu", strides=1):
    x = layers.Conv2D(filters, 3, strides, padding="same", name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x)


def plain(shape=(8, 8, 1), classes=10, name="plain"):
    """Convolution, BatchNormalization, Dense in a row, functional."""
    inputs = keras.Input(shape, name="image")
    x = _conv_block(inputs, 8, "conv1")
    x = _conv_block(x, 16, "conv2", "sigmoid", strides=2)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(classes, name="head")(x), name=name)


def sequential(shape=(8, 8, 1), classes=10, name="sequential"):
    """Much the same as a `Sequential`, with Flatten and Dropout."""
    return keras.Sequential(
        [
            keras.Input(shape, name="image"),
            layers.Conv2D(8, 3, name="conv1"),
            layers.BatchNormalization(name="bn1"),
            layers.ReLU(name="relu1"),
            layers.Conv2D(12, 3, activation="softplus", name="conv2"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(16, activation="relu", name="hidden"),
            layers.Dense(classes, name="head"),
        ],
        name=name,
    )


def residual(shape=(8, 8, 1), classes=10):
    """Two convolutions that add to one stream, and one between them."""
    inputs = keras.Input(shape, name="image")
    stem = _conv_block(inputs, 8, "stem")
    x = _conv_block(stem, 12, "inner")
    x = layers.Conv2D(8, 3, padding="same", name="outer")(x)
    x = layers.BatchNormalization(name="outer_bn")(x)
    x = layers.Add(name="add")([stem, x])
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="head")(x), name="residual")


def squeeze_excite():
    """A block whose channels are weighed by a small net of their means."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = _conv_block(inputs, 8, "conv")
    s = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    s = layers.Conv2D(4, 1, activation="relu", name="reduce")(s)
    s = layers.Conv2D(8, 1, activation="sigmoid", name="expand")(s)
    x = layers.Multiply(name="scale")([x, s])
    x = layers.Conv2D(6, 3, activation="relu", name="project")(x)
    x = layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="excite")


def concat():
    """Branches that are concatenated, twice."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = _conv_block(inputs, 6, "stem")
    for index in (1, 2):
        branch = layers.Conv2D(4, 3, padding="same", name=f"branch{index}")(x)
        x = layers.Concatenate(name=f"concat{index}")([x, branch])
        x = layers.BatchNormalization(name=f"bn{index}")(x)
        x = layers.ReLU(name=f"relu{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="concat")


def depthwise():
    """Separable blocks, both as one layer and as two, and a transpose."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = _conv_block(inputs, 8, "expand")
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_bn")(x)
    x = layers.ReLU(max_value=6.0, name="relu6")(x)
    x = layers.Conv2D(6, 1, name="project")(x)
    x = layers.SeparableConv2D(10, 3, padding="same", name="separable")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, name="transpose")(x)
    x = layers.GlobalMaxPooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="depthwise")


def shared():
    """One convolution called on two inputs, and one that reads its own kind."""
    left, right = (keras.Input((8, 8, 2), name=name) for name in ("left", "right"))
    tower = layers.Conv2D(8, 3, padding="same", activation="relu", name="tower")
    again = layers.Conv2D(8, 3, padding="same", activation="relu", name="again")
    a, b = again(again(tower(left))), again(tower(right))
    x = layers.Subtract(name="subtract")([a, b])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(3, name="head")(x)
    return keras.Model([left, right], outputs, name="shared")


def multi_io():
    """Named inputs and outputs; some filters are read by an output."""
    image = keras.Input((8, 8, 1), name="image")
    extra = keras.Input((4,), name="extra")
    x = _conv_block(image, 8, "conv")
    features = layers.Conv2D(6, 3, name="features")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(features)
    e = layers.Dense(7, activation="relu", name="embed")(extra)
    x = layers.Concatenate(name="concat")([x, e])
    outputs = {"class": layers.Dense(3, name="head")(x), "map": features}
    return keras.Model({"image": image, "extra": extra}, outputs, name="multi_io")


def nested():
    """A functional backbone in a model with a sequential head."""
    image = keras.Input((8, 8, 3), name="image")
    inner = keras.Input((8, 8, 3), name="inner")
    x = _conv_block(inner, 8, "conv1")
    x = _conv_block(x, 6, "conv2", "sigmoid")
    backbone = keras.Model(inner, x, name="backbone")
    top = keras.Sequential(
        [
            keras.Input((8, 8, 6)),
            layers.Flatten(name="flatten"),
            layers.Dense(10, activation="relu", name="hidden"),
            layers.Dense(4, name="logits"),
        ],
        name="top",
    )
    return keras.Model(image, top(backbone(image)), name="nested")


def operations():
    """Calls that are no layers: `x + y`, `x * 2.0`, `keras.ops.concatenate`."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="a")(inputs)
    y = layers.Conv2D(6, 3, padding="same", activation="relu", name="b")(inputs)
    z = layers.Conv2D(4, 3, padding="same", activation="relu", name="c")(inputs)
    x = keras.ops.concatenate([x + y, z * 2.0], axis=-1)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="operations")


BUILDERS = {
    "plain": plain,
    "sequential": sequential,
    "residual": residual,
    "squeeze_excite": squeeze_excite,
    "concat": concat,
    "depthwise": depthwise,
    "shared": shared,
    "multi_io": multi_io,
    "nested": nested,
    "operations": operations,
}


def build(name, seed=0):
    """The model of a name, with random weights."""
    return randomise(BUILDERS[name](), seed)


def clone(model):
    """The model wrapped layer by layer, as the documentation has it."""
    return keras.models.clone_model(model, clone_function=filterprune.wrap)


def mlp(*units, name="mlp"):
    """Dense layers `d0`, `d1`, ...: `mlp(4, 8, 3)` reads 4 numbers, gives 3."""
    dense = [layers.Dense(n, name=f"d{i}") for i, n in enumerate(units[1:])]
    return keras.Sequential([keras.Input(units[:1]), *dense], name=name)


def compiled(model, **kwargs):
    """The model compiled as a classifier of `digits()`."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], **{**WITHOUT_XLA, **kwargs})
    return model


def digits(count=256):
    """Real handwritten digits: `(count, 8, 8, 1)` in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images[:count, ..., None] / 16).astype("float32"), data.target[:count]


def inputs_of(model):
    """The model's symbolic inputs, in the structure that it takes."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def sample(model, batch_size=2, seed=1):
    """Random inputs in the structure that the model takes."""
    rng = np.random.default_rng(seed)

    def make(tensor):
        return rng.normal(size=(batch_size, *tensor.shape[1:])).astype("float32")

    return keras.tree.map_structure(make, inputs_of(model))


def outputs(model, inputs, training=False):
    """The model's outputs as a flat list of arrays."""
    results = keras.tree.flatten(model(inputs, training=training))
    return [keras.ops.convert_to_numpy(result) for result in results]


def assert_same_outputs(model, other, rtol=1e-5, atol=1e-5):
    """Both models compute the same for random inputs."""
    inputs = sample(model)
    for a, b in zip(outputs(model, inputs), outputs(other, inputs), strict=True):
        assert_close(a, b, rtol=rtol, atol=atol)


def leaves(model, prefix=""):
    """All layers by path, those of nested models included, inputs left out."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found |= leaves(layer, f"{prefix}{layer.name}/")
        elif not isinstance(layer, layers.InputLayer):
            found[prefix + layer.name] = layer
    return found


def masked_layers(model):
    """The masked layers by path."""
    return {
        path: layer
        for path, layer in leaves(model).items()
        if isinstance(layer, filterprune.layers.Masked)
    }


def closed(model):
    """For each masked layer by path which gates are closed, as lists of bool."""
    return {
        path: layer.closed().tolist() for path, layer in masked_layers(model).items()
    }


def close(layer, *indices):
    """Close gates of a masked layer by hand."""
    gate = np.ones(layer.gate.shape)
    gate[list(indices)] = 0
    layer.gate.assign(gate)


def snapshot(model):
    """All that a user could see change in a model: config, weights, graph."""

    def nodes(layer):
        return len(layer._inbound_nodes), len(layer._outbound_nodes)

    config = [
        model.get_config(),
        model.get_compile_config() if model.compiled else None,
    ]
    return {
        "config": json.dumps(config, default=str, sort_keys=True),
        "weights": [(w.path, to_numpy(w).tolist()) for w in model.weights],
        "trainable": [w.path for w in model.trainable_weights],
        "nodes": {path: nodes(layer) for path, layer in leaves(model).items()},
        "tensors": [id(t) for t in (*model.inputs, *model.outputs)],
        "layers": [id(layer) for layer in leaves(model).values()],
        "optimizer": [to_numpy(v).tolist() for v in model.optimizer.variables]
        if model.compiled
        else None,
    }
