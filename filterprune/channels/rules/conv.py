"""Convolutions."""

import math

import numpy as np
from keras import layers

from filterprune.channels.binding import bind_constants
from filterprune.channels.calls import current, describe
from filterprune.channels.constants import count_positions, spread, values_along
from filterprune.channels.joining import gather
from filterprune.channels.labels import Channels
from filterprune.channels.registry import operation, rule
from filterprune.channels.verbs import along, barrier, channel_axis, mix, same


def _even(layer) -> bool:
    """Whether a constant input adds the same at every output position."""
    pointwise = all(size == 1 for size in layer.kernel_size)
    return pointwise or layer.padding == "valid"


@rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def conv(layer, x):
    channels = x.shape[channel_axis(layer)]
    if layer.groups == channels > 1:  # each filter reads one channel: depthwise
        return same(
            x,
            repeat=layer.filters // channels,
            even=_even(layer),
            keeps_zero=not layer.use_bias,
            gates=("kernel", "bias"),
            resize={"filters": "out", "groups": "in"},
            product="kernel",
            kernel="... _ out",
            bias="out",
        )
    return mix(
        x,
        kernel="... in out",
        bias="out",
        resize="filters",
        groups=layer.groups,
        fold=_even(layer),
    )


@rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def conv_transpose(layer, x):
    even = all(size == 1 for size in (*layer.kernel_size, *layer.strides))
    return mix(
        x,
        kernel="... out in",
        bias="out",
        resize="filters",
        fold=even,
        positions="in",
    )


@rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise_conv(layer, x):
    return same(
        x,
        repeat=layer.depth_multiplier,
        even=_even(layer),
        keeps_zero=not layer.use_bias,
        gates=("kernel", "bias"),
        product="kernel",
        kernel="... in _",
        bias="out",
    )


@rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_conv(layer, x):
    return mix(
        x,
        repeat=layer.depth_multiplier,
        depthwise_kernel="... read _",
        pointwise_kernel="... in out",
        bias="out",
        resize="filters",
        gates=("pointwise_kernel", "bias"),
    )


@operation("DepthwiseConv")
def depthwise_conv_operation(op, x, kernel):
    axis = channel_axis(op)
    bind_constants(along(x, axis), [(kernel, -2)])
    even = op.padding == "valid" or all(size == 1 for size in kernel.shape[:-2])
    return same(x, axis=axis, repeat=kernel.shape[-1], keeps_zero=True, even=even)


@operation("Conv")
def conv_operation(op, x, kernel):
    axis = channel_axis(op)
    if isinstance(kernel, Channels):
        return _computed(op, x, kernel, axis)
    bind_constants(along(x, axis), [(kernel, -2)])
    return gather([x], along(x, axis), [axis])


def _computed(op, x, kernel, axis):
    """Its kernel is computed, as a standardised one: a filter of zeros makes zeros."""
    call = current()
    if x.shape[axis] != kernel.shape[-2]:
        return barrier("it has groups, and its kernel is computed")
    call.flow.table.pin(x.labels, f"read by {describe(op)}, whose kernel is computed")
    made = along(kernel, -1)
    shape = call.outputs[0]
    output = Channels(shape, spread(made, len(shape), axis))
    positions = count_positions(output, axis) * math.prod(kernel.shape[:-1])
    call.products.append(((made,), positions))

    def worth(_, values):
        zero = values_along(values[1], -1, made.size) == 0
        return [spread(np.where(zero, 0.0, np.nan), len(shape), axis)]

    call.step([x, kernel], [output], worth)
    return output
