"""What was measured, as a cost like parameters and MACs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from filterprune.channels.groups import Analysis, study
from filterprune.channels.trace import check_model
from filterprune.latency.running import shortest
from filterprune.latency.tables import Interpolation, Table
from filterprune.latency.units import run_model, units
from filterprune.resizing import Resizer

# For how many seconds a whole model is run to time it.
BUDGET = 1.0
# Knots whose sums of layers are nearer than this to each other are one.
NEAR = 0.005
# A time that is as near to the one predicted needs no more timing.
CLOSE = 0.01


class LatencyModel:
    """How long a model takes, by the channels that are left.

    `filterprune.measure_latency` makes it. Pass it as `target` to
    `filterprune.prune` and `filterprune.FilterPruningCallback`.

    Args:
        tables: for each kind of call what was measured.
        batch_size: how many samples a batch had.
        environment: the machine, backend and versions it was measured with.
        rehearsals: how often a selection is timed as a whole before it is made.

    Attributes:
        batch_size, environment, rehearsals: the same.

    Example:

    ```python
    latency = filterprune.measure_latency(model, batch_size=1, points=2)
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, sparsity=0.3)
    latency.predict(masked)  # seconds, once compacted
    ```
    """

    def __init__(
        self,
        tables: Mapping[str, Sequence[Table]],
        batch_size: int,
        environment: Mapping[str, Any],
        rehearsals: int = 0,
    ):
        self._tables = {key: list(value) for key, value in tables.items()}
        self.batch_size = batch_size
        self.environment = dict(environment)
        self.rehearsals = rehearsals
        self.knots: list[tuple[float, float]] = [(1.0, 1.0)]

    def calibrate(self, knots: Sequence[tuple[float, float]]) -> None:
        """Tell how long the whole model takes.

        Args:
            knots: pairs of a sum of layers and the time that the model took, in
                seconds.
        """
        self.knots = [(float(total), float(seconds)) for total, seconds in knots]

    def predict(self, model) -> float:
        """How long a batch takes, in seconds.

        Args:
            model: the measured model, or a masked or compact one made of it. Of a
                masked model it is what it takes once it is compacted.

        Raises:
            TypeError: if `model` is no Keras model.
            ValueError: if it has layers that were not measured.
        """
        check_model(model)
        analysis = study(model)
        dead, *_ = analysis.decide()
        return self.bind(analysis).seconds(analysis.survivors(dead).alive)

    def bind(self, analysis: Analysis) -> "Latency":
        """The latency of one model as a function of what is alive in it.

        Raises:
            ValueError: if the model has layers that were not measured.
        """
        found = units(analysis, self.batch_size)
        tables = []
        for unit in found:
            sizes = [axis.entries.size for axis in unit.axes]
            fitting = [
                table
                for table in self._tables.get(unit.signature, ())
                if table.covers(sizes)
            ]
            if not fitting:
                raise ValueError(
                    f"Expected a model whose layers were measured. Received: "
                    f"'{analysis.model.name}', whose layer '{unit.call.path}' was not, "
                    f"or not as wide, at a batch size of {self.batch_size}. Pass this "
                    "model, or the one that it was made of, to "
                    "`filterprune.measure_latency`."
                )
            table = min(fitting, key=lambda table: table.seconds.sum())
            tables.append(table.repeated(unit.call.times))
        axes = [[axis.entries for axis in unit.axes] for unit in found]
        return Latency(analysis, Interpolation(tables, axes), self)


class Latency:
    """The latency of one model, by which labels' roots are alive.

    Args:
        analysis: the analysis of the model.
        sums: the sum of its layers.
        model: what was measured.
    """

    def __init__(self, analysis: Analysis, sums: Interpolation, model: LatencyModel):
        self.sums = sums
        self._analysis = analysis
        self._batch_size = model.batch_size
        self._knots = sorted(model.knots)

    def seconds(self, alive: np.ndarray) -> float:
        """How long a batch takes, by which roots are alive, `(labels,)` bool."""
        sums, seconds = np.array(self._knots).T
        seconds = np.maximum.accumulate(seconds)
        total = self.sums.total(alive)
        if not sums[0] <= total <= sums[-1]:
            end = 0 if total < sums[0] else -1
            return float(seconds[end] * total / sums[end])
        return float(np.interp(total, sums, seconds))

    def slopes(self, alive: np.ndarray) -> np.ndarray:
        """How dear another channel of each root is, `(labels,)`, to a scale."""
        return self.sums.slopes(alive)

    def rehearse(self, choose: Callable[[], np.ndarray], times: int) -> None:
        """Time the model with the channels chosen, and predict by that from now on.

        At the widths of a selection layers may be slower or faster than at those
        that they were timed with, all alike: odd ones are.

        Args:
            choose: a function that gives which roots are to be alive.
            times: how often at most; less if what was predicted comes true.
        """
        everything = np.ones(self._analysis.flow.table.count, bool)
        whole, full = self._run(everything), self.seconds(everything)
        knots = [(self.sums.total(everything), full)]
        for _ in range(times):
            alive = choose()
            if alive.all():
                break
            total, predicted = self.sums.total(alive), self.seconds(alive)
            before, after = shortest([whole, self._run(alive)], budget=BUDGET)
            seconds = full * after / before
            knots = [k for k in knots if abs(k[0] - total) > NEAR * total]
            knots = sorted([*knots, (total, seconds)])
            self._knots = knots
            if abs(seconds / predicted - 1) < CLOSE:
                break

    def _run(self, alive: np.ndarray) -> Callable:
        survivors = self._analysis.survivors(~alive)
        return run_model(Resizer(self._analysis, survivors).build(), self._batch_size)
