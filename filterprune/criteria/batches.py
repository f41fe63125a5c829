"""Batches for the criteria that look at data: of any kind, over and over."""

import itertools
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from filterprune.schedules import is_integer


class Batches:
    """Batches of data, in turn, from the start again when they end.

    Args:
        data: an array of inputs or a dict of them; a tuple `(x, y)` or `(x, y,
            sample_weight)` of arrays (or lists or dicts of them); or batches,
            `x`, `(x, y)` or `(x, y, sample_weight)` each: a
            `keras.utils.PyDataset`, a `tf.data.Dataset`, a torch `DataLoader`,
            a list or another iterable.
        batch_size: how many samples a batch has where `data` are arrays.

    Raises:
        TypeError: if `data` are neither.
        ValueError: if arrays are empty or differ in length, or `batch_size` is
            no integer above 0.
    """

    def __init__(self, data, batch_size=32):
        check_count("batch_size", batch_size)
        self._data = data
        self._batch_size = int(batch_size)
        self._left: Iterator = iter(())
        self._samples: int | None = None
        if isinstance(data, (tuple, dict)) or _is_array(data):
            self._data = data if isinstance(data, tuple) else (data,)
            self._samples = _samples(self._data)
        elif not isinstance(data, (Iterable, keras.utils.PyDataset)):
            raise TypeError(
                "Expected `data` to be arrays `(x, y)` or an iterable of batches. "
                f"Received: data={data!r} (of type {type(data).__name__})"
            )

    def take(self, count: int) -> Iterator[tuple]:
        """The next batches, `(x, y, sample_weight)` as tensors, `None` for none.

        Arrays are not seen twice by one call.
        """
        if self._samples is not None:
            count = min(count, -(-self._samples // self._batch_size))
        for _ in range(count):
            batch = next(self._left, None)
            if batch is None:
                self._left = self._begin()
                batch = next(self._left, None)
            if batch is None:
                raise ValueError(
                    "Expected `data` that can be read again and again. Received: "
                    f"{type(self._data).__name__}, which gives no batches (any "
                    "more). Pass a list of batches, or arrays."
                )
            yield tuple(
                keras.tree.map_structure(_as_tensor, part)
                for part in keras.utils.unpack_x_y_sample_weight(batch)
            )

    def _begin(self) -> Iterator:
        data, size = self._data, self._batch_size
        if self._samples is not None:
            return (
                keras.tree.map_structure(_cut(start, start + size), data)
                for start in range(0, self._samples, size)
            )
        if isinstance(data, keras.utils.PyDataset):
            count = data.num_batches
            return (
                data[i] for i in (itertools.count() if count is None else range(count))
            )
        return iter(data)


def check_count(name: str, value) -> None:
    """Raise unless a value is an integer above 0."""
    if not is_integer(value) or value < 1:
        raise ValueError(
            f"Expected `{name}` to be an integer of at least 1. Received: "
            f"{name}={value!r}"
        )


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "__getitem__")


def _samples(data: tuple) -> int:
    parts = [part for part in keras.tree.flatten(data) if part is not None]
    if not all(map(_is_array, parts)) or not 0 < len(data) <= 3:
        raise TypeError(
            "Expected a tuple `(x, y)` or `(x, y, sample_weight)` of arrays. "
            f"Received: a tuple of {[type(part).__name__ for part in data]}. Pass "
            "batches as a list."
        )
    lengths = sorted({int(part.shape[0]) if part.shape else 0 for part in parts})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(
            "Expected arrays of as many samples each, and at least one. Received: "
            f"arrays of {lengths} samples."
        )
    return lengths[0]


def _cut(start: int, end: int):
    return lambda array: None if array is None else array[start:end]


def _as_tensor(value):
    """A tensor of the backend; floats in its float type, as in `fit`."""
    if value is None or keras.ops.is_tensor(value):
        return value if value is None else keras.ops.convert_to_tensor(value)
    array = np.asarray(value)
    if array.dtype.kind == "f":
        array = array.astype(keras.config.floatx())
    return keras.ops.convert_to_tensor(array)
