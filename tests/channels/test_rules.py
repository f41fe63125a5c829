"""Every rule, checked by brute force: conv -> op -> conv, random gates, compare."""

import keras
import numpy as np
import pytest
from exactness import check_exact, close_at_random, randomise
from keras import layers, ops

import filterprune
from filterprune.channels.registry import registered_layers, registered_operations

CONV = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}


def feature_map(x, rank, filters=8, groups=1, **kwargs):
    """A convolution that makes channels to prune."""
    return CONV[rank](
        filters, 3, padding="same", groups=groups, activation="relu", **kwargs
    )(x)


def read(x):
    """A layer that mixes all channels of any tensor, and an output."""
    rank = len(x.shape) - 2
    if rank in CONV:
        x = CONV[rank](5, 2, padding="same")(x)
        x = layers.Flatten()(x)
    return layers.Dense(3)(x)


def image(rank, size=6, channels=4):
    return keras.Input((size,) * rank + (channels,))


def fresh(op):
    """A new layer of the same config: a layer must not serve two models."""
    if not isinstance(op, layers.Layer):
        return op
    config = op.get_config()
    del config["dtype"], config["name"]
    return type(op).from_config(config)


def through(rank, op, **kwargs):
    """conv -> op -> conv, for an operation on one tensor."""

    def build():
        x = image(rank)
        return keras.Model(x, read(fresh(op)(feature_map(x, rank, **kwargs))))

    return build


def between(op, count=2, **kwargs):
    """Several convolutions -> op -> conv, for an operation on several tensors."""

    def build():
        x = image(2)
        maps = [feature_map(x, 2, **kwargs) for _ in range(count)]
        return keras.Model(x, read(fresh(op)(maps)))

    return build


def gated_by(op):
    """A map and a vector of its size, as in squeeze-and-excite."""

    def build():
        x = image(2)
        y = feature_map(x, 2)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
        gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
        return keras.Model(x, read(fresh(op)([y, gate])))

    return build


def dense(op=lambda x: x, **kwargs):
    def build():
        x = keras.Input((7,))
        y = layers.Dense(6, activation="relu", **kwargs)(x)
        return keras.Model(x, layers.Dense(3)(fresh(op)(y)))

    return build


def dense_to_image():
    x = keras.Input((7,))
    y = layers.Dense(4 * 4 * 6, activation="relu")(x)
    y = layers.Reshape((4, 4, 6))(y)
    return keras.Model(x, read(y))


def constant_normalization(y):
    layer = layers.Normalization(mean=np.arange(8.0), variance=np.arange(1.0, 9.0))
    return layer(y)


def adapted_normalization(y):
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(2, 3, (20, 6, 6, 8)))
    return layer(y)


def by_name(names, pattern, ranks=(1, 2, 3), **kwargs):
    return {
        getattr(layers, f"{name}{rank}D"): [
            through(rank, pattern(name, rank), **kwargs)
        ]
        for name in names
        for rank in ranks
    }


def make(name, rank, *args, **kwargs):
    return getattr(layers, f"{name}{rank}D")(*args, **kwargs)


