"""`prune` and `compact`: what is chosen, what is refused, what is written."""

import importlib
import json
import sys

import builders
import keras
import numpy as np
import pytest

import filterprune


def figures(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_figures_are_those_of_the_files(run, tmp_path):
    found = figures(
        run(
            "prune", "full.keras", "-o", tmp_path / "a.keras", "--remove", 0.5, "--json"
        )
    )
    small = keras.saving.load_model(tmp_path / "a.keras")
    assert found["after"]["params"] == small.count_params()
    assert found["after"]["file_bytes"] == (tmp_path / "a.keras").stat().st_size
    assert found["before"]["macs"] > found["after"]["macs"]
    assert found["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert found["verification"]["difference"] < 1e-5


def test_options_reach_the_selection(run, tmp_path):
    path = tmp_path / "a.keras"
    found = figures(
        run(
            *("prune", "full.keras", "-o", path, "--target", "macs", "--budget", "6e4"),
            *("--round-to", 4, "--exclude", "inner", "--scope", "layer", "--json"),
            *("--criterion", "l1", "--min-filters", 2, "--rounding", "down"),
        )
    )
    small = keras.saving.load_model(path)
    assert found["after"]["macs"] <= 6e4 < found["before"]["macs"]
    assert small.get_layer("inner").filters == 12
    assert small.get_layer("stem").filters == 4


def test_no_group_loses_more_than_max_sparsity(run, tmp_path):
    path = tmp_path / "a.keras"
    with_limit = ("--remove", 0.3, "--max-sparsity", 0.25)
    assert run("prune", "full.keras", "-o", path, *with_limit).code == 0
    small = keras.saving.load_model(path)
    assert small.get_layer("inner").filters >= 9


def test_only_the_kinds_asked_for_are_pruned(run, tmp_path):
    x = inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(8, 3, name="conv")(x)
    x = keras.layers.Dense(16, activation="relu", name="hidden")(
        keras.layers.Flatten()(x)
    )
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    model.save(tmp_path / "mixed.keras")
    path = tmp_path / "a.keras"
    found = run(
        *("prune", tmp_path / "mixed.keras", "-o", path),
        *("--remove", 0.5, "--kinds", "units"),
    )
    assert found.code == 0, found.err
    small = keras.saving.load_model(path)
    assert small.get_layer("conv").filters == 8
    assert small.get_layer("hidden").units == 8
    report = run("inspect", tmp_path / "mixed.keras")
    assert "channels" in report.out and "units" in report.out


def test_data_without_labels_make_up_for_what_is_gone(run, tmp_path):
    x, _ = builders.digits(60)
    np.savez(tmp_path / "x.npz", x=x)
    how = ("prune", "full.keras", "--remove", 0.3)
    plain = figures(run(*how, "-o", tmp_path / "a.keras", "--json"))
    given = ("--data", tmp_path / "x.npz", "--refine", 5)
    fitted = figures(run(*how, "-o", tmp_path / "b.keras", *given, "--json"))
    assert plain["after"]["params"] == fitted["after"]["params"]
    report = fitted["reconstruction"]
    assert report["after"] < report["before"]
    assert "accuracy" not in fitted
    full, a, b = (
        keras.saving.load_model(path)
        for path in ("full.keras", tmp_path / "a.keras", tmp_path / "b.keras")
    )
    off = [np.square(net.predict(x) - full.predict(x)).sum() for net in (a, b)]
    assert off[1] < off[0]


def test_without_data_it_says_what_is_lost(run, tmp_path):
    found = run("prune", "full.keras", "-o", tmp_path / "a.keras", "--remove", 0.3)
    assert found.code == 0 and "Give --data" in found.out


def test_labels_give_accuracies(run, tmp_path):
    full = keras.saving.load_model("full.keras")
    x, _ = builders.digits(60)
    y = full.predict(x).argmax(-1)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    found = figures(
        run(
            *("prune", "full.keras", "-o", tmp_path / "a.keras", "--remove", 0.3),
            *("--data", tmp_path / "xy.npz", "--refine", 0, "--json"),
        )
    )
    small = keras.saving.load_model(tmp_path / "a.keras")
    assert found["accuracy"]["before"] == 1
    assert found["accuracy"]["after"] == (small.predict(x).argmax(-1) == y).mean()


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "apoz", "hrank"])
def test_criteria_that_look_at_data(run, tmp_path, criterion):
    options = ("--remove", 0.4, "--criterion", criterion, "--data", "batch.npz")
    options += ("--no-reconstruct",)
    found = run("prune", "full.keras", "-o", tmp_path / "a.keras", *options)
    assert found.code == 0, found.err
    assert "Closed 4" in found.out or "Closed 3" in found.out


