"""Data in files: what models read, and what they are to give."""

import keras
import numpy as np

from filterprune.channels.trace import trace
from filterprune.cli import models
from filterprune.cli.output import Refused, refusing
from filterprune.running import undisturbed


def load_arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file; none that would have to be unpickled."""
    models.check_input(path, (".npz",))
    with refusing(Exception, prefix=f"cannot read {path}: "), np.load(path) as file:
        return {name: file[name] for name in file.files}


def inputs_from(arrays: dict[str, np.ndarray], model, path: str):
    """What a model reads, from the arrays of a file, in the structure it takes.

    They are called `x`, or, of several inputs, as those are.

    Raises:
        Refused: if one is missing or has another shape than the input.
    """
    graph = trace(model)
    found = []
    for tensor, name in zip(graph.inputs, graph.input_names, strict=True):
        key = "x" if len(graph.inputs) == 1 and name not in arrays else name
        array = _named(arrays, key, path, f"the input '{name}'")
        expected = (None, *tensor.shape[1:])
        if array.ndim != len(expected) or any(
            a not in (None, b) for a, b in zip(expected, array.shape, strict=True)
        ):
            raise Refused(
                f"expected {key!r} in {path} to have the shape {expected} of the "
                f"input '{name}', received {array.shape}"
            )
        found.append(array)
    _check_lengths(found, path)
    return keras.tree.pack_sequence_as(graph.input_struct, found)


def targets_from(arrays: dict[str, np.ndarray], model, path: str):
    """What a model is to give: `y`, or for each of several outputs an array.

    Those are called `y_NAME` after the keys of a dict of outputs, or `y_0`, `y_1`.

    Raises:
        Refused: if one is missing.
    """
    struct = trace(model).output_struct
    if not isinstance(struct, (dict, list, tuple)) or len(struct) == 1:
        array = _named(arrays, "y", path, "what the model is to give")
        return keras.tree.map_structure(lambda _: array, struct)
    keys = list(struct) if isinstance(struct, dict) else list(range(len(struct)))
    found = [
        _named(arrays, f"y_{key}", path, f"what the output {key!r} is to give")
        for key in keys
    ]
    return dict(zip(keys, found)) if isinstance(struct, dict) else found


def predict(model, x, batch_size: int = 32) -> list[np.ndarray]:
    """The outputs of a model, an array for each; no variable changes."""
    found: list[list] = []
    for start in range(0, len(keras.tree.flatten(x)[0]), batch_size):
        rows = slice(start, start + batch_size)
        part = keras.tree.map_structure(lambda a, rows=rows: a[rows], x)
        with undisturbed(model):
            outputs = model(part, training=False)
        found.append(list(map(keras.ops.convert_to_numpy, keras.tree.flatten(outputs))))
    return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]


def accuracy(targets, outputs: list[np.ndarray]) -> float | None:
    """How often the largest of an output's numbers is the labelled one.

    None if there are several outputs, or what they are to give are no classes.
    """
    labels = [np.asarray(array) for array in keras.tree.flatten(targets)]
    if len(outputs) > 1 or outputs[0].shape[-1] < 2:
        return None
    (output,), (label,) = outputs, labels
    if label.shape == output.shape and set(np.unique(label)) <= {0, 1}:
        label = label.argmax(axis=-1)
    label = label.reshape(label.shape[:-1]) if label.shape[-1:] == (1,) else label
    if label.shape != output.shape[:-1] or (label % 1).any():
        return None
    return float((output.argmax(axis=-1) == label).mean())


def _named(arrays, name: str, path: str, what: str) -> np.ndarray:
    if name not in arrays:
        raise Refused(
            f"expected an array {name!r} in {path}, for {what}; it has {sorted(arrays)}"
        )
    return arrays[name]


def _check_lengths(found, path: str) -> None:
    lengths = sorted({len(array) for array in found})
    if lengths[:1] == [0] or len(lengths) > 1:
        raise Refused(f"expected as many samples in all of {path}, received {lengths}")
