"""Groups: the channels that are pruned together, over all layers.

A *group* is a set of layers whose channels are tied one to one, such as all
the convolutions that add to one residual stream. Its *slots* are the channels:
a slot is kept or removed as a whole, in every layer of the group.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from filterprune.channels.calls import Call, Flow, Gate, describe
from filterprune.channels.flow import flow
from filterprune.channels.kinds import kind_of
from filterprune.channels.survivors import Survivors
from filterprune.channels.values import Valuation, find_stuck


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Group:
    """Layers whose output channels live and die together.

    Attributes:
        layers: the paths of the layers that make the channels.
        roots: the label of each slot, `(size,)`.
        filters: how many filters each slot has, `(size,)`.
        reason: why no slot can be removed; `None` if they can. A single slot cannot,
            for the tensors that it is in would be left without channels.
        kind: what sort of channels they are: see `filterprune.channels.kinds`.
    """

    layers: tuple[str, ...]
    roots: np.ndarray
    filters: np.ndarray
    reason: str | None
    kind: str = "channels"

    @property
    def size(self) -> int:
        """How many slots the group has."""
        return self.roots.size

    @property
    def name(self) -> str:
        """The path of the first layer, and how many more there are."""
        more = len(self.layers) - 1
        return f"{self.layers[0]} (+{more})" if more else self.layers[0]


@dataclasses.dataclass(eq=False, repr=False)
class Analysis:
    """The channel flow of a model, and the groups found in it."""

    flow: Flow
    gated: Callable[[Call], bool]
    excluded: Callable[[Call], bool]

    @property
    def model(self):
        return self.flow.model

    @functools.cached_property
    def roots(self) -> np.ndarray:
        return self.flow.table.roots()

    @functools.cached_property
    def gates(self) -> list[Gate]:
        """Those of one call of every layer, in graph order."""
        found: dict[tuple, Gate] = {}
        for call in self.flow.calls:
            for gate in call.gates:
                found.setdefault((id(call.layer), gate.name), gate)
        return list(found.values())

    @property
    def makers(self) -> list[Gate]:
        """The gates of layers that make channels."""
        return [gate for gate in self.gates if gate.makes]

    @property
    def masks(self) -> list[Gate]:
        """The gates that there are: of masked layers."""
        return [gate for gate in self.gates if gate.call.mask is not None]

    @functools.cached_property
    def reasons(self) -> dict[int, str]:
        """Why a root can never be removed, whatever its weights and gates."""
        for gate in self.makers:
            if self.excluded(gate.call):
                self.flow.table.pin(gate.labels, f"`{gate.call.path}` is excluded")
        found = dict(self.flow.table.reasons())
        possible = np.zeros(self.flow.table.count, bool)
        for gate in self.makers:
            possible[self.roots[gate.labels]] = True
        possible[list(found)] = False
        return found | find_stuck(self.flow, possible, self.gated).stuck

    @functools.cached_property
    def groups(self) -> list[Group]:
        """All groups in graph order, those that must stay included."""
        vectors = [self.roots[gate.labels].ravel() for gate in self.makers]
        if not vectors:
            return []
        paths = [gate.path for gate in self.makers]
        part, layers, roots = _parts(self.flow.table.count, vectors, paths)
        filters = np.bincount(np.concatenate(vectors))
        keys = (part, self._signatures(), self._reason_numbers())
        return [
            self._group(layers[part[same[0]]], same, filters[same])
            for same in _alike(roots, keys)
        ]

    def _group(self, layers, roots: np.ndarray, filters: np.ndarray) -> Group:
        first = int(roots[0])
        gates = [gate for path in dict.fromkeys(layers) for gate in self._by_path[path]]
        kind = kind_of(gates, self.roots, self._marks.get(first, ()))
        reason = self.reasons.get(first)
        if reason is None and roots.size == 1:
            reason = self._why_single(gates, first)
        return Group(layers, roots, filters, reason, kind)

    def _why_single(self, gates: list[Gate], root: int) -> str:
        """Why a group has one slot, which is all that its tensors have."""
        for gate in gates:
            labels = gate.labels[self.roots[gate.labels] == root]
            if np.unique(labels).size > 1:
                by = self.flow.tied_by(labels)
                return f"all its channels are tied together by {by}"
        return "it is a single channel, and a tensor cannot be left without any"

    @functools.cached_property
    def _by_path(self) -> dict[str, list[Gate]]:
        """The gates that make channels, by the path of their layer."""
        found: dict[str, list[Gate]] = {}
        for gate in self.makers:
            found.setdefault(gate.path, []).append(gate)
        return found

    @functools.cached_property
    def _marks(self) -> dict[int, set[str]]:
        """What operations take roots for."""
        found: dict[int, set[str]] = {}
        for labels, kind in self.flow.marks:
            for root in np.unique(self.roots[labels]):
                found.setdefault(int(root), set()).add(kind)
        return found

    def _reason_numbers(self) -> np.ndarray:
        """A number for each root, the same where the reason to stay is."""
        numbers: dict[str, int] = {}
        found = np.zeros(self.flow.table.count, int)
        for root, reason in self.reasons.items():
            found[root] = numbers.setdefault(reason, len(numbers) + 1)
        return found

    @property
    def prunable(self) -> list[Group]:
        """The groups whose slots can be removed."""
        return [group for group in self.groups if group.reason is None]

    def _signatures(self) -> np.ndarray:
        """A number for each root that tells in which tensors it occurs.

        Roots of one group occur in the same tensors, so that every tensor is
        a union of groups and keeps a channel if every group does.
        """
        rng = np.random.default_rng(0)
        signature = np.zeros(self.flow.table.count, "uint64")
        seen: tuple[set[bytes], set[bytes]] = (set(), set())  # as they are; sorted
        for channels in self.flow.vectors:
            roots = self.roots[channels.labels].ravel()
            if _is_new(roots, seen[0]):
                roots = np.unique(roots)
                if _is_new(roots, seen[1]):
                    signature[roots] += rng.integers(2**63, dtype="uint64")
        return signature

    def slots(self, gate: Gate) -> np.ndarray:
        """The root behind each of a layer's gates, -1 where gates are untied."""
        roots = np.moveaxis(self.roots[gate.labels], gate.axis, -1)
        rows = roots.reshape(-1, gate.size)
        return np.where((rows == rows[:1]).all(axis=0), rows[0], -1)

    def closed(self) -> np.ndarray:
        """For each root whether a gate of it is closed, `(labels,)` bool."""
        dead = np.zeros(self.flow.table.count, bool)
        for gate in self.masks:
            slots = self.slots(gate)
            dead[slots[gate.closed() & (slots >= 0)]] = True
        return dead

    def decide(self) -> tuple[np.ndarray, Valuation, dict[int, str]]:
        """Decide with the gates and weights as they are what is removed.

        Returns:
            Which roots are removed, `(labels,)` bool; the value pass, with the
            constants to fold; and why each other closed root stays.
        """
        dead = self.closed()
        stays = {}
        for root, reason in self.flow.table.reasons().items():
            if dead[root]:
                stays[root] = reason
                dead[root] = False
        for group in self.groups:
            if dead[group.roots].all():
                first = int(group.roots[0])
                dead[first] = False
                stays[first] = f"`{group.name}` would be left without channels"
        for gate in self.masks:  # of channels that no layer makes, as a product's
            slots = self.slots(gate)
            slots = slots[slots >= 0]
            if slots.size and dead[slots].all():
                dead[slots[0]] = False
                stays[int(slots[0])] = f"`{gate.path}` would be left without channels"
        while True:
            valuation = find_stuck(self.flow, dead)
            if not valuation.stuck:
                return dead, valuation, stays
            dead = dead.copy()
            dead[list(valuation.stuck)] = False
            stays |= valuation.stuck

    def survivors(self, dead: np.ndarray) -> Survivors:
        """Which labels survive if these roots are removed."""
        return Survivors(~dead[self.roots])


