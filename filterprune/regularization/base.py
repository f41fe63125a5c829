"""What penalties on whole groups of channels share.

Each is a callback that shrinks the weights of every slot together, so that the
filters that matter least are small when their gates close. They act on weights
directly (proximal steps, as decoupled weight decay does) and need no change to
the model's loss, on any backend.
"""

from collections.abc import Iterable

import keras
import numpy as np

from filterprune.origin import Origin
from filterprune.schedules import (
    END_FRACTION,
    is_integer,
    last_step,
    optimizer_step,
)
from filterprune.slots import Part, Slots, masked_analysis
from filterprune.sums import peek, poke, power_sums


class GroupRegularizer(keras.callbacks.Callback):
    """The base of the penalties on whole groups.

    A subclass implements `shrink`.

    Args:
        strength: the weight of the penalty in the loss, above 0.
        frequency: every how many optimizer steps the weights are shrunk, each
            time for so many steps at once. Defaults to `10`.
        end_step: the optimizer's step after which weights are left alone. If
            `None`, the default, that is after `end_fraction` of the fit's steps.
        end_fraction: that fraction, in (0, 1]. Defaults to `0.15`, where
            `FilterPruningCallback` ends by default.

    Raises:
        ValueError: if an argument is out of range; at the start of `fit` if the
            model has no gates or nothing in it can be pruned.
    """

    roles: tuple[str, ...] = ("maker", "reader")

    def __init__(
        self,
        strength: float,
        frequency: int = 10,
        end_step: int | None = None,
        end_fraction: float = END_FRACTION,
    ):
        super().__init__()
        if isinstance(strength, bool) or not strength > 0:
            raise ValueError(
                f"Expected `strength` to be above 0. Received: strength={strength!r}"
            )
        if not is_integer(frequency) or frequency < 1:
            raise ValueError(
                "Expected `frequency` to be an integer of at least 1. "
                f"Received: frequency={frequency!r}"
            )
        if not 0 < end_fraction <= 1:
            raise ValueError(
                "Expected `end_fraction` to be in (0, 1]. Received: "
                f"end_fraction={end_fraction!r}"
            )
        self.strength = float(strength)
        self.frequency = int(frequency)
        self.end_step = end_step
        self.end_fraction = end_fraction

    def shrink(
        self, slots: Slots, parts: list[Part], amount: float
    ) -> list[np.ndarray]:
        """By what each channel of each weight is multiplied.

        Args:
            slots: the prunable channels of the model.
            parts: the weights along them, in the roles of the class.
            amount: the learning rate times the steps since last time.

        Returns:
            For each part an array `(channels,)`, float.
        """
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        self._slots = Slots(masked_analysis(self.model))
        if self.end_step is None:
            last_step(self, 0, 0, self.end_fraction)  # raises if it is not known
        self._planned = False
        self._resumed: dict = {}

    def state_to_resume(self) -> dict:
        """What `fit_shrinking` keeps with a backup, for `resume_from`."""
        return {"done": self._done}

    def resume_from(self, state: dict) -> None:
        """Go on as the run that was killed would have."""
        self._resumed = state

    def on_shrink(self, origin: Origin) -> None:
        """Go on with a model that was compacted and wrapped again."""
        self._slots = origin.current

    def on_epoch_begin(self, epoch, logs=None):
        step = optimizer_step(self.model)
        if not self._planned:
            self._planned, self._done = True, self._resumed.get("done", step)
            end = self.end_step
            if end is None:
                end = last_step(self, step, epoch, self.end_fraction)
            self._end: int = end
        self._before = step

    def on_train_batch_end(self, batch, logs=None):
        if self._done >= self._end or self._before + batch + 1 < self._done:
            return
        if self._before + batch + 1 - self._done >= self.frequency:
            self._apply(optimizer_step(self.model))

    def _apply(self, step: int) -> None:
        passed = min(step, self._end) - self._done
        if passed <= 0:
            return
        self._done = step
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        parts = list(self._slots.parts(*self.roles))
        factors = self.shrink(self._slots, parts, rate * passed)
        changed: dict[int, tuple] = {}
        for part, factor in zip(parts, factors, strict=True):
            factor = np.tile(np.where(part.slots >= 0, factor, 1.0), part.blocks)
            shape = [1] * len(part.variable.shape)
            shape[part.axis] = factor.size
            known = changed.get(id(part.variable), (part.variable, 1.0))
            changed[id(part.variable)] = part.variable, known[1] * factor.reshape(shape)
        for variable, factor in changed.values():
            value = peek(variable)
            poke(variable, (value * factor).astype(value.dtype))


def group_sums(slots: Slots, parts: Iterable[Part]) -> tuple[np.ndarray, np.ndarray]:
    """Of each slot's weights the squares, summed, and how many there are."""
    squares, counts = np.zeros(slots.count), np.zeros(slots.count)
    for part in parts:
        known = part.slots >= 0
        sums = power_sums(part.variable, [part.axis])[0]
        if not np.isfinite(sums).all():
            part.complain()
        weights = sums.reshape(part.blocks, -1).sum(axis=0)
        np.add.at(squares, part.slots[known], weights[known])
        each = int(np.prod(part.variable.shape)) // part.slots.size
        np.add.at(counts, part.slots[known], each)
    return squares, counts
