"""`verify`, `bench`, `inspect`, `report`: what they find."""

import json

import keras
import numpy as np
import pytest

import filterprune
from filterprune.cli.timing import interleaved


def verify(run, *argv):
    found = run("verify", *argv, "--json")
    return found.code, json.loads(found.out)


def test_same_and_different(run):
    code, found = verify(run, "masked.keras", "small.keras", "--batch-size", 3)
    assert code == 0 and found["same"] is True and found["samples"] == 3
    assert found["difference"] < 1e-5
    code, found = verify(run, "full.keras", "small.keras")
    assert code == 1 and found["same"] is False
    assert found["difference"] > found["tolerance"]
    found = run("verify", "full.keras", "small.keras")
    assert found.code == 1 and found.out.startswith("NOT the same")


def test_tolerance_and_data(run):
    code, found = verify(run, "full.keras", "small.keras", "--tolerance", 100)
    assert code == 0 and found["tolerance"] == 100
    options = ("--data", "batch.npz", "--tolerance", 1e-12)
    code, found = verify(run, "masked.keras", "small.keras", *options)
    assert code == 1 and found["samples"] == 64


def test_seeds_and_the_same_figures(run):
    figures = [
        verify(run, "masked.keras", "small.keras", "--seed", seed)[1]["difference"]
        for seed in (1, 1, 2)
    ]
    assert figures[0] == figures[1] != figures[2]


def test_outputs_of_other_shapes_differ(run, files, tmp_path):
    model = keras.saving.load_model(files / "full.keras")
    keras.Model(model.inputs, model.layers[-2].output).save(tmp_path / "cut.keras")
    code, found = verify(run, "full.keras", tmp_path / "cut.keras")
    assert code == 1 and found["difference"] is None  # JSON has no infinity


def test_models_of_other_inputs_are_refused(run, tmp_path):
    x = keras.Input((9, 9, 1))
    keras.Model(x, keras.layers.Flatten()(x)).save(tmp_path / "other.keras")
    for verb in ("verify", "bench"):
        found = run(verb, "full.keras", tmp_path / "other.keras")
        assert found.code == 2 and "takes other inputs" in found.complaint


def test_exported_models_are_verified_and_timed(run, tmp_path, files):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "small.onnx"
    assert run("export", "small.keras", "--to", "onnx", "-o", path).code == 0
    assert verify(run, "small.keras", path)[0] == 0
    assert verify(run, "full.keras", path)[0] == 1
    found = run("bench", "small.keras", path, "--repeats", 3, "--json")
    assert [r["file"] for r in json.loads(found.out)["results"]][1] == str(path)
    path.write_bytes(path.read_bytes()[:200])
    found = run("verify", "small.keras", path)
    assert found.code == 2 and f"cannot load {path}" in found.complaint


def test_bench_prints_medians_and_ratios(run):
    options = ("--batch-size", 4, "--repeats", 3, "--warmup", 1, "--json")
    found = run("bench", "full.keras", "small.keras", "small.keras", *options)
    assert found.code == 0
    figures = json.loads(found.out)
    assert figures["batch_size"] == 4 and figures["repeats"] == 3
    first, *others = figures["results"]
    for other in others:
        assert other["p10_ms"] <= other["median_ms"] <= other["p90_ms"]
        assert other["speedup"] == pytest.approx(
            first["median_ms"] / other["median_ms"]
        )


@pytest.mark.parametrize(("speedup", "code"), [("0.001", 0), ("1000", 1)])
def test_bench_can_demand_a_speedup(run, speedup, code):
    options = ("--repeats", 3, "--min-speedup", speedup)
    found = run("bench", "full.keras", "small.keras", *options)
    assert found.code == code
    assert ("expected 1000" in found.out) == bool(code)


def test_models_take_turns_forth_and_back():
    order = []
    times = interleaved([lambda i=i: order.append(i) for i in range(3)], range(2))
    assert order == [0, 1, 2, 2, 1, 0]
    assert times.shape == (3, 2) and (times >= 0).all()


