"""The demo: its figures are true, its files load without filterprune."""

import dataclasses
import io
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from rich.console import Console

import filterprune
from filterprune import demo

ROOT = pathlib.Path(__file__).parents[1]
LOAD_ALONE = """
import sys
sys.modules["filterprune"] = None  # importing it fails from here on
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(folder):
    return demo.run(quick=True, output=folder / "saved")


@pytest.fixture(scope="module")
def held_out():
    return demo.load_digits(demo._QUICK.train, demo._QUICK.test, seed=0)[1]


def test_masked_and_compact_agree(result):
    assert result.difference < 1e-4
    assert result.compact.accuracy == result.masked_accuracy


def test_compact_is_smaller(result):
    assert result.sparsity == pytest.approx(0.7, abs=0.01)
    assert result.compact.cost.params < 0.2 * result.dense.cost.params
    assert result.compact.cost.macs < 0.2 * result.dense.cost.macs
    assert result.compact.file_bytes < 0.5 * result.dense.file_bytes
    assert result.dense.accuracy > 0.7


def test_figures_are_those_of_the_files(result):
    for figures in (result.dense, result.compact):
        assert figures.path.stat().st_size == figures.file_bytes
        model = keras.saving.load_model(figures.path)
        assert filterprune.analyze(model).before == figures.cost
        assert model.count_params() == figures.cost.params
        assert figures.latency > 0


def test_compact_loads_where_filterprune_is_not(result, held_out, tmp_path):
    x, y = held_out
    np.save(tmp_path / "x.npy", x)
    files = [result.compact.path, tmp_path / "x.npy", tmp_path / "logits.npy"]
    command = [sys.executable, "-I", "-c", LOAD_ALONE, *map(str, files)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    logits = np.load(files[-1])
    here = keras.saving.load_model(result.compact.path).predict(x, verbose=0)
    np.testing.assert_allclose(logits, here, atol=1e-4)
    assert (logits.argmax(axis=-1) == y).mean() == result.compact.accuracy


def test_the_command_prints_one_table_and_the_same_seed_the_same_figures(
    result, held_out, tmp_path
):
    command = [sys.executable, "-m", "filterprune", "demo", "--quick"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, "--output", "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    headers = [line.split() for line in lines].count(
        ["dense", "masked", "compact", "change"]
    )
    assert headers == 1
    for row in ("accuracy on 200 unseen", "parameters", "MACs per image"):
        assert sum(line.strip().startswith(row) for line in lines) == 1
    for row in (".keras file, bytes", "ms per image, batch of 200"):
        assert sum(line.strip().startswith(row) for line in lines) == 1
    assert "\x1b" not in done.stdout  # no terminal, no escape codes
    assert sum(line.strip().startswith("epoch ") for line in lines) == 12
    assert f"{result.difference:.1e}" in done.stdout
    assert f"{result.sparsity:.1%} of the filters" in done.stdout
    x, y = held_out
    for name in ("dense", "compact"):
        path = tmp_path / "out" / f"{name}.keras"
        assert str(path) in done.stdout
        model, figures = keras.saving.load_model(path), getattr(result, name)
        logits = model.predict(x, verbose=0)
        assert (logits.argmax(axis=-1) == y).mean() == figures.accuracy
        assert filterprune.analyze(model).before == figures.cost


def test_table_fits_80_columns_and_holds_the_figures(result):
    text = str(result)
    assert max(map(len, text.splitlines())) <= 80
    for accuracy in (result.dense.accuracy, result.compact.accuracy):
        assert f"{accuracy:.1%}" in text
    assert f"{result.compact.cost.params:,}" in text
    assert f"{result.dense.cost.macs:,}" in text
    assert f"{result.difference:.1e}" in text


def test_result_is_frozen(result):
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.difference = 0.0


def test_digits_are_balanced_and_held_out():
    (x, y), (x_test, y_test) = demo.load_digits(4000, 1000, seed=3)
    assert x.shape == (4000, 28, 28, 1) and x.dtype == "float32"
    assert x.min() == 0 and x.max() == 1
    assert (np.bincount(y) == 400).all() and (np.bincount(y_test) == 100).all()
    seen = {image.tobytes() for image in x}
    assert not any(image.tobytes() in seen for image in x_test)


def test_digits_depend_on_the_seed_alone():
    first, again, other = (demo.load_digits(100, 50, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0][0], again[0][0])
    assert not np.array_equal(first[0][0], other[0][0])


def test_model_has_the_hard_parts_and_all_of_it_is_prunable():
    model = demo.build_model(8)
    kinds = {type(layer).__name__ for layer in model.layers}
    assert {"Add", "Concatenate", "DepthwiseConv2D", "Multiply"} <= kinds
    report = filterprune.analyze(model)
    assert report.barriers == ()
    assert [group.layers for group in report.fixed] == [("head",)]


@pytest.mark.parametrize(("terminal", "expected"), [(True, "100%"), (False, "2/2: ")])
def test_progress_is_a_bar_or_lines(terminal, expected):
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=terminal, width=80, _environ={"TERM": "xterm"}
    )
    with demo._Progress(console, batches=4) as progress:
        progress.set_params({"epochs": 2})
        progress.say("Training")
        for epoch in range(2):
            for batch in range(2):
                progress.on_train_batch_end(batch)
            progress.on_epoch_end(epoch, {"accuracy": 0.5, "sparsity": 0.25})
    assert "Training" in stream.getvalue()
    assert expected in stream.getvalue()
    assert ("\x1b" in stream.getvalue()) == terminal


@pytest.mark.parametrize("seed", ["zero", -1])
def test_bad_seed_is_refused_before_anything_is_made(seed, tmp_path):
    with pytest.raises(ValueError):
        demo.run(seed=seed, quick=True, output=tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(
        ImportError, match=r'mlxtend.*pip install "filterprune\[demo\]"'
    ):
        demo.run(quick=True)


@pytest.mark.slow
def test_full_run_keeps_its_promises(tmp_path):
    full = demo.run(output=tmp_path)
    assert full.dense.accuracy >= 0.97
    assert full.compact.accuracy >= full.dense.accuracy - 0.015
    assert full.sparsity == pytest.approx(0.7, abs=0.005)
    assert full.difference < 1e-4
    assert full.dense.cost.macs > 5 * full.compact.cost.macs
    assert full.compact.latency < full.dense.latency
    assert full.seconds < 180
