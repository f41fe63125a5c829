"""Every rule, checked by brute force: conv -> op -> conv, random gates, compare."""

import keras
import numpy as np
import pytest
import sequences
from exactness import check_exact, close_at_random, randomise, to_numpy
from keras import layers, ops

import filterprune
from filterprune.channels.registry import (
    barrier_reason,
    layer_rule,
    registered_layers,
    registered_operations,
)
from filterprune.channels.trace import trace

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


def twice(function, *widths):
    """One activation layer called on several tensors."""

    def build():
        x, shared = image(2), layers.Activation(function)
        maps = [shared(feature_map(x, 2, filters=width)) for width in widths]
        return keras.Model(x, read(layers.Concatenate()(maps)))

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


def channels_first(layer, width=6):
    """A layer on maps whose channels come first, of so many columns."""

    def build(x):
        y = x[:, :, : width - 6] if width > 6 else None
        x = x if y is None else ops.concatenate([x, y], axis=2)
        y = fresh(layer)(layers.Permute((3, 1, 2))(x))
        return layers.Permute((2, 3, 1))(y)

    return build


def constant_normalization(y):
    layer = layers.Normalization(mean=np.arange(8.0), variance=np.arange(1.0, 9.0))
    return layer(y)


def adapted_normalization(y):
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(2, 3, (20, 6, 6, 8)))
    return layer(y)


def film(*inner, frames=3):
    """A convolution in every frame, then layers in every frame."""

    def build():
        x = keras.Input((frames, 6, 6, 4))
        y = layers.TimeDistributed(feature_map_layer())(x)
        for layer in inner:
            y = layers.TimeDistributed(fresh(layer))(y)
        if frames is None:
            return keras.Model(x, layers.Dense(3)(y))
        return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))

    return build


def feature_map_layer():
    return layers.Conv2D(8, 3, padding="same", activation="relu")


def with_table(merge):
    """A layer that merges a tensor and a constant."""
    return lambda x: merge()([x, TABLE])


def cosine(axes, other=lambda x: x):
    """Cosines of a tensor and another, of dense layers or what they are read by."""

    def build(x):
        y = other(layers.Dense(x.shape[-1], activation="relu")(x))
        return layers.Dot(axes, normalize=True)([x, y])

    return build


def select(softmax, axis=1):
    """Selective kernels: every channel comes from this branch or from that one."""

    def build(x):
        branches = [layers.Conv2D(8, 1)(x), layers.Conv2D(8, 1)(layers.ReLU()(x))]
        mean = layers.GlobalAveragePooling2D(keepdims=True)(layers.Add()(branches))
        squeezed = layers.Conv2D(4, 1, activation="relu")(mean)
        scores = [layers.Conv2D(8, 1)(squeezed) for _ in branches]
        weights = softmax(ops.stack(scores, axis=axis), axis)
        return ops.sum(weights * ops.stack(branches, axis=axis), axis=axis)

    return build


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


def sequence(*functions, width=8):
    """Dense layers over a sequence, one for each function that follows another."""

    def build():
        x = keras.Input((5, 7))
        y = layers.Dense(width, activation="relu")(x)
        for function in functions:
            y = function(y)
        return keras.Model(x, read(y))

    return build


def einsum_dense(equation, shape, **kwargs):
    return lambda x: layers.EinsumDense(equation, shape, **kwargs)(x)


def attended(make, **kwargs):
    return lambda x: make()([x, layers.Dense(8)(x), layers.Dense(8)(x)], **kwargs)


