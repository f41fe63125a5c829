"""Pooling, padding, cropping, resizing: the same to every channel."""

import numpy as np
from keras import layers

from filterprune.channels.calls import current
from filterprune.channels.moves import varied_axes
from filterprune.channels.registry import operation, rule
from filterprune.channels.verbs import barrier, channel_axis, same, take


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
    layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D,
    layers.AdaptiveAveragePooling3D,
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
    layers.AdaptiveMaxPooling3D,
    layers.CenterCrop,
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
def global_pooling(layer, x, mask=None):
    axis = channel_axis(layer)
    return same(x, axis=axis, to=axis if layer.keepdims else -1, keeps_zero=True)


@rule(layers.Resizing)
def resizing(layer, x):
    return same(x, keeps_zero=not layer.pad_to_aspect_ratio or layer.fill_value == 0)


@operation("Resize")
def resize(op, x):
    return same(x, keeps_zero=not op.pad_to_aspect_ratio or op.fill_value == 0)


@operation(
    "AveragePool",
    "CropImages",
    "GaussianBlur",
    "MaxPool",
    "PadImages",
)
def pool(op, x):
    return same(x, keeps_zero=True)


@operation("ExtractPatches")
def extract_patches(op, x):
    axis = channel_axis(op) % x.ndim
    if axis != x.ndim - 1 or varied_axes(x) not in ([], [axis]):
        return barrier("its channels are not the last axis")
    count = current().outputs[0][axis] // x.shape[axis]
    return take(x, lambda a: np.tile(_wide(a, x.shape[axis]), count))


def _wide(array, size):
    return np.broadcast_to(array, (*array.shape[:-1], size))
