"""The one analysis: what every layer does to channels."""

from filterprune.channels import rules
from filterprune.channels.flow import Flow, describe, flow
from filterprune.channels.holding import hold
from filterprune.channels.joining import join
from filterprune.channels.labels import Channels
from filterprune.channels.recurring import recur
from filterprune.channels.registry import rule
from filterprune.channels.verbs import barrier, mix, same, take

__all__ = [
    "Channels",
    "Flow",
    "barrier",
    "describe",
    "flow",
    "hold",
    "join",
    "mix",
    "recur",
    "rule",
    "rules",
    "same",
    "take",
]
