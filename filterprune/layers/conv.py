"""Masked convolutions."""

from keras import layers

from filterprune.layers.base import Masked, masks


@masks(layers.Conv1D)
class MaskedConv1D(Masked):
    """A `Conv1D` with one gate for each filter. See `filterprune.layers.Masked`."""


@masks(layers.Conv2D)
class MaskedConv2D(Masked):
    """A `Conv2D` with one gate for each filter. See `filterprune.layers.Masked`."""


@masks(layers.Conv3D)
class MaskedConv3D(Masked):
    """A `Conv3D` with one gate for each filter. See `filterprune.layers.Masked`."""


@masks(layers.Conv1DTranspose)
class MaskedConv1DTranspose(Masked):
    """A `Conv1DTranspose` with one gate for each filter. See `Masked`."""


@masks(layers.Conv2DTranspose)
class MaskedConv2DTranspose(Masked):
    """A `Conv2DTranspose` with one gate for each filter. See `Masked`."""


@masks(layers.Conv3DTranspose)
class MaskedConv3DTranspose(Masked):
    """A `Conv3DTranspose` with one gate for each filter. See `Masked`."""


@masks(layers.DepthwiseConv1D)
class MaskedDepthwiseConv1D(Masked):
    """A `DepthwiseConv1D` with one gate for each output channel. See `Masked`."""


@masks(layers.DepthwiseConv2D)
class MaskedDepthwiseConv2D(Masked):
    """A `DepthwiseConv2D` with one gate for each output channel. See `Masked`."""


@masks(layers.SeparableConv1D)
class MaskedSeparableConv1D(Masked):
    """A `SeparableConv1D` with one gate for each filter. See `Masked`."""


@masks(layers.SeparableConv2D)
class MaskedSeparableConv2D(Masked):
    """A `SeparableConv2D` with one gate for each filter. See `Masked`."""
