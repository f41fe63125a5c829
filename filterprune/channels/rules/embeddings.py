"""Embeddings: tables of channels, looked up by number."""

import numpy as np
from keras import layers

from filterprune.channels.binding import bind_weights, note_resizing
from filterprune.channels.calls import current
from filterprune.channels.constants import count_positions, values_along
from filterprune.channels.registry import rule
from filterprune.channels.verbs import along, mix


@rule(layers.Embedding)
def embedding(layer, x):
    return _look_up(layer, x, embeddings="_ out")


@rule(layers.ReversibleEmbedding)
def reversible_embedding(layer, x, reverse=False):
    if reverse:
        return _project(layer, x)
    y = _look_up(layer, x, embeddings="_ out", reverse_embeddings="out _")
    current().takes = ("reverse",)
    return y


def _look_up(layer, x, **weights):
    current().flow.table.pin(x.labels, f"numbers entries of `{layer.name}`")
    return mix(x, resize="output_dim", axis=-1, positions=None, kind="width", **weights)


def _project(layer, x):
    """From embeddings back to scores of all entries, of which none is removed."""
    call = current()
    read = along(x, -1)
    bind_weights({"embeddings": "_ in", "reverse_embeddings": "in _"}, {"in": read})
    note_resizing({"output_dim": "in"}, {"in": read})
    output = call.flow.pinned(call.outputs[0], f"scores an entry of `{layer.name}`")
    name = "embeddings" if layer.tie_weights else "reverse_embeddings"
    call.products.append((name, count_positions(output, -1)))

    def worth(valuation, values):
        constants = values_along(values[0], -1, read.size)
        valuation.read(call, read, constants, fold=False)
        return [np.full(output.labels.shape, np.nan)]

    call.step([x], [output], worth)
    return output
