"""Pooling, padding, cropping, resizing: the same to every channel."""

import numpy as np
from keras import layers

from filterprune.channels.calls import current
from filterprune.channels.labels import fit
from filterprune.channels.moves import varied_axes, where_equal
from filterprune.channels.registry import operation, rule, single_precision
from filterprune.channels.verbs import along, barrier, channel_axis, same, take

# On TensorFlow, as of 2.21.
single_precision("AffineTransform", "CenterCrop", "Resize", "Resizing", "UpSampling2D")


@rule(
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.CenterCrop,
)
def spatial(layer, x):
    # Padding is neither counted in means nor larger than what is in the map.
    return same(x, keeps_zero=True, even=True)


@rule(
    layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D,
    layers.AdaptiveAveragePooling3D,
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
    layers.AdaptiveMaxPooling3D,
)
def adaptive(layer, x):
    # Not run: TensorFlow crashes on a map with fewer positions than come out.
    axis = channel_axis(layer) % x.ndim
    along(x, axis)
    shape = tuple(n if i == axis else 1 for i, n in enumerate(x.labels.shape))

    def move(array):
        if array.dtype.kind == "f":
            return fit(array, shape)
        return array[tuple(slice(size) for size in shape)]

    return take(x, move)


@rule(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
def zero_padding(layer, x):
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
    return same(
        x, axis=axis, to=axis if layer.keepdims else -1, keeps_zero=True, even=True
    )


@rule(layers.Resizing)
def resizing(layer, x):
    return _resized(layer, x)


@operation("Resize")
def resize(op, x):
    return _resized(op, x)


def _resized(op, x):
    padded = op.pad_to_aspect_ratio
    return same(x, keeps_zero=not padded or op.fill_value == 0, even=not padded)


@operation("AveragePool", "CropImages", "MaxPool")
def pool(op, x):
    return same(x, keeps_zero=True, even=True)


@operation("GaussianBlur", "PadImages")
def with_zeros_around(op, x):
    return same(x, keeps_zero=True)


@operation("ExtractPatches")
def extract_patches(op, x):
    axis = channel_axis(op) % x.ndim
    if axis != x.ndim - 1 or varied_axes(x) not in ([], [axis]):
        return barrier("its channels are not the last axis")
    count = current().outputs[0][axis] // x.shape[axis]
    padded = op.padding != "valid"

    def move(array):
        if padded:
            array = where_equal(array, 0.0)
        wide = np.broadcast_to(array, (*array.shape[:-1], x.shape[axis]))
        return np.tile(wide, count)

    return take(x, move)
