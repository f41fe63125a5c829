"""Which channels a masked model keeps, as plain lists, and back again."""

from collections.abc import Mapping

import numpy as np

from filterprune.channels.groups import study
from filterprune.channels.trace import parts_of
from filterprune.layers.base import Masked
from filterprune.slots import masked_analysis
from filterprune.wrapping import wrap_paths


def is_masked(model) -> bool:
    """Whether a model has layers with gates."""
    return any(isinstance(part, Masked) for part in parts_of(model))


def kept_indices(masked) -> dict[str, list[int]]:
    """The channels that each masked layer keeps.

    Args:
        masked: a masked model. It is not touched.

    Returns:
        For each masked layer, by its path (`"conv1"`, or `"backbone/conv1"` in a
        nested model), the sorted numbers of its open gates: plain lists that
        `json.dump` takes. `filterprune.replay` closes the same gates in a fresh
        copy of the architecture.

    Raises:
        TypeError: if `masked` is no Keras model.
        ValueError: if it is subclassed, not built or has no gates.

    Example:

    ```python
    filterprune.prune(masked, sparsity=0.5)
    kept = filterprune.kept_indices(masked)
    again = filterprune.replay(model, kept)
    ```
    """
    return {
        gate.path: np.flatnonzero(~gate.closed()).tolist()
        for gate in masked_analysis(masked).masks
    }


def replay(model, kept: Mapping[str, list[int]]):
    """Wrap a model and close the gates that another masked model had closed.

    Args:
        model: a plain model of the same architecture, with weights of its own.
            It is not touched.
        kept: what `filterprune.kept_indices` returned.

    Returns:
        A masked model whose masked layers, and open gates, are those of `kept`.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if `kept` names a layer that the model does not have, or
            channels that the layer does not have, or if the model is masked
            already. Nothing is made then.

    Example:

    ```python
    kept = {"conv2d": [0, 2, 3]}
    fresh = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(
        4, 3, name="conv2d"), keras.layers.Flatten(), keras.layers.Dense(2)])
    small = filterprune.compact(filterprune.replay(fresh, kept))
    ```
    """
    masked = wrap_paths(model, kept)
    for place in study(masked).masks:
        path, size = place.path, place.size
        numbers = np.asarray(kept[path])
        valid = numbers.ndim == 1 and (not numbers.size or numbers.dtype.kind in "iu")
        if not valid or (
            numbers.size and not 0 <= numbers.min() <= numbers.max() < size
        ):
            raise ValueError(
                f"Expected the channels of '{path}' to be integers from 0 to "
                f"{size - 1}. Received: {kept[path]!r}"
            )
        gate = np.zeros(size)
        gate[numbers.astype(int)] = 1
        place.variable.assign(gate)
    return masked