def test_inspect_lines_up_its_columns(run):
    found = run("inspect", "full.keras")
    assert found.code == 0 and found.err == ""
    assert "'residual', without gates" in found.out
    lines = found.out.splitlines()
    head = next(line for line in lines if "parameters" in line)
    total = next(line for line in lines if line.strip().startswith("total"))
    assert len(head) == len(total) and total.split() == [
        "total",
        "2,030",
        "115,280",
        "8,120",
    ]


def test_inspect_names_what_is_not_understood(run, tmp_path):
    x = keras.Input((8, 8, 2))
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")
    c = keras.layers.Conv2D(4, 3, name="conv")(x)
    z = keras.layers.Reshape((36, 4))(c)
    z = keras.layers.Flatten()(y(z, z))
    keras.Model(x, keras.layers.Dense(2)(z)).save(tmp_path / "odd.keras")
    found = run("inspect", tmp_path / "odd.keras")
    assert found.code == 0
    assert "attention" in found.out


def test_inspect_gives_the_report_as_json(run, files):
    found = json.loads(run("inspect", "masked.keras", "--json").out)
    report = filterprune.analyze(keras.saving.load_model(files / "masked.keras"))
    assert found["file_bytes"] == (files / "masked.keras").stat().st_size
    assert found["before"]["macs"] == report.before.macs
    assert found["after"]["params"] == report.after.params
    assert {**found, **report.to_dict()} == found


def test_report_writes_a_page(run, tmp_path):
    path = tmp_path / "page.html"
    assert run("report", "masked.keras", "-o", path).code == 0
    text = path.read_text(encoding="utf-8")
    assert text.lstrip().lower().startswith("<!doctype html") and "inner" in text
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    found = run("report", "masked.keras", "-o", path, "--overwrite", "--json")
    assert json.loads(found.out)["output_bytes"] == path.stat().st_size


def test_figures_are_plain_json(capsys):
    from filterprune.cli.output import Output

    Output(as_json=True).figures(
        a=np.float32(1.5), b=np.int64(3), c=float("nan"), d=(True, None), e={1: "x"}
    )
    assert json.loads(capsys.readouterr().out) == {
        "a": 1.5,
        "b": 3,
        "c": None,
        "d": [True, None],
        "e": {"1": "x"},
    }


@keras.saving.register_keras_serializable("test_checking")
class Hidden(keras.layers.Layer):
    """It uses the weights of a part without calling it."""

    def build(self, shape):
        self.inner = keras.layers.Dense(shape[-1])
        self.inner.build(shape)

    def call(self, x):
        return keras.ops.flip(x @ self.inner.kernel + self.inner.bias, axis=-1)


def test_inspect_and_prune_say_whose_macs_are_not_counted(run, tmp_path):
    x = keras.Input((8, 8, 2))
    y = keras.layers.Conv2D(4, 3, name="conv")(Hidden(name="hidden")(x))
    y = keras.layers.Conv2D(4, 3)(y)
    y = keras.layers.Dense(2)(keras.layers.Flatten()(y))
    keras.Model(x, y).save(tmp_path / "own.keras")
    inspected = run("inspect", tmp_path / "own.keras").out
    assert "MACs are not counted in `hidden`" in inspected
    lines = [line.split() for line in inspected.splitlines()]
    assert ["hidden", "6", "not", "counted", "24"] in lines
    (total,) = [line for line in lines if line[:1] == ["total"]]
    assert total[2:4] == ["at", "least"]
    options = ("-o", tmp_path / "a.keras", "--remove", 0.5)
    pruned = run("prune", tmp_path / "own.keras", *options)
    assert pruned.code == 0, pruned.err
    assert "MACs (not all are counted)" in pruned.out
    assert "MACs are not counted in `hidden`" in pruned.out
