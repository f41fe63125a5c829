"""Attention layers: heads, the dimensions of keys and values, the width."""

import math

import keras
import numpy as np
from keras import layers

from filterprune.channels.binding import bind_weights
from filterprune.channels.calls import current, describe
from filterprune.channels.compound import Inner, compound, positions_of
from filterprune.channels.constants import rounded, spread
from filterprune.channels.contraction import contract
from filterprune.channels.joining import gather
from filterprune.channels.labels import Channels
from filterprune.channels.registry import rule
from filterprune.channels.verbs import along

_OUTPUT = "attention_output"


@rule(layers.MultiHeadAttention)
def multi_head_attention(
    layer,
    query,
    value,
    key=None,
    query_mask=None,
    value_mask=None,
    key_mask=None,
    attention_mask=None,
    return_attention_scores=False,
    use_causal_mask=False,
):
    """Dot products of queries and keys; the scale is that of the key dimension.

    Keras computes the scale from the key dimension when the layer is made: what
    it would be too large by in a smaller layer goes into the query's kernel.
    """
    table = current().flow.table
    key = value if key is None else key
    heads = table.new(layer.num_heads)
    keys, values = table.new(layer.key_dim), table.new(layer.value_dim)
    made, rank = table.new(current().outputs[0][-1]), query.ndim + 1
    asked = layer.get_config()["output_shape"]
    width = along(query, -1)

    def output_shape(survivors):
        count = survivors.count(made)
        if asked is None and count == survivors.count(width):
            return None
        return (*(asked or ())[:-1], count)

    _keep_two(layer, (query, key, value), heads.size, keys, values)
    if keras.backend.backend() == "jax" and keys.size == values.size:
        table.tie(keys, values)  # JAX attends with one size for both
    attended = positions_of(query) * _attended(layer, value)
    output = compound(
        {"query": query, "key": key, "value": value},
        weights=_weights("heads", "heads", "key_dim", "value_dim"),
        gates=(f"{_OUTPUT}.kernel", f"{_OUTPUT}.bias"),
        inner={
            "heads": Inner(
                heads,
                gates=(f"{_OUTPUT}.kernel",),
                makers=("value.kernel", f"{_OUTPUT}.kernel"),
                seen=[(_OUTPUT, False, spread(heads, rank, -2))],
            ),
            "key_dim": Inner(
                keys,
                gates=("query.kernel", "query.bias"),
                makers=("query.kernel", "key.kernel"),
                seen=[("query", True, spread(keys, rank, -1))],
            ),
            "value_dim": Inner(
                values,
                gates=(f"{_OUTPUT}.kernel",),
                makers=("value.kernel", f"{_OUTPUT}.kernel"),
                seen=[(_OUTPUT, False, spread(values, rank, -1))],
            ),
        },
        made=made,
        products=[
            *_projections(query, key, value),
            (("heads", "key_dim"), attended),
            (("heads", "value_dim"), attended),
        ],
        resize={
            "num_heads": "heads",
            "key_dim": "key_dim",
            "value_dim": "value_dim",
            "output_shape": output_shape,
        },
        scales=_scales(keys),
        kind="width",
    )
    masks = (query_mask, value_mask, key_mask, attention_mask)
    return _with_scores(layer, output, heads, masks)


