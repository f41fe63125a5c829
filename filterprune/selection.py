"""Which gates close: scores, limits and a budget."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from filterprune import criteria
from filterprune.budget import UNITS, Budget
from filterprune.cost import uncounted
from filterprune.criteria.base import Scorer
from filterprune.errors import warn
from filterprune.latency import LatencyModel
from filterprune.limits import MIN_FILTERS, Limits
from filterprune.origin import Origin
from filterprune.schedules import check_sparsity
from filterprune.suggestions import suggests_keywords
from filterprune.trading import worth_of_price

# How often prices are looked up anew where closing slots changes them.
ROUNDS = 5


class Selector:
    """Scores the filters of a masked model and sets its gates.

    The engine behind `FilterPruningCallback` and `prune`, which a custom
    training loop can use as well: call `update(sparsity)` at the steps at
    which gates are to close.

    Args:
        model: a masked model.
        criterion: see `filterprune.prune`.
        limits: a `filterprune.limits.Limits`.
        budget: a `filterprune.budget.Budget`: of what a fraction is removed.
        origin: what the model was before it was compacted and wrapped again: all
            fractions are of that. Defaults to the model itself.

    Raises:
        ValueError: if the model has no gates, nothing in it is prunable, or a
            limit does not fit it.
    """

    def __init__(
        self,
        model,
        criterion: Scorer = "group",
        limits: Limits | None = None,
        budget: Budget | None = None,
        origin: Origin | None = None,
    ):
        self.criterion = criteria.get(criterion)
        self.limits = limits or Limits()
        self._origin = origin or Origin(model, self.limits.kinds)
        self.slots = self._origin.slots
        self.budget = (budget or Budget()).measured(self.slots.model)
        unknown = uncounted(self.slots.analysis) if self.budget.target == "macs" else ()
        if unknown:
            warn(
                f"The MACs of {', '.join(f'`{name}`' for name in unknown[:5])} are not "
                "counted, since filterprune cannot look into every layer of "
                f"'{self.slots.model.name}': fractions and budgets are of the others."
            )
        self.bounds = self.limits.bounds(self.slots.groups)
        self.pools = self.limits.pools(self.slots)

    @property
    def groups(self):
        """The prunable groups."""
        return self.slots.groups

    @property
    def filters(self) -> int:
        """How many filters can be pruned at all."""
        return int(self.slots.filters.sum())

    def closed(self) -> np.ndarray:
        """Which slots are closed by all their makers' gates, `(slots,)` bool."""
        return self._origin.closed()

    def set_gates(self, closed: np.ndarray) -> None:
        """Set every gate in the model by its slot; gates without one stay."""
        self._origin.set_gates(closed)

    def scores(self) -> np.ndarray:
        """The importance of every slot, `(slots,)` float.

        Raises:
            ValueError: if a layer's weights, or its scores, are not finite.
        """
        return self._origin.scores(self.criterion)

    def sparsity(self) -> float:
        """The fraction of the prunable filters whose gates are closed."""
        return self._sparsity(self.closed())

    def _sparsity(self, closed) -> float:
        return float(self.slots.filters[closed].sum() / self.filters)

    def removed(self) -> float:
        """The fraction of the target that is gone."""
        return self.budget.removed(self.slots, self.closed())

    @property
    def reachable(self) -> float:
        """The largest fraction of the target that the limits let go of."""
        closed = self.closed()
        counts = [
            min(bounds.floor, int((~closed[part]).sum()))
            for bounds, part in zip(self.bounds, self.slots.slices, strict=True)
        ]
        order = np.where(closed, -np.inf, 0.0)
        return self.budget.removed(self.slots, self._cheapest(order, counts))

    def check_reachable(self, fraction: float) -> None:
        """Complain if a fraction is out of reach, and say by how much.

        Filters that cannot go are warned of: as many as possible are closed.

        Raises:
            ValueError: if the target is not `"filters"`.
        """
        reachable = self.reachable
        if fraction <= reachable + 1e-9:
            return
        name, target = self.slots.model.name, self.budget.target
        bounds = f"min_filters={self.limits.min_filters}"
        if self.limits.round_to is not None:
            bounds += f", round_to={self.limits.round_to}"
        if target == "filters":
            warn(
                f"A sparsity of {fraction:.3f} is out of reach: with {bounds} every "
                f"group of '{name}' keeps so many channels that no more than "
                f"{reachable:.3f} can be closed, {fraction - reachable:.3f} less. Ask "
                "for less, or lower those bounds."
            )
            return
        full = self.budget.full(self.slots)
        wanted, has, least = (
            self.budget.number(share * full)
            for share in (1 - fraction, 1, 1 - reachable)
        )
        raise ValueError(
            f"Expected a budget within reach. Received: {wanted} {UNITS[target]} for "
            f"'{name}', which has {has} of them and, with {bounds}, keeps at least "
            f"{least}: a fraction of {reachable:.3f} can be removed. Ask for less, "
            "lower those bounds, or see "
            "`print(filterprune.analyze(masked))` for what cannot be pruned and why."
        )

    def rehearse(self, fraction: float) -> None:
        """Time what a fraction would leave, if latency is the target.

        Raises:
            ValueError: if the fraction turns out to be out of reach.
        """
        self.check_reachable(fraction)
        if self.budget.target == "latency":
            self.budget.rehearse(self.slots, lambda: self.select(fraction))
            self.check_reachable(fraction)

    def select(self, fraction: float, progress: float = 1.0, reopen=False):
        """Choose which slots are closed for a fraction, `(slots,)` bool.

        Slots that are closed stay closed. Among equals in a layer the first go
        first; equals in several layers go from all of them alike.

        Args:
            fraction: the fraction of the target to remove.
            progress: how far the schedule is, in [0, 1]: layers with a fraction
                of their own go as far towards it.
            reopen: whether closed slots may open again.
        """
        closed = self.closed()
        if reopen:
            closed = np.zeros_like(closed)
        scores = self.scores()
        order = np.where(closed, -np.inf, scores)
        if self.budget.target == "latency":
            return self._trade(scores, order, closed, fraction, progress)
        key = self._keys(order, closed)
        plain = self.limits.round_to is None or self.limits.scope == "layer"
        if plain and self.budget == Budget():
            halves = 1e-9 if self.limits.scope == "layer" else -1e-9  # up, or down
            return self._cut(order, closed, key < fraction + halves, progress)
        return self._search(order, closed, key, fraction, progress)

    def _trade(self, scores, order, closed, fraction, progress):
        """Close the slots that are worth least for what they cost."""
        chosen, prices = closed, None
        for _ in range(ROUNDS):
            found = self.budget.prices(self.slots, chosen)
            prices = found if prices is None else np.sqrt(prices * found)
            worth = worth_of_price(self.slots, self.criterion, scores, closed, prices)
            key = self._keys(order, closed, worth)
            chosen = self._search(order, closed, key, fraction, progress)
        return chosen

    def _search(self, order, closed, key, fraction, progress):
        """Close the slots that are next until enough is gone."""
        wanted = (1 - fraction) * self.budget.full(self.slots)
        ranked = np.argsort(key, kind="stable")
        ranked = ranked[np.isfinite(key[ranked])]

        def cut(count):
            closing = np.zeros(closed.size, bool)
            closing[ranked[:count]] = True
            return self._cut(order, closed, closing, progress)

        low, high = 0, ranked.size
        while low < high:
            middle = (low + high) // 2
            if self.budget.left(self.slots, cut(middle)) <= wanted:
                high = middle
            else:
                low = middle + 1
        best = cut(low)
        if self.budget.budget is None and low:  # a fraction: the nearer one
            before = cut(low - 1)
            miss = [
                abs(self.budget.left(self.slots, c) - wanted) for c in (before, best)
            ]
            best = before if miss[0] < miss[1] else best
        return best

    def _cut(self, order, closed, closing, progress):
        """The slots that are closed if those of `closing` are to be."""
        counts = []
        for bounds, part in zip(self.bounds, self.slots.slices, strict=True):
            keep = int((~(closing[part] | closed[part])).sum())
            if bounds.sparsity is not None:
                keep = bounds.size - int(bounds.sparsity * progress * bounds.size + 0.5)
            counts.append(bounds.rounded(keep, int((~closed[part]).sum())))
        return self._cheapest(order, counts)

    def _cheapest(self, order, counts) -> np.ndarray:
        """All but so many of each group, those that rank lowest, `(slots,)` bool."""
        chosen = np.zeros(order.size, bool)
        for part, count in zip(self.slots.slices, counts, strict=True):
            ranked = np.argsort(order[part], kind="stable")
            chosen[part.start + ranked[: ranked.size - count]] = True
        return chosen

    def _keys(self, order, closed, worth=None) -> np.ndarray:
        """After which fraction of its pool each slot is to close, `(slots,)`.

        Infinite for those that the limits keep.

        Args:
            order: how those of one group rank.
            closed: which are closed already.
            worth: how groups rank among each other, if not by `order`.
        """
        worth = order if worth is None else worth
        filters, slices = self.slots.filters, self.slots.slices
        allowed, ranks = ~closed, np.zeros(order.size)
        for bounds, part in zip(self.bounds, slices, strict=True):
            ranked = part.start + np.argsort(order[part], kind="stable")
            ranks[ranked] = np.arange(1, bounds.size + 1) / bounds.size
            allowed[ranked[bounds.size - bounds.floor :]] = False
            if bounds.sparsity is not None:
                allowed[part] = False
        key = np.full(order.size, np.inf)
        for pool in self.pools:
            parts = np.isin(self.slots.group_of, pool)
            members = np.flatnonzero(parts & allowed)
            ranked = members[np.lexsort((ranks[members], worth[members]))]
            gone = filters[parts & closed].sum()
            spent = gone + np.cumsum(filters[ranked])
            # The last slot is taken if that comes nearer to the fraction.
            key[ranked] = (spent - filters[ranked] / 2) / filters[parts].sum()
        return key

    def update(self, fraction: float, progress: float = 1.0, soft=0.0, reopen=False):
        """Close the gates for a fraction of the target.

        Args:
            fraction: the fraction of the target to remove, in [0, 1): of the
                prunable filters unless the budget says otherwise.
            progress: how far the schedule is, in [0, 1].
            soft: the value of closed gates, in [0, 1); those above 0 may open
                again.
            reopen: whether closed slots may open again.

        Returns:
            The sparsity reached, which limits and rounding may hold off.
        """
        chosen = self.select(fraction, progress, reopen)
        self._origin.set_gates(chosen, soft)
        return self._sparsity(chosen)


