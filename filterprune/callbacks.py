"""The callback that closes gates while a model trains: when, not which."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from filterprune import criteria
from filterprune.budget import Budget
from filterprune.channels.trace import check_model
from filterprune.companions import Companions
from filterprune.criteria.base import Scorer
from filterprune.errors import warn
from filterprune.latency import LatencyModel
from filterprune.limits import MIN_FILTERS, Limits
from filterprune.origin import Origin
from filterprune.schedules import (
    END_FRACTION,
    Schedule,
    Timetable,
    is_integer,
    last_step,
    optimizer_step,
    sync_state,
)
from filterprune.selection import Selector
from filterprune.suggestions import suggests_keywords

# How often gates close where the user does not say: few large steps cost accuracy.
UPDATES = 50
# Sparsities that differ by less are equal.
EQUAL = 1e-9
_WAIT = (
    "Let it wait until the schedule has ended: "
    "`filterprune.AfterPruning(callback, pruning)`."
)


@suggests_keywords
class FilterPruningCallback(keras.callbacks.Callback):
    """Closes the gates of a masked model on a schedule, during `fit`.

    The step is the optimizer's own count, so that a second `fit`, or a run
    resumed by `BackupAndRestore`, continues where the first one stopped. The
    schedule's final sparsity is reached exactly at its `end_step`, whatever
    the frequency and `steps_per_execution` (then at the end of the execution
    that contains it). `logs` and `History` get `sparsity`: the fraction of
    the prunable filters whose gates are closed.

    Callbacks that keep the best epoch may keep one from before the schedule's
    end, and a `PruningWarning` says so. `filterprune.AfterPruning` lets them wait.

    Args:
        schedule: a `filterprune.PolynomialDecay`, `ConstantSparsity` or other
            `Schedule`. Where it leaves out `end_step`, pruning ends after
            `end_fraction` of this fit's steps.
        frequency: every how many steps gates are closed, from the schedule's
            `begin_step` on. Defaults to `None`: about 50 times in all, whatever
            the number of steps (see `docs/choosing.rst`).
        criterion: how filters are scored, as in `filterprune.prune`. Defaults
            to `"group"`.
        scope: what is ranked together, as in `filterprune.prune`. Defaults to
            `"global"`.
        min_filters: how many channels every group keeps at least: an integer, or
            a fraction of the group in (0, 1). A fraction keeps at least one channel,
            and two of a residual stream. Defaults to `0.05`.
        round_to: if given, the channels that each group keeps are a multiple
            of it (or all).
        end_fraction: the fraction of the fit's steps, in (0, 1], after which
            a schedule without `end_step` ends; the rest is for recovery.
            Defaults to `0.15`: see `docs/choosing.rst`.
        target: what the schedule's sparsity is a fraction of: `"filters"`,
            `"params"`, `"macs"`, `"bytes"` or a latency that was measured, as in
            `filterprune.prune`; `logs` then also get `macs_removed` (or
            `params_removed`, `bytes_removed`, `latency_removed`). Defaults to
            `"filters"`.
        budget: how much of the target may be left at the end, such as `5e8`
            MACs. The schedule then says how fast it is approached, and not how
            far. Defaults to `None`.
        rounding, max_sparsity, overrides, kinds: as in `filterprune.prune`.
        regrow_until: until which step gates that were closed may open again:
            an integer, or a fraction of the schedule in (0, 1]. Defaults to
            `None`: closed gates stay closed.
        softness: the value of closed gates until then, in [0, 1): above 0 their
            filters go on learning, and can win their place back (Kang and Han,
            "Operation-aware soft channel pruning", ICML 2020, soften gates too).
            Defaults to `0.5`.
        model: the masked model, where another one that holds it is trained, such as
            a GAN or a distiller. A step is then a batch, whatever its optimizers do.
            Defaults to `None`: the model that is trained.

    Raises:
        TypeError: if `schedule` is no schedule, or `model` no Keras model.
        ValueError: if another argument is out of range; and at the start of
            `fit` if the model has no gates, nothing in it can be pruned, a
            budget is out of reach or another callback prunes in the same `fit`.

    Example:

    ```python
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5)
    masked.fit(x, y, epochs=5, callbacks=[
        filterprune.FilterPruningCallback(schedule, frequency=50)
    ])
    ```
    """

    def __init__(
        self,
        schedule: Schedule,
        frequency: int | None = None,
        criterion: Scorer = "group",
        scope: str | Mapping[str, Any] = "global",
        min_filters: int | float = MIN_FILTERS,
        round_to: int | None = None,
        end_fraction: float = END_FRACTION,
        target: str | LatencyModel = "filters",
        budget: float | None = None,
        rounding: str = "nearest",
        max_sparsity: float = 1.0,
        overrides: Mapping[str, Any] | None = None,
        regrow_until: int | float | None = None,
        softness: float = 0.5,
        kinds: Iterable[str] | None = None,
        model=None,
    ):
        super().__init__()
        if model is not None:
            check_model(model)
        self._held = model
        self._steps = 0  # batches in all epochs so far, where a held model is pruned
        if not isinstance(schedule, Schedule):
            raise TypeError(
                "Expected `schedule` to be a filterprune schedule, such as "
                f"`PolynomialDecay(final_sparsity=0.5)`. Received: {schedule!r}"
            )
        _check_frequency(frequency)
        if not 0 < end_fraction <= 1:
            raise ValueError(
                "Expected `end_fraction` to be in (0, 1]. Received: "
                f"end_fraction={end_fraction!r}"
            )
        criteria.get(criterion)
        self.schedule = schedule
        self.frequency = frequency
        self.criterion = criterion
        self.limits = Limits(
            scope, min_filters, round_to, rounding, max_sparsity, overrides or {}, kinds
        )
        self.budget = Budget(target, budget)
        self.end_fraction = end_fraction
        self.regrow_until = _check_regrowth(regrow_until)
        if isinstance(softness, bool) or not 0 <= softness < 1:
            raise ValueError(
                f"Expected `softness` to be in [0, 1). Received: softness={softness!r}"
            )
        self.softness = softness
        # What the model was that `fit_shrinking` compacts again and again.
        self.origin: Origin | None = None
        self._companions: Any = None

    def on_train_begin(self, logs=None):
        self._companions = Companions(self, self._companions)
        _check_alone(self, self._companions.all)
        _check_held(self._held, self.model)
        self._begin(self.budget)
        self._times: Timetable | None = None
        if self.schedule.end_step is None:
            last_step(self, 0, 0, self.end_fraction)  # raises if it is not known

    def on_shrink(self, origin: Origin) -> None:
        """Go on with a model that was compacted and wrapped again."""
        self.origin = origin
        self._begin(self._selector.budget)

    def _begin(self, budget: Budget) -> None:
        self._selector = Selector(
            self.pruned, self.criterion, self.limits, budget, self.origin
        )
        self._report(self._selector.sparsity())

    @property
    def pruned(self):
        """The masked model: the one that is trained, or that it holds."""
        return self.model if self._held is None else self._held

    def _step(self) -> int:
        """How many steps were trained."""
        if self._held is None:
            return optimizer_step(self.model)
        sync_state(self.model)
        return self._steps

    @property
    def selector(self) -> Selector:
        """What scores filters and sets gates, in `fit` and after."""
        return self._selector

    def is_settled(self) -> bool:
        """Whether what is closed stays closed."""
        times, step = self._times, self._step()
        return times is None or not self._is_soft(step, times)

    def is_done(self) -> bool:
        """Whether the schedule has come to its end."""
        times = self._times
        return times is not None and self._step() >= times.end

    def on_epoch_begin(self, epoch, logs=None):
        # Here, not in `on_train_begin`: by now a resumed run is restored.
        self._steps = max(self._steps, epoch * (self.params.get("steps") or 0))
        step = self._step()
        if self._times is None:
            self._plan, self._times = self._planned(step, epoch)
            self._final = self._plan(self._times.end)
            if self.budget.budget is not None:
                budget = self._selector.budget
                self._final = budget.fraction(self._selector.slots, None)
            self._selector.rehearse(self._final)
        self._companions.begin(epoch)
        self._before = step
        self._next = self._times.after(step)
        if self._times.due(step):
            self._update(step)

    def on_train_batch_end(self, batch, logs=None):
        # Reading the optimizer's count is slow: do so only if it can be time.
        self._steps = self._before + batch + 1
        if self._next is not None and self._steps >= self._next:
            step = self._step()
            if step >= self._next:
                self._update(step)
        if logs is not None:
            logs.update(self._logs)

    def on_epoch_end(self, epoch, logs=None):
        self._companions.note(epoch, self._logs["sparsity"])
        if logs is not None:
            logs.update(self._logs)

    def on_train_end(self, logs=None):
        step, times = self._step(), self._times
        if times is None:
            return
        reached = self._logs["sparsity"]
        restored = self._companions.restored()
        closed = self._selector.sparsity() if restored is None else restored[1]
        if restored is not None and closed < reached - EQUAL:
            warn(
                f"`EarlyStopping` restores the weights of epoch {restored[0] + 1}, "
                f"with a sparsity of {closed:.3f}: it was {reached:.3f} when `fit` "
                f"ended. {_WAIT}"
            )
        elif closed < reached - EQUAL:
            warn(
                f"The sparsity is {closed:.3f}, and was {reached:.3f} after the last "
                "step: another callback has set weights since, and gates with them."
            )
        for path, epoch, there in self._companions.saved():
            if there < reached - EQUAL:
                warn(
                    f"`ModelCheckpoint` saved '{path}' after epoch {epoch + 1}, with a "
                    f"sparsity of {there:.3f}: it was {reached:.3f} when `fit` ended. "
                    + _WAIT
                )
        if step < times.end:
            soft = self.softness if self._is_soft(step, times) else 0
            warn(
                f"`fit` ended at step {step}, before the pruning schedule ends at "
                f"step {times.end}: the sparsity is {closed:.3f}, and "
                f"{self._final:.3f} of the {self.budget.target} was planned. "
                f"{_softly(soft)}"
                "Train on (a second `fit` continues the schedule) or lower `end_step`."
            )

    def _planned(self, step: int, epoch: int) -> tuple[Schedule, Timetable]:
        """The schedule with its end, and when it is due."""
        plan = self.schedule
        end = plan.end_step
        if end is None:
            end = last_step(self, step, epoch, self.end_fraction)
            end = max(end, plan.begin_step + 1)
            plan = plan.with_end(end)
        frequency = self.frequency or max(1, (end - plan.begin_step) // UPDATES)
        return plan, Timetable(plan.begin_step, end, frequency)

    def _update(self, step: int) -> None:
        times = self._times
        if times is None:  # not before the first epoch
            return
        last = self._plan(times.end)
        progress = min(self._plan(step) / last, 1.0) if last else 1.0
        fraction = self._plan(step)
        if self.budget.budget is not None:
            fraction = self._final * progress
        soft = self._is_soft(step, times)
        softness = self.softness if soft else 0.0
        self._report(self._selector.update(fraction, progress, softness, reopen=soft))
        self._next = times.after(step)

    def _is_soft(self, step: int, times: Timetable) -> bool:
        """Whether gates that close now may open again."""
        until = self.regrow_until
        if isinstance(until, float):
            until = times.begin + until * (times.end - times.begin)
        return until is not None and step < min(until, times.end)

    def _report(self, sparsity: float) -> None:
        """Note what goes into `logs`."""
        self._logs = {"sparsity": sparsity}
        if self.budget.target != "filters":
            self._logs[f"{self.budget.target}_removed"] = self._selector.removed()


def _softly(soft: float) -> str:
    return f"The gates of closed filters are still at {soft:g}. " if soft else ""


def _check_held(held, trained) -> None:
    """Raise unless a model that is to be pruned is one that is trained."""
    if held is None or held is trained:
        return
    own = {id(variable) for variable in trained.variables}
    if not own.issuperset(id(variable) for variable in held.variables):
        raise ValueError(
            f"Expected `model` to be held by the model that is trained, "
            f"'{trained.name}', as in `self.net = net`. Received: '{held.name}', some "
            "of whose variables it does not have."
        )


def _check_alone(callback, others) -> None:
    if any(
        isinstance(other, FilterPruningCallback) and other.pruned is callback.pruned
        for other in others
    ):
        raise ValueError(
            f"Expected one `FilterPruningCallback` for '{callback.pruned.name}'. "
            "Received: several in one `fit`, each of which would set all gates. Use "
            "one, with `overrides` for layers with a sparsity of their own."
        )


def _check_frequency(frequency) -> None:
    if frequency is None:
        return
    if not is_integer(frequency):
        raise TypeError(
            "Expected `frequency` to be an integer, or None. Received: "
            f"frequency={frequency!r}"
        )
    if frequency < 1:
        raise ValueError(
            f"Expected `frequency` to be at least 1. Received: {frequency}"
        )


def _check_regrowth(until):
    if until is None or (is_integer(until) and until > 0):
        return until
    if isinstance(until, float) and 0 < until <= 1:
        return until
    raise ValueError(
        "Expected `regrow_until` to be a step, an integer above 0, or a fraction of "
        f"the schedule in (0, 1]. Received: regrow_until={until!r}"
    )
