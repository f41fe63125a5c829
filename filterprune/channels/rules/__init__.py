"""What each layer type does to channels: one short function a type."""

# Importing a module registers its rules.
from filterprune.channels.rules import (
    activation,
    attention,
    barriers,
    contraction,
    conv,
    dense,
    einsum,
    merging,
    movement,
    moving,
    normalization,
    operations,
    pooling,
    reduction,
    regularization,
    unknown,
    wrappers,
)

__all__ = [
    "activation",
    "attention",
    "barriers",
    "contraction",
    "conv",
    "dense",
    "einsum",
    "merging",
    "movement",
    "moving",
    "normalization",
    "operations",
    "pooling",
    "reduction",
    "regularization",
    "unknown",
    "wrappers",
]