CASES = {
    layers.MultiHeadAttention: [
        sequence(lambda x: layers.MultiHeadAttention(4, 3, value_dim=5)(x, x)),
        sequence(
            lambda x: layers.MultiHeadAttention(
                3, 4, use_bias=False, use_gate=True, dropout=0.2, output_shape=6
            )(x, layers.Dense(6)(x), use_causal_mask=True)
        ),
    ],
    layers.GroupQueryAttention: [
        sequence(lambda x: layers.GroupQueryAttention(4, 6, 3)(x, x)),
        sequence(lambda x: layers.GroupQueryAttention(4, 4, 1, use_gate=True)(x, x)),
    ],
    layers.Attention: [
        sequence(attended(lambda: layers.Attention(use_scale=True))),
        sequence(attended(lambda: layers.Attention(score_mode="concat"))),
    ],
    layers.AdditiveAttention: [
        sequence(attended(layers.AdditiveAttention, use_causal_mask=True)),
    ],
    layers.EinsumDense: [
        sequence(einsum_dense("...x,xy->...y", 6, bias_axes="y", activation="gelu")),
        sequence(einsum_dense("abc,bd->adc", (4, 8), bias_axes="c")),
        sequence(
            einsum_dense("abc,cde->abde", (5, 3, 4), bias_axes="e"),  # for all heads
            einsum_dense("abde,def->abdf", (5, 3, 2), bias_axes="df"),
            einsum_dense("abdf,dfc->abc", (5, 6), activation="sigmoid"),
        ),
    ],
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
        *(
            through(2, layers.Activation(name))
            for name in ("relu", "sigmoid", "softplus", "hard_sigmoid")
        ),
        *(through(2, layers.Activation(name)) for name in ("softmax", "gelu")),
        *(twice("sigmoid", *widths) for widths in ((8, 8), (8, 6), (8, 8, 6, 8))),
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
        through(2, channels_first(layers.PReLU(alpha_initializer="ones"))),
        through(2, channels_first(layers.PReLU(shared_axes=[2, 3]))),
        through(2, channels_first(layers.PReLU(shared_axes=[1, 2]))),
        dense(layers.PReLU()),
    ],
    layers.Softmax: [
        through(2, layers.Softmax()),
        through(2, layers.Softmax(axis=1)),
        through(2, select(lambda x, axis: layers.Softmax(axis)(x))),
        through(2, select(lambda x, axis: layers.Softmax(axis)(x), axis=-1)),
    ],
    layers.Rescaling: [
        through(2, layers.Rescaling(2.0)),
        through(2, layers.Rescaling(2.0, offset=-1.0)),
        through(2, layers.Rescaling(list(range(1, 9)), offset=list(range(8)))),
        through(2, channels_first(layers.Rescaling(list(range(1, 7))))),
        through(2, channels_first(layers.Rescaling(list(range(1, 9))), width=8)),
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
    layers.LayerNormalization: [
        through(2, layers.LayerNormalization()),
        through(2, layers.LayerNormalization(axis=[1, 2, 3])),
        through(2, layers.LayerNormalization(scale=False)),
        through(2, layers.LayerNormalization(center=False, epsilon=1e-2)),
        dense(layers.LayerNormalization()),
    ],
    layers.RMSNormalization: [
        through(2, layers.RMSNormalization()),
        dense(layers.RMSNormalization()),
    ],
    layers.UnitNormalization: [through(2, layers.UnitNormalization())],
    layers.GroupNormalization: [
        through(2, layers.GroupNormalization(2)),
        through(2, layers.GroupNormalization(1)),
        through(2, layers.GroupNormalization(-1)),
        through(2, layers.GroupNormalization(4, scale=False)),
        dense(layers.GroupNormalization(2)),
    ],
    layers.Dot: [
        through(2, lambda x: layers.Dot(3)([x, x])),
        through(1, lambda x: layers.Dot((2, 2))([x, layers.ReLU()(x)])),
        through(1, cosine(-1)),
        through(1, lambda x: layers.Dot(1)([x, layers.Dense(6)(x)])),
        through(1, cosine(1)),
        through(1, cosine(1, lambda x: ops.mean(x, -1, keepdims=True))),
        through(1, cosine((2, 1), lambda x: layers.Permute((2, 1))(x))),
        dense(cosine(-1)),
    ],
    **{
        getattr(layers, f"Adaptive{kind}Pooling{rank}D"): [
            through(rank, getattr(layers, f"Adaptive{kind}Pooling{rank}D")(3))
        ]
        for kind in ("Average", "Max")
        for rank in (1, 2, 3)
    },
    layers.CenterCrop: [through(2, layers.CenterCrop(3, 3))],
    layers.Resizing: [through(2, layers.Resizing(9, 5))],
    **{
        cls: [through(2, cls(0.1))]
        for cls in (
            layers.RandomElasticTransform,
            layers.RandomGaussianBlur,
            layers.RandomPerspective,
            layers.RandomRotation,
            layers.RandomZoom,
        )
    },
    layers.RandomShear: [through(2, lambda x: layers.RandomShear(0.1)(x))],
    layers.RandomFlip: [through(2, layers.RandomFlip())],
    layers.RandomTranslation: [through(2, layers.RandomTranslation(0.1, 0.1))],
    layers.Add: [
        between(layers.Add()),
        between(layers.Add(), count=3),
        through(2, with_table(layers.Add)),
        gated_by(layers.Add()),
    ],
    layers.Subtract: [
        between(layers.Subtract()),
        through(2, with_table(layers.Subtract)),
    ],
    layers.Multiply: [between(layers.Multiply()), gated_by(layers.Multiply())],
    layers.Average: [
        between(layers.Average(), count=3),
        through(2, with_table(layers.Average)),
    ],
    layers.Maximum: [between(layers.Maximum()), through(2, with_table(layers.Maximum))],
    layers.Minimum: [between(layers.Minimum()), through(2, with_table(layers.Minimum))],
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
    layers.Dropout: [
        through(2, layers.Dropout(0.5)),
        through(2, layers.Dropout(0.5, noise_shape=(None, 1, 1, 8))),
    ],
    layers.GaussianDropout: [through(2, layers.GaussianDropout(0.5))],
    layers.GaussianNoise: [through(2, layers.GaussianNoise(0.5))],
    layers.AlphaDropout: [
        through(2, layers.AlphaDropout(0.5)),
        through(2, layers.AlphaDropout(0.5, noise_shape=(None, 6, 1, 8))),
    ],
    layers.ActivityRegularization: [through(2, layers.ActivityRegularization(0.1))],
    layers.Masking: [dense(layers.Masking()), through(2, layers.Masking())],
    layers.TimeDistributed: [
        film(layers.Conv2D(6, 3, activation="relu")),
        film(layers.Conv2D(6, 3, activation="sigmoid")),
        film(layers.DepthwiseConv2D(3, depth_multiplier=2)),
        film(layers.SpectralNormalization(layers.Conv2D(6, 3))),
        film(layers.Conv2D(8, 1), layers.BatchNormalization(), layers.ReLU()),
        film(layers.MaxPooling2D(), layers.Flatten(), layers.Dense(6)),
        film(layers.Conv2D(6, 3), layers.GlobalAveragePooling2D(), frames=None),
        film(layers.Activation("sigmoid"), layers.Reshape((-1, 8))),
    ],
    layers.SpectralNormalization: [
        through(2, lambda x, inner=inner: layers.SpectralNormalization(inner())(x))
        for inner in (
            lambda: layers.Conv2D(6, 3, activation="relu"),
            lambda: layers.Conv2DTranspose(6, 3, strides=2),
            lambda: layers.DepthwiseConv2D(3, activation="tanh"),
            lambda: layers.Dense(6),
            lambda: layers.Conv2D(6, 3, groups=2, activation="sigmoid"),
        )
    ],
}

