"""The inputs that a model is fitted on, and those that are held out."""

import keras
import numpy as np

from filterprune.channels.trace import trace
from filterprune.recovery import _batches
from filterprune.running import undisturbed

BATCH = 32
# Of so many batches one is held out, the second first.
CYCLE = 5


def is_held(batch: int) -> bool:
    """Whether nothing is fitted to a batch."""
    return batch % CYCLE == 1


class Samples:
    """Inputs in random order, in batches.

    Args:
        model: the model that reads them.
        data: the inputs: see `filterprune.reconstruct`.
        seed: seed of the order.

    Attributes:
        count: how many samples there are.
        batches: for each batch an array for each input of the model.

    Raises:
        TypeError: if `data` has no batches.
        ValueError: if `data` are empty, never end or are not finite.
    """

    def __init__(self, model, data, seed: int):
        arrays = _arrays(model, data)
        order = np.random.default_rng(seed).permutation(len(arrays[0]))
        size = model.inputs[0].shape[0]
        if size is not None:  # no other batches will do
            order = order[: len(order) // size * size]
        self.count = len(order)
        size = size or min(BATCH, -(-self.count // CYCLE))
        self.batches = [
            [
                keras.ops.cast(array[part], tensor.dtype)
                for array, tensor in zip(arrays, model.inputs, strict=True)
            ]
            for part in np.array_split(order, max(1, -(-self.count // size)))
        ]

    def seen(self, batches: list) -> list:
        """Those of some batches that models may be fitted to."""
        return [batch for i, batch in enumerate(batches) if not is_held(i)]

    def held(self, batches: list) -> list:
        """The others."""
        return [batch for i, batch in enumerate(batches) if is_held(i)]

    def outputs(self, model) -> list[list]:
        """What a model gives for each batch, flat; no variable changes."""
        struct = trace(model).input_struct
        found = []
        for batch in self.batches:
            inputs = keras.tree.pack_sequence_as(struct, batch)
            with undisturbed(model):
                outputs = model(inputs, training=False)
            found.append(keras.tree.flatten(outputs))
        return found


def _arrays(model, data) -> list[np.ndarray]:
    """All samples, an array for each input of the model."""
    names = trace(model).input_names
    parts = []
    for inputs in _batches(model, data, None, BATCH):
        flat = (
            [inputs[name] for name in names]
            if isinstance(inputs, dict)
            else keras.tree.flatten(inputs)
        )
        if len(flat) != len(names):
            raise ValueError(
                f"Expected batches of {len(names)} arrays, for the inputs "
                f"{', '.join(map(repr, names))}. Received: a batch of {len(flat)}. "
                "Of several inputs, a batch is a tuple `(x,)` or `(x, y)`."
            )
        parts.append([keras.ops.convert_to_numpy(x) for x in flat])
    if not parts or not len(parts[0][0]):
        raise ValueError("Expected `data` to hold at least one sample. Received: none.")
    arrays = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    for array, name in zip(arrays, names, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            rows = array.reshape(len(array), -1)
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            raise ValueError(
                f"Expected finite inputs. Received: NaN or Inf for '{name}' in "
                f"{bad.size} samples, first in number {bad[0]}. Leave those out."
            )
    return arrays


def columns(batches: list) -> list[np.ndarray]:
    """Lists of batches, an array for each tensor, as one array for each tensor."""
    return [
        np.concatenate([keras.ops.convert_to_numpy(x) for x in tensors])
        for tensors in zip(*batches, strict=True)
    ]


def error(wanted: list, given: list) -> float:
    """The error of outputs relative to their spread, the largest of any output."""
    worst = 0.0
    for old, new in zip(columns(wanted), columns(given), strict=True):
        old, new = _rows(old), _rows(new)
        spread = np.square(old - old.mean(axis=0)).sum()
        found = float(np.sqrt(np.square(old - new).sum() / (spread or 1.0)))
        worst = max(worst, found if np.isfinite(found) else float("inf"))
    return worst


def agreement(wanted: list, given: list) -> float | None:
    """For how many samples, or positions of them, the largest output is the same."""
    same = [
        (_rows(old).argmax(axis=-1) == _rows(new).argmax(axis=-1)).mean()
        for old, new in zip(columns(wanted), columns(given), strict=True)
        if old.shape[-1] > 1
    ]
    return float(min(same)) if same else None


def _rows(array) -> np.ndarray:
    return np.asarray(array, "float64").reshape(-1, array.shape[-1])
