"""Masked dense layers."""

from keras import layers

from filterprune.layers.base import Masked, masks


@masks(layers.Dense)
class MaskedDense(Masked):
    """A `Dense` layer with one gate for each unit. See `filterprune.layers.Masked`."""
