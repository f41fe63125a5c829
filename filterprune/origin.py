"""What a model was before compaction, as that which selection goes by.

Fractions, budgets and bounds are of the original model, whatever was compacted
since: selection works on its slots, and what is gone counts as closed.
"""

import numpy as np

from filterprune.channels.calls import Gate
from filterprune.channels.groups import Analysis
from filterprune.slots import Slots, masked_analysis


class Origin:
    """The slots of a masked model, and where they are in what was made of it.

    Args:
        model: a masked model.
        kinds: which kinds of groups are pruned, or `None` for all.

    Attributes:
        slots: those of the original model, of the kinds that are pruned.
        current: those of the model as it is now.
        place: the current slot of each original one, `(slots,)`, -1 where it is
            gone.
        moved: for each slot before the last compaction the one after, -1 likewise.
    """

    def __init__(self, model, kinds: frozenset[str] | None = None):
        self._kinds = kinds
        self.slots = self.current = Slots(masked_analysis(model), kinds)
        self.place = self.moved = np.arange(self.slots.count)
        self._scale = np.ones(self.slots.count)
        self._last = np.zeros(self.slots.count)

    @property
    def paths(self) -> list[str]:
        """The layers that are masked."""
        return [gate.path for gate in self.slots.analysis.masks]

    def closed(self) -> np.ndarray:
        """Which original slots are closed or gone, `(slots,)` bool."""
        return self._expand(self.current.closed(), True)

    def set_gates(self, closed: np.ndarray, soft: float = 0.0) -> None:
        """Set every gate in the current model by its original slot."""
        here = self.place >= 0
        chosen = np.zeros(self.current.count, bool)
        if here.sum() < chosen.size:  # there are others
            chosen = self.current.closed()
        chosen[self.place[here]] = closed[here]
        self.current.set_gates(chosen, soft)

    def scores(self, criterion) -> np.ndarray:
        """The importance of every original slot, `(slots,)`: the last of those gone."""
        found = self._expand(criterion.score(self.current), 0.0) * self._scale
        return np.where(self.place >= 0, found, self._last)

    def _expand(self, values: np.ndarray, gone) -> np.ndarray:
        return np.where(self.place >= 0, values[self.place], gone)

    def follow(self, model, dead: np.ndarray, criterion=None) -> None:
        """Go on with the masked model that compaction made of the current one.

        Args:
            model: that model, its gates open.
            dead: which roots of the current one were removed, `(labels,)` bool.
            criterion: what filters are scored by. It compares with all filters of
                a layer, and is made to go on as if those removed were there.
        """
        closed, before, old = self.closed(), self.current, self.slots
        scores = None if criterion is None else self.scores(criterion)
        new = Slots(masked_analysis(model), self._kinds)
        self.moved = _moved(before, dead, new)
        self.current = new
        self.place = np.where(self.place >= 0, self.moved[self.place], -1)
        if scores is not None:
            self._scale, self._last = np.ones(old.count), scores
            found, here = self.scores(criterion), self.place >= 0
            for part in old.slices:
                sums = [values[part][here[part]].sum() for values in (scores, found)]
                if min(sums) > 0:
                    self._scale[part] = sums[0] / sums[1]
        self.set_gates(closed)


def _moved(before: Slots, dead: np.ndarray, after: Slots) -> np.ndarray:
    """For each slot before compaction the one after it, -1 where it is gone."""
    moved = np.full(before.count, -1)
    masks = {gate.path: gate for gate in after.analysis.masks}
    for gate in before.analysis.masks:
        kept = _kept(before.analysis, gate, dead)
        old, new = before.of_gate(gate)[kept], after.of_gate(masks[gate.path])
        both = (old >= 0) & (new >= 0)
        moved[old[both]] = new[both]
    return moved


def _kept(analysis: Analysis, gate: Gate, dead: np.ndarray) -> np.ndarray:
    """Which of some gates are left once these roots are gone."""
    roots = analysis.slots(gate)
    return (roots < 0) | ~dead[roots]
