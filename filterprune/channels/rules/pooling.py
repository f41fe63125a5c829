"""Pooling, padding, cropping, resizing: the same to every channel."""

from keras import layers

from filterprune.channels.registry import rule
from filterprune.channels.verbs import channel_axis, same


@rule(
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
)
def spatial(layer, x):
    return same(x, keeps_zero=True)


@rule(
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
def global_pooling(layer, x):
    axis = channel_axis(layer)
    return same(x, axis=axis, to=axis if layer.keepdims else -1, keeps_zero=True)
