"""Latency as a cost: measured on this machine, layer by layer."""

from filterprune.latency.measuring import measure_latency
from filterprune.latency.model import LatencyModel

__all__ = ["LatencyModel", "measure_latency"]
