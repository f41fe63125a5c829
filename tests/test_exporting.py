"""Exports compute what the Keras model does, and are written whole or not at all."""

import builders
import keras
import numpy as np
import pytest

import filterprune
from filterprune import exporting, runtimes
from filterprune.exporting import FORMATS, export_model
from filterprune.runtimes import RUNTIMES, Exported, format_of

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras exports all four from it"
)
SUFFIXES = {"litert": ".tflite", "onnx": ".onnx", "openvino": ".xml", "saved_model": ""}
NEEDS = {"litert": "ai_edge_litert", "openvino": "openvino", "onnx": "onnxruntime"}


def needed(format):
    """Skip where what runs or converts it is not installed."""
    if format in NEEDS:
        pytest.importorskip(NEEDS[format])
    if format == "onnx":
        pytest.importorskip("tf2onnx")


def small(name):
    masked = filterprune.wrap_model(builders.build(name))
    filterprune.prune(masked, 0.5)
    return filterprune.compact(masked)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["multi_io", "sequential"])
def test_exports_compute_the_same(format, name, tmp_path):
    """Models from files, which were never called; several inputs and outputs too."""
    needed(format)
    small(name).save(tmp_path / "small.keras")
    model = keras.saving.load_model(tmp_path / "small.keras")
    path = tmp_path / f"net{SUFFIXES[format]}"
    found = export_model(model, path, format)
    assert found.path == path and found.format == format
    assert found.runtime == RUNTIMES[format].name
    assert found.difference < 1e-5
    assert found.bytes > 4 * model.count_params() * 0.9
    assert format_of(path) == format
    inputs = builders.sample(model, batch_size=5)
    received = Exported(path, format, model)(inputs)
    for a, b in zip(builders.outputs(model, inputs), received, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["litert", "saved_model"])
def test_a_converter_that_is_wrong_is_found_and_nothing_kept(
    format, tmp_path, monkeypatch
):
    needed(format)
    model, other = builders.build("plain"), builders.build("plain", seed=1)
    export = keras.Model.export

    def wrong(self, *args, **kwargs):
        export(other, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "export", wrong)
    path = tmp_path / f"net{SUFFIXES[format]}"
    with pytest.raises(filterprune.VerificationError, match="differ by"):
        export_model(model, path, format)
    assert names(tmp_path) == []
    found = export_model(model, path, format, verify=False)
    assert found.difference is None and found.runtime is None


def test_what_cannot_be_converted_says_so(tmp_path, monkeypatch):
    def fails(self, *args, **kwargs):
        raise RuntimeError("no such\n operation")

    monkeypatch.setattr(keras.Model, "export", fails)
    with pytest.raises(
        RuntimeError, match="cannot export 'plain' to 'litert': no such"
    ):
        export_model(builders.plain(), tmp_path / "a.tflite", "litert")
    assert names(tmp_path) == []


def test_what_its_runtime_cannot_run_says_so(tmp_path, monkeypatch):
    class Broken(Exception):
        """As runtimes have them."""

    def fails(self, inputs):
        raise Broken("\x1b[1mNOT_IMPLEMENTED\x1b[0m:\n no kernel")

    monkeypatch.setattr(Exported, "__call__", fails)
    words = "cannot run what Keras exports of 'plain' to 'litert': NOT_IMPLEMENTED: no"
    with pytest.raises(RuntimeError, match=words):
        export_model(builders.plain(), tmp_path / "a.tflite", "litert")
    assert names(tmp_path) == []


def test_folders_that_are_no_saved_models_are_never_replaced(tmp_path):
    model = builders.plain()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    for overwrite in (False, True):
        with pytest.raises((FileExistsError, IsADirectoryError)):
            export_model(model, tmp_path / "mine", "saved_model", overwrite=overwrite)
    assert names(tmp_path / "mine") == ["thesis.txt"]
    export_model(model, tmp_path / "model", "saved_model")
    with pytest.raises(FileExistsError):
        export_model(model, tmp_path / "model", "saved_model")
    export_model(model, tmp_path / "model", "saved_model", overwrite=True)
    assert names(tmp_path) == ["mine", "model"]


@pytest.mark.parametrize(
    ("path", "format", "error", "message"),
    [
        ("a.tflite", "pdf", ValueError, "Expected `format` to be one of"),
        ("a.tflite", "tflite", ValueError, "Did you mean 'litert'"),
        ("a.onnx", "litert", ValueError, r"to end with '\.tflite'"),
        ("none/a.tflite", "litert", FileNotFoundError, "no folder"),
        ("taken.tflite", "litert", FileExistsError, "exists already"),
    ],
)
def test_arguments_that_make_no_sense(path, format, error, message, tmp_path):
    (tmp_path / "taken.tflite").write_text("precious")
    with pytest.raises(error, match=message):
        export_model(builders.plain(), tmp_path / path, format)
    assert names(tmp_path) == ["taken.tflite"]
    assert (tmp_path / "taken.tflite").read_text() == "precious"


def test_models_that_cannot_be_exported(tmp_path):
    path = tmp_path / "a.tflite"
    with pytest.raises(TypeError, match="to be a Keras model"):
        export_model("model", path, "litert")
    with pytest.raises(ValueError, match="compact"):
        export_model(filterprune.wrap_model(builders.plain()), path, "litert")
    assert names(tmp_path) == []


def test_missing_packages_are_named(tmp_path, monkeypatch):
    model = builders.plain()
    found = exporting.importlib.util.find_spec

    def missing(name):
        return None if name in ("tf2onnx", "onnxruntime") else found(name)

    monkeypatch.setattr(exporting.importlib.util, "find_spec", missing)
    with pytest.raises(ImportError, match="pip install tf2onnx"):
        export_model(model, tmp_path / "a.onnx", "onnx")
    with pytest.raises(ImportError, match=r"ONNX Runtime.*pip install onnxruntime"):
        Exported(tmp_path / "a.onnx", "onnx", model)


def test_without_its_runtime_nothing_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes.Runtime, "installed", False)
    found = export_model(builders.plain(), tmp_path / "a.tflite", "litert")
    assert found.runtime is None and found.difference is None
    assert names(tmp_path) == ["a.tflite"]


def test_tensorflow_runs_tflite_files_too(tmp_path, monkeypatch):
    """Where LiteRT itself is not installed."""
    model = builders.build("plain")
    export_model(model, tmp_path / "a.tflite", "litert", verify=False)
    found = runtimes.importlib.util.find_spec
    monkeypatch.setattr(
        runtimes.importlib.util,
        "find_spec",
        lambda name: None if name == "ai_edge_litert" else found(name),
    )
    x = builders.sample(model)
    (received,) = Exported(tmp_path / "a.tflite", "litert", model)(x)
    np.testing.assert_allclose(received, builders.outputs(model, x)[0], rtol=1e-4)


def test_files_of_other_models_are_refused(tmp_path):
    export_model(builders.shared(), tmp_path / "a.tflite", "litert")
    with pytest.raises(ValueError, match="with the 1 inputs of 'plain'"):
        Exported(tmp_path / "a.tflite", "litert", builders.plain())
