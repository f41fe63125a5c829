"""Sparse learning: penalties on whole groups of channels, before they go.

Each is a callback that shrinks the weights of every slot together, so that the
filters that matter least are small when their gates close. They act on weights
directly (proximal steps, as decoupled weight decay does) and need no change to
the model's loss, on any backend.
"""

from collections.abc import Iterable

import keras
import numpy as np

from filterprune import criteria
from filterprune.criteria.base import Scorer
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

    def on_shrink(self, origin: Origin) -> None:
        """Go on with a model that was compacted and wrapped again."""
        self._slots = origin.current

    def on_epoch_begin(self, epoch, logs=None):
        step = optimizer_step(self.model)
        if not self._planned:
            self._planned, self._done = True, step
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


def _sums(slots: Slots, parts: Iterable[Part]) -> tuple[np.ndarray, np.ndarray]:
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


class GroupLasso(GroupRegularizer):
    """Group lasso over all weights that a channel takes with it.

    The penalty is

        strength * sum_s sqrt(d_s) * ||w_s||

    over slots `s`, with `w_s` the `d_s` weights that make or read the channels of
    the slot, in all layers tied to it. Its proximal step multiplies them by

        max(0, 1 - rate * strength * sqrt(d_s) / ||w_s||)

    Args:
        strength: the weight of the penalty in the loss, above 0. Defaults to
            `1e-4`.
        frequency, end_step, end_fraction: as in
            `filterprune.regularization.GroupRegularizer`.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    ```python
    masked.fit(x, y, epochs=2, verbose=0, callbacks=[
        filterprune.GroupLasso(1e-4),
        filterprune.FilterPruningCallback(filterprune.PolynomialDecay()),
    ])
    ```

    Reference:
        Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS
        2016, https://arxiv.org/abs/1608.03665; over coupled layers as in Fang et
        al., "DepGraph", CVPR 2023, https://arxiv.org/abs/2301.12900. Proximal:
        Yuan and Lin, JRSS B 68 (2006).
    """

    def __init__(
        self,
        strength: float = 1e-4,
        frequency: int = 10,
        end_step: int | None = None,
        end_fraction: float = END_FRACTION,
    ):
        super().__init__(strength, frequency, end_step, end_fraction)

    def shrink(self, slots, parts, amount):
        squares, counts = _sums(slots, parts)
        norms = np.sqrt(squares)
        step = amount * self.strength * np.sqrt(counts)
        left = 1 - np.divide(step, norms, out=np.zeros_like(step), where=norms > 0)
        return [np.maximum(left, 0)[part.slots] for part in parts]


class ScaleL1(GroupRegularizer):
    """L1 penalty on the scales of normalisations: network slimming.

    The penalty is `strength * sum |gamma|` over the scales of all prunable
    channels, in their normalisations. Its proximal step is the soft threshold

        gamma = sign(gamma) * max(0, |gamma| - rate * strength)

    Use it with `criterion="bn_scale"`.

    Args:
        strength: the weight of the penalty in the loss, above 0. Defaults to
            `1e-3`.
        frequency, end_step, end_fraction: as in
            `filterprune.regularization.GroupRegularizer`.

    Raises:
        ValueError: if an argument is out of range; at the start of `fit` if no
            prunable channel has a scale.

    Example:

    ```python
    callback = filterprune.ScaleL1(1e-3)
    ```

    Reference:
        Liu et al., "Learning Efficient Convolutional Networks through Network
        Slimming", ICCV 2017, https://arxiv.org/abs/1708.06519
    """

    roles = ("scale",)

    def __init__(
        self,
        strength: float = 1e-3,
        frequency: int = 10,
        end_step: int | None = None,
        end_fraction: float = END_FRACTION,
    ):
        super().__init__(strength, frequency, end_step, end_fraction)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        if not any(True for _ in self._slots.parts(*self.roles)):
            raise ValueError(
                "Expected a model with normalisations that scale prunable channels. "
                f"Received: '{self.model.name}', which has none. Use "
                "`filterprune.GroupLasso`, which needs none."
            )

    def shrink(self, slots, parts, amount):
        factors = []
        for part in parts:
            size = np.abs(part.rows).mean(axis=0)
            step = np.full(size.shape, amount * self.strength)
            lost = np.divide(step, size, out=np.ones_like(step), where=size > 0)
            factors.append(np.maximum(1 - lost, 0))
        return factors


