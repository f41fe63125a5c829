"""Which channels a masked model keeps, as plain lists, and back again."""

import reprlib
from collections.abc import Mapping

import numpy as np

from filterprune.channels.groups import study
from filterprune.channels.trace import parts_of
from filterprune.layers.base import Masked
from filterprune.schedules import is_integer
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
        TypeError: if `model` is no Keras model, or `kept` is no dict of lists by
            paths.
        ValueError: if `kept` is empty, names a layer that the model does not have, or
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
    numbers = _checked(kept)
    masked = wrap_paths(model, numbers)
    for place in study(masked).masks:
        gate = np.zeros(place.size)
        for number in numbers[place.path]:
            if not 0 <= number < place.size:
                raise _wrong(place.path, kept[place.path], f" to {place.size - 1}")
            gate[number] = 1
        place.variable.assign(gate)
    return masked


def _checked(kept) -> dict[str, list[int]]:
    """The same as plain lists, if it is what `kept_indices` returns."""
    if not isinstance(kept, Mapping):
        raise TypeError(
            "Expected `kept` to be a dict from paths of layers to lists of channels, "
            "as `filterprune.kept_indices` returns it. Received: "
            f"{reprlib.repr(kept)} (of type {type(kept).__name__})"
        )
    if not kept:
        raise ValueError(
            "Expected `kept` to name the masked layers and their channels, as "
            "`filterprune.kept_indices` returns them. Received: an empty dict."
        )
    found = {}
    for path, numbers in kept.items():
        if not isinstance(path, str):
            raise TypeError(
                "Expected the keys of `kept` to be paths of layers. Received: "
                f"{reprlib.repr(path)} (of type {type(path).__name__})"
            )
        if isinstance(numbers, np.ndarray):
            numbers = numbers.tolist()
        # A bool is an integer to Python, and a list of them looks like a mask.
        is_list = isinstance(numbers, (list, tuple, range))
        if not is_list or not all(map(is_integer, numbers)):
            raise _wrong(path, kept[path])
        found[path] = [int(number) for number in numbers]
    return found


def _wrong(path: str, received, last: str = "") -> ValueError:
    return ValueError(
        f"Expected the channels of '{path}' to be a list of integers from 0{last}. "
        f"Received: {reprlib.repr(received)} (of type {type(received).__name__})"
    )
