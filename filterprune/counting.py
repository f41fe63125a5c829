"""Counting channels: of many vectors of labels at once."""

import functools

import numpy as np


class Counter:
    """Counts how many entries of each of its vectors are alive."""

    def __init__(self):
        self._known: dict[bytes, int] = {}
        self._roots: list[np.ndarray] = []
        self._times: list[np.ndarray] = []

    def add(self, roots: np.ndarray) -> int:
        """Take in a vector of labels' roots, `(entries,)`; its number.

        All vectors are to be taken in before anything is counted.
        """
        found, times = np.unique(roots, return_counts=True)
        key = found.tobytes() + times.tobytes()
        if key not in self._known:
            self._known[key] = len(self._roots)
            self._roots.append(found)
            self._times.append(times)
        return self._known[key]

    @property
    def nothing(self) -> int:
        """The number of a vector of one entry that always stays."""
        return len(self._roots)

    @functools.cached_property
    def _flat(self) -> tuple[np.ndarray, ...]:
        """The vectors' numbers, roots and how often those occur, in one row."""
        numbers = np.repeat(np.arange(self.nothing), [r.size for r in self._roots])
        none = np.zeros(0, int)
        roots, times = ([none, *arrays] for arrays in (self._roots, self._times))
        return numbers, np.concatenate(roots), np.concatenate(times)

    def count(self, alive: np.ndarray) -> np.ndarray:
        """How many entries each vector has left, `(vectors + 1,)`.

        Args:
            alive: which roots are alive, `(labels,)` bool.
        """
        numbers, roots, times = self._flat
        counts = np.bincount(numbers, times * alive[roots], minlength=self.nothing + 1)
        counts[-1] = 1
        return counts

    def spread(self, values: np.ndarray, size: int) -> np.ndarray:
        """What each root is worth if an entry of each vector is worth so much.

        Args:
            values: `(vectors + 1,)`.
            size: how many labels there are.

        Returns:
            `(size,)`.
        """
        numbers, roots, times = self._flat
        return np.bincount(roots, times * values[numbers], minlength=size)