for _layer, _cases in sequences.CASES.items():
    CASES[_layer] = CASES.get(_layer, []) + _cases

ARRAY = np.arange(8, dtype="float32") - 2.5
WINDOW = np.hanning(6)
# Of positions, of positions and channels, of all of a vector but the channels.
CONSTANTS = [
    WINDOW.reshape(1, 6, 1, 1),
    WINDOW.reshape(6, 1),
    WINDOW.reshape(6, 1, 1) * WINDOW.reshape(6, 1) * ARRAY,
]
TABLE = np.random.default_rng(2).normal(size=(1, 6, 6, 8)).astype("float32")
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 8, 1)).astype("float32")
MATRIX = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")


def on_map(*functions, **kwargs):
    return [through(2, function, **kwargs) for function in functions]


def on_two(*functions):
    return [between(lambda maps, fn=function: fn(*maps)) for function in functions]


def reductions(function):
    return on_map(
        lambda x: function(x, axis=1),
        lambda x: function(x, axis=(1, 2)),
        lambda x: function(x, axis=(1, 2), keepdims=True),
        lambda x: function(x, axis=-1),
        lambda x: function(x, axis=(1, -1), keepdims=True),
    )


def compare(function):
    """Comparisons give booleans: choose by them."""
    return on_two(lambda a, b: ops.where(function(a, b), a, b))


def unary(function):
    return on_map(lambda x: function(x))


