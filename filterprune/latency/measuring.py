"""Timing the layers of a model at many widths, and the model at a few."""

import dataclasses
import itertools
import json
import os

import keras
import numpy as np

from filterprune.channels.groups import Analysis, study
from filterprune.channels.survivors import Survivors
from filterprune.channels.trace import check_model
from filterprune.latency.cache import Cache, digest
from filterprune.latency.model import BUDGET, LatencyModel
from filterprune.latency.running import shortest
from filterprune.latency.tables import Table
from filterprune.latency.units import (
    Unit,
    nearest,
    run_model,
    run_unit,
    sizes_of,
    survivors_of,
    units,
)
from filterprune.resizing import Resizer
from filterprune.schedules import is_integer

# At which shares of all channels the whole model is timed.
SHARES = (1.0, 0.85, 0.7, 0.5, 0.3)
# After how many timed calls the cache is written.
EVERY = 200


def measure_latency(
    model,
    batch_size: int = 1,
    points: int = 5,
    rehearsals: int = 2,
    cache_dir: str | os.PathLike | None = None,
    refresh: bool = False,
    verbose: str | int = 1,
) -> LatencyModel:
    """Time a model's layers on this machine, to prune for latency.

    Every layer (and operation) is timed by itself, at a grid of the channels that
    it may read and make; equal ones are timed once. Then the whole model is, as it
    is and at three smaller uniform widths, and the sum over layers is scaled so
    that it agrees there. All is timed as the backend runs inference: a
    `tf.function` without XLA, `jax.jit`, or PyTorch as it is. The shortest of
    several runs counts, and what is known is kept on disk, so that the next call
    takes seconds. Time on a machine that does little else.

    Args:
        model: a built functional or sequential model, plain or masked, whose
            input sizes are known apart from the batch. It is not touched.
        batch_size: how many samples a batch has. Defaults to `1`.
        points: at how many widths each layer is timed, along what it reads and
            along what it makes, at least 2. Defaults to `5`.
        rehearsals: how often `prune` and the callback build and time what they
            would keep, before they close a gate, to predict better by that; 0
            trusts the layers. Defaults to `2`.
        cache_dir: the folder to keep figures in. Defaults to `None`:
            `~/.cache/filterprune`, or `filterprune` in `$XDG_CACHE_HOME`. There
            is a file for each machine, backend and version of both.
        refresh: whether to time again what is known. Defaults to `False`.
        verbose: 0 to print nothing, 1 for a progress bar. Defaults to `1`.

    Returns:
        A `filterprune.LatencyModel`, which `prune` and `FilterPruningCallback`
        take as `target`.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if it is subclassed or not built or leaves an input size
            open, or another argument is out of range.

    Example:

    ```python
    latency = filterprune.measure_latency(model, batch_size=8, points=2, verbose=0)
    print(latency.predict(model))
    callback = filterprune.FilterPruningCallback(
        filterprune.PolynomialDecay(final_sparsity=0.5), target=latency
    )
    ```

    Reference:

    - [Yang et al., 2018](https://arxiv.org/abs/1804.03230), who prune by tables of
      measured times of layers
    """
    _check(model, batch_size, points, rehearsals)
    analysis = study(model)
    cache = Cache(cache_dir, refresh)
    try:
        plans, calls = make_plans(analysis, batch_size, points)
        _time_units(analysis, plans, batch_size, cache.figures, cache.write, verbose)
        tables: dict[str, list[Table]] = {}
        for plan in plans:
            tables.setdefault(plan.unit.signature, []).append(plan.table(cache.figures))
        latency = LatencyModel(tables, batch_size, cache.environment, rehearsals)
        name = digest(json.dumps([calls, SHARES, points]))
        if name not in cache.figures:
            cache.figures[name] = _time_models(analysis, latency, batch_size)
    finally:
        cache.write()
    latency.calibrate(cache.figures[name])
    return latency


def _check(model, batch_size, points, rehearsals) -> None:
    check_model(model)
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("points", points, 2),
        ("rehearsals", rehearsals, 0),
    ):
        if not is_integer(value) or value < least:
            raise ValueError(
                f"Expected `{name}` to be an integer of at least {least}. "
                f"Received: {name}={value!r}"
            )
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                "Expected a model whose input sizes are known, apart from the batch. "
                f"Received: '{model.name}', whose input `{tensor.name}` has the shape "
                f"{tuple(tensor.shape)}. Build it for the size that it will see: "
                "`keras.models.clone_model(model, input_tensors=keras.Input(shape))`."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """At which sizes one kind of call is timed.

    Attributes:
        unit: the first call of that kind.
        sizes: its sizes, one tuple for each timing.
        survivors: what is alive at those.
        names: what the figures are called.
    """

    unit: Unit
    sizes: list[tuple[int, ...]]
    survivors: list[Survivors]
    names: list[str]

    def table(self, figures: dict) -> Table:
        """What was measured, as a table."""
        axes = [np.unique(column) for column in zip(*self.sizes)]
        known = dict(zip(self.sizes, (figures[name] for name in self.names)))
        seconds = [known[sizes] for sizes in itertools.product(*axes)]
        return Table(tuple(axes), np.reshape(seconds, [axis.size for axis in axes]))


def make_plans(
    analysis: Analysis, batch_size: int, points: int
) -> tuple[list[Plan], list[str]]:
    """A plan for each kind of call, and the kinds of all calls."""
    plans: dict[str, Plan] = {}
    calls = []
    for unit in units(analysis, batch_size):
        sizes = tuple(axis.entries.size for axis in unit.axes)
        calls.append(f"{unit.signature} at {sizes}")
        if calls[-1] not in plans:
            alive = [survivors_of(analysis, unit, p) for p in unit.points(points)]
            grid = [sizes_of(unit, survivors) for survivors in alive]
            names = [digest(f"{unit.signature} at {each}") for each in grid]
            plans[calls[-1]] = Plan(unit, grid, alive, names)
    return list(plans.values()), calls


def _time_units(analysis, plans, batch_size, figures, write, verbose) -> None:
    """Time what is not known yet."""
    missing = {name for plan in plans for name in plan.names} - figures.keys()
    bar = keras.utils.Progbar(len(missing), verbose=verbose, unit_name="timing")
    for plan in plans:
        overhead = None
        for survivors, name in zip(plan.survivors, plan.names):
            if name not in missing:
                continue
            run, nothing = run_unit(analysis, plan.unit, survivors, batch_size)
            if overhead is None:
                (overhead,) = shortest([nothing])
            (total,) = shortest([run])
            figures[name] = max(total - overhead, 0.0)
            missing.remove(name)
            bar.add(1)
            if len(missing) % EVERY == 0:
                write()


def _time_models(analysis: Analysis, latency: LatencyModel, batch_size: int) -> list:
    """Pairs: the sum of the layers, and what the whole model takes."""
    sums, runs = [], []
    bound = latency.bind(analysis)
    for share in SHARES:
        dead = np.zeros(analysis.flow.table.count, bool)
        for group in analysis.prunable:
            dead[group.roots[nearest(share * group.size, group.size) :]] = True
        survivors = analysis.survivors(dead)
        sums.append(bound.sums.total(survivors.alive))
        runs.append(run_model(Resizer(analysis, survivors).build(), batch_size))
    return list(zip(sums, shortest(runs, budget=BUDGET)))