CASES = {
    **{
        cls: [
            through(rank, cls(6, 3)),
            through(rank, cls(6, 3, strides=2, padding="same", activation="sigmoid")),
            through(rank, cls(6, 3, dilation_rate=2, padding="same", use_bias=False)),
            through(rank, cls(6, 1, activation="softmax")),
            through(rank, cls(6, 3, groups=2, activation="relu"), groups=2),
            through(rank, cls(8, 3, groups=8, padding="same")),
            through(rank, cls(16, 3, groups=8, activation="tanh")),
        ]
        for rank, cls in CONV.items()
    },
    **{
        getattr(layers, f"Conv{rank}DTranspose"): [
            through(rank, make("Conv", rank, 6, 1)),
            through(rank, getattr(layers, f"Conv{rank}DTranspose")(6, 3, strides=2)),
            through(
                rank,
                getattr(layers, f"Conv{rank}DTranspose")(
                    6, 3, padding="same", activation="softplus"
                ),
            ),
        ]
        for rank in (1, 2, 3)
    },
    **{
        getattr(layers, f"DepthwiseConv{rank}D"): [
            through(rank, make("DepthwiseConv", rank, 3)),
            through(rank, make("DepthwiseConv", rank, 3, depth_multiplier=2)),
            through(rank, make("DepthwiseConv", rank, 3, use_bias=False)),
            through(rank, make("DepthwiseConv", rank, 3, activation="sigmoid")),
        ]
        for rank in (1, 2)
    },
    **{
        getattr(layers, f"SeparableConv{rank}D"): [
            through(rank, make("SeparableConv", rank, 6, 3, activation="relu")),
            through(rank, make("SeparableConv", rank, 6, 3, depth_multiplier=3)),
        ]
        for rank in (1, 2)
    },
    layers.Dense: [
        dense(),
        dense(use_bias=False),
        dense(layers.Dense(5, activation="sigmoid")),
        through(2, layers.Dense(6, activation="relu")),
        through(2, layers.Flatten()),
    ],
    layers.BatchNormalization: [
        through(2, layers.BatchNormalization()),
        through(2, layers.BatchNormalization(scale=False)),
        through(2, layers.BatchNormalization(center=False)),
        through(2, layers.BatchNormalization(scale=False, center=False)),
        dense(layers.BatchNormalization()),
    ],
    layers.Activation: [
        through(2, layers.Activation(name))
        for name in ("relu", "sigmoid", "softplus", "hard_sigmoid", "softmax", "gelu")
    ],
    layers.ReLU: [
        through(2, layers.ReLU(6.0, 0.1)),
        through(2, layers.ReLU(threshold=1.0, negative_slope=0.1)),
    ],
    layers.LeakyReLU: [through(2, layers.LeakyReLU())],
    layers.ELU: [through(2, layers.ELU())],
    layers.PReLU: [
        through(2, layers.PReLU(alpha_initializer="ones")),
        through(2, layers.PReLU(shared_axes=[1, 2])),
        through(2, layers.PReLU(shared_axes=[1, 2, 3])),
        dense(layers.PReLU()),
    ],
    layers.Softmax: [through(2, layers.Softmax()), through(2, layers.Softmax(axis=1))],
    layers.Rescaling: [
        through(2, layers.Rescaling(2.0)),
        through(2, layers.Rescaling(2.0, offset=-1.0)),
        through(2, layers.Rescaling(list(range(1, 9)), offset=list(range(8)))),
    ],
    layers.Normalization: [
        through(2, constant_normalization),
        through(2, adapted_normalization),
        through(2, layers.Normalization(axis=None, mean=1.0, variance=2.0)),
        through(2, layers.Normalization()),
    ],
    **by_name(["AveragePooling", "MaxPooling"], lambda n, r: make(n, r, 2)),
    **by_name(["GlobalAveragePooling", "GlobalMaxPooling"], lambda n, r: make(n, r)),
    **by_name(["ZeroPadding", "UpSampling"], lambda n, r: make(n, r, 2)),
    **by_name(["Cropping"], lambda n, r: make(n, r, 1)),
    **by_name(["SpatialDropout"], lambda n, r: make(n, r, 0.5)),
    layers.Add: [
        between(layers.Add()),
        between(layers.Add(), count=3),
        gated_by(layers.Add()),
    ],
    layers.Subtract: [between(layers.Subtract())],
    layers.Multiply: [between(layers.Multiply()), gated_by(layers.Multiply())],
    layers.Average: [between(layers.Average(), count=3)],
    layers.Maximum: [between(layers.Maximum())],
    layers.Minimum: [between(layers.Minimum())],
    layers.Concatenate: [
        between(layers.Concatenate()),
        between(layers.Concatenate(axis=1), count=3),
    ],
    layers.Flatten: [through(2, layers.Flatten()), through(1, layers.Flatten())],
    layers.Reshape: [
        through(2, layers.Reshape((36, 8))),
        through(2, layers.Reshape((-1, 8))),
        through(2, layers.Reshape((6, 48))),
        through(2, layers.Reshape((6, 6, 2, 4))),
        dense_to_image,
    ],
    layers.Permute: [
        through(2, layers.Permute((2, 1, 3))),
        through(2, layers.Permute((3, 1, 2))),
    ],
    layers.RepeatVector: [dense(layers.RepeatVector(3))],
    layers.Identity: [through(2, layers.Identity())],
    layers.Dropout: [through(2, layers.Dropout(0.5))],
    layers.GaussianDropout: [through(2, layers.GaussianDropout(0.5))],
    layers.GaussianNoise: [through(2, layers.GaussianNoise(0.5))],
    layers.AlphaDropout: [through(2, layers.AlphaDropout(0.5))],
    layers.ActivityRegularization: [through(2, layers.ActivityRegularization(0.1))],
}

