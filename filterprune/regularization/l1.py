"""Penalties that make whole groups zero: L1 norms, by proximal steps."""

import numpy as np

from filterprune.regularization.base import GroupRegularizer, group_sums
from filterprune.schedules import END_FRACTION


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
        squares, counts = group_sums(slots, parts)
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
