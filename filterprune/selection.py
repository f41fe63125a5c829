"""Which gates close: scores, constraints and a budget."""

import dataclasses
import math
import warnings

import keras
import numpy as np

from filterprune import criteria
from filterprune.channels.groups import Analysis, Group, study
from filterprune.channels.registry import weight_of
from filterprune.channels.trace import check_model
from filterprune.errors import PruningWarning
from filterprune.schedules import check_sparsity, is_integer

SCOPES = ("global", "layer")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What binds the selection.

    Attributes:
        scope: `"global"` ranks all filters together, `"layer"` takes the same
            fraction of every group.
        min_filters: how many slots every group keeps at least.
        round_to: the number that surviving slots are a multiple of, or None.
    """

    scope: str = "global"
    min_filters: int = 1
    round_to: int | None = None

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise ValueError(
                f"Expected `scope` to be one of {list(SCOPES)}. "
                f"Received: scope={self.scope!r}"
            )
        for name, value in (
            ("min_filters", self.min_filters),
            ("round_to", self.round_to),
        ):
            if value is None and name == "round_to":
                continue
            if not is_integer(value) or int(value) < 1:  # type: ignore[arg-type]
                raise ValueError(
                    f"Expected `{name}` to be an integer of at least 1. "
                    f"Received: {name}={value!r}"
                )

    def check(self, groups: list[Group]) -> None:
        """Raise if a group cannot meet the limits."""
        if self.round_to is None:
            return
        small = [group for group in groups if group.size < self.round_to]
        if small:
            names = ", ".join(
                f"'{name}' ({group.size})" for group in small for name in group.layers
            )
            raise ValueError(
                "Expected `round_to` to be no larger than any layer to prune. "
                f"Received: round_to={self.round_to}, and the layers {names}. "
                f"Use round_to={min(group.size for group in small)} or less, or "
                "leave those layers out by `wrap_model(model, exclude=...)`."
            )

    def floor(self, size: int) -> int:
        """The fewest slots that a group of `size` slots may keep."""
        floor = min(max(self.min_filters, 1), size)
        if self.round_to is not None:
            floor = min(math.ceil(floor / self.round_to) * self.round_to, size)
        return floor

    def rounded(self, keep: int, size: int, most: int) -> int:
        """The allowed number of slots nearest to `keep`, larger if in doubt.

        Args:
            keep: how many slots are wanted.
            size: how many slots the group has.
            most: how many of them are still open.
        """
        least = min(self.floor(size), most)
        if self.round_to is None or keep == size:
            return min(max(keep, least), most)
        widths = [*range(self.round_to, most + 1, self.round_to)]
        widths += [size] if most == size else []
        widths = [width for width in widths if width >= least] or [most]
        odd = self.round_to  # a multiple, rather than all of an odd number
        return min(widths, key=lambda n: (abs(n - keep), n % odd > 0, -n))


class Selector:
    """Scores the filters of a masked model and sets its gates.

    The engine behind `FilterPruningCallback` and `prune`, which a custom
    training loop can use as well: call `update(sparsity)` at the steps at
    which gates are to close.

    Args:
        model: a masked model.
        criterion: see `filterprune.prune`.
        limits: a `Limits`.

    Raises:
        ValueError: if the model has no gates or nothing in it is prunable.
    """

    def __init__(self, model, criterion="l2", limits: Limits | None = None):
        self.criterion = criteria.get(criterion)
        self.limits = limits or Limits()
        self.analysis = masked_analysis(model)
        self.groups = self.analysis.prunable
        if not self.groups:
            reasons = sorted({str(group.reason) for group in self.analysis.groups})
            raise ValueError(
                f"Nothing in the model '{model.name}' can be pruned: "
                + "; ".join(reasons[:5])
            )
        self.limits.check(self.groups)
        self._slot = np.full(self.analysis.flow.table.count, -1)
        start = 0
        self._slices = []
        for group in self.groups:
            self._slot[group.roots] = np.arange(start, start + group.size)
            self._slices.append(slice(start, start + group.size))
            start += group.size
        self._filters = np.concatenate([group.filters for group in self.groups])
        self._masks = [(call.mask, self._slot_of(call)) for call in self.analysis.masks]

    def _slot_of(self, call) -> np.ndarray:
        """The slot behind each gate of a call, -1 where there is none."""
        roots = self.analysis.slots(call)
        return np.where(roots >= 0, self._slot[roots], -1)

    @property
    def filters(self) -> int:
        """How many filters can be pruned at all."""
        return int(self._filters.sum())

    def closed(self) -> np.ndarray:
        """Which slots are closed by all their makers' gates, `(slots,)` bool."""
        opened = np.zeros(self._filters.size, bool)
        for call in self.analysis.makers:
            if call.mask is not None:
                slots = self._slot_of(call)
                opened[slots[(slots >= 0) & ~call.mask.closed()]] = True
        return ~opened

    def sparsity(self) -> float:
        """The fraction of the prunable filters whose gates are closed."""
        return float(self._filters[self.closed()].sum() / self.filters)

    @property
    def reachable(self) -> float:
        """The highest sparsity that the limits allow, with gates as they are."""
        closed = self.closed()
        gone = self._filters[closed].sum()
        for part, group in zip(self._slices, self.groups, strict=True):
            width = self._filters[part].sum() / group.size
            left = int((~closed[part]).sum()) - self.limits.floor(group.size)
            gone += max(left, 0) * width
        return float(gone / self.filters)

    def check_reachable(self, sparsity: float) -> None:
        """Warn if a sparsity is out of reach, and say by how much."""
        reachable = self.reachable
        if sparsity <= reachable + 1e-9:
            return
        bounds = f"min_filters={self.limits.min_filters}"
        if self.limits.round_to is not None:
            bounds += f", round_to={self.limits.round_to}"
        warnings.warn(
            f"A sparsity of {sparsity:.3f} is out of reach: with {bounds} every "
            f"group of '{self.analysis.model.name}' keeps so many channels that no "
            f"more than {reachable:.3f} can be closed, {sparsity - reachable:.3f} "
            "less. Ask for less, or lower those bounds.",
            PruningWarning,
            stacklevel=3,
        )

    def scores(self) -> np.ndarray:
        """The importance of every slot, `(slots,)` float.

        Raises:
            ValueError: if a layer's weights are not finite.
        """
        total = np.zeros(self._filters.size)
        for call in self.analysis.makers:
            slots = self._slot_of(call)
            if (slots < 0).all():
                continue
            score = self._layer_scores(call)
            kept = slots >= 0
            np.add.at(total, slots[kept], score[kept])
        return total / self._filters

    def _layer_scores(self, call) -> np.ndarray:
        size = call.gate.size
        name, axis = call.gate.factor
        kernel = np.asarray(
            keras.ops.convert_to_numpy(weight_of(call.op, name)), "float64"
        )
        if not np.isfinite(kernel).all():
            raise ValueError(
                f"The weights `{name}` of the layer '{call.path}' are not finite "
                "(NaN or Inf): its filters cannot be ranked. Restore a checkpoint "
                "from before, or lower the learning rate."
            )
        rows = np.moveaxis(kernel, axis, -1).reshape(-1, size)
        score = np.asarray(self.criterion(rows), "float64")
        if score.shape != (size,) or not np.isfinite(score).all():
            raise ValueError(
                f"Expected the criterion to give {size} finite scores for the layer "
                f"'{call.path}'. Received an array of shape {score.shape}: {score}"
            )
        mean = score.mean()
        return score / mean if mean > 0 else score

    def select(self, sparsity: float) -> np.ndarray:
        """Choose which slots are closed at a sparsity, `(slots,)` bool.

        Slots that are closed stay closed. Among equals in a layer the first go
        first; equals in several layers go from all of them alike.
        """
        closed = self.closed()
        order = np.where(closed, -np.inf, self.scores())
        keep = self._keep(order, closed, sparsity)
        chosen = np.zeros(closed.size, bool)
        for part, count in zip(self._slices, keep, strict=True):
            ranked = np.argsort(order[part], kind="stable")
            chosen[part.start + ranked[: ranked.size - count]] = True
        return chosen

    def _keep(self, order, closed, sparsity: float) -> list[int]:
        """How many slots each group keeps."""
        if self.limits.scope == "layer":
            keep = [
                group.size - math.floor(sparsity * group.size + 0.5)
                for group in self.groups
            ]
        else:
            keep = self._keep_globally(order, closed, sparsity)
        return [
            self.limits.rounded(count, group.size, int((~closed[part]).sum()))
            for count, group, part in zip(keep, self.groups, self._slices, strict=True)
        ]

    def _keep_globally(self, order, closed, sparsity: float) -> list[int]:
        """Close the least important slots of all until the budget is spent."""
        allowed = ~closed
        for part, group in zip(self._slices, self.groups, strict=True):
            ranked = np.argsort(order[part], kind="stable")
            floor = self.limits.floor(group.size)
            allowed[part.start + ranked[group.size - floor :]] = False
        ranked = np.lexsort((self._ranks(order), order))
        ranked = ranked[allowed[ranked]]
        budget = sparsity * self.filters - self._filters[closed].sum()
        spent = np.cumsum(self._filters[ranked])
        # The last slot is taken if that comes nearer to the budget.
        closing = closed.copy()
        closing[ranked[spent - self._filters[ranked] / 2 < budget]] = True
        return [int((~closing[part]).sum()) for part in self._slices]

    def _ranks(self, order) -> np.ndarray:
        """How far down its group each slot ranks, a fraction: it settles ties."""
        fraction = np.zeros(order.size)
        for part, group in zip(self._slices, self.groups, strict=True):
            ranked = np.argsort(order[part], kind="stable")
            fraction[part.start + ranked] = np.arange(1, group.size + 1) / group.size
        return fraction

    def set_gates(self, closed: np.ndarray) -> None:
        """Set every gate in the model by its slot; gates without one stay."""
        for mask, slots in self._masks:
            known = slots >= 0
            if not known.any():
                continue
            gate = keras.ops.convert_to_numpy(mask.gate)
            new = np.where(known, ~closed[slots], gate).astype(gate.dtype)
            if not np.array_equal(new, gate):
                mask.gate.assign(new)

    def update(self, sparsity: float) -> float:
        """Close the gates for a sparsity.

        Args:
            sparsity: fraction of the prunable filters in [0, 1).

        Returns:
            The sparsity reached, which limits and rounding may hold off.
        """
        self.set_gates(self.select(sparsity))
        return self.sparsity()


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