@rule(layers.GroupQueryAttention)
def group_query_attention(
    layer,
    query,
    value,
    key=None,
    query_mask=None,
    value_mask=None,
    key_mask=None,
    attention_mask=None,
    return_attention_scores=False,
    use_causal_mask=False,
):
    """Heads go with the key head that they share; of a single one each alone.

    Queries, keys and values have one size, and the output that of the query.
    """
    table = current().flow.table
    key = value if key is None else key
    shared, count = layer.num_key_value_heads, layer.num_query_heads
    single = shared == 1
    groups = table.new(count if single else shared)
    heads = groups if single else np.repeat(groups, count // shared)
    every = "heads" if single else "every_head"
    dims, rank = table.new(layer.head_dim), query.ndim + 1
    seen = spread(dims, rank, -1)
    _keep_two(layer, (query, key, value), heads.size, dims)
    gates = (f"{_OUTPUT}.kernel",) if single else ("value.kernel", "value.bias")
    kernels = ("query.kernel", "key.kernel", "value.kernel")
    attended = positions_of(query) * _attended(layer, value)
    output = compound(
        {"query": query, "key": key, "value": value},
        weights=_weights(every, "_" if single else "heads", "head_dim", "head_dim"),
        gates=(f"{_OUTPUT}.kernel", f"{_OUTPUT}.bias"),
        inner={
            "heads": Inner(
                groups,
                gates,
                makers=("query.kernel",) if single else kernels[1:],
                seen=[(_OUTPUT, False, spread(heads, rank, -2))],
            ),
            "head_dim": Inner(
                dims,
                gates=("query.kernel", "query.bias", f"{_OUTPUT}.kernel"),
                makers=kernels,
                seen=[("query", True, seen), (_OUTPUT, False, seen)],
            ),
        },
        known={"every_head": heads},
        made=along(query, -1),
        products=[
            *_projections(query, key, value),
            *[(("every_head", "head_dim"), attended)] * 2,
        ],
        resize={
            "num_query_heads": every,
            **({} if single else {"num_key_value_heads": "heads"}),
            "head_dim": "head_dim",
        },
        scales=_scales(dims),
        kind="width",
    )
    masks = (query_mask, value_mask, key_mask, attention_mask)
    return _with_scores(layer, output, heads, masks)


@rule(layers.Attention)
def attention(
    layer, xs, mask=None, return_attention_scores=False, use_causal_mask=False
):
    """Sums over the channels of queries and keys; the output has the value's."""
    sums = layer.score_mode != "dot"  # of `tanh(query + key)`, else of products
    return _attention(layer, xs, mask, sums)


@rule(layers.AdditiveAttention)
def additive_attention(
    layer, xs, mask=None, return_attention_scores=False, use_causal_mask=False
):
    bind_weights({"scale": "in"}, {"in": along(xs[0], -1)})
    return _attention(layer, xs, mask, sums=True)


def _attention(layer, xs, masks, sums):
    call = current()
    query, value = xs[:2]
    key = xs[2] if len(xs) > 2 else value
    for given in masks or ():
        if isinstance(given, Channels):
            call.flow.table.pin(given.labels, f"read as a mask by {describe(layer)}")
    shape = (*query.shape[:-1], key.shape[-2])
    batch = [f"b{i}" for i in range(query.ndim - 2)]
    queries, keys, scored = [*batch, "t", "d"], [*batch, "s", "d"], [*batch, "t", "s"]
    if sums:
        read = along(query, -1)
        call.flow.table.tie(read, along(key, -1))
        scores = gather([query, key], read, [-1, -1], shape=shape, every=True)
        call.flow.marks.append((read, "key_dim"))
        call.products.append(((read,), positions_of(query) * (key.shape[-2] or 1)))
    else:
        scores = contract([query, key], [queries, keys], scored, shape)
    output = contract([scores, value], [scored, keys], queries, call.outputs[0])
    return output if len(call.outputs) == 1 else (output, scores)


def _keep_two(layer, read, heads, *dims) -> None:
    """Keep two dimensions where Keras 3.15 would misplace the bias of a single one.

    On TensorFlow a bias of shape `(heads, 1)` is added along the positions if there
    are as many of those as heads.
    """
    biased = layer.get_config()["use_bias"]
    if biased and any(x.shape[1] is not None and 1 < x.shape[1] <= heads for x in read):
        for vector in dims:
            reason = f"{describe(layer)} has no more positions than heads"
            current().flow.table.pin(vector[:2], reason)


def _weights(heads: str, key_heads: str, keys: str, values: str) -> dict[str, str]:
    """What runs along the axes of the weights of an attention layer."""
    return {
        "query.kernel": f"query {heads} {keys}",
        "query.bias": f"{heads} {keys}",
        "key.kernel": f"key {key_heads} {keys}",
        "key.bias": f"{key_heads} {keys}",
        "value.kernel": f"value {key_heads} {values}",
        "value.bias": f"{key_heads} {values}",
        "gate.kernel": f"query {heads} {values}",
        "gate.bias": f"{heads} {values}",
        f"{_OUTPUT}.kernel": f"{heads} {values} ... out",
        f"{_OUTPUT}.bias": "... out",
    }


def _projections(query, key, value) -> list[tuple[str, int]]:
    read = {"query": query, "key": key, "value": value, "gate": query, _OUTPUT: query}
    return [(f"{name}.kernel", positions_of(x)) for name, x in read.items()]


def _attended(layer, value) -> int:
    """How many positions each position attends to; an unknown size counts once."""
    axes = getattr(layer, "attention_axes", None) or range(1, value.ndim - 1)
    return math.prod(value.shape[axis] or 1 for axis in axes)


def _scales(keys) -> dict:
    """What keeps products as they were by the scale of fewer dimensions."""

    def ratio(survivors):
        left = survivors.count(keys)
        return rounded(1 / math.sqrt(keys.size)) / rounded(1 / math.sqrt(left))

    return {"query.kernel": ratio, "query.bias": ratio}


def _with_scores(layer, output, heads, masks):
    """The output, and the attention scores if they are asked for."""
    call = current()
    table = call.flow.table
    for mask in masks:
        if not isinstance(mask, Channels):
            continue
        table.pin(mask.labels, f"read as a mask by {describe(layer)}")
        if mask.ndim == output.ndim + 1 and mask.shape[-3] != 1:
            table.pin(heads, f"a mask of {describe(layer)} tells heads apart")
    if len(call.outputs) == 1:
        return output
    shape = call.outputs[1]
    if len(shape) != 4:
        return output, call.flow.pinned(shape, f"scores of {describe(layer)}")
    scores = Channels(shape, spread(heads, 4, 1))
    call.step([], [scores], lambda *_: [np.full(scores.labels.shape, np.nan)])
    return output, scores
