"""Slots: all prunable channels of a masked model, numbered in one row.

Selection, criteria and budgets work on arrays of shape `(slots,)`. Slots of
one group stand side by side, groups in graph order.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NoReturn

import keras
import numpy as np

from filterprune.channels.calls import Call, Gate
from filterprune.channels.groups import Analysis, study
from filterprune.channels.registry import weight_of
from filterprune.channels.trace import check_model
from filterprune.cost import Cost, CostModel
from filterprune.suggestions import did_you_mean
from filterprune.sums import peek, poke

# How layers name a weight that scales each channel.
SCALES = ("gamma", "scale")


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One weight seen along the channels it makes, reads or scales.

    Attributes:
        path: the path of the layer.
        kind: the name of the layer's class.
        name: the name of the weight, such as `"kernel"`.
        role: `"maker"` if the weight makes the channels, `"reader"` if it
            reads them, `"scale"` if it scales each of them.
        slots: the slot of each channel, `(channels,)`, -1 where there is none.
        variable: the weight itself.
        axis: the axis of `variable` along which the channels run.
        blocks: how many times they stand side by side along it, as in the kernel
            of an LSTM; `rows` has all of them.
        more: other weights that make the same channels, for `rows`.
    """

    path: str
    kind: str
    name: str
    role: str
    slots: np.ndarray
    variable: keras.Variable
    axis: int
    blocks: int = 1
    more: tuple["Part", ...] = ()

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The weight, and `more` below it, as `(weights, channels)`, float64.

        Raises:
            ValueError: if one is not finite.
        """
        value = np.array(peek(self.variable), "float64")
        if not np.isfinite(value).all():
            self.complain()
        rows = np.moveaxis(value, self.axis, -1).reshape(-1, self.slots.size)
        return np.concatenate([rows, *(part.rows for part in self.more)])

    def complain(self) -> NoReturn:
        """Raise because the weight is not finite."""
        raise ValueError(
            f"The weights `{self.name}` of the layer '{self.path}' are not finite "
            "(NaN or Inf): its filters cannot be ranked. Restore a checkpoint "
            "from before, or lower the learning rate."
        )


class Slots:
    """The slots of a masked model.

    Args:
        analysis: the analysis of a masked model.
        kinds: which kinds of groups to take, or `None` for all.

    Attributes:
        groups: the prunable groups, of those kinds.
        slices: for each group where its slots are.
        filters: how many filters each slot has, `(slots,)`.
        group_of: the number of each slot's group, `(slots,)`.

    Raises:
        ValueError: if nothing can be pruned.
    """

    def __init__(self, analysis: Analysis, kinds: frozenset[str] | None = None):
        self.analysis = analysis
        prunable = analysis.prunable
        self.groups = [g for g in prunable if kinds is None or g.kind in kinds]
        if prunable and kinds is not None:
            _check_found(kinds, {group.kind for group in prunable}, analysis.model.name)
        if not self.groups:
            raise ValueError(f"{nothing_to_prune(analysis)}.")
        sizes = [group.size for group in self.groups]
        ends = np.cumsum(sizes)
        self.slices = [slice(end - size, end) for end, size in zip(ends, sizes)]
        self.group_of = np.repeat(np.arange(len(sizes)), sizes)
        self.filters = np.concatenate([group.filters for group in self.groups])
        self._slot = np.full(analysis.flow.table.count, -1)
        self._roots = np.concatenate([group.roots for group in self.groups])
        self._slot[self._roots] = np.arange(ends[-1])
        self._bound: dict[int, tuple[Any, Any]] = {}
        others = np.zeros(analysis.flow.table.count, bool)
        others[np.concatenate([group.roots for group in prunable])] = True
        self._others = others & (self._slot < 0) & analysis.closed()
        self._masks = self._gates(analysis.masks)
        self._makers = self._gates(analysis.makers)

    def _gates(self, gates) -> list[tuple]:
        """Gates of masked layers with their slots, and which of them have one."""
        found = [(g, self.of_gate(g)) for g in gates if g.call.mask is not None]
        return [(gate, s, s >= 0) for gate, s in found if (s >= 0).any()]

    @property
    def model(self):
        return self.analysis.model

    @property
    def count(self) -> int:
        """How many slots there are."""
        return self.filters.size

    def of(self, labels: np.ndarray) -> np.ndarray:
        """The slot of every label, -1 where there is none, in their shape."""
        return self._slot[self.analysis.roots[labels]]

    def of_gate(self, gate: Gate) -> np.ndarray:
        """The slot behind each of a layer's gates, -1 where there is none."""
        roots = self.analysis.slots(gate)
        return np.where(roots >= 0, self._slot[roots], -1)

    def closed(self) -> np.ndarray:
        """Which slots are closed by all their makers' gates, `(slots,)` bool."""
        opened = np.zeros(self.count, bool)
        for gate, slots, known in self._makers:
            opened[slots[known & ~gate.closed()]] = True
        return ~opened

    def set_gates(self, closed: np.ndarray, soft: float = 0.0) -> None:
        """Set every gate in the model by its slot; gates without one stay.

        Args:
            closed: which slots to close, `(slots,)` bool.
            soft: the value of a closed gate.
        """
        for place, slots, known in self._masks:
            gate = peek(place.variable)
            wanted = np.where(closed[slots], soft, 1.0)
            new = np.where(known, wanted, gate).astype(gate.dtype)
            if not np.array_equal(new, gate):
                poke(place.variable, new)

    @functools.cached_property
    def costs(self) -> CostModel:
        return CostModel(self.analysis)

    def alive(self, closed: np.ndarray) -> np.ndarray:
        """Which labels' roots are alive with these slots removed, `(labels,)`."""
        known = self._slot >= 0
        return ~np.where(known, closed[self._slot], self._others)

    def cost(self, closed: np.ndarray) -> Cost:
        """What the model costs with these slots removed."""
        return self.costs.total(self.alive(closed))

    def bound(self, model):
        """A cost model such as `filterprune.LatencyModel`, for this model."""
        if id(model) not in self._bound:
            self._bound[id(model)] = (model, model.bind(self.analysis))
        return self._bound[id(model)][1]

    def by_group(self, values: np.ndarray) -> np.ndarray:
        """The mean over each group's slots of values of labels, `(groups,)`."""
        sums = np.bincount(self.group_of, values[self._roots])
        return sums / np.bincount(self.group_of)

    @functools.cached_property
    def makers(self) -> np.ndarray:
        """How many layers make each slot's channels, `(slots,)`."""
        counts = np.zeros(self.count, int)
        for part in self.filters_of("maker"):
            counts[np.unique(part.slots[part.slots >= 0])] += 1
        return np.maximum(counts, 1)

    @functools.cached_property
    def structures(self) -> dict[int, frozenset]:
        """For the first root of each group what kinds of weights run along it."""
        found: dict[int, set] = {int(group.roots[0]): set() for group in self.groups}
        for part in self.parts("maker", "reader"):
            kind = (part.role, part.kind, part.name, tuple(part.variable.shape)[:-2])
            for number in np.unique(self.group_of[part.slots[part.slots >= 0]]):
                found[int(self.groups[number].roots[0])].add(kind)
        return {root: frozenset(kinds) for root, kinds in found.items()}

    def parts(self, *roles: str) -> Iterator[Part]:
        """The weights along slots in these roles, in graph order.

        Args:
            *roles: some of `"maker"`, `"reader"` and `"scale"`.
        """
        for op, part in self._parts:
            if part.role in roles:  # a part remembers its weight's values
                yield dataclasses.replace(part, variable=weight_of(op, part.name))

    @functools.cached_property
    def _parts(self) -> list[tuple[Any, Part]]:
        """All parts, each with the layer that has the weight."""
        calls: dict[int, Call] = {}
        for call in self.analysis.flow.calls:
            # Of several calls of a layer the first, of those with gates if any.
            first = calls.setdefault(id(call.op), call)
            if not first.gates:
                calls[id(call.op)] = call
        found = []
        for call in calls.values():
            binding = self.analysis.flow.bindings.get(id(call.op))
            for name, axes in binding.axes.items() if binding is not None else ():
                for axis, labels in enumerate(axes):
                    role = self._role(call, name, axes, axis)
                    if labels is not None and role is not None:
                        part = self._part(call, name, role, axis, labels)
                        found += [] if part is None else [(call.op, part)]
        return found

    @staticmethod
    def _role(call: Call, name: str, axes: tuple, axis: int) -> str | None:
        """What a weight is to the channels along one of its axes."""
        gates = [gate for gate in call.gates if gate.makes]
        if any(gate.makers.get(name) == axis for gate in gates):
            return "maker"
        if name.rsplit(".", 1)[-1] in SCALES and not gates:
            return "scale"
        if not gates or len(axes) < 2 or not any(gate.labels.size for gate in gates):
            return None
        numbers = [gate.weights.get(name) for gate in gates if call.loops]
        again = any(n is not None and n.shape[axis] > 1 for n in numbers)  # by itself
        return "reader" if again or not _made_by(gates, axes[axis]) else None

    def _part(self, call, name, role, axis, labels) -> Part | None:
        slots = self.of(np.asarray(labels).ravel())
        if (slots < 0).all():
            return None
        variable = weight_of(call.op, name)
        blocks = _blocks(np.asarray(labels).ravel()) if role == "maker" else 1
        slots = slots[: slots.size // blocks]
        kind = type(call.op).__name__
        return Part(call.path, kind, name, role, slots, variable, axis, blocks)

    def filters_of(self, *roles: str) -> list[Part]:
        """The same as `parts`, but a layer makes its channels by one part alone.

        That has the rows of several weights where there are, such as the kernel,
        the recurrent kernel and the bias of an LSTM.
        """
        found: dict[tuple, Part] = {}
        for number, part in enumerate(self.parts(*roles)):
            key: tuple = (number,)
            if part.role == "maker":
                key = (part.path, part.slots.tobytes())
            first = found.setdefault(key, part)
            if first is not part:
                found[key] = dataclasses.replace(first, more=(*first.more, part))
        return list(found.values())


def _blocks(labels: np.ndarray) -> int:
    """How many times the same labels stand side by side."""
    count = labels.size // max(np.unique(labels).size, 1)
    size = labels.size // max(count, 1)
    same = count > 1 and count * size == labels.size
    return count if same and (labels.reshape(count, size) == labels[:size]).all() else 1


def _check_found(kinds, known: set[str], name: str) -> None:
    missing = sorted(kinds - known)
    if missing:
        raise ValueError(
            f"Expected `kinds` to be some of {sorted(known)}, which '{name}' has "
            f"to prune. Received: {missing}.{did_you_mean(missing[0], known)} "
            "`print(filterprune.analyze(masked))` shows the kind of every group."
        )


def _made_by(gates: list[Gate], labels) -> bool:
    """Whether these are the channels of one of the gates."""
    return labels is not None and any(np.isin(labels, g.labels).any() for g in gates)


def nothing_to_prune(analysis: Analysis) -> str:
    """Why nothing in a model can be pruned, without a full stop."""
    reasons = {str(g.reason): f"`{g.name}`: {g.reason}" for g in analysis.groups[::-1]}
    found = sorted(reasons.values()) or [*analysis.flow.barriers.values()]
    why = "; ".join(found[:5]) or "no layer in it makes channels"
    return f"Nothing in the model '{analysis.model.name}' can be pruned: {why}"


def masked_analysis(model) -> Analysis:
    """The analysis of a masked model; raises if it has no gates, or one is NaN."""
    check_model(model, "masked")
    analysis = study(model)
    if not analysis.masks:
        if not analysis.prunable:
            raise ValueError(
                f"Expected a model with gates. Received: '{model.name}', which has "
                f"none. {nothing_to_prune(analysis)}."
            )
        raise ValueError(
            f"Expected a model with gates. Received: '{model.name}', which has "
            "none. Wrap it first, and leave something to prune: "
            "`masked = filterprune.wrap_model(model)` or "
            "`keras.models.clone_model(model, clone_function=filterprune.wrap)`."
        )
    for gate in analysis.masks:
        values = keras.ops.convert_to_numpy(gate.variable)
        if not np.isfinite(values).all():
            raise ValueError(
                f"Expected the gates of '{gate.path}' to be finite. Received: "
                f"{values.tolist()[:8]}. Set them to 0 (closed) or 1 (open)."
            )
    return analysis
