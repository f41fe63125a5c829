"""The one analysis: what every layer does to channels."""

from filterprune.channels import rules
from filterprune.channels.calls import Flow, describe
from filterprune.channels.flow import flow
from filterprune.channels.holding import hold
from filterprune.channels.joining import join
from filterprune.channels.labels import Channels
from filterprune.channels.recurring import recur
from filterprune.channels.registry import composite, rule
from filterprune.channels.verbs import barrier, mix, same, take

__all__ = [
    "Channels",
    "Flow",
    "barrier",
    "composite",
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
