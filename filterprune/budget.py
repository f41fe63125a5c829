"""Budgets: of what, and how much of it is to go."""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from filterprune.errors import warn
from filterprune.latency import LatencyModel, measure_latency
from filterprune.schedules import check_sparsity
from filterprune.slots import Slots
from filterprune.suggestions import did_you_mean

TARGETS = ("filters", "params", "macs", "bytes", "latency")
UNITS = {
    "macs": "MACs",
    "params": "parameters",
    "bytes": "bytes",
    "filters": "filters",
    "latency": "seconds",
}


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is counted, and how much of it may be left.

    Attributes:
        target: `"filters"` counts the prunable filters; `"params"`, `"macs"`,
            `"bytes"` and `"latency"` what the whole model costs. A
            `filterprune.LatencyModel` stands for the latency that it measured.
        budget: how much of it may be left at the end, or None where a fraction
            says so.
        latency: the `LatencyModel`, once it is known, if that is the target.
    """

    target: Any = "filters"
    budget: float | None = None
    latency: LatencyModel | None = None

    def __post_init__(self):
        if isinstance(self.target, LatencyModel):
            object.__setattr__(self, "latency", self.target)
            object.__setattr__(self, "target", "latency")
        if self.target not in TARGETS:
            raise ValueError(
                f"Expected `target` to be one of {list(TARGETS)}, or what "
                "`filterprune.measure_latency` returns. "
                f"Received: target={self.target!r}."
                + did_you_mean(self.target, TARGETS, "target")
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
        if self.target != "latency" and self.budget < 1:
            raise ValueError(
                f"Expected `budget` to be how many {UNITS[self.target]} may be left. "
                f"Received: budget={self.budget!r}, less than one. Did you mean a "
                f"fraction? `sparsity={1 - self.budget:g}` leaves {self.budget:.1%} of "
                "them (on the command line: `--remove`)."
            )

    def measured(self, model) -> "Budget":
        """The same, with the latency of a model measured if that is the target."""
        if self.target != "latency" or self.latency is not None:
            return self
        return dataclasses.replace(self, latency=measure_latency(model))

    def left(self, slots: Slots, closed: np.ndarray) -> float:
        """How much is left with these slots closed."""
        if self.target == "filters":
            return float(slots.filters[~closed].sum())
        if self.target == "latency":
            return self._latency(slots).seconds(slots.alive(closed))
        return float(getattr(slots.cost(closed), self.target))

    def prices(self, slots: Slots, closed: np.ndarray) -> np.ndarray:
        """How much a slot of each group costs with these closed, `(groups,)`."""
        slopes = self._latency(slots).slopes(slots.alive(closed))
        prices = slots.by_group(slopes)
        # A kernel of odd width may be slower: that is no reason to pay for nothing.
        return np.maximum(prices, 1e-3 * np.abs(prices).mean())

    def rehearse(self, slots: Slots, choose: Callable[[], np.ndarray]) -> None:
        """Time the model with the slots closed that are chosen, to predict better."""
        times = self.latency.rehearsals if self.latency is not None else 0
        if times:
            self._latency(slots).rehearse(lambda: slots.alive(choose()), times)

    def _latency(self, slots: Slots) -> Any:
        if self.latency is None:
            raise ValueError("Expected a latency that was measured. Received: None")
        return slots.bound(self.latency)

    def number(self, amount: float) -> str:
        """An amount of the target, for a message."""
        return f"{amount:,.6f}" if self.target == "latency" else f"{amount:,.0f}"

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
        full = self.full(slots)
        if self.budget > full:
            warn(
                f"Nothing is pruned: '{slots.model.name}' has {self.number(full)} "
                f"{UNITS[self.target]}, already within the budget of "
                f"{self.number(self.budget)}."
            )
        return max(0.0, 1 - self.budget / full)
