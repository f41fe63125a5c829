"""The callback that closes gates while a model trains: when, not which."""

import warnings

import keras

from filterprune import criteria
from filterprune.errors import PruningWarning
from filterprune.schedules import Schedule, Timetable, is_integer
from filterprune.selection import Limits, Selector


class FilterPruningCallback(keras.callbacks.Callback):
    """Closes the gates of a masked model on a schedule, during `fit`.

    The step is the optimizer's own count, so that a second `fit`, or a run
    resumed by `BackupAndRestore`, continues where the first one stopped. The
    schedule's final sparsity is reached exactly at its `end_step`, whatever
    the frequency and `steps_per_execution` (then at the end of the execution
    that contains it). `logs` and `History` get `sparsity`: the fraction of
    the prunable filters whose gates are closed.

    Args:
        schedule: a `filterprune.PolynomialDecay`, `ConstantSparsity` or other
            `Schedule`. Where it leaves out `end_step`, pruning ends after
            `end_fraction` of this fit's steps.
        frequency: every how many steps gates are closed, from the schedule's
            `begin_step` on. Defaults to `100`.
        criterion: how filters are scored, as in `filterprune.prune`. Defaults
            to `"l2"`.
        scope: `"global"` or `"layer"`, as in `filterprune.prune`.
        min_filters: how many channels every group keeps at least. Defaults to
            `1`.
        round_to: if given, the channels that each group keeps are a multiple
            of it (or all).
        end_fraction: the fraction of the fit's steps, in (0, 1], after which
            a schedule without `end_step` ends; the rest is for recovery.
            Defaults to `0.6`.

    Raises:
        TypeError: if `schedule` is no schedule.
        ValueError: if another argument is out of range; and at the start of
            `fit` if the model has no gates or nothing in it can be pruned.

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
        schedule,
        frequency=100,
        criterion="l2",
        scope="global",
        min_filters=1,
        round_to=None,
        end_fraction=0.6,
    ):
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise TypeError(
                "Expected `schedule` to be a filterprune schedule, such as "
                f"`PolynomialDecay(final_sparsity=0.5)`. Received: {schedule!r}"
            )
        if not is_integer(frequency):
            raise TypeError(
                "Expected `frequency` to be an integer. Received: "
                f"frequency={frequency!r}"
            )
        if frequency < 1:
            raise ValueError(
                f"Expected `frequency` to be at least 1. Received: {frequency}"
            )
        if not 0 < end_fraction <= 1:
            raise ValueError(
                "Expected `end_fraction` to be in (0, 1]. Received: "
                f"end_fraction={end_fraction!r}"
            )
        criteria.get(criterion)
        self.schedule = schedule
        self.frequency = int(frequency)
        self.criterion = criterion
        self.limits = Limits(scope, min_filters, round_to)
        self.end_fraction = end_fraction

    def on_train_begin(self, logs=None):
        self._selector = Selector(self.model, self.criterion, self.limits)
        self._sparsity = self._selector.sparsity()
        self._times: Timetable | None = None
        if self.schedule.end_step is None and not self.params.get("steps"):
            raise ValueError(
                "The number of steps of this `fit` is not known, so the schedule "
                "needs an `end_step`: pass one, or `steps_per_epoch` to `fit`."
            )

    def on_epoch_begin(self, epoch, logs=None):
        # Here, not in `on_train_begin`: by now a resumed run is restored.
        step = self._step()
        if self._times is None:
            self._plan, self._times = self._planned(step, epoch)
            self._selector.check_reachable(self._plan(self._times.end))
        self._before = step
        self._next = self._times.after(step)
        if self._times.due(step):
            self._update(step)

    def on_train_batch_end(self, batch, logs=None):
        # Reading the optimizer's count is slow: do so only if it can be time.
        if self._next is not None and self._before + batch + 1 >= self._next:
            step = self._step()
            if step >= self._next:
                self._update(step)
        if logs is not None:
            logs["sparsity"] = self._sparsity

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["sparsity"] = self._sparsity

    def on_train_end(self, logs=None):
        step = self._step()
        if self._times is not None and step < self._times.end:
            warnings.warn(
                f"`fit` ended at step {step}, before the pruning schedule ends at "
                f"step {self._times.end}: the sparsity is {self._sparsity:.3f}, and "
                f"{self._plan(self._times.end):.3f} was planned. Train on (a second "
                "`fit` continues the schedule) or lower `end_step`.",
                PruningWarning,
                stacklevel=2,
            )

    def _step(self) -> int:
        """The optimizer's step; on JAX `fit` keeps it elsewhere meanwhile."""
        sync = getattr(self.model, "jax_state_sync", None)
        if sync is not None:
            sync()
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _planned(self, step: int, epoch: int) -> tuple[Schedule, Timetable]:
        """The schedule with its end, and when it is due."""
        plan = self.schedule
        end = plan.end_step
        if end is None:
            steps = self.params["steps"]
            # The optimizer counts updates: one for so many batches.
            steps /= self.model.optimizer.gradient_accumulation_steps or 1
            total = self.end_fraction * self.params["epochs"] * steps
            start = step - round(epoch * steps)
            end = max(start + round(total), plan.begin_step + 1)
            plan = plan.with_end(end)
        return plan, Timetable(plan.begin_step, end, self.frequency)

    def _update(self, step: int) -> None:
        self._sparsity = self._selector.update(self._plan(step))
        self._next = self._times.after(step) if self._times else None