class GroupWeightDecay(GroupRegularizer):
    """Weight decay on whole groups, more where channels matter less.

    The penalty is

        strength / 2 * sum_s gamma_s * ||w_s|| ** 2
        gamma_s = 2 ** (alpha * (max_g - ||w_s||) / (max_g - min_g))

    over slots `s`, with `w_s` the weights that make, read or scale the channels of
    the slot, in all layers tied to it, and the norm of those that make or read them;
    `max_g` and `min_g` are the largest and the smallest norm of its group. Weights are
    decayed by themselves, apart from the optimizer's gradients (Loshchilov and Hutter):

        w_s = w_s * (1 - rate * strength * gamma_s)

    so that `strength` does not mean what it does within Adam.

    Args:
        strength: the decay of the channel that matters most, above 0. Defaults to
            `0.1`.
        alpha: how much more that which matters least is decayed, as a power of 2, a
            finite number of at least 0. Defaults to `4.0`: 16 times.
        frequency, end_step, end_fraction: as in
            `filterprune.regularization.GroupRegularizer`.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    ```python
    masked.fit(x, y, epochs=2, verbose=0, callbacks=[
        filterprune.GroupWeightDecay(0.1, end_fraction=1.0),
    ])
    filterprune.prune(masked, sparsity=0.5)
    ```

    Reference:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023,
        https://arxiv.org/abs/2301.12900; apart from gradients as in Loshchilov and
        Hutter, "Decoupled Weight Decay Regularization", ICLR 2019,
        https://arxiv.org/abs/1711.05101.
    """

    roles = ("maker", "reader", "scale")

    def __init__(
        self,
        strength: float = 0.1,
        alpha: float = 4.0,
        frequency: int = 10,
        end_step: int | None = None,
        end_fraction: float = END_FRACTION,
    ):
        super().__init__(strength, frequency, end_step, end_fraction)
        if isinstance(alpha, bool) or not 0 <= alpha < np.inf:
            raise ValueError(
                "Expected `alpha` to be a finite number of at least 0. "
                f"Received: alpha={alpha!r}"
            )
        self.alpha = float(alpha)

    def shrink(self, slots, parts, amount):
        squares, _ = _sums(slots, (part for part in parts if part.role != "scale"))
        lack = np.zeros(slots.count)
        for group in slots.slices:
            norms = np.sqrt(squares[group])
            spread = np.ptp(norms)
            lack[group] = (norms.max() - norms) / (spread if spread > 0 else 1)
        left = np.maximum(1 - amount * self.strength * 2 ** (self.alpha * lack), 0)
        return [left[part.slots] for part in parts]


class GrowingRegularization(GroupRegularizer):
    """L2 penalty that grows on the channels that matter least.

    The `sparsity` least important slots (by a criterion, at the start of `fit`)
    get a weight decay that grows until the schedule ends; the others get none:

        w_s = w_s * (1 - rate * strength * progress)

    with `progress` rising from 0 to 1. Their weights go to zero gently, and the
    network hands their work over to the others.

    Args:
        strength: the largest weight decay, above 0. Defaults to `1.0`.
        sparsity: the fraction of slots that it acts on, in (0, 1). Defaults to
            `0.5`.
        criterion: how slots are ranked, as in `filterprune.prune`. Defaults to
            `"group"`.
        frequency, end_step, end_fraction: as in
            `filterprune.regularization.GroupRegularizer`.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    ```python
    callback = filterprune.GrowingRegularization(1.0, sparsity=0.5)
    ```

    Reference:
        Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021,
        https://arxiv.org/abs/2012.09243
    """

    def __init__(
        self,
        strength: float = 1.0,
        sparsity: float = 0.5,
        criterion: Scorer = "group",
        frequency: int = 10,
        end_step: int | None = None,
        end_fraction: float = END_FRACTION,
    ):
        super().__init__(strength, frequency, end_step, end_fraction)
        if isinstance(sparsity, bool) or not 0 < sparsity < 1:
            raise ValueError(
                f"Expected `sparsity` to be in (0, 1). Received: sparsity={sparsity!r}"
            )
        self.sparsity = sparsity
        self.criterion = criteria.get(criterion)

    def on_epoch_begin(self, epoch, logs=None):
        first = not self._planned
        super().on_epoch_begin(epoch, logs)
        if first:
            self._begin = self._done
            order = np.argsort(self.criterion.score(self._slots), kind="stable")
            self._chosen = np.zeros(self._slots.count, bool)
            self._chosen[order[: int(self.sparsity * order.size + 0.5)]] = True

    def on_shrink(self, origin):
        super().on_shrink(origin)
        moved = origin.moved[self._chosen]
        self._chosen = np.zeros(self._slots.count, bool)
        self._chosen[moved[moved >= 0]] = True

    def shrink(self, slots, parts, amount):
        progress = (self._done - self._begin) / max(self._end - self._begin, 1)
        left = max(0.0, 1 - amount * self.strength * min(progress, 1.0))
        factor = np.where(self._chosen, left, 1.0)
        return [factor[part.slots] for part in parts]
