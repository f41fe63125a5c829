"""Products of tensors: matrix products, einsum, attention as an operation."""

import math

from keras import layers

from filterprune.channels.calls import current, describe
from filterprune.channels.constants import rounded
from filterprune.channels.contraction import contract, tensordot_axes
from filterprune.channels.labels import Channels
from filterprune.channels.registry import operation, rule
from filterprune.channels.rules.reduction import normalised
from filterprune.channels.verbs import barrier


@operation("Matmul")
def matmul(op, x1, x2):
    ranks = [len(x.shape) for x in (x1, x2)]
    if min(ranks) < 2:
        return barrier("it multiplies by a vector")
    batch = [f"b{i}" for i in range(max(ranks) - 2)]
    names1 = [*batch[len(batch) - ranks[0] + 2 :], "i", "k"]
    names2 = [*batch[len(batch) - ranks[1] + 2 :], "k", "j"]
    return contract([x1, x2], [names1, names2], [*batch, "i", "j"])


@operation("Tensordot")
def tensordot(op, x1, x2):
    names, output = tensordot_axes(op.axes, len(x1.shape), len(x2.shape))
    return contract([x1, x2], names, output)


@rule(layers.Dot)
def dot(layer, xs):
    axes = layer.axes
    axes = (axes, axes) if isinstance(axes, int) else tuple(axes)
    if layer.normalize:
        xs = [normalised(x, [axis]) for x, axis in zip(xs, axes, strict=True)]
    x1, x2 = xs
    names1 = ["b", *(f"p{i}" for i in range(1, x1.ndim))]
    names2 = ["b", *(f"q{i}" for i in range(1, x2.ndim))]
    names1[axes[0]] = names2[axes[1]] = "k"
    output = ["b", *(n for n in names1[1:] + names2[1:] if n != "k")]
    return contract([x1, x2], [names1, names2], output)


@operation("Einsum")
def einsum(op, *xs):
    text = op.subscripts.replace(" ", "")
    if "->" not in text:
        return barrier(f"its subscripts '{op.subscripts}' are not spelled out")
    inputs, output = text.split("->")
    free = [len(x.shape) - len(n.replace("...", "")) for x, n in _pairs(xs, inputs)]
    rest = [f"_{i}" for i in range(max(free))]  # what `...` stands for, from the right
    names = [
        _spelled(n, rest[len(rest) - k :])
        for (_, n), k in zip(_pairs(xs, inputs), free)
    ]
    return contract(xs, names, _spelled(output, rest))


def _pairs(xs, inputs):
    return list(zip(xs, inputs.split(","), strict=True))


def _spelled(subscripts: str, rest: list[str]) -> list[str]:
    before, dots, after = subscripts.partition("...")
    return [*before, *(rest if dots else ()), *after]


@operation("DotProductAttention")
def dot_product_attention(op, query, key, value, bias=None, mask=None, scale=None):
    """Heads of `(batch, positions, heads, dimensions)`; its scale is kept."""
    call = current()
    table = call.flow.table
    if not all(isinstance(x, Channels) for x in (query, key, value)):
        return barrier("a query, key or value is a constant")
    if query.shape[2] != key.shape[2]:  # a single one left would not do in Keras
        return barrier("heads share keys; use `layers.GroupQueryAttention`")
    shape = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    scores = contract([query, key], ["btnh", "bsnh"], list("bnts"), shape)
    for given in (bias, mask):
        if given is None:
            continue
        if isinstance(given, Channels):
            table.pin(given.labels, f"read as a mask by {describe(op)}")
        if len(given.shape) == 4 and given.shape[1] != 1:
            table.pin(scores.labels, f"a mask of {describe(op)} tells heads apart")
    output = contract([scores, value], ["bnts", "bsnh"], list("btnh"))
    # The output has the query's shape, in Keras' eyes: dimensions go together.
    for x in (query, key):
        if x.labels.shape[3] > 1:
            table.tie(x.labels, value.labels)

    def rewrite(survivors, args, kwargs):
        size = query.shape[3]
        if scale is None and survivors.size(query, 3) != size:
            kwargs = {**kwargs, "scale": rounded(1 / math.sqrt(size))}
        return args, kwargs

    call.flow.binding(call).rewrite = rewrite
    return output
