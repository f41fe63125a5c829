"""Models in files: loaded with care, written whole."""

import importlib
import os
import pathlib
import sys
import zipfile

import keras

from filterprune.cli.output import Refused, brief, refusing
from filterprune.files import check_target, replacing

# What the JSON in a model's file may unpack to, in bytes, and how many times the size
# of the file all of it: Keras does not compress weights, others that archive do.
TEXT_LIMIT = 2**26
RATIO_LIMIT = 100
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
    check_archive(path)
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


def check_there(*paths: str) -> None:
    """Raise unless there is a file, or a folder, at each of these paths."""
    for path in paths:
        if not os.path.exists(path):
            raise Refused(f"there is no file {path}")


def check_input(path: str, suffixes=SUFFIXES) -> None:
    """Raise unless there is a file of such a kind."""
    check_there(path)
    if os.path.isdir(path):
        raise Refused(f"{path} is a folder, not a file of a Keras model")
    if not os.path.isfile(path):
        raise Refused(f"{path} is no regular file, but a device or a pipe")
    if pathlib.Path(path).suffix.lower() not in suffixes:
        raise Refused(
            f"{path} is no file of a Keras model: expected its name to end with "
            f"{' or '.join(suffixes)}"
        )


def check_archive(path: str) -> None:
    """Raise unless a `.keras` file is whole, and of a size that a model may have.

    What a part unpacks to is known before it is: no reader takes more than that.

    Raises:
        Refused: if it is not.
    """
    if pathlib.Path(path).suffix.lower() != ".keras":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise Refused(
            f"cannot load {path}: it is no .keras archive, or it is truncated: "
            f"{brief(error)}"
        ) from error
    if "config.json" not in [part.filename for part in parts]:
        raise Refused(f"cannot load {path}: there is no config.json in it")
    texts = [part.file_size for part in parts if part.filename.endswith(".json")]
    size, total = os.path.getsize(path), sum(part.file_size for part in parts)
    if max(texts) > TEXT_LIMIT or total > TEXT_LIMIT + RATIO_LIMIT * size:
        raise Refused(
            f"cannot load {path}: its {size:,} bytes unpack to {total:,}, which no "
            "model does"
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
