"""Rules for layers of keras-hub: loaded with the first of them, and not before."""

import contextlib
import functools
import importlib

import keras
import keras_hub
import numpy as np
from keras import ops

from filterprune.channels.registry import composite, composites_of, rule
from filterprune.channels.rules.attention import multi_head_attention
from filterprune.channels.verbs import barrier, same
from filterprune.layers.attention import MaskedMultiHeadAttention
from filterprune.layers.base import masks_too

# Whatever else holds layers is taken apart, where that can be.
composites_of("keras_hub")
masks_too(MaskedMultiHeadAttention, keras_hub.layers.CachedMultiHeadAttention)


@rule(keras_hub.layers.CachedMultiHeadAttention)
def cached_multi_head_attention(
    layer,
    query,
    value,
    key=None,
    attention_mask=None,
    cache=None,
    cache_update_index=None,
    return_attention_scores=False,
):
    if cache is not None:
        return barrier("it is called with a cache")
    return multi_head_attention(
        layer,
        query,
        value,
        key,
        attention_mask=attention_mask,
        return_attention_scores=return_attention_scores,
    )


@rule(keras_hub.layers.PositionEmbedding)
def position_embedding(layer, x, start_index=0, positions=None):
    """What comes out has the channels of what goes in, and nothing else of it."""
    return same(
        x,
        axis=-1,
        keeps_zero=False,
        gates=("position_embeddings",),
        position_embeddings="_ in",
    )


def _causal_mask(
    layer, decoder_sequence, decoder_padding_mask, decoder_attention_mask, **kwargs
):
    """The mask of a decoder, made of tensors alone, whatever their sizes."""
    x = decoder_sequence
    mask = None
    if decoder_padding_mask is not None:
        mask = ops.cast(ops.expand_dims(decoder_padding_mask, axis=1), "int32")
    if decoder_attention_mask is not None:
        given = ops.cast(decoder_attention_mask, "int32")
        mask = given if mask is None else ops.minimum(mask, given)
    if not kwargs.get("use_causal_mask", True):
        return mask
    ones = ops.sum(ops.zeros_like(x), axis=-1, keepdims=True) + 1.0
    number = ops.cumsum(ones, axis=1)
    causal = ops.greater_equal(number, ops.transpose(number, (0, 2, 1)))
    causal = ops.cast(causal, "int32")
    return causal if mask is None else ops.minimum(mask, causal)


class _Plain:
    """Stands for attention with a cache that is called without one.

    Keras cannot call it with symbolic tensors, for it does not know of caches.
    """

    def __init__(self, attention):
        self.attention = attention
        if type(attention) is keras_hub.layers.CachedMultiHeadAttention:
            self.attention = keras.layers.MultiHeadAttention.from_config(
                attention.get_config()
            )
            self.attention.build_from_config(attention.get_build_config())
            self.attention.set_weights(attention.get_weights())

    def __call__(self, query, value, cache=None, cache_update_index=None, **kwargs):
        if isinstance(self.attention, keras_hub.layers.CachedMultiHeadAttention):
            return self.attention.call(query, value, **kwargs)
        return self.attention(query, value, **kwargs)


def _decode(layer, *args, **kwargs):
    """Call a decoder so that it makes its mask of tensors, whatever their sizes."""
    own = vars(layer)
    if "_compute_self_attention_mask" not in own:
        own["_compute_self_attention_mask"] = functools.partial(_causal_mask, layer)
        for name in ("_self_attention_layer", "_cross_attention_layer"):
            attention = getattr(layer, name, None)
            if attention is not None:
                own[name] = _Plain(attention)
    return layer.call(*args, **kwargs)


composite(keras_hub.layers.TransformerDecoder, _decode)


def _positions(x, embedding):
    """The embeddings of all positions of a tensor, added to it."""
    ones = ops.sum(ops.zeros_like(x), axis=-1) + 1.0
    return x + embedding(ops.cast(ops.cumsum(ones, axis=1) - 1.0, "int32"))


def _embed(layer, inputs, positions, tokens):
    """Patches of an image behind tokens, at their positions.

    A token and the position that it stands at are one vector, so that there is
    an `Embedding` of all of these and nothing else.
    """
    x = layer.patch_embedding(inputs)
    if layer.data_format == "channels_first":
        x = ops.transpose(x, (0, 2, 3, 1))
    x = ops.reshape(x, (-1, layer.num_patches, x.shape[-1]))
    x = ops.pad(x, ((0, 0), (len(tokens), 0), (0, 0)))
    if "_embedding" not in vars(layer):
        table = np.array(ops.convert_to_numpy(positions)).reshape(x.shape[1:])
        for place, token in enumerate(tokens):
            table[place] += ops.convert_to_numpy(token)[0, 0]
        embedding = keras.layers.Embedding(
            *table.shape, dtype=layer.dtype_policy, name=f"{layer.name}_positions"
        )
        embedding.build((None, None))
        embedding.set_weights([table])
        vars(layer)["_embedding"] = embedding
    return _positions(x, vars(layer)["_embedding"])


def _vit_embed(layer, inputs):
    tokens = [layer.class_token] if layer.use_class_token else []
    return _embed(layer, inputs, layer.position_embedding.embeddings, tokens)


def _deit_embed(layer, inputs):
    tokens = [layer.class_token, layer.distillation_token]
    x = _embed(layer, inputs, layer.position_embedding, tokens)
    return layer.dropout(x)


def _declare(path: str, call) -> None:
    """Declare a composite that keras-hub does not publish."""
    place, name = path.rsplit(".", 1)
    with contextlib.suppress(ImportError, AttributeError):  # of another release
        module = importlib.import_module(f"keras_hub.src.models.{place}")
        composite(getattr(module, name), call)


_declare("whisper.whisper_decoder.WhisperDecoder", _decode)
_declare("vit.vit_layers.ViTPatchingAndEmbedding", _vit_embed)
_declare("deit.deit_layers.DeiTEmbeddings", _deit_embed)
