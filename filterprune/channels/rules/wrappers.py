"""Layers that wrap another layer."""

import numpy as np
from keras import layers

from filterprune.channels.calls import Gate, current
from filterprune.channels.constants import spread
from filterprune.channels.holding import hold
from filterprune.channels.joining import gather
from filterprune.channels.registry import calls_models, rule
from filterprune.channels.verbs import along, barrier, same

calls_models(1, layers.TimeDistributed)


@rule(layers.TimeDistributed)
def time_distributed(layer, x, mask=None):
    return hold(x, without=1)


@rule(layers.SpectralNormalization)
def spectral_normalization(layer, x):
    """In training the kernel is divided by a norm, over open gates only.

    In inference it is used as it is, divided when it was last trained.
    """
    made = hold(x)
    call = current()
    bound = call.flow.binding(call).axes
    name = "layer.kernel" if "layer.kernel" in bound else "layer.embeddings"
    axes = bound[name]
    call.flow.bind(call, "vector_u", (None, axes[-1]))
    for gate in call.gates[:1]:
        for axis, labels in enumerate(axes):
            if labels is not None and axis != gate.makers[name]:
                _gate_what_is_read(name, axis, labels, len(axes))
    return made


def _gate_what_is_read(name, axis, labels, ndim):
    """Gates on the part of a kernel that reads absent channels: it has no norm."""
    call = current()
    weights = {name: spread(np.arange(labels.size), ndim, axis)}
    call.gates.append(Gate(labels, 0, weights, {}, False, True, name="read"))
    while call.holder is not None:
        call = call.holder

    def worth(valuation, values):
        valuation.agree(call, labels, "read")
        return []

    call.step([], [], worth)


@rule(layers.Masking)
def masking(layer, x):
    if layer.mask_value != 0:
        return barrier("absent channels are zero, and it masks another value")
    # A step is masked if all channels are zero: those that are not count.
    gather([x], along(x, -1), [-1])
    return same(x, axis=-1, keeps_zero=True)