def prune(
    masked, sparsity, criterion="l2", scope="global", min_filters=1, round_to=None
):
    """Close gates in one shot, outside training.

    Args:
        masked: a masked model, from `wrap_model` or `wrap`. Its gates are set
            in place; its other weights are not touched.
        sparsity: the fraction of the prunable filters to close, in [0, 1).
        criterion: `"l1"`, `"l2"` or a function from a kernel of shape
            `(weights, filters)` to scores of shape `(filters,)`. Defaults to
            `"l2"`.
        scope: `"global"` ranks all filters together, each layer's scores
            divided by their mean; `"layer"` takes the same fraction of every
            group. Defaults to `"global"`.
        min_filters: how many channels every group keeps at least. Defaults to
            `1`.
        round_to: if given, the channels that each group keeps are a multiple
            of it (or all).

    Returns:
        The sparsity reached, float: the fraction of prunable filters closed. If
        `min_filters` or `round_to` keep it from what was asked for, a
        `PruningWarning` says by how much.

    Raises:
        TypeError: if `masked` is no Keras model.
        ValueError: if an argument is out of range, the model has no gates, or
            nothing in it can be pruned. No gate is changed then.

    Example:

    ```python
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, sparsity=0.5)
    small = filterprune.compact(masked)
    ```
    """
    check_sparsity("sparsity", sparsity)
    selector = Selector(masked, criterion, Limits(scope, min_filters, round_to))
    selector.check_reachable(sparsity)
    return selector.update(sparsity)
