"""Models and data in files: loaded with care, written whole."""

import importlib
import os
import pathlib
import sys
from typing import Any

import keras
import numpy as np

from filterprune.channels.trace import trace
from filterprune.cli.output import Refused, brief, refusing
from filterprune.files import check_target, replacing

SUFFIXES = (".keras", ".h5", ".hdf5")


def load(path: str, imports=(), compile: bool = False):
    """A model from a file, in Keras' safe mode.

    Args:
        path: the file.
        imports: modules, or `.py` files, to import first.
        compile: whether to load the optimizer, the loss and the metrics as well.

    Raises:
        Refused: if it cannot be loaded.
    """
    check_input(path)
    import_modules(imports)
    try:
        return keras.saving.load_model(path, compile=compile, safe_mode=True)
    except Exception as error:  # broken files raise whatever the reader of a part does
        if compile and _loads(path):
            raise Refused(
                f"cannot load the optimizer, loss and metrics of {path}: "
                f"{brief(error)} Leave them out with --no-compile, or --import the "
                "module that registers them."
            ) from error
        hint = ""
        if "safe_mode" in str(error):
            hint = " The command line loads files in safe mode only."
        elif "Could not locate" in str(error):
            hint = " Layers of your own are known after --import MODULE."
        raise Refused(f"cannot load {path}: {brief(error, 300)}{hint}") from error


def check_input(path: str, suffixes=SUFFIXES) -> None:
    """Raise unless there is a file of such a kind."""
    if not os.path.exists(path):
        raise Refused(f"there is no file {path}")
    if not os.path.isfile(path):
        raise Refused(f"{path} is a folder, not a file of a Keras model")
    if pathlib.Path(path).suffix.lower() not in suffixes:
        raise Refused(
            f"{path} is no file of a Keras model: expected its name to end with "
            f"{' or '.join(suffixes)}"
        )


def _loads(path: str) -> bool:
    try:
        keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception:
        return False
    return True


def import_modules(names) -> None:
    """Import modules by name or by path: what the user asks for by `--import`.

    Raises:
        Refused: if one cannot be imported.
    """
    for name in names:
        folder, stem = os.getcwd(), name
        if name.endswith(".py"):
            folder, stem = os.path.split(os.path.abspath(name))
            stem = stem.removesuffix(".py")
        if folder not in sys.path:
            sys.path.insert(0, folder)
        with refusing(Exception, prefix=f"cannot import {name}: "):
            importlib.import_module(stem)


def check_output(path: str, overwrite: bool, *inputs: str, suffix: str = "") -> None:
    """Raise unless a file can be written there.

    Args:
        path: the file.
        overwrite: whether it may be there, even as one of the inputs.
        inputs: what is read.
        suffix: how its name must end.
    """
    if suffix and pathlib.Path(path).suffix != suffix:
        raise Refused(f"expected the output to end with {suffix}, received {path}")
    try:
        with refusing():
            check_target(path, overwrite)
    except Refused as error:
        taken = any(os.path.exists(i) and _same_file(i, path) for i in inputs)
        if isinstance(error.__cause__, FileExistsError):
            what = "it is the input" if taken else "it exists"
            raise Refused(
                f"{path} is not written: {what}. Give another name, or --overwrite"
            ) from error
        raise


def _same_file(path: str, other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(path, other)


def save(model, path: str, overwrite: bool) -> int:
    """Write a model, whole or not at all, and say how many bytes it takes."""
    with refusing(), replacing(path, overwrite) as made:
        model.save(made)
    return os.path.getsize(path)


def write_text(text: str, path: str, overwrite: bool) -> None:
    """Write a text, whole or not at all."""
    with refusing(), replacing(path, overwrite) as made:
        made.write_text(text, encoding="utf-8")


def size_of(path: str) -> int:
    """The bytes of a model: of its file, its folder, or its pair of files."""
    if os.path.isdir(path):
        files = pathlib.Path(path).rglob("*")
        return sum(f.stat().st_size for f in files if f.is_file())
    beside = pathlib.Path(path).with_suffix(".bin")
    more = path.endswith(".xml") and beside.is_file()
    return os.path.getsize(path) + (beside.stat().st_size if more else 0)


def load_arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file; none that would have to be unpickled."""
    check_input(path, (".npz",))
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
    graph = trace(model)
    if len(graph.outputs) == 1:
        found: Any = [_named(arrays, "y", path, "what the model is to give")]
        return keras.tree.pack_sequence_as(graph.output_struct, found)
    numbers = keras.tree.pack_sequence_as(
        graph.output_struct, list(range(len(graph.outputs)))
    )
    keys = numbers if isinstance(numbers, dict) else dict(enumerate(graph.outputs))
    found = [
        _named(arrays, f"y_{key}", path, f"what the output {key!r} is to give")
        for key in keys
    ]
    if isinstance(numbers, dict):
        return dict(zip(numbers, found, strict=True))
    return keras.tree.pack_sequence_as(graph.output_struct, found)


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
