"""`sensitivity`: true figures, and everything is left as it was."""

import builders
import keras
import numpy as np
import pytest
from builders import closed
from exactness import to_numpy

import filterprune
from filterprune import sensitivities

X, Y = builders.digits(96)
SOME = {"sparsities": (0.25, 0.75), "verbose": 0}


@pytest.fixture
def masked():
    return compiled(filterprune.wrap_model(builders.build("plain")))


def compiled(model):
    return builders.compiled(model, **builders.EAGERLY)


def gates(model):
    return [to_numpy(m.gate).tolist() for m in builders.masked_layers(model).values()]


def test_figures_are_those_of_a_model_pruned_so(masked):
    result = filterprune.sensitivity(masked, (X, Y), **SOME)
    assert result.groups == ("conv1", "conv2", "hidden")
    assert result.sparsities == (0.25, 0.75)
    assert set(result.values) == set(result.baseline) == {"loss", "accuracy"}
    before = masked.evaluate(X, Y, verbose=0, return_dict=True)
    assert result.baseline == pytest.approx(before)
    for group, sparsity in (("conv1", 0.75), ("hidden", 0.25)):
        fresh = compiled(filterprune.wrap_model(builders.build("plain")))
        filterprune.prune(fresh, 0.0, overrides={group: sparsity})
        found = fresh.evaluate(X, Y, verbose=0, return_dict=True)
        i, j = result.groups.index(group), result.sparsities.index(sparsity)
        for name, value in found.items():
            assert result.values[name][i, j] == pytest.approx(value, rel=1e-5)
    assert result.values["loss"].shape == (3, 2)


def test_rows_are_records(masked):
    result = filterprune.sensitivity(masked, (X, Y), groups="conv*", **SOME)
    rows = result.rows()
    assert [(row["group"], row["sparsity"]) for row in rows] == [
        ("conv1", 0.25), ("conv1", 0.75), ("conv2", 0.25), ("conv2", 0.75),
    ]  # fmt: skip
    assert [row["loss"] for row in rows] == result.values["loss"].ravel().tolist()


def test_gates_are_left_as_they_were(masked):
    filterprune.prune(masked, 0.3)
    soft = np.ones(16)
    soft[3] = 0.5
    masked.get_layer("conv2").gate.assign(soft)
    masked.evaluate(X, Y, verbose=0)  # on PyTorch and JAX that builds the optimizer
    before = builders.snapshot(masked)
    filterprune.sensitivity(masked, (X, Y), groups="conv1", **SOME)
    assert builders.snapshot(masked) == before


def test_gates_are_left_as_they_were_if_an_evaluation_raises(masked, monkeypatch):
    before, calls = gates(masked), []

    def evaluate(**kwargs):
        calls.append(gates(masked))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"loss": 1.0}

    monkeypatch.setattr(masked, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        filterprune.sensitivity(masked, (X, Y), **SOME)
    assert gates(masked) == before
    assert calls[2] != before


def test_a_plain_model_is_wrapped_and_not_touched():
    model = compiled(builders.build("residual"))
    before = builders.snapshot(model)
    options = {**SOME, "sparsities": 0.5, "groups": ["stem"], "criterion": "l1"}
    result = filterprune.sensitivity(model, (X, Y), **options)
    assert builders.snapshot(model) == before
    assert result.groups == ("stem (+1)",)
    assert result.values["loss"][0, 0] != result.baseline["loss"]


def test_channels_that_are_closed_already_count(masked):
    """Half is closed before: a quarter changes nothing, and is not evaluated."""
    filterprune.prune(masked, 0.0, overrides={"hidden": 0.5})
    result = filterprune.sensitivity(masked, (X, Y), groups="hidden", **SOME)
    assert result.values["loss"][0, 0] == result.baseline["loss"]
    assert result.values["loss"][0, 1] != result.baseline["loss"]


def test_one_channel_stays_open(masked):
    found = []

    def evaluate(**kwargs):
        found.append(closed(masked)["conv1"])
        return {"loss": 1.0}

    masked.evaluate = evaluate
    filterprune.sensitivity(masked, (X, Y), 0.99, groups="conv1", verbose=0)
    assert [sum(gates) for gates in found] == [0, 7]


class Digits(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(32 * index, 32 * index + 32)
        return X[part], Y[part]


@pytest.mark.parametrize("kind", ["weights", "batches", "dataset"])
def test_data_of_every_kind(kind, masked):
    data = {
        "weights": (X, Y, np.ones(96, "float32")),
        "batches": [Digits()[i] for i in range(3)],
        "dataset": Digits(),
    }[kind]
    result = filterprune.sensitivity(masked, data, 0.5, groups="conv1", verbose=0)
    expected = masked.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
    assert result.baseline["loss"] == pytest.approx(expected, rel=1e-5)


def test_steps_limit_the_batches(masked):
    options = {"steps": 1, "groups": "conv1", "verbose": 0}
    result = filterprune.sensitivity(masked, Digits(), 0.5, **options)
    expected = masked.evaluate(*Digits()[0], verbose=0, return_dict=True)["loss"]
    assert result.baseline["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_bar_shows_the_progress(masked, capsys):
    masked.evaluate = lambda **kwargs: {"loss": 1.0}
    filterprune.sensitivity(masked, (X, Y), sparsities=(0.25, 0.75))
    assert "6/6" in capsys.readouterr().out
    filterprune.sensitivity(masked, (X, Y), **SOME)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sparsities": (0.5, 1.0)}, ValueError, "sparsities=1.0"),
        ({"sparsities": ()}, ValueError, "none"),
        ({"sparsities": "half"}, TypeError, "sparsities='h'"),
        ({"groups": "convv1"}, ValueError, "Did you mean 'conv1'"),
        ({"criterion": "best"}, ValueError, "criterion='best'"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"steps": 1.5}, ValueError, "steps=1.5"),
        ({"data": iter([(X, Y)])}, TypeError, "only once"),
        ({"model": "resnet"}, TypeError, "resnet"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(change, error, message, masked):
    def evaluate(**kwargs):
        raise AssertionError("evaluated")

    masked.evaluate = evaluate
    options = {"model": masked, "data": (X, Y), "verbose": 0, **change}
    with pytest.raises(error, match=message):
        filterprune.sensitivity(**options)


def test_a_model_without_a_loss_is_refused():
    with pytest.raises(ValueError, match=r"compiled.*'plain'"):
        filterprune.sensitivity(builders.build("plain"), (X, Y))


def test_the_result_cannot_be_changed(masked):
    assert sensitivities.Sensitivity is filterprune.Sensitivity
    result = filterprune.Sensitivity(("a",), (0.5,), {"loss": 1.0}, {})
    with pytest.raises(AttributeError):
        result.groups = ()
