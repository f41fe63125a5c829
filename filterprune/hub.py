"""Rules for layers of keras-hub: loaded with the first of them, and not before."""

import contextlib
import functools
import importlib

import keras_hub
from keras import ops

from filterprune.channels.registry import composite, composites_of, rule
from filterprune.channels.rules.attention import multi_head_attention
from filterprune.channels.trace import mask_of
from filterprune.channels.verbs import barrier, mix, same
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
    padding = mask_of(x) if decoder_padding_mask is None else decoder_padding_mask
    if padding is not None:
        mask = ops.cast(ops.expand_dims(padding, axis=1), "int32")
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


def _decode(layer, *args, **kwargs):
    vars(layer)["_compute_self_attention_mask"] = functools.partial(_causal_mask, layer)
    return layer.call(*args, **kwargs)


composite(keras_hub.layers.TransformerDecoder, _decode)


def _patches(*vectors: str):
    """A rule for images cut into patches, and vectors of the same width added."""

    def patches(layer, x, bool_masked_pos=None):
        if bool_masked_pos is not None:
            return barrier("it is called with a mask of positions")
        if layer.data_format == "channels_first":
            return barrier("its channels are first")
        names = ("patch_embedding.kernel", "patch_embedding.bias", *vectors)
        return mix(
            x,
            axis=-1,
            resize="hidden_dim",
            gates=names,
            bind={
                "patch_embedding.kernel": "... in out",
                "patch_embedding.bias": "out",
                **dict.fromkeys(vectors, "... out"),
            },
        )

    return patches


def _register(path: str, *vectors: str) -> None:
    module, name = path.rsplit(".", 1)
    with contextlib.suppress(ImportError, AttributeError):  # of another release
        cls = getattr(importlib.import_module(f"keras_hub.src.models.{module}"), name)
        rule(cls)(_patches(*vectors))


_register(
    "vit.vit_layers.ViTPatchingAndEmbedding",
    "class_token",
    "position_embedding.embeddings",
)
_register(
    "deit.deit_layers.DeiTEmbeddings",
    "class_token",
    "distillation_token",
    "mask_token",
    "position_embedding",
)
