"""Masked attention layers."""

from keras import layers

from filterprune.channels.flow import gates_of
from filterprune.layers.base import Masked, call_parameters, masks


@masks(layers.MultiHeadAttention)
class MaskedMultiHeadAttention(Masked):
    """A `MultiHeadAttention` with gates for heads, dimensions and its width.

    A closed gate of a head, or of a dimension of all heads' keys or values, acts
    on the weights behind it, so that it adds nothing to the output. The scale of
    the scores stays that of the whole key dimension. See
    `filterprune.layers.Masked`.

    Attributes:
        gates: a dict of non-trainable weights: `""` for the output, `(width,)`;
            `"heads"`, `(num_heads,)`; `"key_dim"`, `(key_dim,)`; and
            `"value_dim"`, `(value_dim,)`.
    """

    def __init__(self, layer, axis=-1, **kwargs):
        super().__init__(layer, axis=axis, **kwargs)
        self._taken = frozenset(call_parameters(self.layer))

    def build(self, query_shape, value_shape, key_shape=None):  # type: ignore[override]
        if not self.layer.built:
            self.layer.build(query_shape, value_shape, key_shape)
            self.layer.built = True
        shapes = (query_shape, value_shape, key_shape or value_shape)
        self._add_gates(gates_of(self.layer, *shapes, mask=self))
        self.built = True

    def __call__(self, *args, **kwargs):
        return layers.Layer.__call__(self, *args, **kwargs)

    def call(  # type: ignore[override]
        self,
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
        use_causal_mask=False,
    ):
        given = {
            "query_mask": query_mask,
            "value_mask": value_mask,
            "key_mask": key_mask,
            "attention_mask": attention_mask,
            "return_attention_scores": return_attention_scores,
            "training": training,
            "use_causal_mask": use_causal_mask,
        }
        kwargs = {name: given[name] for name in given if name in self._taken}
        return self._gated_call(query, value, key=key, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_output_shape(  # type: ignore[override]
        self, query_shape, value_shape, key_shape=None
    ):
        return self.layer.compute_output_shape(query_shape, value_shape, key_shape)


@masks(layers.GroupQueryAttention)
class MaskedGroupQueryAttention(MaskedMultiHeadAttention):
    """A `GroupQueryAttention` with gates for heads, dimensions and its width.

    Query heads that share a key head have one gate with it; those of a single
    key head each have their own. See
    `filterprune.layers.MaskedMultiHeadAttention`.

    Attributes:
        gates: a dict of non-trainable weights: `""` for the output, `(width,)`;
            `"heads"`, `(num_key_value_heads,)`, of a single one
            `(num_query_heads,)`; and `"head_dim"`, `(head_dim,)`.
    """
