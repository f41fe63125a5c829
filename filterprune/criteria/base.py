"""What a criterion is, and how scores of weights become scores of slots."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from filterprune.slots import Slots
from filterprune.suggestions import did_you_mean


def sums_above(scores: np.ndarray) -> np.ndarray:
    """For each score the sum of all that rank no lower, `(filters,)`.

    Of equal scores the first ranks lowest.
    """
    order = np.argsort(scores, kind="stable")
    sums = np.zeros(scores.size)
    sums[order] = np.cumsum(scores[order][::-1])[::-1]
    return sums


def _share(scores: np.ndarray) -> np.ndarray:
    return sums_above(scores) / scores.size


NORMALIZATIONS: dict[str, Callable] = {
    "share": _share,
    "mean": np.mean,
    "max": np.max,
    "sum": np.sum,
    "norm": np.linalg.norm,
}
REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "mean": np.mean,
    "sum": np.sum,
    "max": np.max,
    "prod": np.prod,
}
_REGISTERED: dict[str, Callable] = {}


class Criterion:
    """How important each channel is: the base of all criteria.

    A criterion that only looks at weights implements `__call__`: it gets every
    weight along channels as a matrix and scores its columns. The scores of a
    weight are divided by their mean (see `normalization`), so that layers of
    different size compare, and a slot's score is the mean over all weights that
    make, read or scale it (see `reduction` and `roles`). A criterion that needs
    more implements `score`.

    Args:
        normalization: what the scores of one weight are divided by: `"mean"`,
            `"max"`, `"sum"`, `"norm"` (their L2 norm) or `None`; or `"share"`, each
            by the sum of those that rank no lower, over the number of all, so that
            what is left of a layer becomes dearer as it gets less. Defaults to that
            of the class, mostly `"mean"`.
        reduction: how the scores of tied channels become one: `"mean"`, `"sum"`,
            `"max"` or `"prod"`. Defaults to that of the class, mostly `"mean"`.

    Raises:
        ValueError: if one of them is not known.

    Example:

    ```python
    class Largest(filterprune.Criterion):
        def __call__(self, rows):
            return abs(rows).max(axis=0)

    filterprune.prune(masked, sparsity=0.5, criterion=Largest(reduction="max"))
    ```
    """

    roles: tuple[str, ...] = ("maker",)
    normalization: str | None = "mean"
    reduction: str = "mean"
    needs_data = False

    def __init__(
        self, normalization: str | None = "default", reduction: str = "default"
    ):
        if normalization != "default":
            self.normalization = normalization
        if reduction != "default":
            self.reduction = reduction
        if self.normalization not in (None, *NORMALIZATIONS):
            raise ValueError(
                f"Expected `normalization` to be one of {[*NORMALIZATIONS, None]}. "
                f"Received: normalization={self.normalization!r}."
                + did_you_mean(self.normalization, NORMALIZATIONS)
            )
        if self.reduction not in REDUCTIONS:
            raise ValueError(
                f"Expected `reduction` to be one of {[*REDUCTIONS]}. "
                f"Received: reduction={self.reduction!r}."
                + did_you_mean(self.reduction, REDUCTIONS)
            )

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Score the columns of one weight.

        Args:
            rows: `(weights, channels)`, float64.

        Returns:
            `(channels,)`, float: the higher, the dearer.
        """
        raise NotImplementedError(
            f"{type(self).__name__} implements neither `__call__` nor `score`."
        )

    def score(self, slots: Slots) -> np.ndarray:
        """The importance of every slot, `(slots,)` float.

        Args:
            slots: the prunable channels of a masked model.

        Raises:
            ValueError: if weights or scores are not finite.
        """
        return self.reduce(slots.count, self.scored(slots))

    def scored(self, slots: Slots) -> list[tuple]:
        """The scores of every weight: pairs of slots (-1 for none) and scores."""
        scored = []
        for part in slots.filters_of(*self.roles):
            found = np.asarray(self(part.rows), "float64")
            if found.shape != (part.slots.size,) or not np.isfinite(found).all():
                raise ValueError(
                    f"Expected the criterion to give {part.slots.size} finite scores "
                    f"for the layer '{part.path}'. Received an array of shape "
                    f"{found.shape}: {found}"
                )
            scored.append((part.slots, self.normalize(found)))
        return scored

    def normalize(self, scores: np.ndarray) -> np.ndarray:
        """The scores of one weight, made comparable with those of others."""
        if self.normalization is None:
            return scores
        if self.normalization == "share":  # of what is not negative
            scores = scores - min(scores.min(initial=0.0), 0.0)
        scale = NORMALIZATIONS[self.normalization](np.abs(scores))
        return np.divide(scores, scale, out=np.array(scores, float), where=scale > 0)

    def by_group(self, slots: Slots, scores: np.ndarray) -> np.ndarray:
        """Scores of slots, those of each group made comparable with others."""
        parts = [self.normalize(scores[part]) for part in slots.slices]
        return np.concatenate(parts)

    def fill(self, scores: np.ndarray, scored: Iterable[tuple]) -> np.ndarray:
        """Scores of slots in which those that nothing scored get the mean."""
        known = np.zeros(scores.size, bool)
        for slots, _ in scored:
            known[slots[slots >= 0]] = True
        return np.where(known, scores, scores[known].mean() if known.any() else 0)

    def reduce(self, count: int, scored: Iterable[tuple]) -> np.ndarray:
        """One score for each slot from pairs of slots and scores.

        Args:
            count: how many slots there are.
            scored: pairs of arrays of one shape: slots (-1 for none), scores.

        Returns:
            `(slots,)`, float; zero for a slot that nothing scores.
        """
        pairs = list(scored)
        slots = np.concatenate([np.zeros(0, int), *(s.ravel() for s, _ in pairs)])
        scores = np.concatenate([np.zeros(0), *(v.ravel() for _, v in pairs)])
        slots, scores = slots[slots >= 0], scores[slots >= 0]
        result: np.ndarray = np.zeros(count)
        if self.reduction in ("mean", "sum"):
            result = np.bincount(slots, scores, minlength=count)
            if self.reduction == "mean":
                result = result / np.maximum(np.bincount(slots, minlength=count), 1)
            return result
        order = np.argsort(slots, kind="stable")
        present, starts = np.unique(slots[order], return_index=True)
        if present.size:
            ufunc = np.maximum if self.reduction == "max" else np.multiply
            result[present] = ufunc.reduceat(scores[order], starts)
        return result


