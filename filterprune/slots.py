"""Slots: all prunable channels of a masked model, numbered in one row.

Selection, criteria and budgets work on arrays of shape `(slots,)`. Slots of
one group stand side by side, groups in graph order.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from filterprune.channels.flow import Call
from filterprune.channels.groups import Analysis, study
from filterprune.channels.registry import weight_of
from filterprune.channels.trace import check_model
from filterprune.cost import Cost, CostModel

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
        rows: the weight as `(weights, channels)`, float64.
        slots: the slot of each channel, `(channels,)`, -1 where there is none.
        variable: the weight itself.
        axis: the axis of `variable` along which the channels run.
        blocks: how many times they stand side by side along it, as in the kernel
            of an LSTM; `rows` has all of them.
    """

    path: str
    kind: str
    name: str
    role: str
    rows: np.ndarray
    slots: np.ndarray
    variable: keras.Variable
    axis: int
    blocks: int = 1


class Slots:
    """The slots of a masked model.

    Args:
        analysis: the analysis of a masked model.

    Attributes:
        groups: the prunable groups.
        slices: for each group where its slots are.
        filters: how many filters each slot has, `(slots,)`.
        group_of: the number of each slot's group, `(slots,)`.

    Raises:
        ValueError: if nothing can be pruned.
    """

    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.groups = analysis.prunable
        if not self.groups:
            reasons = sorted({str(group.reason) for group in analysis.groups})
            raise ValueError(
                f"Nothing in the model '{analysis.model.name}' can be pruned: "
                + "; ".join(reasons[:5])
            )
        sizes = [group.size for group in self.groups]
        ends = np.cumsum(sizes)
        self.slices = [slice(end - size, end) for end, size in zip(ends, sizes)]
        self.group_of = np.repeat(np.arange(len(sizes)), sizes)
        self.filters = np.concatenate([group.filters for group in self.groups])
        self._slot = np.full(analysis.flow.table.count, -1)
        self._roots = np.concatenate([group.roots for group in self.groups])
        self._slot[self._roots] = np.arange(ends[-1])
        self._bound: dict[int, tuple[Any, Any]] = {}
        self._masks = [(call.mask, self.of_call(call)) for call in analysis.masks]

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

    def of_call(self, call: Call) -> np.ndarray:
        """The slot behind each gate of a call, -1 where there is none."""
        roots = self.analysis.slots(call)
        return np.where(roots >= 0, self._slot[roots], -1)

    def closed(self) -> np.ndarray:
        """Which slots are closed by all their makers' gates, `(slots,)` bool."""
        opened = np.zeros(self.count, bool)
        for call in self.analysis.makers:
            if call.mask is not None:
                slots = self.of_call(call)
                opened[slots[(slots >= 0) & ~call.mask.closed()]] = True
        return ~opened

    def set_gates(self, closed: np.ndarray, soft: float = 0.0) -> None:
        """Set every gate in the model by its slot; gates without one stay.

        Args:
            closed: which slots to close, `(slots,)` bool.
            soft: the value of a closed gate.
        """
        for mask, slots in self._masks:
            known = slots >= 0
            if not known.any():
                continue
            gate = keras.ops.convert_to_numpy(mask.gate)
            wanted = np.where(closed[slots], soft, 1.0)
            new = np.where(known, wanted, gate).astype(gate.dtype)
            if not np.array_equal(new, gate):
                mask.gate.assign(new)

    @functools.cached_property
    def costs(self) -> CostModel:
        return CostModel(self.analysis)

    def alive(self, closed: np.ndarray) -> np.ndarray:
        """Which labels' roots are alive with these slots removed, `(labels,)`."""
        known = self._slot >= 0
        return ~np.where(known, closed[self._slot], False)

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
        calls: dict[int, Call] = {}
        for call in self.analysis.flow.calls:
            # Of several calls of a layer the first, of those with gates if any.
            first = calls.setdefault(id(call.op), call)
            if first.gate is None:
                calls[id(call.op)] = call
        for call in calls.values():
            binding = self.analysis.flow.bindings.get(id(call.op))
            for name, axes in binding.axes.items() if binding is not None else ():
                for axis, labels in enumerate(axes):
                    role = self._role(call, name, axes, axis)
                    if labels is not None and role in roles:
                        yield from self._part(call, name, role, axis, labels)

    @staticmethod
    def _role(call: Call, name: str, axes: tuple, axis: int) -> str | None:
        """What a weight is to the channels along one of its axes."""
        gate = call.gate
        makes = gate is not None and gate.makes
        if makes and gate.makers.get(name) == axis:
            return "maker"
        if name.rsplit(".", 1)[-1] in SCALES and not makes:
            return "scale"
        if not makes or len(axes) < 2 or not gate.labels.size:
            return None
        numbers = gate.weights.get(name)  # units are read by the cell itself, too
        again = numbers is not None and numbers.shape[axis] > 1
        return "reader" if again or not _made_by(call, axes[axis]) else None

    def _part(self, call, name, role, axis, labels) -> Iterator[Part]:
        slots = self.of(np.asarray(labels).ravel())
        if (slots < 0).all():
            return
        variable = weight_of(call.op, name)
        value = np.asarray(keras.ops.convert_to_numpy(variable), "float64")
        if not np.isfinite(value).all():
            raise ValueError(
                f"The weights `{name}` of the layer '{call.path}' are not finite "
                "(NaN or Inf): its filters cannot be ranked. Restore a checkpoint "
                "from before, or lower the learning rate."
            )
        blocks = _blocks(np.asarray(labels).ravel()) if role == "maker" else 1
        slots = slots[: slots.size // blocks]
        rows = np.moveaxis(value, axis, -1).reshape(-1, slots.size)
        kind = type(call.op).__name__
        yield Part(call.path, kind, name, role, rows, slots, variable, axis, blocks)

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
                rows = np.concatenate([first.rows, part.rows])
                found[key] = dataclasses.replace(first, rows=rows)
        return list(found.values())


def _blocks(labels: np.ndarray) -> int:
    """How many times the same labels stand side by side."""
    count = labels.size // max(np.unique(labels).size, 1)
    size = labels.size // max(count, 1)
    same = count > 1 and count * size == labels.size
    return count if same and (labels.reshape(count, size) == labels[:size]).all() else 1


def _made_by(call: Call, labels) -> bool:
    """Whether a call makes the channels of these labels."""
    return labels is not None and bool(np.isin(labels, call.gate.labels).any())


def masked_analysis(model) -> Analysis:
    """The analysis of a masked model; raises if it has no gates, or one is NaN."""
    check_model(model, "masked")
    analysis = study(model)
    if not analysis.masks:
        raise ValueError(
            f"Expected a model with gates. Received: '{model.name}', which has "
            "none. Wrap it first, and leave something to prune: "
            "`masked = filterprune.wrap_model(model)` or "
            "`keras.models.clone_model(model, clone_function=filterprune.wrap)`."
        )
    for call in analysis.masks:
        gate = keras.ops.convert_to_numpy(call.mask.gate)
        if not np.isfinite(gate).all():
            raise ValueError(
                f"Expected the gates of '{call.path}' to be finite. Received: "
                f"{gate.tolist()[:8]}. Set them to 0 (closed) or 1 (open)."
            )
    return analysis
