"""Masked layers: a layer and one gate for each of its output channels."""

from filterprune.layers.attention import (
    MaskedGroupQueryAttention,
    MaskedMultiHeadAttention,
)
from filterprune.layers.base import Masked
from filterprune.layers.conv import (
    MaskedConv1D,
    MaskedConv1DTranspose,
    MaskedConv2D,
    MaskedConv2DTranspose,
    MaskedConv3D,
    MaskedConv3DTranspose,
    MaskedDepthwiseConv1D,
    MaskedDepthwiseConv2D,
    MaskedSeparableConv1D,
    MaskedSeparableConv2D,
)
from filterprune.layers.dense import MaskedDense, MaskedEinsumDense
from filterprune.layers.following import Gate, MaskedBatchNormalization
from filterprune.layers.normalising import (
    MaskedActivation,
    MaskedGroupNormalization,
    MaskedLayerNormalization,
    MaskedRMSNormalization,
    MaskedSoftmax,
    MaskedUnitNormalization,
)

__all__ = [
    "Gate",
    "Masked",
    "MaskedActivation",
    "MaskedBatchNormalization",
    "MaskedConv1D",
    "MaskedConv1DTranspose",
    "MaskedConv2D",
    "MaskedConv2DTranspose",
    "MaskedConv3D",
    "MaskedConv3DTranspose",
    "MaskedDense",
    "MaskedDepthwiseConv1D",
    "MaskedDepthwiseConv2D",
    "MaskedEinsumDense",
    "MaskedGroupNormalization",
    "MaskedGroupQueryAttention",
    "MaskedLayerNormalization",
    "MaskedMultiHeadAttention",
    "MaskedRMSNormalization",
    "MaskedSeparableConv1D",
    "MaskedSeparableConv2D",
    "MaskedSoftmax",
    "MaskedUnitNormalization",
]
