"""Masked dense layers."""

from keras import layers

from filterprune.layers.base import Masked, masks


@masks(layers.Dense)
class MaskedDense(Masked):
    """A `Dense` layer with one gate for each unit. See `filterprune.layers.Masked`."""


@masks(layers.EinsumDense)
class MaskedEinsumDense(Masked):
    """An `EinsumDense` with gates along its first new axis, such as that of heads.

    Where channels of its input pass through, the gates run along those. See
    `filterprune.layers.Masked`.
    """
