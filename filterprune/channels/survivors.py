"""Which channels survive, asked by labels."""

import dataclasses

import numpy as np

from filterprune.channels.labels import Channels


@dataclasses.dataclass(frozen=True, eq=False)
class Survivors:
    """Which labels survive.

    Attributes:
        alive: for each label, `(labels,)` bool.
    """

    alive: np.ndarray

    def mask(self, labels: np.ndarray) -> np.ndarray:
        """Which of `labels` survive, in their shape."""
        return self.alive[labels]

    def count(self, labels: np.ndarray) -> int:
        """How many of `labels` survive."""
        return int(self.alive[labels].sum())

    def along(self, channels: Channels, axis: int) -> np.ndarray | None:
        """Which positions of a tensor's axis survive; None if all do."""
        alive = self.alive[channels.labels]
        if channels.labels.shape[axis] == 1 or alive.all():
            return None
        others = tuple(i for i in range(alive.ndim) if i != axis % alive.ndim)
        return alive.any(axis=others)

    def size(self, channels: Channels, axis: int) -> int | None:
        """The size of a tensor's axis once the others are gone."""
        kept = self.along(channels, axis)
        return channels.shape[axis] if kept is None else int(kept.sum())

    def shape(self, channels: Channels) -> tuple:
        """The shape of a tensor once the others are gone."""
        return tuple(self.size(channels, axis) for axis in range(channels.ndim))

    def slice(self, array: np.ndarray, axes) -> np.ndarray:
        """The surviving part of an array whose axes run along labels."""
        for axis, labels in enumerate(axes):
            if labels is not None:
                kept = self.alive[labels]
                if not kept.all():
                    array = np.compress(kept, array, axis=axis)
        return array
