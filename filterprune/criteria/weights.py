"""Importance criteria: how dear each filter is.

A criterion scores the filters of one layer, from its kernel. The scores of a
layer are divided by their mean, so that layers of different fan-in compare,
and the score of a slot is the mean over all filters in it.
"""

from collections.abc import Callable

import numpy as np

Criterion = Callable[[np.ndarray], np.ndarray]


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


_CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2}


def get(criterion) -> Criterion:
    """The criterion of a name, or the function itself.

    Args:
        criterion: `"l1"`, `"l2"`, or a function from a kernel of shape
            `(weights, filters)` to scores of shape `(filters,)`.

    Raises:
        ValueError: if the name is not known or the value is not callable.
    """
    if callable(criterion):
        return criterion
    if isinstance(criterion, str) and criterion in _CRITERIA:
        return _CRITERIA[criterion]
    raise ValueError(
        f"Expected `criterion` to be one of {sorted(_CRITERIA)} or a function. "
        f"Received: criterion={criterion!r}"
    )
