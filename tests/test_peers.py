"""What other tools get wrong, silently or loudly: all exact here.

The patterns are from the measurements in the project's notes on
keras-surgeon 0.2.0 and Torch-Pruning 1.6.1.
"""

import keras
import pytest
from exactness import check_exact, close_at_random, randomise
from keras import layers, ops

import filterprune


def conv(x, filters=8, size=3, **kwargs):
    return layers.Conv2D(filters, size, padding="same", activation="relu", **kwargs)(x)


def head(x):
    return layers.Dense(3)(layers.Flatten()(conv(x, 4)))


def flatten_then_dense(x):
    return layers.Dense(3)(layers.Flatten()(conv(x)))


def two_flattens(x):
    flat = [layers.Flatten()(conv(x)), layers.Flatten()(conv(x, 4))]
    return layers.Dense(3)(layers.Concatenate()(flat))


def chunk_for_two_readers(x):
    first, second = ops.split(conv(x), 2, axis=-1)
    return head(conv(first, 4) * conv(second, 4))


def flip(x):
    return head(ops.flip(conv(x), axis=-1))


def roll(x):
    return head(ops.roll(conv(x), 3, axis=-1))


def cumulative_sum(x):
    return head(ops.cumsum(conv(x), axis=-1))


def pixel_shuffle(x):
    return head(ops.depth_to_space(conv(x, 16), 2))


def channel_shuffle(x):
    y = ops.reshape(conv(x), (-1, 6, 6, 2, 4))
    y = ops.reshape(ops.transpose(y, (0, 1, 2, 4, 3)), (-1, 6, 6, 8))
    return head(layers.Conv2D(8, 3, groups=2)(y))


def depthwise_multiplier(x):
    return head(layers.DepthwiseConv2D(3, depth_multiplier=2)(conv(x)))


def zero_padded_shortcut(x):
    y = conv(x, 4)
    wide = ops.pad(y[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
    return head(wide + conv(y, 8, strides=2))


def residual_onto_the_input(x):
    return head(layers.Add()([x, conv(conv(x), 3)]))


def gathered_channels(x):
    return head(ops.take(conv(x), [6, 1, 1, 4], axis=-1))


def first_channels(x):
    return head(conv(x, 12)[..., :8])


def gram_matrix(x):
    y = ops.reshape(conv(x), (-1, 36, 8))
    gram = ops.matmul(ops.transpose(y, (0, 2, 1)), y)
    return layers.Dense(3)(layers.Flatten()(gram))


def dense_to_image(x):
    y = layers.Dense(6 * 6 * 4, activation="relu")(layers.Flatten()(x))
    return head(conv(layers.Reshape((6, 6, 4))(y)))


def spatial_gate(x):
    y = conv(x)
    return head(y * layers.Conv2D(1, 3, padding="same", activation="sigmoid")(y))


def frozen_first(x):
    return head(conv(conv(x, trainable=False)))


def branches(x):
    return head(layers.Add()([conv(x), conv(x)]))


def squeeze_and_excite(x):
    y = conv(x)
    s = layers.GlobalAveragePooling2D(keepdims=True)(y)
    s = layers.Conv2D(2, 1, activation="relu")(s)
    s = layers.Conv2D(8, 1, activation="sigmoid")(s)
    return head(layers.Multiply()([y, s]))


def product_with_the_input(x):
    return head(ops.einsum("bhwc,bhwc->bhwc", conv(x, 3), x))


def one_output_channel(x):
    return layers.Flatten()(layers.Conv2D(1, 3)(conv(conv(x), 1)))


PATTERNS = [
    flatten_then_dense,
    two_flattens,
    chunk_for_two_readers,
    flip,
    roll,
    cumulative_sum,
    pixel_shuffle,
    channel_shuffle,
    depthwise_multiplier,
    zero_padded_shortcut,
    residual_onto_the_input,
    gathered_channels,
    first_channels,
    gram_matrix,
    dense_to_image,
    spatial_gate,
    frozen_first,
    branches,
    squeeze_and_excite,
    product_with_the_input,
    one_output_channel,
]
KEPT_WHOLE = {cumulative_sum}  # a barrier, and around it exact


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda fn: fn.__name__)
def test_pattern_is_exact(pattern):
    keras.config.set_floatx("float64")
    x = keras.Input((6, 6, 3))
    masked = filterprune.wrap_model(randomise(keras.Model(x, pattern(x))))
    barriers = filterprune.analyze(masked).barriers
    assert bool(barriers) == (pattern in KEPT_WHOLE), barriers
    close = filterprune.analyze(masked).prunable
    if close:
        close_at_random(masked)
        small = check_exact(masked)
        assert small.count_params() < masked.count_params()
    else:
        assert pattern in (gram_matrix, one_output_channel)
