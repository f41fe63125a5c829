"""The nets that `accuracy.py` prunes, for images of 28 by 28, at any width."""

import keras
from keras import layers


def resnet(width=16):
    """Three stages of a residual block each, 16-32-64 by default."""

    def conv(x, filters, size, strides=1, name=None):
        x = layers.Conv2D(
            filters, size, strides, padding="same", use_bias=False, name=name
        )(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((28, 28, 1))
    x = layers.ReLU()(conv(inputs, round(width), 3))
    for stage in range(3):
        filters, strides = round(width * 2**stage), 1 if stage == 0 else 2
        y = layers.ReLU()(conv(x, filters, 3, strides))
        y = conv(y, filters, 3)
        short = x if stage == 0 else conv(x, filters, 1, strides)
        x = layers.ReLU()(layers.Add()([y, short]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="resnet")


def mobilenet(width=16):
    """Inverted residuals as in MobileNetV2, 16-24-32 by default."""

    def norm(x):
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(round(width), 3, 2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU(6)(norm(x))
    for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1)):
        filters = round(filters * width / 16)
        y = layers.Conv2D(4 * x.shape[-1], 1, use_bias=False)(x)
        y = layers.ReLU(6)(norm(y))
        y = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y)
        y = layers.ReLU(6)(norm(y))
        y = norm(layers.Conv2D(filters, 1, use_bias=False)(y))
        x = layers.Add()([x, y]) if x.shape == y.shape else y
    x = layers.Conv2D(round(8 * width), 1, use_bias=False)(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU(6)(norm(x)))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="mobilenet")


NETS = {"resnet": resnet, "mobilenet": mobilenet}