def shuffle(x, groups=2):
    _, height, width, channels = x.shape
    y = ops.reshape(x, (-1, height, width, groups, channels // groups))
    y = ops.transpose(y, (0, 1, 2, 4, 3))
    return ops.reshape(y, (-1, height, width, channels))


def shortcut_a(x):
    """ResNet's option A: channels of zeros where the block makes more of them."""
    wide = layers.Conv2D(16, 3, padding="same")(x)
    return wide + ops.concatenate([x, ops.zeros_like(x)], axis=-1)


def in_windows(function, size=3):
    """Swin's windows: each becomes a sample of its own, and goes back."""

    def build(x):
        _, height, width, channels = x.shape
        rows, columns = height // size, width // size
        y = ops.reshape(x, (-1, rows, size, columns, size, channels))
        y = ops.transpose(y, (0, 1, 3, 2, 4, 5))
        y = function(ops.reshape(y, (-1, size, size, channels)))
        y = ops.reshape(y, (-1, rows, columns, size, size, y.shape[-1]))
        y = ops.transpose(y, (0, 1, 3, 2, 4, 5))
        return ops.reshape(y, (-1, height, width, y.shape[-1]))

    return build


def by_hand(x, attention, heads=4):
    """Queries, keys and values of several heads, made by dense layers."""
    length = x.shape[1]
    qkv = [
        layers.Reshape((length, heads, 3))(layers.Dense(heads * 3)(x)) for _ in "qkv"
    ]
    return layers.Reshape((length, heads * 3))(attention(*qkv))


OPERATIONS = {
    "Add": [
        *on_two(ops.add),
        *on_map(lambda x: x + 1.5, lambda x: x + ARRAY),
        *on_map(*[lambda x, c=c: ops.relu(x + c) * x for c in CONSTANTS]),
        *on_map(*[lambda x, c=c: x + c for c in CONSTANTS]),
        *on_map(lambda x: layers.BatchNormalization()(x) + TABLE),
        *on_map(lambda x: ops.add(TABLE, x)),
        *on_map(lambda x: x + ops.convert_to_tensor(TABLE)),
    ],
    "Subtract": [
        *on_two(ops.subtract),
        *on_map(lambda x: 1 - x, lambda x: ops.subtract(TABLE, x), lambda x: x - TABLE),
    ],
    "Multiply": [
        *on_two(ops.multiply),
        gated_by(lambda maps: maps[0] * maps[1]),
        *on_map(lambda x: x * 0.5, lambda x: x * ARRAY),
        *on_map(*[lambda x, c=c: x * c for c in CONSTANTS]),
        *on_map(lambda x: layers.Conv2D(1, 1)(x) * ARRAY + x),
        *on_map(lambda x: x + ops.mean(x) * np.full((1, 1, 1), 2.0, "float32")),
    ],
    "Divide": on_map(
        lambda x: ops.divide(x, 2.0),
        lambda x: x / (ARRAY + 9),
        lambda x: x / (np.arange(6.0).reshape(6, 1, 1) + 1),
        lambda x: x / ops.sqrt(ops.sum(x * x, -1, keepdims=True) + 1e-3),
        lambda x: x / ops.maximum(ops.sum(ops.abs(x), (1, 3), keepdims=True), 1e-6),
        lambda x: x / (ops.mean(x, (1, 2), keepdims=True) + 1.0),
    ),
    "TrueDivide": on_map(lambda x: ops.true_divide(x, 2.0)),
    "DivideNoNan": [
        *on_map(lambda x: ops.divide_no_nan(x, 2.0)),
        *on_two(lambda a, b: ops.divide_no_nan(a, b)),
    ],
    "FloorDivide": on_map(lambda x: ops.floor_divide(x, 0.3)),
    "Mod": on_map(lambda x: ops.mod(x, 0.7)),
    "Power": on_map(lambda x: x**2.0),
    "Maximum": [*on_two(ops.maximum), *on_map(lambda x: ops.maximum(x, TABLE))],
    "Minimum": on_map(lambda x: ops.minimum(x, 0.3), lambda x: ops.minimum(TABLE, x)),
    "Equal": compare(ops.equal),
    "NotEqual": compare(ops.not_equal),
    "Greater": compare(ops.greater),
    "GreaterEqual": compare(ops.greater_equal),
    "Less": compare(ops.less),
    "LessEqual": compare(ops.less_equal),
    "LogicalAnd": on_two(
        lambda a, b: ops.where(ops.logical_and(a > 0.1, b > 0.1), a, b)
    ),
    "LogicalOr": on_two(lambda a, b: ops.where(ops.logical_or(a > 1, b > 1), a, b)),
    "LogicalNot": on_map(lambda x: ops.where(ops.logical_not(x > 0.1), x, -x)),
    "LogicalXor": on_two(lambda a, b: ops.where(ops.logical_xor(a > 1, b > 1), a, b)),
    "Where": on_map(
        lambda x: ops.where(x > 0.2, x, 0.0),
        lambda x: ops.where(x > 0.2, x, TABLE),
        lambda x: ops.where(x < 0.2, TABLE, x),
        lambda x: ops.where(ops.mean(x, -1, keepdims=True) > 0.1, x, ops.zeros_like(x)),
    ),
    "Fmax": on_two(ops.fmax),
    "Fmin": on_two(ops.fmin),
    "Fmod": on_map(lambda x: ops.fmod(x, 0.7)),
    "Logaddexp2": on_two(ops.logaddexp2),
    "Glu": on_map(lambda x: ops.glu(x), lambda x: ops.glu(x, axis=1)),
    "ZerosLike": on_map(shortcut_a, lambda x: x + ops.zeros_like(x)),
    "OnesLike": on_map(
        lambda x: ops.concatenate([x, ops.ones_like(x[..., :1])], -1),
        lambda x: ops.concatenate([x, ops.ones_like(x)], -1),
    ),
    "FullLike": on_map(lambda x: ops.minimum(x, ops.full_like(x, 0.5))),
    "BatchNorm": on_map(
        lambda x: ops.batch_normalization(x, ARRAY, ARRAY**2, axis=-1),
        lambda x: ops.batch_normalization(x, ARRAY, ARRAY**2, -1, ARRAY, ARRAY + 1),
    ),
    "ReLU": on_map(
        keras.activations.relu,
        lambda x: keras.activations.relu(x, negative_slope=0.1, max_value=6.0),
        lambda x: keras.activations.relu(x, threshold=0.5),
    ),
    "Normalize": on_map(
        lambda x: ops.normalize(x),
        lambda x: ops.normalize(x, axis=1),
        lambda x: ops.normalize(x, axis=(1, 2, 3)),
        lambda x: ops.normalize(x, order=3),
    ),
    "Moments": on_map(
        lambda x: x - ops.moments(x, (1, 2), keepdims=True)[0],
        lambda x: x + ops.expand_dims(ops.moments(x, [1])[1], 1),
        lambda x: x * ops.moments(x, (1, 2, 3), keepdims=True)[1],
        lambda x: x * sum(ops.moments(x, -1, keepdims=True)),
    ),
    "Sort": on_map(lambda x: ops.sort(x, axis=1)),
    "Cumsum": on_map(lambda x: ops.cumsum(x, axis=1)),
    "Cumprod": on_map(lambda x: ops.cumprod(x, axis=-2)),
    "Diff": on_map(lambda x: ops.diff(x, axis=1)),
    "DepthwiseConv": on_map(
        lambda x: ops.depthwise_conv(x, KERNEL, padding="same"),
        lambda x: ops.depthwise_conv(x, np.repeat(KERNEL, 2, -1), 2),
    ),
    "Conv": on_map(
        lambda x: ops.conv(x, KERNEL @ np.ones((1, 3), "float32"), padding="same")
    ),
    "Tensordot": on_map(
        lambda x: ops.tensordot(x, MATRIX, axes=1),
        lambda x: ops.tensordot(x, MATRIX.T, axes=[[3], [1]]),
        lambda x: ops.moveaxis(ops.tensordot(x, MATRIX[:6, :6], ([1], [0])), -1, 1),
    ),
    "Arctan2": on_two(ops.arctan2),
    "Hypot": on_two(ops.hypot),
    "Logaddexp": on_two(ops.logaddexp),
    "Concatenate": on_two(
        lambda a, b: ops.concatenate([a, b], axis=-1),
        lambda a, b: ops.concatenate([a, b], axis=2),
    ),
    "Stack": on_two(
        lambda a, b: ops.sum(ops.stack([a, b], axis=1), axis=1),
        lambda a, b: ops.reshape(ops.stack([a, b], axis=-1), (-1, 6, 6, 16)),
    ),
    "Transpose": on_map(lambda x: ops.transpose(x, (0, 3, 1, 2)), shuffle),
    "Moveaxis": on_map(lambda x: ops.moveaxis(x, -1, 1)),
    "Swapaxes": on_map(lambda x: ops.swapaxes(x, 1, 3)),
    "ExpandDims": on_map(lambda x: ops.squeeze(ops.expand_dims(x, 1), 1)),
    "Squeeze": on_map(lambda x: ops.squeeze(ops.mean(x, (1, 2), keepdims=True))),
    "Dstack": on_two(lambda a, b: ops.reshape(ops.dstack([a, b]), (-1, 6, 6, 16))),
    "Hstack": on_two(lambda a, b: ops.hstack([a, b])),
    "Fliplr": on_map(lambda x: ops.fliplr(x)),
    "Rot90": on_map(lambda x: ops.rot90(x, 1, (1, 2))),
    "Flip": on_map(
        lambda x: ops.flip(x, -1),
        lambda x: ops.flip(x, 1),
        lambda x: ops.flip(x, (1, 2)),
        lambda x: ops.flip(x, (2, -1)),
    ),
    "Repeat": on_map(
        lambda x: ops.repeat(x, 2, axis=-1),
        lambda x: ops.repeat(x, 2, 1),
        lambda x: ops.repeat(x, np.array([1, 2, 1, 3, 1, 1, 2, 1]), axis=-1),
        lambda x: ops.repeat(x, [1, 2, 1, 3, 1, 1], axis=1),
    ),
    "Tile": on_map(lambda x: ops.tile(x, (1, 1, 2, 2))),
    "DepthToSpace": on_map(lambda x: ops.depth_to_space(x, 2)),
    "SpaceToDepth": on_map(lambda x: ops.space_to_depth(x, 2)),
    "Reshape": on_map(
        lambda x: ops.reshape(x, (-1, 36, 8)),
        lambda x: ops.reshape(x, (-1, 36 * 8)),
        in_windows(lambda x: layers.Dense(6, activation="relu")(x)),
        in_windows(lambda x: layers.Conv2D(6, 3, padding="same")(x)),
        in_windows(lambda x: layers.LayerNormalization()(ops.roll(x, (1, 1), (1, 2)))),
        lambda x: ops.reshape(ops.reshape(x, (4, -1, 8)), (-1, 6, 6, 8)),
        lambda x: x + in_windows(lambda y: y)(ops.mean(x, -1, keepdims=True)),
    ),
    "BroadcastTo": [dense(lambda x: ops.broadcast_to(x[:, None], (2, 4, 6)))],
    "Split": on_map(
        lambda x: ops.add(*ops.split(x, 2, axis=-1)),
        lambda x: ops.concatenate(ops.split(x, [3, 5], axis=-1)[::-1], axis=-1),
        lambda x: ops.concatenate(ops.split(x, 2, axis=1), axis=-1),
    ),
    "ArraySplit": on_map(
        lambda x: ops.concatenate(ops.array_split(x, 3, axis=1)[::-1], axis=1)
    ),
    "Unstack": on_map(lambda x: ops.unstack(x, axis=1)[2]),
    "Roll": on_map(
        lambda x: ops.roll(x, 3, -1),
        lambda x: ops.roll(x, 2, 1),
        lambda x: ops.roll(x, (-2, -2), (1, 2)),
        lambda x: ops.roll(x, (1, -11), (2, 3)),
    ),
    "Take": on_map(
        lambda x: ops.take(x, np.array([5, 0, 3, 3]), axis=-1),
        lambda x: ops.take(x, np.array([0, 2]), axis=1),
    ),
    "GetItem": on_map(
        lambda x: x[..., :4],
        lambda x: x[..., 2:] * x[..., :6],
        lambda x: x[:, ::2, 1:-1],
        lambda x: x[:, 2],
        lambda x: x[..., ::-1],
        lambda x: x[:, None, ..., 1:][:, 0],
    ),
    "Pad": on_map(
        lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 2), (0, 0))),
        lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"),
        lambda x: (
            ops.pad(x, ((0, 0), (0, 0), (0, 0), (2, 6))) + layers.Conv2D(16, 1)(x)
        ),
    ),
    **{
        name: reductions(function)
        for name, function in {
            "Sum": ops.sum,
            "Mean": ops.mean,
            "Max": ops.max,
            "Min": ops.min,
            "Amax": ops.amax,
            "Amin": ops.amin,
            "Var": ops.var,
            "Std": ops.std,
            "Logsumexp": ops.logsumexp,
            "Median": ops.median,
            "Norm": ops.norm,
            "Ptp": ops.ptp,
        }.items()
    },
    "Prod": on_map(lambda x: x + ops.prod(x, 1, keepdims=True)),
    "Any": on_map(
        lambda x: x * ops.cast(ops.any(x > 0.5, 1, keepdims=True), x.dtype),
        lambda x: x * ops.cast(ops.any(x > 0.5, -1, keepdims=True), x.dtype),
    ),
    "All": on_map(lambda x: x * ops.cast(ops.all(x > 0.0, 1, keepdims=True), x.dtype)),
    "Matmul": on_map(
        lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))),
        lambda x: ops.matmul(x, MATRIX),
        lambda x: ops.matmul(MATRIX[:6, :6].T, x),
    ),
    "Einsum": on_map(
        lambda x: ops.einsum("bhwc,bhvc->bhwv", x, ops.sin(x)),
        lambda x: ops.einsum("bhwc,cd->bhwd", x, MATRIX),
        lambda x: ops.einsum("bhwc,c->bhwc", x, ARRAY),
    ),
    "DotProductAttention": [
        sequence(lambda x: by_hand(x, ops.dot_product_attention)),
        sequence(
            lambda x: by_hand(
                x, lambda *qkv: ops.dot_product_attention(*qkv, is_causal=True), heads=1
            )
        ),
    ],
    "Softmax": on_map(
        lambda x: ops.softmax(x, axis=1), select(ops.softmax), select(ops.softmax, -1)
    ),
    "LogSoftmax": on_map(lambda x: ops.log_softmax(x, 1), select(ops.log_softmax)),
    "Sparsemax": on_map(lambda x: ops.sparsemax(x, 2)),
    "Resize": on_map(lambda x: ops.image.resize(x, (4, 9))),
    "ExtractPatches": on_map(lambda x: ops.image.extract_patches(x, 2)),
    "MaxPool": on_map(lambda x: ops.max_pool(x, 2)),
    "CropImages": on_map(lambda x: ops.image.crop_images(x, 1, 1, 0, 2)),
    "PadImages": on_map(lambda x: ops.image.pad_images(x, 1, 1, 0, 2)),
    "GaussianBlur": on_map(lambda x: ops.image.gaussian_blur(x)),
    "AveragePool": on_map(lambda x: ops.average_pool(x, 2, padding="same")),
    "Cast": on_map(lambda x: ops.cast(x, "float32")),
    "Clip": on_map(
        lambda x: ops.clip(x, 0.1, 0.5),
        lambda x: ops.clip(x, -1.0, np.linspace(0.1, 1, 8)),
        lambda x: ops.clip(x, np.linspace(0.1, 1, 8), 1.5),
        lambda x: ops.clip(x, 0.0, np.linspace(0.1, 1, 6).reshape(6, 1, 1)),
        lambda x: ops.clip(x, *np.linspace(-1, 1, 96).reshape(2, 6, 1, 8)),
        lambda x: ops.clip(x, 0.0, ops.linspace(0.1, 1.0, 8)),
    ),
    "LeakyRelu": on_map(
        lambda x: ops.leaky_relu(x, 0.1),
    ),
    "HardShrink": on_map(lambda x: ops.hard_shrink(x, 0.5)),
    "SoftShrink": on_map(lambda x: ops.soft_shrink(x, 0.5)),
    "Threshold": on_map(lambda x: ops.threshold(x, 0.5, 0.2)),
    **{
        name: unary(function)
        for name, function in {
            "Absolute": ops.absolute,
            "Arcsinh": ops.arcsinh,
            "Arctan": ops.arctan,
            "Arctanh": lambda x: ops.arctanh(ops.tanh(x)),
            "Cbrt": ops.cbrt,
            "ConvertToTensor": ops.convert_to_tensor,
            "Cosh": ops.cosh,
            "Erfc": ops.erfc,
            "Exp2": ops.exp2,
            "Isfinite": lambda x: x * ops.cast(ops.isfinite(x), x.dtype),
            "Isinf": lambda x: ops.where(ops.isinf(x), 1.0, x),
            "Isnan": lambda x: ops.where(ops.isnan(x), 1.0, x),
            "Log10": lambda x: ops.log10(ops.add(x, 1.0)),
            "Log2": lambda x: ops.log2(ops.add(x, 2.0)),
            "NanToNum": lambda x: ops.nan_to_num(x, 1.0),
            "SaturateCast": lambda x: ops.saturate_cast(x, "float32"),
            "Sinc": ops.sinc,
            "Sinh": ops.sinh,
            "SparsePlus": ops.sparse_plus,
            "SparseSigmoid": ops.sparse_sigmoid,
            "Tan": ops.tan,
            "Trunc": ops.trunc,
            "Ceil": ops.ceil,
            "Celu": ops.celu,
            "Copy": ops.copy,
            "Cos": ops.cos,
            "Elu": ops.elu,
            "Erf": ops.erf,
            "Exp": ops.exp,
            "Expm1": ops.expm1,
            "Floor": ops.floor,
            "Gelu": ops.gelu,
            "HardSigmoid": ops.hard_sigmoid,
            "HardSilu": ops.hard_silu,
            "HardTanh": ops.hard_tanh,
            "Log": lambda x: ops.log(ops.add(x, 1.0)),
            "Log1p": ops.log1p,
            "LogSigmoid": ops.log_sigmoid,
            "Negative": ops.negative,
            "Reciprocal": lambda x: ops.reciprocal(ops.add(x, 1.0)),
            "Relu": ops.relu,
            "Relu6": ops.relu6,
            "Round": ops.round,
            "Rsqrt": lambda x: ops.rsqrt(ops.add(x, 1.0)),
            "Selu": ops.selu,
            "Sigmoid": ops.sigmoid,
            "Sign": ops.sign,
            "Silu": ops.silu,
            "Sin": ops.sin,
            "Softplus": ops.softplus,
            "Softsign": ops.softsign,
            "Sqrt": ops.sqrt,
            "Square": ops.square,
            "Squareplus": ops.squareplus,
            "StopGradient": ops.stop_gradient,
            "Tanh": ops.tanh,
            "TanhShrink": ops.tanh_shrink,
        }.items()
    },
}


