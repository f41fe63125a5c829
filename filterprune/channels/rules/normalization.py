"""Normalisation, rescaling and the like: per channel."""

import numpy as np
from keras import layers

from filterprune.channels.registry import rule
from filterprune.channels.verbs import barrier, same


@rule(layers.BatchNormalization)
def batch_normalization(layer, x):
    if layer.renorm:
        return barrier("`renorm=True` is not supported")
    return same(
        x,
        axis=layer.axis,
        elementwise=True,
        gates=("gamma", "beta"),
        gamma="in",
        beta="in",
        moving_mean="in",
        moving_variance="in",
    )


@rule(layers.Rescaling)
def rescaling(layer, x):
    resize = {}
    for name in ("scale", "offset"):
        value = np.asarray(getattr(layer, name))
        if value.ndim > 1 or (value.ndim and x.shape[-1] != value.size):
            return barrier(f"its `{name}` has the shape {value.shape}")
        if value.ndim and value.size > 1:
            resize[name] = _picker(x, value)
    if resize:
        return same(x, axis=-1, resize=resize, elementwise=True)
    return same(x, elementwise=True)


@rule(layers.Normalization)
def normalization(layer, x):
    axis = [axis % x.ndim for axis in layer.axis]
    varied = [axis for axis, size in enumerate(x.labels.shape) if size > 1]
    if not axis or not varied:
        return same(x, elementwise=True)
    if axis != varied or layer.input_mean is None:
        return barrier("its statistics are not along one axis of channels")
    mean = np.broadcast_to(layer.input_mean, x.shape[axis[0]])
    variance = np.broadcast_to(layer.input_variance, x.shape[axis[0]])
    resize = {"mean": _picker(x, mean), "variance": _picker(x, variance)}
    return same(x, axis=axis[0], resize=resize, elementwise=True)


def _picker(x, values):
    """Keep the surviving entries of a list of numbers in a layer's config."""
    axis = [i for i, size in enumerate(x.labels.shape) if size > 1]
    labels = x.labels.ravel() if axis else np.broadcast_to(x.labels.ravel(), values.size)
    return lambda survivors: [float(v) for v in values[survivors.mask(labels)]]
