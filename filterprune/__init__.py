"""Structured pruning for Keras: nets that are really smaller and faster."""

from filterprune import channels, criteria, layers, plots, schedules
from filterprune.callbacks import FilterPruningCallback
from filterprune.channels import composite, rule
from filterprune.compaction import compact
from filterprune.companions import AfterPruning
from filterprune.criteria import Criterion, register_criterion
from filterprune.distillation import distill
from filterprune.errors import PruningWarning, VerificationError
from filterprune.expansion import expand
from filterprune.exporting import export_model
from filterprune.folding import fold_batch_norm
from filterprune.gates import kept_indices, replay
from filterprune.latency import LatencyModel, measure_latency
from filterprune.reconstruction.compress import compress
from filterprune.reconstruction.fitting import reconstruct
from filterprune.reconstruction.report import ReconstructionReport
from filterprune.recovery import recalibrate
from filterprune.regularization import (
    GroupLasso,
    GroupWeightDecay,
    GrowingRegularization,
    ScaleL1,
)
from filterprune.report import Report, analyze
from filterprune.schedules import (
    ConstantSparsity,
    IterativeSparsity,
    PolynomialDecay,
    Schedule,
)
from filterprune.selection import prune
from filterprune.sensitivities import Sensitivity, sensitivity
from filterprune.shrinking import fit_shrinking
from filterprune.tensorboard import PruningTensorBoard
from filterprune.version import __version__
from filterprune.wrapping import wrap, wrap_model

__all__ = [
    "AfterPruning",
    "ConstantSparsity",
    "Criterion",
    "FilterPruningCallback",
    "GroupLasso",
    "GroupWeightDecay",
    "GrowingRegularization",
    "IterativeSparsity",
    "LatencyModel",
    "PolynomialDecay",
    "PruningTensorBoard",
    "PruningWarning",
    "ReconstructionReport",
    "Report",
    "ScaleL1",
    "Schedule",
    "Sensitivity",
    "VerificationError",
    "__version__",
    "analyze",
    "channels",
    "compact",
    "composite",
    "compress",
    "criteria",
    "distill",
    "expand",
    "export_model",
    "fit_shrinking",
    "fold_batch_norm",
    "kept_indices",
    "layers",
    "measure_latency",
    "plots",
    "prune",
    "recalibrate",
    "reconstruct",
    "register_criterion",
    "replay",
    "rule",
    "schedules",
    "sensitivity",
    "wrap",
    "wrap_model",
]