@suggests_keywords
def prune(
    masked,
    sparsity: float | None = None,
    criterion: Scorer = "group",
    scope: str | Mapping[str, Any] = "global",
    min_filters: int | float = MIN_FILTERS,
    round_to: int | None = None,
    target: str | LatencyModel = "filters",
    budget: float | None = None,
    rounding: str = "nearest",
    max_sparsity: float = 1.0,
    overrides: Mapping[str, Any] | None = None,
    kinds: Iterable[str] | None = None,
) -> float:
    """Close gates in one shot, outside training.

    Args:
        masked: a masked model, from `wrap_model` or `wrap`. Its gates are set
            in place; its other weights are not touched.
        sparsity: the fraction of the target to remove, in [0, 1): by default of
            the prunable filters.
        criterion: a name such as `"l2"` (see `filterprune.criteria`), a
            `filterprune.Criterion`, or a function from a kernel of shape
            `(weights, filters)` to scores of shape `(filters,)`. Defaults to
            `"group"`.
        scope: what is ranked together. `"global"`: all filters, by scores that the
            criterion makes comparable (see its `normalization`); `"layer"`: each
            group by itself, so that all lose the same fraction; `"isomorphic"`:
            groups of like structure; or a dict from names of one's own to patterns
            of layer paths. Each of those loses the same fraction. Defaults to
            `"global"`.
        min_filters: how many channels every group keeps at least: an integer, or
            a fraction of the group in (0, 1). A fraction keeps at least one channel,
            and two of a residual stream. Defaults to `0.05`.
        round_to: if given, the channels that each group keeps are a multiple
            of it (or all).
        target: what is counted: `"filters"`, or what the whole model costs in
            `"params"`, `"macs"` (multiply-accumulates of one sample) or
            `"bytes"` of weights; or what `filterprune.measure_latency` returns,
            for seconds on this machine (`"latency"` measures, for one sample).
            For latency filters are ranked by how much they add for their time.
            Defaults to `"filters"`.
        budget: how much of the target may be left, such as `5e8` MACs or `0.01`
            seconds, instead of `sparsity`.
        rounding: to which multiple of `round_to`: `"nearest"`, `"up"` or
            `"down"`. Defaults to `"nearest"`.
        max_sparsity: the fraction of a group that may be closed at most.
            Defaults to `1.0`.
        overrides: a dict from layer paths or patterns (`"block3_*"`) to the
            fraction of their group to close, whatever its scores, or to a dict
            with some of `sparsity` (the same), `max_sparsity`, `min_filters` and
            `round_to`.
        kinds: what to prune: some of `"heads"`, `"key_dim"`, `"value_dim"`,
            `"head_dim"` (of attention), `"ffn"` (feed-forward), `"width"`
            (residual streams of layers of several sorts), `"channels"` (of
            convolutions) and `"units"`; `filterprune.analyze` tells the kind of
            every group. All fractions are then of these alone. Defaults to
            `None`: all kinds.

    Returns:
        The sparsity reached, float: the fraction of prunable filters closed. If
        `min_filters` or `round_to` keep it from what was asked for, a
        `PruningWarning` says by how much.

    Raises:
        TypeError: if `masked` is no Keras model, or neither `sparsity` nor
            `budget` is a number.
        ValueError: if an argument is out of range, the model has no gates,
            nothing in it can be pruned, or what it costs cannot be brought down
            so far: the message has the smallest figure. No gate is
            changed then.

    Example:

    ```python
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, sparsity=0.5)
    filterprune.prune(masked, sparsity=0.6, target="macs", round_to=2)
    filterprune.prune(masked, sparsity=0.8, scope="layer", kinds={"channels"})
    small = filterprune.compact(masked)
    ```
    """
    if sparsity is not None and budget is not None:
        raise ValueError(
            "Expected either `sparsity`, a fraction to remove, or `budget`, how much "
            f"may be left. Received: sparsity={sparsity!r}, budget={budget!r}"
        )
    if budget is None:
        check_sparsity("sparsity", sparsity)
    limits = Limits(
        scope, min_filters, round_to, rounding, max_sparsity, overrides or {}, kinds
    )
    wanted = Budget(target, budget)
    selector = Selector(masked, criterion, limits, wanted)
    fraction = selector.budget.fraction(selector.slots, sparsity)
    selector.rehearse(fraction)
    return selector.update(fraction)
