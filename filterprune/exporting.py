"""Exporting models to other runtimes, and checking what comes out."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import warnings
from collections.abc import Iterator

import keras

from filterprune.channels.trace import check_model, parts_of
from filterprune.errors import VerificationError, one_line
from filterprune.files import check_target, replacing
from filterprune.gates import is_masked
from filterprune.recovery import state_kept
from filterprune.runtimes import RUNTIMES, Exported
from filterprune.suggestions import did_you_mean
from filterprune.verification import compare, fitting_inputs


@dataclasses.dataclass(frozen=True)
class _Format:
    """How a format is written.

    Attributes:
        keras: what `keras.Model.export` calls it.
        suffix: how its files end; a folder has none.
        also: the suffixes of more files beside it.
        marker: a file in it, if it is a folder.
        float64: whether what runs it computes in float64 as well.
        needs: for each backend of Keras what converts, where that is a package.
    """

    keras: str
    suffix: str
    also: tuple[str, ...] = ()
    marker: str | None = None
    float64: bool = False
    needs: dict[str, str] = dataclasses.field(default_factory=dict)


_FORMATS = {
    "litert": _Format("litert", ".tflite", needs={"torch": "litert_torch"}),
    "onnx": _Format(
        "onnx",
        ".onnx",
        needs={"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"},
    ),
    "openvino": _Format(
        "openvino",
        ".xml",
        also=(".bin",),
        needs=dict.fromkeys(("tensorflow", "jax", "torch"), "openvino"),
    ),
    "saved_model": _Format(
        "tf_saved_model",
        "",
        marker="saved_model.pb",
        float64=True,
        needs={"jax": "tensorflow", "torch": "tensorflow"},
    ),
}
FORMATS = tuple(_FORMATS)


@dataclasses.dataclass(frozen=True)
class Export:
    """What `filterprune.export_model` wrote.

    Attributes:
        path: the file, or the folder of a SavedModel.
        format: its format.
        bytes: how large it is, files beside it included.
        runtime: what it was checked with; `None` if it was not.
        difference: the largest difference between an output there and one of the
            Keras model, relative to the largest value of a channel; `None` if it was
            not checked.
    """

    path: pathlib.Path
    format: str
    bytes: int
    runtime: str | None = None
    difference: float | None = None


def export_model(
    model,
    path: str | os.PathLike,
    format: str,
    verify: bool = True,
    overwrite: bool = False,
) -> Export:
    """Export a model for another runtime and check what that computes.

    Keras converts; what it wrote is run on generated inputs and must compute what
    the model does. Only then it is put at `path`, whole.

    Args:
        model: a built functional or sequential Keras model without gates: a
            compact one.
        path: the file to write, or the folder of a SavedModel.
        format: `"litert"` (`.tflite`), `"onnx"` (`.onnx`), `"openvino"` (`.xml`,
            and a `.bin` beside it) or `"saved_model"` (a folder).
        verify: whether to compare. Defaults to `True`; where the format's runtime
            is not installed nothing is compared.
        overwrite: whether to replace what is at `path`. Defaults to `False`. No
            folder but a SavedModel is replaced.

    Returns:
        An `Export`.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if it is subclassed, not built or has gates, if `format` is not
            known, or cannot hold the model's dtype, or `path` ends otherwise.
        FileExistsError, OSError: if `path` is taken, or cannot be written to.
        ImportError: if a package that converts is not installed.
        RuntimeError: if the model cannot be converted to the format, or not be run
            by its runtime.
        filterprune.VerificationError: if the outputs differ by more than rounding
            explains. Nothing is left at `path` then.

    Example:

    ```python
    filterprune.prune(masked, sparsity=0.5)
    small = filterprune.compact(masked)
    exported = filterprune.export_model(small, "small.tflite", "litert")
    exported.difference
    ```
    """
    check_export(model, path, format, overwrite)
    how = _FORMATS[format]
    with replacing(path, overwrite, how.also, how.marker) as made:
        _convert(model, made, format)
        size = sum(_bytes(file) for file in made.parent.iterdir())
        result = Export(pathlib.Path(path), format, size)
        if not verify or not RUNTIMES[format].installed:
            return result
        found = _check(model, made, format)
    return dataclasses.replace(
        result, runtime=RUNTIMES[format].name, difference=found.difference
    )


def check_export(model, path, format, overwrite=False) -> None:
    """Raise as `export_model` does for arguments that make no sense."""
    check_path(path, format, overwrite)
    check_model(model)
    if is_masked(model):
        raise ValueError(
            f"Expected a model without gates. Received: '{model.name}', which is "
            "masked and would be exported at full size. Export what "
            "`filterprune.compact` makes of it."
        )
    if _FORMATS[format].float64:
        return
    for layer in parts_of(model):
        if getattr(layer, "compute_dtype", None) == "float64":
            raise ValueError(
                f"Expected a model that computes in float32 or less for "
                f"format={format!r}: {RUNTIMES[format].name} does not compute all "
                f"layers in float64. Received: '{model.name}', whose '{layer.name}' "
                "does. Export to 'saved_model', or make the model again under "
                "`keras.config.set_dtype_policy('float32')` and copy the weights."
            )


def check_path(path, format, overwrite=False) -> None:
    """Raise unless a model can be exported to that path in that format."""
    if format not in FORMATS:
        raise ValueError(
            f"Expected `format` to be one of {list(FORMATS)}. "
            f"Received: format={format!r}.{did_you_mean(format, FORMATS, 'format')}"
        )
    how = _FORMATS[format]
    if how.suffix and pathlib.Path(path).suffix != how.suffix:
        raise ValueError(
            f"Expected `path` to end with '{how.suffix}' for format={format!r}. "
            f"Received: path={os.fspath(path)!r}"
        )
    check_target(path, overwrite, how.also, how.marker)
    backend = keras.backend.backend()
    needed = how.needs.get(backend)
    if needed and importlib.util.find_spec(needed) is None:
        raise ImportError(
            f"Exporting to {format!r} from {backend} needs {needed}, which cannot be "
            f"found. Install it with: pip install {needed.replace('_', '-')}"
        )


def default_path(source, format: str) -> pathlib.Path:
    """Where `source` is exported to if nothing is said: the same name beside it."""
    return pathlib.Path(source).with_suffix(_FORMATS[format].suffix)


def _convert(model, path: pathlib.Path, format: str) -> None:
    try:
        with _quiet(), state_kept(model):
            # Keras 3.15 makes ONNX only of models that were called, which those
            # that come from a file never were.
            model(fitting_inputs(model), training=False)
            model.export(str(path), format=_FORMATS[format].keras, verbose=False)
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise RuntimeError(
            f"Keras cannot export '{model.name}' to {format!r}: {reason}"
        ) from error


def _check(model, path: pathlib.Path, format: str):
    try:
        with _quiet():
            inputs = fitting_inputs(model)
            found = compare(model, Exported(path, format, model), inputs)
    except Exception as error:  # runtimes have exceptions of their own
        reason = one_line(error) or type(error).__name__
        raise RuntimeError(
            f"{RUNTIMES[format].name} cannot run what Keras exports of "
            f"'{model.name}' to {format!r}: {reason} Nothing was written."
        ) from error
    if not found.same:
        raise VerificationError(
            f"In {RUNTIMES[format].name} the outputs of '{model.name}' differ by "
            f"{found.difference:.2g} of the largest value of a channel (allowed: "
            f"{found.tolerance:.0e}). The converter to {format!r} is wrong for one "
            "of its layers. Nothing was written."
        )
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of converters about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _bytes(path: pathlib.Path) -> int:
    if path.is_dir():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return path.stat().st_size
