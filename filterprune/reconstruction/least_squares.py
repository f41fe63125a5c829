"""Least squares: which weights carry what removed inputs carried.

With X the inputs that are left, in the pruned model, and Y the outputs that a layer
had in the original one, the weights that come nearest are

    W = (X'X + a d I)^-1 (X'Y + a d W_old)

where d is the mean of the diagonal of X'X. The ridge `a` pulls them towards the
weights that the layer has. Inputs and outputs are centred where the layer has a bias,
which then takes the means.

Layers whose groups of outputs read inputs of their own (grouped and depthwise
convolutions) are fitted group by group: all arrays have the groups first.
"""

import dataclasses

import numpy as np

# The ridges that are tried, as fractions of the mean squared input.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a fit found.

    Attributes:
        weights: `(groups, inputs, outputs)`, float64.
        bias: `(groups, outputs)`, float64.
        before: the relative squared error of the weights that there were, on samples
            that the fit did not see, `(groups,)`.
        after: that of the weights found; never above `before`.
    """

    weights: np.ndarray
    bias: np.ndarray
    before: np.ndarray
    after: np.ndarray


class Moments:
    """Sums of products of inputs and outputs, in float64.

    Args:
        shape: how many groups, inputs of a group and outputs of a group there are.
    """

    def __init__(self, shape: tuple[int, int, int]):
        groups, inputs, outputs = shape
        self.count = 0
        self.xx = np.zeros((groups, inputs, inputs))
        self.xy = np.zeros((groups, inputs, outputs))
        self.yy = np.zeros((groups, outputs))
        self.x = np.zeros((groups, inputs))
        self.y = np.zeros((groups, outputs))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take samples in: `(groups, samples, inputs)` and `(..., outputs)`."""
        x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
        turned = np.swapaxes(x, 1, 2)
        self.count += x.shape[1]
        self.xx += turned @ x
        self.xy += turned @ y
        self.yy += np.square(y).sum(axis=1)
        self.x += x.sum(axis=1)
        self.y += y.sum(axis=1)

    def solve(self, old: np.ndarray, ridge: float, centred: bool) -> np.ndarray:
        """The weights that come nearest, drawn to `old` by a ridge."""
        xx, xy = self.xx, self.xy
        if centred:
            xx = xx - self.x[:, :, None] * self.x[:, None] / self.count
            xy = xy - self.x[:, :, None] * self.y[:, None] / self.count
        shift = _shift(np.trace(xx, axis1=1, axis2=2), xx.shape[1], ridge)
        left = xx + shift * np.eye(xx.shape[1])
        return np.linalg.solve(left, xy + shift * old)

    def error(self, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """The mean squared error of each output, `(groups, outputs)`."""
        through = (weights * (self.xx @ weights)).sum(axis=1)
        total = (
            self.yy
            - 2 * (weights * self.xy).sum(axis=1)
            + through
            - 2 * bias * (self.y - _through(self.x, weights))
            + self.count * np.square(bias)
        )
        return np.maximum(total, 0) / max(self.count, 1)

    def variance(self) -> np.ndarray:
        """The variance of each output, `(groups, outputs)`."""
        return np.maximum(self.yy - np.square(self.y) / self.count, 0) / self.count


class Rows(Moments):
    """The same for more inputs than samples: products of samples, not of inputs.

    `W = W_old + X' (X X' + a d I)^-1 (Y - X W_old)` are the same weights.
    """

    def __init__(self, shape: tuple[int, int, int]):
        groups, inputs, outputs = shape
        self.count = 0
        self.x = np.zeros((groups, inputs))
        self.y = np.zeros((groups, outputs))
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
        self.count += x.shape[1]
        self.x += x.sum(axis=1)
        self.y += y.sum(axis=1)
        self._rows.append((x, y))

    def solve(self, old: np.ndarray, ridge: float, centred: bool) -> np.ndarray:
        x, y = self._joined()
        if centred:
            x = x - self.x[:, None] / self.count
            y = y - self.y[:, None] / self.count
        turned = np.swapaxes(x, 1, 2)
        products = x @ turned
        scale = np.trace(products, axis1=1, axis2=2)
        left = products + _shift(scale, x.shape[2], ridge) * np.eye(x.shape[1])
        return old + turned @ np.linalg.solve(left, y - x @ old)

    def error(self, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        x, y = self._joined()
        return np.square(y - x @ weights - bias[:, None]).mean(axis=1)

    def variance(self) -> np.ndarray:
        return self._joined()[1].var(axis=1)

    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        """All samples; they are joined once."""
        if len(self._rows) > 1:
            x, y = zip(*self._rows)
            self._rows = [(np.concatenate(x, axis=1), np.concatenate(y, axis=1))]
        return self._rows[0]


def _shift(trace: np.ndarray, inputs: int, ridge: float) -> np.ndarray:
    """What a ridge adds to each group's diagonal; of inputs that are all zero, one."""
    scale = trace / max(inputs, 1)
    return np.where(scale > 0, ridge * scale, 1.0)[:, None, None]


def _through(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Vectors of inputs through weights, group by group."""
    return (x[:, None] @ weights)[:, 0]


def fit(
    seen: Moments, unseen: Moments, old: np.ndarray, bias: np.ndarray, fits_bias: bool
) -> Fit:
    """Fit weights to some samples, and keep them where they hold on others.

    Args:
        seen: the moments of the samples to fit to.
        unseen: those of the samples that choose the ridge, and whether to change
            anything, for each group by itself.
        old: the weights that there are, `(groups, inputs, outputs)`.
        bias: the bias that there is, `(groups, outputs)`.
        fits_bias: whether the bias may change.
    """
    variance = unseen.variance().sum(axis=1)
    variance = np.where(variance > 0, variance, 1.0)
    before = unseen.error(old, bias).sum(axis=1) / variance
    best = Fit(old, bias, before, before)
    for ridge in RIDGES:
        try:
            weights = seen.solve(old, ridge, fits_bias)
        except np.linalg.LinAlgError:
            continue
        shift = bias
        if fits_bias:
            shift = (seen.y - _through(seen.x, weights)) / seen.count
        with np.errstate(invalid="ignore", over="ignore"):
            after = unseen.error(weights, shift).sum(axis=1) / variance
        better = after < best.after  # false of what is not finite
        best = Fit(
            np.where(better[:, None, None], weights, best.weights),
            np.where(better[:, None], shift, best.bias),
            before,
            np.where(better, after, best.after),
        )
    return best
