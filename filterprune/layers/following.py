"""Masked layers that pass channels on and would turn zero into something else."""

from keras import layers

from filterprune.layers.base import Masked, masks


@masks(layers.BatchNormalization)
class MaskedBatchNormalization(Masked):
    """A `BatchNormalization` with one gate for each channel.

    The gate acts on `gamma` and `beta`: a closed channel leaves the layer as
    zero, where a plain layer would make `beta - gamma * mean / std` of it. See
    `filterprune.layers.Masked`.
    """
