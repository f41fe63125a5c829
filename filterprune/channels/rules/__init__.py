"""What each layer type does to channels: one short function a type."""

# Importing a module registers its rules.
from filterprune.channels.rules import (
    activation,
    barriers,
    conv,
    dense,
    embeddings,
    merging,
    movement,
    moving,
    normalization,
    operations,
    pooling,
    recurrent,
    reduction,
    regularization,
    unknown,
    wrappers,
)

__all__ = [
    "activation",
    "barriers",
    "conv",
    "dense",
    "embeddings",
    "merging",
    "movement",
    "moving",
    "normalization",
    "operations",
    "pooling",
    "recurrent",
    "reduction",
    "regularization",
    "unknown",
    "wrappers",
]