ARRAY = np.arange(8, dtype="float32") - 2.5
OPERATIONS = {
    "Add": [
        between(lambda maps: maps[0] + maps[1]),
        through(2, lambda x: x + 1.5),
        through(2, lambda x: x + ARRAY),
    ],
    "Subtract": [between(lambda maps: maps[0] - maps[1]), through(2, lambda x: 1 - x)],
    "Multiply": [
        between(lambda maps: maps[0] * maps[1]),
        gated_by(lambda maps: maps[0] * maps[1]),
        through(2, lambda x: x * 0.5),
        through(2, lambda x: x * ARRAY),
    ],
    "Divide": [through(2, lambda x: x / 2.0), through(2, lambda x: x / (ARRAY + 9))],
    "TrueDivide": [through(2, lambda x: ops.true_divide(x, 2.0))],
    "Maximum": [between(lambda maps: ops.maximum(*maps))],
    "Minimum": [through(2, lambda x: ops.minimum(x, 0.3))],
    "Concatenate": [
        between(lambda maps: ops.concatenate(maps, axis=-1)),
        between(lambda maps: ops.concatenate(maps, axis=2)),
    ],
    **{
        name: [through(2, lambda x, fn=fn: fn(x))]
        for name, fn in {
            "Negative": ops.negative,
            "Absolute": ops.absolute,
            "Abs": ops.abs,
            "Relu": ops.relu,
            "Relu6": ops.relu6,
            "Silu": ops.silu,
            "Gelu": ops.gelu,
            "Tanh": ops.tanh,
            "Sigmoid": ops.sigmoid,
            "HardSigmoid": ops.hard_sigmoid,
            "HardSilu": ops.hard_silu,
            "Softplus": ops.softplus,
            "Exp": ops.exp,
            "Square": ops.square,
            "Sqrt": ops.sqrt,
        }.items()
    },
}


def flat(cases):
    return [
        pytest.param(build, id=f"{getattr(key, '__name__', key)}-{number}")
        for key, builds in cases.items()
        for number, build in enumerate(builds)
    ]


@pytest.mark.parametrize("build", flat(CASES) + flat(OPERATIONS))
@pytest.mark.parametrize("wrapping", ["graph", "clone"])
def test_rule_is_exact(build, wrapping):
    model = randomise(build())
    if wrapping == "graph":
        masked = filterprune.wrap_model(model)
    else:
        masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    assert filterprune.analyze(masked).barriers == ()
    for seed in range(2):
        close_at_random(masked, seed)
        small = check_exact(masked, limit=1e-5)
    assert small.count_params() < model.count_params()


def test_every_registered_layer_has_a_case():
    assert set(registered_layers()) == set(CASES)


def test_every_registered_operation_has_a_case():
    assert set(registered_operations()) == set(OPERATIONS)
