"""Sparsity schedules: pure functions of the step."""

import dataclasses
import numbers

import keras

from filterprune.suggestions import as_fraction, suggests_keywords

# Where filters go: in the first part of the steps, so that the rest trains what stays.
END_FRACTION = 0.15


def is_integer(value) -> bool:
    """Whether a value is a whole number, of Python or of numpy, and no boolean."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_sparsity(name: str, value, *, allow_zero: bool = True) -> float:
    """The value as a float; raises unless it is a fraction in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"Expected `{name}` to be a number. Received: {name}={value!r}."
            + as_fraction(value)
        )
    if not 0 <= float(value) < 1:
        raise ValueError(
            f"Expected `{name}` to be a fraction of the filters in [0, 1), such as "
            f"0.5 for half of them. Received: {name}={value!r}." + as_fraction(value)
        )
    return float(value)


def _plain(value):
    """A number of Python's own, so that a config can be written as JSON."""
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _check_step(name: str, value) -> None:
    if not is_integer(value) or value < 0:
        raise ValueError(
            f"Expected `{name}` to be a step, an integer of at least 0. "
            f"Received: {name}={value!r}"
        )


def _check_span(begin_step, end_step) -> None:
    _check_step("begin_step", begin_step)
    if end_step is not None:
        _check_step("end_step", end_step)
        if begin_step >= end_step:
            raise ValueError(
                "Expected `begin_step` to be below `end_step`. Received: "
                f"begin_step={begin_step}, end_step={end_step}"
            )


def _known_end(end_step: int | None) -> int:
    if end_step is None:
        raise ValueError(
            "Expected a schedule with an `end_step`. Received: end_step=None, "
            "which only `FilterPruningCallback` can fill in."
        )
    return end_step


class Schedule:
    """How sparse the model is to be at each step: the base of all schedules.

    A subclass is a pure function of the step, with the attributes `begin_step`
    and `end_step` (`None` if it is left to the callback) and `get_config`.
    """

    begin_step: int
    end_step: int | None

    def __call__(self, step: int) -> float:
        """The sparsity at `step`, a fraction in [0, 1)."""
        raise NotImplementedError

    def with_end(self, end_step: int) -> "Schedule":
        """The same schedule with `end_step` filled in."""
        return type(self).from_config({**self.get_config(), "end_step": end_step})

    def get_config(self) -> dict:
        """The arguments that make an equal schedule."""
        return {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        }

    @classmethod
    def from_config(cls, config: dict) -> "Schedule":
        return cls(**config)


@keras.saving.register_keras_serializable("filterprune")
@suggests_keywords
@dataclasses.dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """Sparsity that rises fast at first and settles slowly.

    With `progress = (step - begin_step) / (end_step - begin_step)`, clipped
    to [0, 1],

        sparsity = final + (initial - final) * (1 - progress) ** power

    Args:
        initial_sparsity: fraction in [0, 1) at `begin_step`. Defaults to `0.0`.
        final_sparsity: fraction in [0, 1) at `end_step` and after. Defaults to
            `0.5`.
        begin_step: the optimizer's step at which pruning begins. Defaults to
            `0`.
        end_step: the step at which `final_sparsity` is reached. If `None`, the
            default, the callback sets it to a fraction of the fit's steps.
        power: exponent, above 0. Defaults to `3`.

    Raises:
        ValueError: if a sparsity is not in [0, 1), `begin_step` is not below
            `end_step`, or `power` is not above 0.

    Example:

    ```python
    schedule = filterprune.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=100)
    schedule(0), schedule(50), schedule(100)  # (0.0, 0.4375, 0.5)
    ```

    Reference:
        Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of
        pruning for model compression", 2017, https://arxiv.org/abs/1710.01878
    """

    initial_sparsity: float = 0.0
    final_sparsity: float = 0.5
    begin_step: int = 0
    end_step: int | None = None
    power: float = 3

    def __post_init__(self):
        check_sparsity("initial_sparsity", self.initial_sparsity)
        check_sparsity("final_sparsity", self.final_sparsity)
        _check_span(self.begin_step, self.end_step)
        if not isinstance(self.power, numbers.Real) or not self.power > 0:
            raise ValueError(
                f"Expected `power` to be above 0. Received: power={self.power!r}"
            )

    def __call__(self, step: int) -> float:
        end = _known_end(self.end_step)
        progress = (step - self.begin_step) / (end - self.begin_step)
        if progress >= 1:
            return self.final_sparsity
        left = (1 - max(progress, 0.0)) ** self.power
        return (
            self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * left
        )


