"""What removed channels are worth downstream, and which can therefore go.

A closed gate makes a channel zero. The value pass carries such constants
through the graph by each step's `worth`, and asks every reader whether it can
do without the channel: a zero is simply dropped, another constant is folded
into the bias where that is exact, and anything else keeps the channel alive.

The pass runs twice. *Hypothetically*, with every gate closed that could be, it
finds out which channels can be removed at all, whatever the weights become.
*Actually*, with the gates and the weights as they are, it decides for compact.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from filterprune.channels.calls import Call, Flow, Gate, describe
from filterprune.channels.labels import Channels, fit
from filterprune.sums import peek


@dataclasses.dataclass(eq=False, repr=False)
class Valuation:
    """One value pass over a flow.

    Attributes:
        dead: for each root whether it is to be removed, `(labels,)` bool.
        hypothetical: whether gates are assumed closed and weights unknown.
        gated: which calls have a gate (in the hypothetical pass).
        stuck: for each root that cannot be removed, why.
        folds: for each reader (by the id of its layer) the constants of the
            channels it reads, `(channels,)`, zero where there is none.
        conflicts: for each layer that takes statistics over channels, how many
            of its gates are closed on channels that stay.
    """

    flow: Flow
    dead: np.ndarray
    hypothetical: bool
    gated: Callable[[Call], bool]
    stuck: dict[int, str] = dataclasses.field(default_factory=dict)
    folds: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    conflicts: dict[str, int] = dataclasses.field(default_factory=dict)
    _values: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    _read: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    _because: dict[int, str] = dataclasses.field(default_factory=dict)
    _changers: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        # For each root the number of what first made it something else than zero.
        self._changer = np.full(self.dead.size, -1)

    def run(self) -> "Valuation":
        for step in self.flow.steps:
            values = [self.value(channels) for channels in step.inputs]
            results = step.worth(self, values)
            for channels, value in zip(step.outputs, results, strict=True):
                self._values[id(channels)] = fit(value, channels.labels.shape)
        return self

    def value(self, channels: Channels) -> np.ndarray:
        """What is known of a tensor, NaN where it is not known."""
        if channels.constant is not None:
            return channels.constant
        known = self._values.get(id(channels))
        if known is None:
            return np.full(channels.labels.shape, np.nan)
        return known

    def closed(self, call: Call, gate: Gate) -> np.ndarray | None:
        """Which gates of a call are closed, `(channels,)` bool, or None."""
        if not self.hypothetical:
            return None if call.mask is None else gate.closed()
        if not self.gated(call):
            if gate.makes:
                self._note(gate.labels, f"{describe(call.op)} has no gate")
            return None
        roots = self.flow.table.roots()[gate.labels]
        rows = np.moveaxis(roots, gate.axis, -1).reshape(-1, gate.size)
        even = (rows == rows[:1]).all(axis=0)
        return even & self.dead[rows[0]]

    def behind(self, call: Call, labels) -> np.ndarray:
        """What a layer reads again of channels that it makes itself: zero behind
        closed gates, else unknown.
        """
        while call.holder is not None:
            call = call.holder
        roots = self.flow.table.roots()
        shut = np.zeros(self.flow.table.count, bool)
        opened = shut.copy()
        for gate in call.gates:
            closed = self.closed(call, gate)
            if closed is not None:
                own = roots[gate.labels].ravel()
                shut[own[closed]] = opened[own[~closed]] = True
        return np.where((shut & ~opened)[roots[labels]], 0.0, np.nan)

    def is_closed(self, call: Call, channels: np.ndarray) -> bool:
        """Whether the gates of a call's output, as they are, close these channels."""
        if self.hypothetical or call.gate is None:
            return False
        closed = self.closed(call, call.gate)
        if closed is None or closed.shape != channels.shape:
            return False
        return bool(closed[channels].all())

    def read(self, call: Call, labels, constants, fold: bool) -> None:
        """A layer reads channels, those that are dead with these constants."""
        roots = self.flow.table.roots()[labels]
        dead = self.dead[roots]
        unknown = dead & np.isnan(constants)
        other = dead & ~unknown & (constants != 0)
        if fold:
            folded = np.where(other, constants, 0.0)
            first = self._read.setdefault(id(call.op), folded)
            if first.any() or folded.any():
                self.folds[id(call.op)] = first
            other = dead & (first != folded)  # a shared layer has one bias
        for root in np.unique(roots[unknown]):
            self.stuck.setdefault(int(root), self._why_unknown(int(root)))
        for root in np.unique(roots[other]):
            because = self._changed(int(root)) or "a layer before it"
            self.stuck.setdefault(
                int(root),
                f"{because} leaves a constant behind, which {describe(call.op)} "
                "cannot take into its bias",
            )

    def agree(self, call: Call, labels, name: str = "") -> None:
        """A layer takes statistics over channels: open gates and no others.

        Args:
            call: the call of the layer.
            labels: those of the channels.
            name: which of its gates leave a channel out: those of the output, or
                others, which zero what is left of one in a plain layer too.
        """
        roots = self.flow.table.roots()[labels]
        dead = self.dead[roots]
        if self.hypothetical:
            closed = dead if self.gated(call) else np.zeros_like(dead)
        elif call.mask is None:
            closed = np.zeros_like(dead)
        else:
            closed = peek(call.mask.gates[name]) == 0
        for root in np.unique(roots[dead & ~closed]):
            reason = f"{describe(call.op)} takes its statistics over it"
            self.stuck.setdefault(int(root), reason)
        if not name and (closed & ~dead).any():
            self.conflicts[call.path] = int((closed & ~dead).sum())

    def changed(self, call: Call, labels, result) -> None:
        """Remember which call made dead channels something else than zero."""
        labels, result = np.broadcast_arrays(labels, result)
        roots = self.flow.table.roots()[labels]
        bad = roots[self.dead[roots] & ~(result == 0)]
        self._changer[bad[self._changer[bad] < 0]] = len(self._changers)
        self._changers.append(describe(call.op))

    def zeroed(self, call: Call, labels) -> None:
        """Forget that a call changed dead channels: its gates make zeros of them."""
        roots = self.flow.table.roots()[labels].ravel()
        mine = [i for i, name in enumerate(self._changers) if name == describe(call.op)]
        self._changer[roots[np.isin(self._changer[roots], mine)]] = -1

    def _changed(self, root: int) -> str | None:
        """What made a dead channel something else than zero, if anything did."""
        number = self._changer[root]
        return None if number < 0 else self._changers[number]

    def _why_unknown(self, root: int) -> str:
        """Why it is not known what is left of a channel that is removed."""
        if root in self._because:
            return self._because[root]
        changed = self._changed(root)
        if changed is not None:
            return f"{changed} leaves more behind than one number"
        return "its value is not constant"

    def _note(self, labels, reason: str) -> None:
        roots = np.unique(self.flow.table.roots()[labels])
        for root in roots[self.dead[roots]]:
            self._because.setdefault(int(root), reason)


def find_stuck(flow: Flow, dead: np.ndarray, gated=None) -> Valuation:
    """Run the value pass.

    Args:
        flow: the analysis.
        dead: for each root whether it is to be removed.
        gated: for the hypothetical pass, which calls have a gate; without it
            the pass is actual and reads gates and weights as they are.
    """
    hypothetical = gated is not None
    return Valuation(flow, dead, hypothetical, gated or (lambda call: False)).run()
