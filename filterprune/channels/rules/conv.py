"""Convolutions."""

from keras import layers

from filterprune.channels.binding import bind_constants
from filterprune.channels.joining import gather
from filterprune.channels.registry import operation, rule
from filterprune.channels.verbs import along, channel_axis, mix, same


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
    bind_constants(along(x, axis), [(kernel, -2)])
    return gather([x], along(x, axis), [axis])