@keras.saving.register_keras_serializable("filterprune")
@suggests_keywords
@dataclasses.dataclass(frozen=True)
class ConstantSparsity(Schedule):
    """The full sparsity at once, from one step on.

    Args:
        final_sparsity: fraction in [0, 1) from `begin_step` on; nothing is
            pruned before. Defaults to `0.5`.
        begin_step: the optimizer's step at which the gates close. Defaults to
            `0`, before the first step.

    Raises:
        ValueError: if `final_sparsity` is not in [0, 1).

    Example:

    ```python
    schedule = filterprune.ConstantSparsity(0.3, begin_step=10)
    schedule(9), schedule(10)  # (0.0, 0.3)
    ```
    """

    final_sparsity: float = 0.5
    begin_step: int = 0

    def __post_init__(self):
        check_sparsity("final_sparsity", self.final_sparsity)
        _check_step("begin_step", self.begin_step)

    @property
    def end_step(self) -> int:  # type: ignore[override]
        """The step at which all is done: the first."""
        return self.begin_step

    def __call__(self, step: int) -> float:
        return self.final_sparsity if step >= self.begin_step else 0.0


@keras.saving.register_keras_serializable("filterprune")
@suggests_keywords
@dataclasses.dataclass(frozen=True)
class IterativeSparsity(Schedule):
    """Prune a little, recover, repeat: sparsity that rises in equal rounds.

    Every round closes the same fraction of what is left: after round `k` of
    `rounds`,

        sparsity = 1 - (1 - final) ** (k / rounds)

    The first round is at `begin_step`, the last at `end_step`.

    Args:
        final_sparsity: fraction in [0, 1) at `end_step` and after. Defaults to
            `0.5`.
        begin_step: the optimizer's step of the first round. Defaults to `0`.
        end_step: the step of the last round. If `None`, the default, the
            callback sets it to a fraction of the fit's steps.
        rounds: how many rounds, at least 2. Defaults to `5`.

    Raises:
        ValueError: if one of them is out of range, or `begin_step` is not below
            `end_step`.

    Example:

    ```python
    schedule = filterprune.IterativeSparsity(0.75, end_step=100, rounds=2)
    schedule(0), schedule(99), schedule(100)  # (0.5, 0.5, 0.75)
    ```

    Reference:
        Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019,
        https://arxiv.org/abs/1803.03635, prune by rounds in this way.
    """

    final_sparsity: float = 0.5
    begin_step: int = 0
    end_step: int | None = None
    rounds: int = 5

    def __post_init__(self):
        check_sparsity("final_sparsity", self.final_sparsity)
        _check_span(self.begin_step, self.end_step)
        if not is_integer(self.rounds) or self.rounds < 2:
            raise ValueError(
                "Expected `rounds` to be an integer of at least 2. "
                f"Received: rounds={self.rounds!r}"
            )

    def __call__(self, step: int) -> float:
        end = _known_end(self.end_step)
        if step < self.begin_step:
            return 0.0
        if step >= end:
            return self.final_sparsity
        passed = (step - self.begin_step) * (self.rounds - 1)
        done = passed // (end - self.begin_step) + 1
        return 1 - (1 - self.final_sparsity) ** (done / self.rounds)


@dataclasses.dataclass(frozen=True)
class Timetable:
    """At which steps gates are to close: a grid, and the last step exactly.

    Args:
        begin: the first step.
        end: the last step.
        frequency: every how many steps from `begin` on.
    """

    begin: int
    end: int
    frequency: int

    def after(self, step: int) -> int | None:
        """The first due step after `step`, or None if there is none."""
        if step >= self.end:
            return None
        if step < self.begin:
            return self.begin
        passed = (step - self.begin) // self.frequency + 1
        return min(self.begin + passed * self.frequency, self.end)

    def due(self, step: int) -> bool:
        """Whether `step` is a due step, or behind the last one."""
        on_grid = (step - self.begin) % self.frequency == 0
        return step >= self.end or (step >= self.begin and on_grid)


def sync_state(model) -> None:
    """Bring back what `fit` on JAX keeps elsewhere, so that it can be read and set."""
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()


def optimizer_step(model) -> int:
    """How many steps a model's optimizer has taken; its state can then be set."""
    sync_state(model)
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def last_step(callback, step: int, epoch: int, fraction: float) -> int:
    """The step after a fraction of a fit's steps.

    Args:
        callback: a callback within `fit`.
        step: the optimizer's step now.
        epoch: the epoch that begins now.
        fraction: the fraction of all steps, in (0, 1].

    Raises:
        ValueError: if the number of steps is not known.
    """
    steps = callback.params.get("steps")
    if not steps:
        raise ValueError(
            "The number of steps of this `fit` is not known, so the schedule "
            "needs an `end_step`: pass one, or `steps_per_epoch` to `fit`."
        )
    if getattr(callback, "pruned", callback.model) is callback.model:
        # The optimizer counts updates: one for so many batches.
        steps /= callback.model.optimizer.gradient_accumulation_steps or 1
    start = step - round(epoch * steps)
    return start + round(fraction * callback.params["epochs"] * steps)
