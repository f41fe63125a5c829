"""What a filter is worth for what it costs."""

import numpy as np

from filterprune.slots import Slots

TINY = 1e-12


def worth_of_price(slots: Slots, scores: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """What each slot adds for what it costs, `(slots,)`.

        worth[i] = value[i] / (share[i] * price[group])

    where `value` is the score of all filters of a slot, and `share` the part of the
    group's value that there is with the slot and all that rank above it. Closing
    what is worth least maximises `sum(value of a group * log(share kept))` for what
    all costs: plain values would close whole groups that are dear.

    Args:
        slots: the slots.
        scores: `(slots,)`; -inf for slots that are closed.
        prices: what a slot of each group costs, `(groups,)`.

    Reference:
        Shen et al., "Structural Pruning via Latency-Saliency Knapsack", NeurIPS
        2022, https://arxiv.org/abs/2210.06659, for importance against latency; Lee
        et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021,
        https://arxiv.org/abs/2010.07611, for shares of what ranks above.
    """
    worth = np.full(scores.size, -np.inf)
    for part, price in zip(slots.slices, prices, strict=True):
        values = np.where(np.isfinite(scores[part]), scores[part], 0.0)
        values = np.maximum(values, 0) * slots.filters[part]
        ranked = np.argsort(scores[part], kind="stable")
        above = np.cumsum(values[ranked][::-1])[::-1]
        share = above / above[0] if above[0] > 0 else np.ones(above.size)
        worth[part.start + ranked] = values[ranked] / np.maximum(share, TINY) / price
    return np.where(np.isfinite(scores), worth, -np.inf)