def flat(cases):
    return [
        pytest.param(build, id=f"{getattr(key, '__name__', key)}-{number}")
        for key, builds in cases.items()
        for number, build in enumerate(builds)
    ]


# What Keras 3.15 itself cannot run: `ops.max_pool` and its like on JAX, a slice
# backwards and a list of repeats on PyTorch.
FAILS = {
    "jax": ("MaxPool-0", "AveragePool-0"),
    "torch": ("GetItem-4", "Repeat-3"),
}


@pytest.mark.parametrize("build", flat(CASES) + flat(OPERATIONS))
def test_rule_is_exact(build, request):
    if request.node.callspec.id in FAILS.get(keras.backend.backend(), ()):
        pytest.skip("Keras cannot run it on this backend")
    model = randomise(build())
    masked = filterprune.wrap_model(model)
    assert filterprune.analyze(masked).barriers == ()
    close_at_random(masked)
    small = check_exact(masked, limit=1e-5)
    assert small.count_params() < model.count_params()


def one_of_each(cases):
    """The first case of every kind; the others where the slow tests run."""
    return [
        pytest.param(*case.values, id=case.id, marks=[pytest.mark.slow] * (not first))
        for case in flat(cases)
        for first in [case.id.endswith("-0")]
    ]


@pytest.mark.parametrize("build", one_of_each(CASES))
def test_rule_is_exact_layer_by_layer(build):
    model = randomise(build())
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    close_at_random(masked)
    check_exact(masked, limit=1e-5)


