"""Counting channels: of many vectors of labels at once."""

import numpy as np


class Counter:
    """Counts how many entries of each of its vectors are alive."""

    def __init__(self):
        self._known: dict[bytes, int] = {}
        self._roots: list[np.ndarray] = []
        self._times: list[np.ndarray] = []

    def add(self, roots: np.ndarray) -> int:
        """Take in a vector of labels' roots, `(entries,)`; its number."""
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

    def freeze(self) -> None:
        """Take in no more vectors from now on."""
        self._ids = np.repeat(np.arange(self.nothing), [r.size for r in self._roots])
        self._flat_roots = np.concatenate([np.zeros(0, int), *self._roots])
        self._flat_times = np.concatenate([np.zeros(0, int), *self._times])

    def count(self, alive: np.ndarray) -> np.ndarray:
        """How many entries each vector has left, `(vectors + 1,)`.

        Args:
            alive: which roots are alive, `(labels,)` bool.
        """
        left = self._flat_times * alive[self._flat_roots]
        counts = np.bincount(self._ids, left, minlength=self.nothing + 1)
        counts[-1] = 1
        return counts
