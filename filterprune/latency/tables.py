"""Measured times at a few sizes, and what they say of all sizes between."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from filterprune.counting import Counter


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """How long one kind of call takes, by its sizes.

    Attributes:
        sizes: for each axis, two at most, the sizes measured, rising.
        seconds: what was measured, of one axis for each.
    """

    sizes: tuple[np.ndarray, ...]
    seconds: np.ndarray

    def repeated(self, times: int) -> "Table":
        """How long so many calls take, one after the other."""
        return dataclasses.replace(self, seconds=self.seconds * times)

    def covers(self, sizes: Sequence[int]) -> bool:
        """Whether it reaches as far as these sizes."""
        return len(sizes) == len(self.sizes) and all(
            size <= known[-1] for size, known in zip(sizes, self.sizes)
        )


class Interpolation:
    """The sum of many tables, each at sizes of its own, all at once.

    Between measured sizes a table is linear along each axis, and below the
    smallest it goes on as between the two smallest.

    Args:
        tables: one for each call.
        axes: for each call the vectors of roots that its axes count.
    """

    def __init__(self, tables: Sequence[Table], axes: Sequence[Sequence[np.ndarray]]):
        self._counter = Counter()
        longest = max([2, *(s.size for table in tables for s in table.sizes)])
        count = len(tables)
        self._at = np.full((count, 2, longest), np.inf)
        self._last = np.zeros((count, 2), int)
        self._seconds = np.zeros((count, longest, longest))
        index = [[self._counter.add(roots) for roots in vectors] for vectors in axes]
        self._index = np.full((count, 2), self._counter.nothing)
        for row, (table, numbers) in enumerate(zip(tables, index, strict=True)):
            self._index[row, : len(numbers)] = numbers
            values = np.atleast_1d(table.seconds)
            values = values.reshape(*values.shape, *[1] * (2 - values.ndim))
            for axis in range(2):
                known = table.sizes[axis] if axis < len(numbers) else np.ones(1)
                if known.size == 1:  # the same whatever the size
                    known = np.concatenate([known, known + 1])
                    values = np.repeat(values, 2, axis)
                self._at[row, axis, : known.size] = known
                self._last[row, axis] = known.size - 2
            self._seconds[row, : values.shape[0], : values.shape[1]] = values

    def _cells(self, alive: np.ndarray):
        """Where each call is: the corners of its cell, and how far along."""
        sizes = self._counter.count(alive)[self._index]
        low = (self._at <= sizes[..., None]).sum(-1) - 1
        low = np.clip(low, 0, self._last)
        first, second = (
            np.take_along_axis(self._at, (low + step)[..., None], -1)[..., 0]
            for step in (0, 1)
        )
        row, (i, j) = np.arange(len(low)), low.T
        corners = [[self._seconds[row, i + a, j + b] for b in (0, 1)] for a in (0, 1)]
        return np.array(corners), (sizes - first) / (second - first), second - first

    def total(self, alive: np.ndarray) -> float:
        """The sum of all calls, by which roots are alive, `(labels,)` bool."""
        corners, along, _ = self._cells(alive)
        x, y = along.T
        rows = corners[0] * (1 - x) + corners[1] * x
        return float(np.maximum(rows[0] * (1 - y) + rows[1] * y, 0).sum())

    def slopes(self, alive: np.ndarray) -> np.ndarray:
        """How much longer all calls take for each channel more, `(labels,)`."""
        corners, along, width = self._cells(alive)
        x, y = along.T
        down, right = corners[1] - corners[0], corners[:, 1] - corners[:, 0]
        slope = np.stack(
            [down[0] * (1 - y) + down[1] * y, right[0] * (1 - x) + right[1] * x], 1
        )
        by_vector = np.zeros(self._counter.nothing + 1)
        np.add.at(by_vector, self._index, slope / width)
        return self._counter.spread(by_vector, alive.size)
