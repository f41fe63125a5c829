"""Masked embeddings."""

from keras import layers

from filterprune.layers.base import Masked, masks


@masks(layers.Embedding)
class MaskedEmbedding(Masked):
    """An `Embedding` with one gate for each of its dimensions. See `Masked`."""


@masks(layers.ReversibleEmbedding)
class MaskedReversibleEmbedding(Masked):
    """A `ReversibleEmbedding` with one gate for each of its dimensions.

    A closed dimension is zero in the embeddings and is not read by the projection
    back. See `filterprune.layers.Masked`.
    """

    def call(self, inputs, reverse=False):  # type: ignore[override]
        if not reverse:
            return self._gated_call(inputs)
        return self._call_with_gated_weights(inputs, reverse=True)

    def compute_output_spec(self, inputs, reverse=False):  # type: ignore[override]
        return self.layer.compute_output_spec(inputs, reverse=reverse)
