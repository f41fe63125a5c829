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
from filterprune.layers.embeddings import MaskedEmbedding, MaskedReversibleEmbedding
from filterprune.layers.following import Gate, MaskedBatchNormalization
from filterprune.layers.normalising import (
    MaskedActivation,
    MaskedGroupNormalization,
    MaskedLayerNormalization,
    MaskedRMSNormalization,
    MaskedSoftmax,
    MaskedSpectralNormalization,
    MaskedUnitNormalization,
)
from filterprune.layers.recurrent import (
    MaskedBidirectional,
    MaskedConvLSTM1D,
    MaskedConvLSTM2D,
    MaskedConvLSTM3D,
    MaskedGRU,
    MaskedLSTM,
    MaskedRNN,
    MaskedSimpleRNN,
)

__all__ = [
    "Gate",
    "Masked",
    "MaskedActivation",
    "MaskedBatchNormalization",
    "MaskedBidirectional",
    "MaskedConv1D",
    "MaskedConv1DTranspose",
    "MaskedConv2D",
    "MaskedConv2DTranspose",
    "MaskedConv3D",
    "MaskedConv3DTranspose",
    "MaskedConvLSTM1D",
    "MaskedConvLSTM2D",
    "MaskedConvLSTM3D",
    "MaskedDense",
    "MaskedDepthwiseConv1D",
    "MaskedDepthwiseConv2D",
    "MaskedEinsumDense",
    "MaskedEmbedding",
    "MaskedGRU",
    "MaskedGroupNormalization",
    "MaskedGroupQueryAttention",
    "MaskedLSTM",
    "MaskedLayerNormalization",
    "MaskedMultiHeadAttention",
    "MaskedRMSNormalization",
    "MaskedRNN",
    "MaskedReversibleEmbedding",
    "MaskedSeparableConv1D",
    "MaskedSeparableConv2D",
    "MaskedSimpleRNN",
    "MaskedSoftmax",
    "MaskedSpectralNormalization",
    "MaskedUnitNormalization",
]
