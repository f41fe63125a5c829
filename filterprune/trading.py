"""What a filter is worth for what it costs."""

import numpy as np

from filterprune.criteria.base import Criterion, sums_above
from filterprune.slots import Slots

TINY = 1e-12


def worth_of_price(
    slots: Slots,
    criterion: Criterion,
    scores: np.ndarray,
    closed: np.ndarray,
    prices: np.ndarray,
) -> np.ndarray:
    """What each slot adds for what it costs, `(slots,)`.

        worth[i] = filters[i] * score[i] / share[i] / price[group]

    where `share` is the part of the group's scores that there is with the slot and
    all that rank above it; a criterion that divides by it already is taken as it is.
    Closing what is worth least maximises `sum(score of a group * log(share kept))`
    for what all costs: plain scores would close whole groups that are dear.

    Args:
        slots: the slots.
        criterion: what scored them.
        scores: `(slots,)`, with those of closed slots.
        closed: which are closed already, `(slots,)` bool.
        prices: what a slot of each group costs, `(groups,)`.

    Reference:
        Shen et al., "Structural Pruning via Latency-Saliency Knapsack", NeurIPS
        2022, https://arxiv.org/abs/2210.06659, for importance against latency; Lee
        et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021,
        https://arxiv.org/abs/2010.07611, for shares of what ranks above.
    """
    values = scores * slots.filters
    if criterion.normalization != "share":
        values = np.maximum(values, 0)
        for part in slots.slices:
            above = sums_above(np.where(closed, 0, values)[part])
            values[part] *= values[part].sum() / np.maximum(above, TINY)
    return values / prices[slots.group_of]