@pytest.mark.parametrize("shape", [(8, -1), (16, -1), (-1, 2), (-1, 6)])
def test_a_reshape_that_parts_the_channels_of_a_sample_is_a_barrier(shape):
    x = keras.Input((5,))
    y = ops.reshape(ops.repeat(layers.Dense(2)(x), 2, axis=-1), shape)
    y = layers.Dense(2)(y) if y.shape[-1] else ops.sum(y, axis=-1)
    (barrier,) = filterprune.analyze(keras.Model(x, y)).barriers
    assert "channels differ along an axis of unknown size" in barrier


@pytest.mark.parametrize("make", [layers.LayerNormalization, layers.RMSNormalization])
def test_a_norm_that_keras_runs_along_another_axis_is_a_barrier(make):
    """Of RMSNormalization the scale; on PyTorch all of LayerNormalization."""
    x = keras.Input((8, 6, 3))
    y = layers.Permute((3, 1, 2))(layers.Conv2D(6, 3, padding="same")(x))
    y = make(axis=1)(y)
    model = keras.Model(x, layers.Conv2D(2, 3)(layers.Permute((2, 3, 1))(y)))
    values = np.random.default_rng(0).normal(size=(2, 6, 8, 6)).astype("float32")
    norm = randomise(model.layers[3])
    weights = [to_numpy(weight)[:, None, None] for weight in norm.weights]
    centred = values
    if make is layers.LayerNormalization:
        centred = values - values.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + norm.epsilon)
    expected = expected * weights[0] + sum(weights[1:])
    found = to_numpy(norm(values))
    right = np.allclose(found, expected, atol=1e-4)
    barriers = filterprune.analyze(model).barriers
    assert right == (barriers == ())
    if not right:
        assert "does not normalise along `axis=" in barriers[0]


