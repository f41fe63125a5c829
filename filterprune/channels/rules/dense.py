"""Dense layers."""

from keras import layers

from filterprune.channels.registry import rule
from filterprune.channels.verbs import mix


@rule(layers.Dense)
def dense(layer, x):
    return mix(
        x,
        kernel="in out",
        bias="out",
        resize="units",
        fold=True,
        axis=-1,
        kind="dense",
    )
