"""Budgets: of what, and how much of it is to go."""

import dataclasses
import numbers

import numpy as np

from filterprune.schedules import check_sparsity
from filterprune.slots import Slots

TARGETS = ("filters", "params", "macs", "bytes")
UNITS = {"macs": "MACs", "params": "parameters", "bytes": "bytes", "filters": "filters"}


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is counted, and how much of it may be left.

    Attributes:
        target: `"filters"` counts the prunable filters; `"params"`, `"macs"` and
            `"bytes"` what the whole model costs.
        budget: how much of it may be left at the end, or None where a fraction
            says so.
    """

    target: str = "filters"
    budget: float | None = None

    def __post_init__(self):
        if self.target not in TARGETS:
            raise ValueError(
                f"Expected `target` to be one of {list(TARGETS)}. "
                f"Received: target={self.target!r}"
            )
        if self.budget is None:
            return
        if isinstance(self.budget, bool) or not isinstance(self.budget, numbers.Real):
            raise TypeError(
                f"Expected `budget` to be a number. Received: budget={self.budget!r}"
            )
        if not self.budget > 0:
            raise ValueError(
                f"Expected `budget` to be above 0, in {UNITS[self.target]}. "
                f"Received: budget={self.budget!r}"
            )

    def left(self, slots: Slots, closed: np.ndarray) -> float:
        """How much is left with these slots closed."""
        if self.target == "filters":
            return float(slots.filters[~closed].sum())
        return float(getattr(slots.cost(closed), self.target))

    def full(self, slots: Slots) -> float:
        """How much there is with every gate open."""
        return self.left(slots, np.zeros(slots.count, bool))

    def removed(self, slots: Slots, closed: np.ndarray) -> float:
        """The fraction that is gone with these slots closed."""
        return 1 - self.left(slots, closed) / self.full(slots)

    def fraction(self, slots: Slots, sparsity: float | None) -> float:
        """The fraction to remove: what is given, or what the budget says."""
        if self.budget is None:
            return check_sparsity("sparsity", sparsity)
        return max(0.0, 1 - self.budget / self.full(slots))