def test_defaults_are_those_of_the_function(run, tmp_path, files):
    masked = filterprune.wrap_model(keras.saving.load_model(files / "full.keras"))
    filterprune.prune(masked, 0.5)
    path = tmp_path / "masked.keras"
    outputs = ("-o", tmp_path / "small.keras", "--save-masked", path)
    assert run("prune", "full.keras", "--remove", 0.5, *outputs).code == 0
    loaded = keras.saving.load_model(path)
    assert filterprune.kept_indices(loaded) == filterprune.kept_indices(masked)


def test_a_criterion_chooses_as_it_does_in_python(run, tmp_path, files):
    x, y = builders.digits(64)
    masked = filterprune.wrap_model(keras.saving.load_model(files / "full.keras"))
    taylor = filterprune.criteria.Taylor((x, y), batches=1)
    filterprune.prune(masked, 0.5, criterion=taylor)
    options = ("--criterion", "taylor", "--data", "batch.npz", "--batches", 1)
    options += ("--refine", 2)
    path = tmp_path / "masked.keras"
    outputs = ("-o", tmp_path / "small.keras", "--save-masked", path)
    assert run("prune", "full.keras", "--remove", 0.5, *outputs, *options).code == 0
    loaded = keras.saving.load_model(path)
    assert filterprune.kept_indices(loaded) == filterprune.kept_indices(masked)


def test_recalibration_takes_the_statistics_of_the_data(run, tmp_path):
    options = ("prune", "full.keras", "--remove", 0.3, "--data", "batch.npz")
    path = tmp_path / "a.keras"
    assert run(*options, "--recalibrate", "-o", path).code == 0
    small = keras.saving.load_model(path)
    x, _ = builders.digits(64)
    stem = keras.Model(small.inputs, small.get_layer("stem").output)
    norm = small.get_layer("stem_bn")
    expected = keras.ops.convert_to_numpy(stem(x)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-3, atol=1e-4)


def test_a_masked_model_is_pruned_on(run, tmp_path, files):
    found = run("prune", "masked.keras", "-o", tmp_path / "a.keras", "--remove", 0.7)
    assert found.code == 0, found.err
    small = keras.saving.load_model(tmp_path / "a.keras")
    half = keras.saving.load_model(files / "small.keras")
    assert small.count_params() < half.count_params()
    found = run(
        *("prune", "masked.keras", "-o", tmp_path / "b.keras", "--remove", 0.7),
        *("--exclude", "inner"),
    )
    assert found.code == 2 and "has gates already" in found.complaint


def test_optimizers_are_carried_over_or_left_out(run, tmp_path):
    for name, options in {"with": (), "without": ("--no-compile",)}.items():
        path = tmp_path / f"{name}.keras"
        assert run("compact", "masked.keras", "-o", path, *options).code == 0
        assert keras.saving.load_model(path).compiled == (name == "with")
    sizes = [(tmp_path / f"{n}.keras").stat().st_size for n in ("with", "without")]
    assert sizes[1] < sizes[0]


