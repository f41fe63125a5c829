"""Structured pruning for Keras: convnets that are really smaller and faster."""

from filterprune import channels, criteria, layers, schedules
from filterprune.callbacks import FilterPruningCallback
from filterprune.channels import rule
from filterprune.compaction import compact
from filterprune.errors import PruningWarning, VerificationError
from filterprune.gates import kept_indices, replay
from filterprune.report import Report, analyze
from filterprune.schedules import ConstantSparsity, PolynomialDecay, Schedule
from filterprune.selection import prune
from filterprune.version import __version__
from filterprune.wrapping import wrap, wrap_model

__all__ = [
    "ConstantSparsity",
    "FilterPruningCallback",
    "PolynomialDecay",
    "PruningWarning",
    "Report",
    "Schedule",
    "VerificationError",
    "__version__",
    "analyze",
    "channels",
    "compact",
    "criteria",
    "kept_indices",
    "layers",
    "prune",
    "replay",
    "rule",
    "schedules",
    "wrap",
    "wrap_model",
]
