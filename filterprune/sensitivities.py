"""How much each group matters: the loss with a part of it closed."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from filterprune.channels.groups import study
from filterprune.channels.trace import check_model
from filterprune.criteria.base import Scorer
from filterprune.criteria.batches import check_count
from filterprune.limits import check_patterns, matches
from filterprune.recovery import state_kept
from filterprune.schedules import check_sparsity
from filterprune.selection import Selector
from filterprune.suggestions import suggests_keywords
from filterprune.wrapping import wrap_model


@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivity:
    """What `filterprune.sensitivity` found.

    Attributes:
        groups: the names of the groups, in graph order.
        sparsities: the fractions of a group that were closed, rising.
        baseline: the loss and the metrics with the gates as they were.
        values: for `"loss"` and each metric an array of shape `(groups,
            sparsities)`: what it is with that fraction of that group closed.
    """

    groups: tuple[str, ...]
    sparsities: tuple[float, ...]
    baseline: dict[str, float]
    values: dict[str, np.ndarray]

    def rows(self) -> list[dict[str, Any]]:
        """A flat dict for each group and sparsity, for `pandas.DataFrame`."""
        return [
            {"group": group, "sparsity": sparsity}
            | {name: float(value[i, j]) for name, value in self.values.items()}
            for i, group in enumerate(self.groups)
            for j, sparsity in enumerate(self.sparsities)
        ]

    def plot(self, metric="loss", ax=None):
        """Plot it: see `filterprune.plots.sensitivity`."""
        from filterprune import plots

        return plots.sensitivity(self, metric=metric, ax=ax)


@suggests_keywords
def sensitivity(
    model,
    data,
    sparsities: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9),
    criterion: Scorer = "group",
    groups: str | Iterable[str] | None = None,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: str | int = "auto",
) -> Sensitivity:
    """Measure how the loss grows as each group is pruned by itself.

    For each group and each sparsity the least important channels of that group
    alone are closed, the model is evaluated, and the gates are put back. A
    progress bar counts the evaluations.

    Args:
        model: a compiled model: masked, or plain, which is then wrapped. It is
            left as it is; so are its gates, even if an evaluation raises.
        data: what to evaluate on: a tuple `(x, y)` or `(x, y, sample_weight)`
            of arrays; a list of batches `(x, y)`; or what else
            `model.evaluate` takes and can read again and again: a
            `keras.utils.PyDataset`, a `tf.data.Dataset`, a torch `DataLoader`.
        sparsities: the fractions of a group to close, each in [0, 1). One
            channel of each group stays open. Defaults to five from 0.1 to 0.9.
        criterion: how channels are ranked, as in `filterprune.prune`.
            Defaults to `"group"`.
        groups: a pattern of layer paths, or several: the groups to look at.
            Defaults to `None`: all that can be pruned.
        batch_size: how many samples a batch has where `data` are arrays.
            Defaults to `32`.
        steps: how many batches to evaluate on. Defaults to `None`: all.
        verbose: `0` for no progress bar. Defaults to `"auto"`: one.

    Returns:
        A `Sensitivity`. `result.plot()` draws it, `result.rows()` gives records.

    Raises:
        TypeError: if `model` is no Keras model, or `data` can be read only once.
        ValueError: if `model` is not compiled or nothing in it can be pruned, or
            if another argument is out of range.

    Example:

    ```python
    result = filterprune.sensitivity(model, (x, y), sparsities=(0.5, 0.9))
    for row in result.rows():
        print(row["group"], row["sparsity"], row["loss"])
    ```

    Reference:

    - [Li et al., 2017](https://arxiv.org/abs/1608.08710), section 3.2
    """
    check_model(model)
    if not model.compiled:
        raise ValueError(
            f"Expected `model` to be compiled. Received: '{model.name}', which has no "
            "loss to measure. Call `model.compile(loss=..., metrics=[...])`."
        )
    fractions = _check_fractions(sparsities)
    given = _arguments(data, batch_size, steps)
    masked = model if study(model).masks else wrap_model(model)
    selector = Selector(masked, criterion)
    numbers = _chosen(selector.groups, groups)
    before = selector.closed()
    order = np.where(before, -np.inf, selector.scores())

    def evaluate():
        return masked.evaluate(**given, verbose=0, return_dict=True)

    bar = keras.utils.Progbar(
        len(numbers) * len(fractions), verbose=0 if not verbose else 1, unit_name="run"
    )
    found: list[list[dict[str, float]]] = []
    with state_kept(masked):
        baseline = evaluate()
        for number in numbers:
            found.append([])
            for closed in _closings(
                before, selector.slots.slices[number], order, fractions
            ):
                if closed is None:
                    found[-1].append(found[-1][-1] if found[-1] else baseline)
                else:
                    selector.set_gates(closed)
                    found[-1].append(evaluate())
                bar.add(1)
    return Sensitivity(
        tuple(selector.groups[number].name for number in numbers),
        fractions,
        {name: float(value) for name, value in baseline.items()},
        {
            name: np.array([[float(logs[name]) for logs in row] for row in found])
            for name in baseline
        },
    )


def _closings(before, part: slice, order, fractions) -> Iterator[np.ndarray | None]:
    """For each fraction of a group which slots are closed; `None` for no change."""
    ranked = part.start + np.argsort(order[part], kind="stable")
    closed = before.copy()
    for fraction in fractions:
        count = min(int(fraction * ranked.size + 0.5), ranked.size - 1)
        changed = not closed[ranked[:count]].all()
        closed[ranked[:count]] = True
        yield closed if changed else None


def _chosen(groups, patterns) -> list[int]:
    if patterns is None:
        return list(range(len(groups)))
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    check_patterns(groups, patterns)
    return [
        number
        for number, group in enumerate(groups)
        if any(matches(group, pattern) for pattern in patterns)
    ]


def _check_fractions(sparsities) -> tuple[float, ...]:
    if isinstance(sparsities, (int, float)):
        sparsities = (sparsities,)
    fractions = sorted({check_sparsity("sparsities", value) for value in sparsities})
    if not fractions:
        raise ValueError("Expected `sparsities` to hold fractions. Received: none.")
    return tuple(fractions)


class _Listed(keras.utils.PyDataset):
    """Batches in a list, for `evaluate`."""

    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, index):
        return self._batches[index]


def _arguments(data, batch_size, steps) -> dict[str, Any]:
    """What `evaluate` is to be called with."""
    check_count("batch_size", batch_size)
    if steps is not None:
        check_count("steps", steps)
    if isinstance(data, tuple):
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        arrays = {"x": x, "y": y, "sample_weight": weights}
        return {**arrays, "batch_size": batch_size, "steps": steps}
    if isinstance(data, list):
        return {"x": _Listed(data), "steps": steps}
    if isinstance(data, Iterable) and iter(data) is data:
        raise TypeError(
            "Expected `data` that can be read again and again. Received: "
            f"{type(data).__name__}, which can be read only once. Pass a list of "
            "batches, or arrays."
        )
    return {"x": data, "steps": steps}
