"""Layers that move data about: flatten, reshape, permute."""

import numpy as np
from keras import layers

from filterprune.channels.calls import current
from filterprune.channels.moves import full_shape, run_on_arrays
from filterprune.channels.registry import rule
from filterprune.channels.verbs import take


@rule(layers.Flatten)
def flatten(layer, x):
    first = getattr(layer, "data_format", None) == "channels_first" and x.ndim > 2
    if all(size == 1 for size in x.labels.shape):
        return take(x, lambda a: a.reshape(1, 1))
    shape = full_shape(x.shape)

    def move(a):
        a = np.broadcast_to(a, shape)
        return (np.moveaxis(a, 1, -1) if first else a).reshape(1, -1)

    return take(x, move)


@rule(layers.Reshape)
def reshape(layer, x):
    target = current().outputs[0]
    if all(size == 1 for size in x.labels.shape):
        return take(x, lambda a: a.reshape((1,) * len(target)))
    free = [size == -1 for size in layer.target_shape]

    def resized(survivors, output):
        sizes = (survivors.size(output, axis + 1) for axis in range(len(free)))
        return tuple(-1 if f else size for f, size in zip(free, sizes, strict=True))

    resize = {"target_shape": resized}
    if None in x.shape[1:]:  # as many positions as there may be
        return take(x, run_on_arrays([x]), resize=resize)
    shape, goal = full_shape(x.shape), full_shape(target)
    return take(x, lambda a: np.broadcast_to(a, shape).reshape(goal), resize=resize)


@rule(layers.Permute)
def permute(layer, x):
    return take(x, lambda a: np.transpose(a, (0, *layer.dims)))


@rule(layers.RepeatVector)
def repeat_vector(layer, x):
    return take(x, lambda a: np.expand_dims(a, 1))
