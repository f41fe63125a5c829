"""Criteria that look at weights alone."""

import numpy as np

from filterprune.criteria.base import Criterion, register_criterion, sums_above
from filterprune.schedules import is_integer
from filterprune.slots import Part
from filterprune.sums import power_sums


@register_criterion("l1")
def l1(kernel: np.ndarray) -> np.ndarray:
    """The L1 norm of each filter.

        score[j] = sum_i |w[i, j]|

    Args:
        kernel: `(weights, filters)`, float.

    Returns:
        `(filters,)`, float.

    Reference:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017,
        https://arxiv.org/abs/1608.08710
    """
    return np.abs(kernel).sum(axis=0)


@register_criterion("l2")
def l2(kernel: np.ndarray) -> np.ndarray:
    """The L2 norm of each filter.

        score[j] = sqrt(sum_i w[i, j] ** 2)

    Args:
        kernel: `(weights, filters)`, float.

    Returns:
        `(filters,)`, float.

    Reference:
        He et al., "Soft Filter Pruning for Accelerating Deep Convolutional
        Neural Networks", IJCAI 2018, https://arxiv.org/abs/1808.06866
    """
    return np.sqrt(np.square(kernel).sum(axis=0))


@register_criterion("fpgm")
def fpgm(kernel: np.ndarray) -> np.ndarray:
    """How far each filter is from the others of its layer.

        score[j] = sum_k ||w[:, j] - w[:, k]||_2

    A filter near the geometric median of all can be replaced by the others,
    however large it is.

    Args:
        kernel: `(weights, filters)`, float.

    Returns:
        `(filters,)`, float.

    Reference:
        He et al., "Filter Pruning via Geometric Median for Deep Convolutional
        Neural Networks Acceleration", CVPR 2019,
        https://arxiv.org/abs/1811.00250
    """
    norms = np.square(kernel).sum(axis=0)
    squares = norms[:, None] + norms - 2 * kernel.T @ kernel
    # What rounding leaves of the distance between equal filters is none.
    squares[squares < 1e-12 * (norms[:, None] + norms)] = 0
    return np.sqrt(squares).sum(axis=1)


@register_criterion("lamp")
class LAMP(Criterion):
    """Layer-adaptive magnitudes: a filter's share in those that are as large.

        score[j] = n[j] / sum_{k: n[k] >= n[j]} n[k],  n[j] = sum_i w[i, j] ** 2

    for the filters `k` of the same layer; of equal ones the first is the
    cheapest. The largest filter of every layer has the score 1, so that layers
    compare as they are.

    Args:
        normalization: as in `filterprune.Criterion`. Defaults to `None`.
        reduction: as there. Defaults to `"mean"`.

    Raises:
        ValueError: if one of them is not known.

    Example:

    ```python
    filterprune.prune(masked, sparsity=0.5, criterion="lamp")
    ```

    Reference:
        Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning",
        ICLR 2021, https://arxiv.org/abs/2010.07611, with squared norms of filters
        for squared weights.
    """

    normalization = None

    def __call__(self, rows):
        norms = np.square(rows).sum(axis=0)
        rest = sums_above(norms)
        return norms / np.where(rest > 0, rest, 1)