def test_every_registered_layer_has_a_case():
    ours = {cls for cls in registered_layers() if cls.__module__.startswith("keras.")}
    assert ours == set(CASES)


def test_every_registered_operation_has_a_case():
    assert set(registered_operations()) == set(OPERATIONS)


REFUSED = {
    "heads share keys": lambda x: ops.dot_product_attention(
        x, x[:, :, :2], layers.Dense(8)(x)[:, :, :2]
    ),
    "no gate reaches": lambda x: ops.layer_normalization(x, ARRAY),
    "layers.RMSNormalization": lambda x: ops.rms_normalization(x, ARRAY),
    "Python function": lambda x: ops.map(lambda y: y * 2.0, x),
    "in order": lambda x: ops.sort(x, axis=-1),
    "multiplies channels": lambda x: x * ops.prod(x, -1, keepdims=True),
    "order -1 absent": lambda x: x * ops.norm(x, -1, axis=-1, keepdims=True),
    "weights are computed": lambda x: ops.depthwise_conv(x, ops.mean(x, 0)[..., None]),
    "more than a number": lambda x: x + ops.full_like(x, ARRAY),
    "rolls a flattened": lambda x: ops.roll(x, 1),
    "rolls one axis twice": lambda x: ops.roll(x, (1, 2), (1, 1)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_an_operation_that_cannot_be_explained_says_why(reason):
    model = through(2, REFUSED[reason])()
    (barrier,) = filterprune.analyze(model).barriers
    assert reason in barrier


# Functions of `keras.activations` that Keras 3.15 does not run on symbolic tensors,
# and those that couple channels.
NOT_SYMBOLIC = {"mish", "hard_silu", "hard_swish", "sparsemax"}
COUPLING = {"softmax", "log_softmax"}
ACTIVATIONS = {
    name: function
    for name, function in vars(keras.activations).items()
    if callable(function) and name not in ("deserialize", "get", "serialize")
}
ACTIVATIONS["threshold"] = lambda x: keras.activations.threshold(x, 0.5, 0.0)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - NOT_SYMBOLIC))
def test_a_function_of_keras_activations_on_a_tensor_is_pruned_or_says_why(name):
    model = randomise(through(2, ACTIVATIONS[name])())
    report = filterprune.analyze(model)
    assert report.barriers == ()
    if name in COUPLING:
        assert "couples its channels" in report.groups[0].reason
        return
    assert report.groups[0] in report.prunable
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = check_exact(masked, limit=1e-5)
    assert small.count_params() < model.count_params()