def _is_new(array: np.ndarray, seen: set[bytes]) -> bool:
    """Whether an array was not seen before; it is from now on."""
    key = array.tobytes()
    before = len(seen)
    seen.add(key)
    return len(seen) > before


def _parts(count: int, vectors, names) -> tuple[np.ndarray, list[tuple], np.ndarray]:
    """Part roots by the vectors that they are in.

    Args:
        count: how many labels there are.
        vectors: arrays of roots.
        names: a name for each.

    Returns:
        For each root the number of its part, `(labels,)`, 0 if it is in no vector;
        for each part the names of the vectors that its roots are in; and all roots
        that are in one, those of the first vector first.
    """
    part = np.zeros(count, int)
    members: list[tuple] = [()]
    order = []
    for vector, name in zip(vectors, names, strict=True):
        roots = np.unique(vector)
        order.append(roots[part[roots] == 0])
        old, position = np.unique(part[roots], return_inverse=True)
        part[roots] = len(members) + position
        members += [(*members[number], name) for number in old]
    return part, members, np.concatenate(order)


def _alike(roots: np.ndarray, keys) -> list[np.ndarray]:
    """Roots with the same keys together, all in the order that they had.

    Args:
        roots: the roots, `(roots,)`.
        keys: arrays of integers, a number for each label, `(labels,)`.
    """
    code = np.zeros(roots.size, int)
    for key in keys:
        numbers, position = np.unique(key[roots], return_inverse=True)
        _, code = np.unique(code * numbers.size + position, return_inverse=True)
    _, first, sizes = np.unique(code, return_index=True, return_counts=True)
    ends = np.cumsum(sizes)[:-1]
    found = np.split(roots[np.argsort(code, kind="stable")], ends)
    return [found[number] for number in np.argsort(first)]


