"""Normalisation, rescaling and the like: per channel."""

import functools
from typing import Any

import keras
import numpy as np
from keras import layers

from filterprune.channels.calls import current
from filterprune.channels.moves import varied_axes
from filterprune.channels.registry import rule
from filterprune.channels.verbs import along, barrier, normalise, same


@rule(layers.BatchNormalization)
def batch_normalization(layer, x, mask=None):
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


def affine_of(layer) -> tuple[np.ndarray, np.ndarray] | None:
    """What a batch norm multiplies each channel by in inference, and then adds.

    Returns:
        Both in float64, `(channels,)`; None if `layer` is no batch norm, or one that
        does more.
    """
    if type(layer) is not layers.BatchNormalization or layer.renorm:
        return None
    mean, variance, gamma, beta = (
        None if weight is None else keras.ops.convert_to_numpy(weight).astype("float64")
        for weight in (
            layer.moving_mean,
            layer.moving_variance,
            layer.gamma,
            layer.beta,
        )
    )
    scale = 1 / np.sqrt(variance + layer.epsilon)
    if gamma is not None:
        scale = scale * gamma
    return scale, (0.0 if beta is None else beta) - mean * scale


def _channel_axis(layer, x):
    """The axis of channels, if it is among those that are normalised."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = [axis % x.ndim for axis in axes]
    varied = varied_axes(x)
    axis = varied[0] if len(varied) == 1 else max(axes)
    mask = current().mask
    if not varied and mask is not None and mask.axis % x.ndim in axes:
        axis = mask.axis % x.ndim
    if axis not in axes:
        barrier("it normalises along other axes than that of channels")
    return axis, " ".join("in" if a == axis else "_" for a in sorted(axes))


def _heads(layer, x) -> int | None:
    """An axis of channels, or heads, that are normalised each by itself.

    Those go whole, with all that they have along the axes that are normalised.
    """
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = [axis % x.ndim for axis in axes]
    left = [axis for axis in varied_axes(x) if axis not in axes]
    return left[-1] if left else None


@rule(layers.LayerNormalization)
def layer_normalization(layer, x):
    if layer.rms_scaling:
        return barrier("`rms_scaling=True` is not supported")
    _check_axes(layer, x, _centred)
    heads = _heads(layer, x)
    if heads is not None and layer.beta is None:  # of which no gate makes zeros
        return same(x, axis=heads, even=True, keeps_zero=True)
    axis, spec = _channel_axis(layer, x)
    return normalise(x, axis=axis, gates=("gamma", "beta"), gamma=spec, beta=spec)


@rule(layers.RMSNormalization)
def rms_normalization(layer, x):
    _check_axes(layer, x, _scaled)
    heads = _heads(layer, x)
    if heads is not None:
        return same(x, axis=heads, even=True, keeps_zero=True)
    axis, spec = _channel_axis(layer, x)
    return normalise(x, axis=axis, gates=("scale",), scale=spec)


def _centred(x, weight, axes):
    return keras.ops.layer_normalization(x, weight, weight, axes, 1e-3)


def _scaled(x, weight, axes):
    return keras.ops.rms_normalization(x, weight, axes, 1e-3)


def _check_axes(layer, x, function) -> None:
    """Refuse a layer that Keras does not run along the axes that it is asked for."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if not _runs_along(function, tuple(sorted(a % x.ndim for a in axes)), x.ndim):
        barrier(
            f"Keras does not normalise along `axis={layer.axis}` of a tensor of rank "
            f"{x.ndim} on {keras.backend.backend()}, or scales it along another axis"
        )


@functools.cache
def _runs_along(function, axes: tuple[int, ...], ndim: int) -> bool:
    """Whether a normalisation of Keras, tried here, keeps to these axes.

    All sizes are the same, so that it runs along whichever axes it takes.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3,) * ndim).astype("float32")
    weight = rng.normal(size=(3,) * len(axes)).astype("float32")
    centre = x.mean(axes, keepdims=True) if function is _centred else 0.0
    expected = (x - centre) / np.sqrt(
        np.mean(np.square(x - centre), axes, keepdims=True) + 1e-3
    )
    spread = weight.reshape([3 if axis in axes else 1 for axis in range(ndim)])
    expected = expected * spread + (spread if function is _centred else 0.0)
    try:
        found = function(*map(keras.ops.convert_to_tensor, (x, weight)), list(axes))
    except Exception:
        return False
    return np.allclose(keras.ops.convert_to_numpy(found), expected, atol=1e-4)


@rule(layers.UnitNormalization)
def unit_normalization(layer, x):
    heads = _heads(layer, x)
    if heads is not None:
        return same(x, axis=heads, even=True, keeps_zero=True)
    axis, _ = _channel_axis(layer, x)
    return normalise(x, axis=axis)


@rule(layers.GroupNormalization)
def group_normalization(layer, x):
    weights: dict[str, Any] = {"gates": ("gamma", "beta")}
    weights |= {"gamma": "in", "beta": "in"}
    if layer.groups == x.shape[layer.axis] > 1:  # each channel by itself
        return same(x, axis=layer.axis, even=True, resize={"groups": "in"}, **weights)
    return normalise(x, axis=layer.axis, groups=layer.groups, **weights)


@rule(layers.Rescaling)
def rescaling(layer, x):
    resize = {}
    first = keras.config.image_data_format() == "channels_first"
    for name, axis in (("scale", -3 if first else -1), ("offset", -1)):
        value = np.asarray(getattr(layer, name))
        if not value.ndim:
            continue
        if value.ndim > 1 or x.ndim < -axis or x.shape[axis] != value.size:
            return barrier(f"its `{name}` has the shape {value.shape}")
        if value.size > 1 and x.labels.shape[axis] > 1:
            resize[name] = _picker(x, axis, value, whole=getattr(layer, name))
    if resize:
        return same(x, axis=-1, resize=resize, elementwise=True)
    return same(x, elementwise=True)


@rule(layers.Normalization)
def normalization(layer, x):
    axis = [axis % x.ndim for axis in layer.axis]
    varied = [axis for axis, size in enumerate(x.labels.shape) if size > 1]
    if not axis or not varied:
        return same(x, elementwise=True)
    if axis != varied:
        return barrier("its statistics are not along one axis of channels")
    resize = {}
    for name in ("mean", "variance"):
        values = np.ravel(keras.ops.convert_to_numpy(getattr(layer, name)))
        resize[name] = _picker(
            x, axis[0], values, whole=getattr(layer, f"input_{name}")
        )
    return same(x, axis=axis[0], resize=resize, elementwise=True)


def _picker(x, axis, values, whole):
    """Keep the surviving entries of a list of numbers in a layer's config.

    Args:
        x: the `Channels` read.
        axis: its axis that the numbers are along.
        values: `(channels,)`, the numbers.
        whole: the entry as it is, returned while all channels survive.
    """
    labels = np.broadcast_to(along(x, axis), values.shape)

    def pick(survivors):
        kept = survivors.mask(labels)
        return whole if kept.all() else [float(value) for value in values[kept]]

    return pick
