"""Layers that wrap another layer."""

from keras import layers

from filterprune.channels.calls import current
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
    """In inference the kernel is used as it is, normalised when last trained."""
    made = hold(x)
    call = current()
    axes = call.flow.binding(call).axes.get("layer.kernel")
    if axes is not None:
        call.flow.bind(call, "vector_u", (None, axes[-1]))
    return made


@rule(layers.Masking)
def masking(layer, x):
    if layer.mask_value != 0:
        return barrier("absent channels are zero, and it masks another value")
    # A step is masked if all channels are zero: those that are not count.
    gather([x], along(x, -1), [-1])
    return same(x, axis=-1, keeps_zero=True)