# What is taken as a criterion: a name, a criterion, or a function of a kernel.
Scorer = str | Criterion | type[Criterion] | Callable[[np.ndarray], Any]


class KernelCriterion(Criterion):
    """A criterion made of a function from a matrix to scores of its columns."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def __call__(self, rows):
        return self.function(rows)


def register_criterion(name: str) -> Callable[[Any], Any]:
    """Register a criterion under a name.

    Args:
        name: the name, a string by which `prune` and `FilterPruningCallback`
            take it.

    Returns:
        A decorator for a `filterprune.Criterion` class that can be made without
        arguments, or for a function from a matrix of weights `(weights,
        filters)`, float64, to scores `(filters,)`. It returns what it decorates.

    Raises:
        TypeError: if the name is no string or what is decorated is neither.
        ValueError: if another criterion has that name.

    Example:

    ```python
    @filterprune.register_criterion("peak")
    def peak(kernel):
        return abs(kernel).max(axis=0)

    filterprune.prune(masked, sparsity=0.5, criterion="peak")
    ```
    """
    if not isinstance(name, str) or not name:
        raise TypeError(
            "Expected `register_criterion` to be given a name, as in "
            f"`@register_criterion('mine')`. Received: {name!r}"
        )

    def register(criterion):
        if not callable(criterion):
            raise TypeError(
                "Expected a function or a `filterprune.Criterion` class. "
                f"Received: {criterion!r}"
            )
        known = _REGISTERED.get(name)
        if known is not None and _origin(known) != _origin(criterion):
            raise ValueError(
                f"Expected a name that no criterion has yet. Received: {name!r}, "
                f"which is {known!r}."
            )
        _REGISTERED[name] = criterion
        return criterion

    return register


def names(needs_data: bool | None = None) -> list[str]:
    """The names of criteria, sorted.

    Args:
        needs_data: whether to list those that look at data or the others.
            Defaults to `None`: all.
    """
    return sorted(
        name
        for name, criterion in _REGISTERED.items()
        if needs_data in (None, getattr(criterion, "needs_data", False))
    )


def with_data(name: str, data, **options) -> Criterion:
    """The criterion of a name, with the data that it looks at.

    Args:
        name: one of `names(needs_data=True)`.
        data: as `filterprune.criteria.Taylor` takes them.
        **options: other arguments of the criterion.

    Raises:
        ValueError: if the name is another.
        TypeError: if the criterion has no such argument.
    """
    if name not in names(needs_data=True):
        raise ValueError(
            f"Expected the name of a criterion that looks at data, one of "
            f"{names(needs_data=True)}. Received: {name!r}."
            + did_you_mean(name, names(needs_data=True), "criterion")
        )
    return _REGISTERED[name](data, **options)


def _origin(value) -> tuple:
    return getattr(value, "__module__", None), getattr(value, "__qualname__", None)


def get(criterion) -> Criterion:
    """The criterion of a name, of a function, or the criterion itself.

    Args:
        criterion: a registered name, a `filterprune.Criterion`, or a function
            from a matrix `(weights, filters)` to scores `(filters,)`.

    Raises:
        ValueError: if the name is not known, the value is neither, or the criterion
            needs data.
    """
    given = criterion
    if isinstance(criterion, str) and criterion in _REGISTERED:
        criterion = _REGISTERED[criterion]
    if inspect.isclass(criterion) and issubclass(criterion, Criterion):
        if criterion.needs_data:
            raise ValueError(
                f"Expected `criterion` with data: pass `filterprune.criteria."
                f"{criterion.__name__}(data)`, with arrays `(x, y)` or batches. "
                f"Received: criterion={given!r}"
            )
        return criterion()
    if isinstance(criterion, Criterion):
        return criterion
    if callable(criterion):
        return KernelCriterion(criterion)
    raise ValueError(
        f"Expected `criterion` to be one of {names(needs_data=False)}, a function or a "
        f"`filterprune.Criterion`. Received: criterion={criterion!r}."
        + did_you_mean(criterion, names(), "criterion")
    )
