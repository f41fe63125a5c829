"""What each layer type does to channels: one short function a type."""

# Importing a module registers its rules.
from filterprune.channels.rules import (
    activation,
    conv,
    dense,
    merging,
    moving,
    normalization,
    operations,
    pooling,
    regularization,
)

__all__ = [
    "activation",
    "conv",
    "dense",
    "merging",
    "moving",
    "normalization",
    "operations",
    "pooling",
    "regularization",
]
