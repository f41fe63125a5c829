"""The one analysis: what every layer does to channels."""

from filterprune.channels.flow import Flow, describe, flow
from filterprune.channels.labels import Channels
from filterprune.channels.registry import rule
from filterprune.channels.verbs import barrier, join, mix, same, take

# Importing a rule module registers its rules.
from filterprune.channels.rules import (  # isort: skip
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
    "Channels",
    "Flow",
    "barrier",
    "describe",
    "flow",
    "join",
    "mix",
    "rule",
    "same",
    "take",
]