@register_criterion("group")
class GroupMagnitude(Criterion):
    """The norm of all weights that go with a channel, in every layer.

        score[j] = tied[j] ** (1 / p) * norm[j] / share[j]
        norm[j] = (sum_i |w[i, j]| ** p) ** (1 / p)
        share[j] = sum_{k: norm[k] >= norm[j]} norm[k] / channels

    with the norm over the filters that make channel `j`, of all tied layers, and the
    weights by which other layers read it. Groups compare by how much of each would be
    left with the channel: closing what scores lowest keeps the sum over groups of
    `channels * log(what is left of their norms)` high, and empties none. Channels made
    by several tied layers, such as those of residual streams, count for more, as their
    powers add up.

    Args:
        p: positive integer, the order of the norm. Defaults to `2`.
        normalization: what the norms of each group are divided by, as in
            `filterprune.Criterion`. Defaults to `"share"`.

    Raises:
        ValueError: if `p` is no positive integer or `normalization` is not known.

    Example:

    ```python
    filterprune.prune(masked, sparsity=0.5, criterion="group")
    criterion = filterprune.criteria.GroupMagnitude(p=1)
    filterprune.prune(masked, sparsity=0.6, criterion=criterion)
    ```

    Reference:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023,
        https://arxiv.org/abs/2301.12900, for norms of groups; the shares are those
        of `filterprune.criteria.LAMP`, by channels.
    """

    roles = ("maker", "reader")
    normalization = "share"

    def __init__(self, p: int = 2, normalization: str | None = "default"):
        super().__init__(normalization=normalization)
        if not is_integer(p) or p < 1:
            raise ValueError(
                f"Expected `p` to be an integer of at least 1. Received: p={p!r}"
            )
        self.p = int(p)

    def score(self, slots):
        weights: dict[int, list[Part]] = {}
        for part in slots.parts(*self.roles):
            weights.setdefault(id(part.variable), []).append(part)
        found = [pair for parts in weights.values() for pair in self._powers(parts)]
        where = np.concatenate([part.slots for part, _ in found])
        powers = np.concatenate([powers for _, powers in found])
        known = where >= 0
        total = np.bincount(where[known], powers[known], minlength=slots.count)
        tied = slots.makers ** (1 / self.p)
        return tied * self.by_group(slots, total ** (1 / self.p))

    def _powers(self, parts: list[Part]) -> list[tuple[Part, np.ndarray]]:
        """The parts of one weight, each with the sums over its channels."""
        axes = [part.axis for part in parts]
        sums = power_sums(parts[0].variable, axes, self.p)
        found = []
        for part, powers in zip(parts, sums, strict=True):
            if not np.isfinite(powers).all():
                part.complain()
            found.append((part, powers.reshape(part.blocks, -1).sum(axis=0)))
        return found


@register_criterion("bn_scale")
class BatchNormScale(Criterion):
    """The scale that a normalisation behind the filter gives to its channel.

        score[j] = |gamma[j]|

    Channels without one (no normalisation follows, or one with `scale=False`) get
    the mean score of the others. It is meant for models trained with an L1 penalty
    on `gamma`.

    Args:
        normalization: as in `filterprune.Criterion`. Defaults to `"mean"`; the
            paper ranks all scales as they are, `None`.
        reduction: as there. Defaults to `"mean"`.

    Raises:
        ValueError: if one of them is not known; when it scores, if no channel has
            a scale.

    Example:

    ```python
    inputs = keras.Input((8, 8, 3))
    z = keras.layers.Conv2D(8, 3, use_bias=False)(inputs)
    z = keras.layers.ReLU()(keras.layers.BatchNormalization()(z))
    z = keras.layers.Dense(3)(keras.layers.Flatten()(z))
    masked = filterprune.wrap_model(keras.Model(inputs, z))
    filterprune.prune(masked, sparsity=0.5, criterion="bn_scale")
    ```

    Reference:
        Liu et al., "Learning Efficient Convolutional Networks through Network
        Slimming", ICCV 2017, https://arxiv.org/abs/1708.06519
    """

    roles = ("scale",)

    def __call__(self, rows):
        return np.abs(rows).mean(axis=0)

    def score(self, slots):
        scored = self.scored(slots)
        if not scored:
            raise ValueError(
                f"Expected a model with scales, such as the `gamma` of a "
                f"BatchNormalization. Received: '{slots.model.name}', in which no "
                "channel that can be pruned has one. Use another criterion, such as "
                "'l2'."
            )
        return self.fill(self.reduce(slots.count, scored), scored)


@register_criterion("random")
class Random(Criterion):
    """Random scores: what a criterion must be better than.

    Every scoring draws anew; another `Random` with the same seed draws the same
    in the same order.

    Args:
        seed: seed of the generator, a non-negative integer. Defaults to `0`.

    Raises:
        ValueError: if `seed` is no non-negative integer.

    Example:

    ```python
    criterion = filterprune.criteria.Random(seed=1)
    filterprune.prune(masked, sparsity=0.5, criterion=criterion)
    ```

    Reference:
        Mittal et al., "Recovering from Random Pruning: On the Plasticity of Deep
        Convolutional Neural Networks", WACV 2018,
        https://arxiv.org/abs/1801.10447
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        if not is_integer(seed) or seed < 0:
            raise ValueError(
                f"Expected `seed` to be a non-negative integer. Received: seed={seed!r}"
            )
        self.seed = int(seed)
        self._generator = np.random.default_rng(self.seed)

    def score(self, slots):
        return self._generator.random(slots.count)
