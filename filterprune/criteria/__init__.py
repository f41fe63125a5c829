"""Importance criteria: how dear each channel is."""

from filterprune.criteria.base import (
    Criterion,
    get,
    names,
    register_criterion,
    with_data,
)
from filterprune.criteria.data import (
    ActivationMean,
    APoZ,
    Fisher,
    GateGradient,
    HRank,
    Taylor,
)
from filterprune.criteria.reconstruction import Reconstruction
from filterprune.criteria.weights import (
    LAMP,
    BatchNormScale,
    GroupMagnitude,
    Random,
    fpgm,
    l1,
    l2,
)

__all__ = [
    "LAMP",
    "APoZ",
    "ActivationMean",
    "BatchNormScale",
    "Criterion",
    "Fisher",
    "GateGradient",
    "GroupMagnitude",
    "HRank",
    "Random",
    "Reconstruction",
    "Taylor",
    "fpgm",
    "get",
    "l1",
    "l2",
    "names",
    "register_criterion",
    "with_data",
]