@pytest.mark.parametrize("name", sorted(NOT_SYMBOLIC))
def test_other_functions_of_keras_activations_do_not_run_on_symbolic_tensors(name):
    """Once Keras runs them, they must be tried above."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("it depends on the backend")
    with pytest.raises(ValueError, match="KerasTensor"):
        ACTIVATIONS[name](keras.Input((4,)))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax"])
def test_softmax_over_channels_as_an_operation_keeps_them_and_says_why(name):
    model = through(2, getattr(ops, name))()
    report = filterprune.analyze(model)
    assert report.barriers == ()
    assert "no gate reaches inside it" in report.groups[0].reason


def test_every_keras_layer_has_a_rule_or_a_stated_reason():
    """A new Keras release shows up here."""
    bases = {layers.Layer, layers.InputLayer, layers.Wrapper}
    bases.add(layers.Lambda)  # which is traced
    missing = [
        name
        for name, value in vars(layers).items()
        if isinstance(value, type)
        and issubclass(value, layers.Layer)
        and value not in bases
        and layer_rule(value) is None
        and barrier_reason(value) is None
    ]
    assert missing == []


def test_every_operation_rule_names_an_operation_of_keras():
    """A class that Keras renames shows up here: its case must record that name."""
    for name, builds in OPERATIONS.items():
        recorded = {
            type(node.op).__name__ for build in builds for node in trace(build()).nodes
        }
        assert name in recorded, f"no case of `{name}` records it: {recorded}"
