"""Channel labels: who lives and dies with whom.

A tensor's channels are an integer array that broadcasts to the tensor's shape:
an axis along which nothing can be told apart has size 1. A feature map of
shape `(None, 56, 56, 64)` carries labels of shape `(1, 1, 1, 64)`; flattened,
`(1, 200704)`. Two positions with one label, or with labels that were tied,
are kept together or removed together.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(eq=False, repr=False)
class Channels:
    """The channels of one tensor.

    Attributes:
        shape: the tensor's static shape, `None` where it is not known.
        labels: integers that broadcast to `shape`.
        constant: the value of a tensor that is a constant, else `None`.
    """

    shape: tuple
    labels: np.ndarray
    constant: np.ndarray | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, axis: int) -> int:
        """How many labels the tensor has along `axis` (1 if it is unknown)."""
        known = self.shape[axis]
        return self.labels.shape[axis] if known is None else known


def fit(values: np.ndarray, shape: tuple) -> np.ndarray:
    """Values in `shape`; unknown (NaN) where several fall on one and differ."""
    for axis, size in enumerate(shape):
        if size == 1 and values.shape[axis] != 1:
            first = np.take(values, [0], axis)
            even = (values == first).all(axis=axis, keepdims=True)
            values = np.where(even, first, np.nan)
    return np.broadcast_to(values, shape)


def squeeze_uniform(labels: np.ndarray) -> np.ndarray:
    """The labels with every axis along which they are all equal of size 1."""
    for axis, size in enumerate(labels.shape):
        if size > 1:
            first = np.take(labels, [0], axis)
            if (labels == first).all():
                labels = first
    return labels


def components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The smallest label that each of `count` labels is tied to.

    Args:
        count: how many labels there are.
        left, right: integer arrays of one shape `(ties,)`: `left[i]` and
            `right[i]` are tied.

    Returns:
        An integer array of shape `(count,)`.
    """
    root = np.arange(count)
    while True:
        a, b = root[left], root[right]
        apart = a != b
        if not apart.any():
            return root
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = root[root]
            if np.array_equal(shorter, root):
                break
            root = shorter


class LabelTable:
    """Hands out labels, and remembers which were tied and which must stay."""

    def __init__(self):
        self.count = 0
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._pins: list[tuple[np.ndarray, str]] = []
        self._roots: np.ndarray | None = None

    @property
    def ties(self) -> int:
        """How many times labels were tied."""
        return len(self._ties)

    def new(self, *shape: int) -> np.ndarray:
        """Fresh labels of the given shape."""
        size = int(np.prod(shape))
        labels = np.arange(self.count, self.count + size).reshape(shape)
        self.count += size
        self._roots = None
        return labels

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Let `a` and `b` (broadcast together) live and die together."""
        if a is b:
            return
        a, b = np.broadcast_arrays(a, b)
        a, b = a.ravel(), b.ravel()
        apart = a != b
        if apart.any():
            self._ties.append((a[apart], b[apart]))
            self._roots = None

    def step_tying(self, labels: np.ndarray, steps: np.ndarray) -> int:
        """After which step labels that are tied in the end all were.

        Args:
            labels: the labels.
            steps: how many ties there were after each step, in order.
        """
        roots = self.roots()
        root = roots[labels.flat[0]]
        inside = np.flatnonzero(roots == root)
        left, right, number = [], [], []
        for i, (a, b) in enumerate(self._ties):
            own = roots[a] == root
            left.append(np.searchsorted(inside, a[own]))
            right.append(np.searchsorted(inside, b[own]))
            number.append(np.full(own.sum(), np.searchsorted(steps, i, "right")))
        found = [np.concatenate(part) for part in (left, right, number)]
        sought = np.searchsorted(inside, np.unique(labels))
        low, high = 0, steps.size
        while low < high:
            middle = (low + high) // 2
            before = found[2] <= middle
            tied = components(inside.size, found[0][before], found[1][before])
            low, high = (
                (low, middle) if np.ptp(tied[sought]) == 0 else (middle + 1, high)
            )
        return low

    def tie_along(self, labels: np.ndarray, axis: int) -> np.ndarray:
        """Tie all positions but those along `axis`; the labels along it."""
        rows = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])
        if len(rows) > 1:
            self.tie(rows[1:], rows[:1])
        return rows[0]

    def pin(self, labels: np.ndarray, reason: str, first: bool = False) -> None:
        """Keep `labels` for ever, and say why, before other reasons if `first`."""
        self._pins.insert(0 if first else len(self._pins), (np.unique(labels), reason))

    def roots(self) -> np.ndarray:
        """For every label the one that stands for all it is tied to."""
        if self._roots is None:
            if self._ties:
                left = np.concatenate([a for a, _ in self._ties])
                right = np.concatenate([b for _, b in self._ties])
            else:
                left = right = np.zeros(0, int)
            self._roots = components(self.count, left, right)
        return self._roots

    def reasons(self) -> dict[int, str]:
        """Why a root must stay, for each that must: the first reason given."""
        roots = self.roots()
        found: dict[int, str] = {}
        for labels, reason in self._pins:
            for root in np.unique(roots[labels]):
                found.setdefault(int(root), reason)
        return found