def test_models_of_several_inputs_and_outputs(run, tmp_path):
    model = builders.build("multi_io")
    loss = {"class": "mse", "map": "mse"}
    model.compile("sgd", loss, **builders.WITHOUT_XLA)
    model.save(tmp_path / "multi.keras")
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(8, 8, 8, 1)),
        "extra": rng.normal(size=(8, 4)),
        "y_class": rng.normal(size=(8, 3)),
        "y_map": rng.normal(size=(8, 6, 6, 6)),
    }
    np.savez(tmp_path / "all.npz", **arrays)
    options = ("--remove", 0.4, "--criterion", "taylor", "-o", tmp_path / "a.keras")
    command = ("prune", tmp_path / "multi.keras", *options, "--data")
    assert run(*command, tmp_path / "all.npz").code == 0
    del arrays["y_map"]
    np.savez(tmp_path / "part.npz", **arrays)
    found = run(*command, tmp_path / "part.npz", "--overwrite")
    assert found.code == 2 and "'y_map'" in found.complaint


OWN = """
import keras

import filterprune


@keras.saving.register_keras_serializable("own")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale


@filterprune.rule(Scale)
def scale(layer, x):
    return filterprune.channels.same(x, scale="in", gates=("scale",))


@filterprune.register_criterion("own_peak")
def peak(kernel):
    return abs(kernel).max(axis=0)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with a layer that nothing has registered, and the module that does."""
    (tmp_path / "own_layers.py").write_text(OWN)
    with monkeypatch.context() as context:
        context.syspath_prepend(tmp_path)
        own_layers = importlib.import_module("own_layers")
    x = keras.Input((4, 4, 1))
    y = own_layers.Scale(name="scale")(keras.layers.Conv2D(8, 3, name="conv")(x))
    y = keras.layers.Dense(2, name="head")(keras.layers.Flatten()(y))
    builders.randomise(keras.Model(x, y)).save(tmp_path / "own.keras")
    keras.saving.get_custom_objects().pop("own>Scale")
    sys.modules.pop("own_layers")
    yield tmp_path
    keras.saving.get_custom_objects().pop("own>Scale", None)
    sys.modules.pop("own_layers", None)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])


def test_layers_and_criteria_of_ones_own_are_imported(run, own):
    command = ("prune", own / "own.keras", "-o", own / "a.keras", "--remove", 0.5)
    found = run(*command)
    assert found.code == 2 and "--import" in found.complaint
    options = ("--import", own / "own_layers.py", "--criterion", "own_peak", "--json")
    assert figures(run(*command, *options))["sparsity"] == 0.5
    assert keras.saving.load_model(own / "a.keras").get_layer("conv").filters == 4


def test_a_module_that_cannot_be_imported(run, own):
    (own / "broken_layers.py").write_text("1 / 0")
    command = ("prune", own / "own.keras", "-o", own / "a.keras", "--remove", 0.5)
    for name in (own / "broken_layers.py", "no_such_module"):
        found = run(*command, "--import", name)
        assert found.code == 2 and found.complaint.startswith(
            f"filterprune: error: cannot import {name}: "
        )


def test_a_floor_is_a_number_or_a_fraction(run, tmp_path):
    path = tmp_path / "a.keras"
    options = ("--remove", 0.95, "--min-filters", 0.5)
    assert run("prune", "full.keras", "-o", path, *options).code == 0
    widths = [keras.saving.load_model(path).get_layer(n) for n in ("stem", "inner")]
    assert [layer.filters for layer in widths] == [4, 6]
    for wrong in (0, 1.5, -2, "few"):
        found = run("prune", "full.keras", "-o", path, "--min-filters", wrong)
        assert found.code == 2
        assert f"fraction between 0 and 1, received '{wrong}'" in found.err or (
            wrong == "few" and "expected a number" in found.err
        )


def test_a_budget_that_is_met_already_is_said(run, tmp_path):
    options = ("--target", "macs", "--budget", "1e12")
    found = run("prune", "full.keras", "-o", tmp_path / "a.keras", *options)
    assert found.code == 0
    assert "warning: Nothing is pruned: " in found.err
    assert "warning: No gate of" in found.err


def test_a_budget_that_is_a_fraction_is_refused(run, tmp_path):
    options = ("--target", "macs", "--budget", 0.25)
    found = run("prune", "full.keras", "-o", tmp_path / "a.keras", *options)
    assert found.code == 2
    assert "`sparsity=0.75`" in found.err
    assert "--remove" in found.err
    assert not (tmp_path / "a.keras").exists()
