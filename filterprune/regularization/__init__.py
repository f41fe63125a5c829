"""Sparse learning: penalties on whole groups of channels, before they go."""

from filterprune.regularization.base import GroupRegularizer
from filterprune.regularization.decay import GroupWeightDecay, GrowingRegularization
from filterprune.regularization.l1 import GroupLasso, ScaleL1

__all__ = [
    "GroupLasso",
    "GroupRegularizer",
    "GroupWeightDecay",
    "GrowingRegularization",
    "ScaleL1",
]
