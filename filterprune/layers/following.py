"""Masked layers that pass channels on and would turn zero into something else."""

import keras
from keras import layers

from filterprune.layers.base import Masked, masks


@masks(layers.BatchNormalization)
class MaskedBatchNormalization(Masked):
    """A `BatchNormalization` with one gate for each channel.

    The gate acts on `gamma` and `beta`: a closed channel leaves the layer as
    zero, where a plain layer would make `beta - gamma * mean / std` of it. See
    `filterprune.layers.Masked`.
    """


@keras.saving.register_keras_serializable("filterprune")
class Gate(Masked):
    """Gates behind an operation that is no layer, such as `keras.ops.sigmoid`.

    `filterprune.wrap_model` adds it to the graph, and `compact` removes it again.
    It masks an `Identity`; see `filterprune.layers.Masked`.
    """

    is_added = True
    wraps = (layers.Identity,)

    def _close(self, tensor, plan, place):
        """Nothing comes back through a closed gate, not even infinity times zero.

        A square root behind it has that gradient.
        """
        gated = super()._close(tensor, plan, place)
        opened = super()._close(keras.ops.ones_like(tensor), plan, place)
        opened = keras.ops.cast(opened, "bool")
        return keras.ops.where(opened, gated, keras.ops.zeros_like(gated))