def needs_gate(call: Call) -> bool:
    """Whether a call makes channels, or makes something of absent ones."""
    return any(gate.makes or not gate.keeps_zero for gate in call.gates)


def study(model, excluded: Callable[[Call], bool] | None = None) -> Analysis:
    """Analyse a model: masked as it is, or plain as if `wrap_model` wrapped it.

    Args:
        model: a built functional or sequential Keras model.
        excluded: for a plain model, which calls are to have no gate.
    """
    result = flow(model)
    excluded = excluded or (lambda call: False)
    if any(call.mask is not None for call in result.calls):
        return Analysis(result, lambda call: call.mask is not None, excluded)
    wanted = [call for call in result.calls if needs_gate(call) and not excluded(call)]
    found = {id(call) for call in wanted}
    found -= _not_needed(result, found, excluded)
    return Analysis(result, lambda call: id(call) in found, excluded)


def _not_needed(result: Flow, wanted: set[int], excluded) -> set[int]:
    """Calls without whose gates the same channels can be removed.

    Gates behind the last of several are enough: those before it are left out first.
    """

    def stuck(gated: set[int]) -> np.ndarray:
        analysis = Analysis(result, lambda call: id(call) in gated, excluded)
        found = np.zeros(result.table.count, bool)
        found[list(analysis.reasons)] = True
        return found

    behind = [
        id(call)
        for call in result.calls
        if id(call) in wanted and any(gate.behind for gate in call.gates)
    ]
    if not behind:
        return set()
    left_out = set(behind)
    at_best = stuck(wanted)
    if not (stuck(wanted - left_out) & ~at_best).any():
        return left_out
    left_out = set()
    for number in behind:
        without = stuck(wanted - left_out - {number})
        if not (without & ~at_best).any():
            left_out.add(number)
            at_best &= without
    return left_out


__all__ = ["Analysis", "Group", "describe", "needs_gate", "study"]
