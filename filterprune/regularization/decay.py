"""Penalties that make groups small: weight decay, by how much channels matter."""

import numpy as np

from filterprune import criteria
from filterprune.criteria.base import Scorer
from filterprune.regularization.base import GroupRegularizer, group_sums
from filterprune.schedules import END_FRACTION


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
        squares, _ = group_sums(slots, (part for part in parts if part.role != "scale"))
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
        if first and not self._resumed:
            self._begin = self._done
            order = np.argsort(self.criterion.score(self._slots), kind="stable")
            self._chosen = np.zeros(self._slots.count, bool)
            self._chosen[order[: int(self.sparsity * order.size + 0.5)]] = True

    def state_to_resume(self):
        more = {"begin": self._begin, "chosen": self._chosen.tolist()}
        return {**super().state_to_resume(), **more}

    def resume_from(self, state):
        super().resume_from(state)
        self._begin, self._chosen = state["begin"], np.array(state["chosen"])

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
