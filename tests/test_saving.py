"""Saving and loading: masked models in mid-training, and compact ones anywhere."""

import os
import subprocess
import sys

import builders
import keras
import numpy as np
import pytest
from builders import closed
from exactness import assert_equal, to_numpy

import filterprune
from filterprune import FilterPruningCallback, PolynomialDecay

FORMATS = ("keras", "h5")
SCHEDULE = PolynomialDecay(final_sparsity=0.5, end_step=12, power=1)
X, Y = builders.digits(256)  # 8 steps an epoch


def masked_net(name="plain", wrapper=filterprune.wrap_model):
    return builders.compiled(wrapper(builders.BUILDERS[name]()))


def fit(model, **kwargs):
    callback = FilterPruningCallback(SCHEDULE, frequency=2)
    options = {"batch_size": 32, "verbose": 0, "shuffle": False}
    return model.fit(X, Y, callbacks=[callback], **options, **kwargs).history


def state(optimizer):
    return [keras.ops.convert_to_numpy(v) for v in optimizer.variables]


def assert_all_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b)


def reopened(before, after):
    return [path for path in before if np.greater(before[path], after[path]).any()]


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [("plain", builders.clone), ("residual", filterprune.wrap_model)],
)
def test_a_masked_model_goes_on_where_it_was_saved(name, wrapper, tmp_path):
    masked = masked_net(name, wrapper)
    with pytest.warns(filterprune.PruningWarning, match=r"step 8"):
        fit(masked)
    masked.save(tmp_path / "masked.keras")
    loaded = keras.models.load_model(tmp_path / "masked.keras")

    assert closed(loaded) == closed(masked)
    assert any(map(any, closed(loaded).values()))
    builders.assert_same_outputs(masked, loaded)
    assert int(to_numpy(loaded.optimizer.iterations)) == 8
    assert_all_equal(state(loaded.optimizer), state(masked.optimizer))

    expected, found = fit(masked), fit(loaded)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert found["sparsity"] == expected["sparsity"]
    assert found["sparsity"] == [pytest.approx(0.5, abs=0.04)]  # within a slot
    small = filterprune.compact(loaded)
    builders.assert_same_outputs(loaded, small, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [("sequential", builders.clone), ("residual", filterprune.wrap_model)],
)
def test_a_masked_model_goes_on_from_an_h5_file(name, wrapper, tmp_path):
    """Keras restores no more of an optimizer than its step from such a file."""
    masked = masked_net(name, wrapper)
    with pytest.warns(filterprune.PruningWarning, match=r"step 8"):
        fit(masked)
    masked.save(tmp_path / "masked.h5")
    loaded = keras.models.load_model(tmp_path / "masked.h5")
    assert closed(loaded) == closed(masked)
    builders.assert_same_outputs(masked, loaded)
    assert int(to_numpy(loaded.optimizer.iterations)) == 8
    builders.compiled(loaded)
    assert fit(loaded, epochs=2)["sparsity"][-1] == pytest.approx(0.5, abs=0.04)
    assert reopened(closed(masked), closed(loaded)) == []


def test_weights_alone_hold_the_gates(tmp_path):
    masked = masked_net()
    filterprune.prune(masked, 0.5)
    masked.save_weights(tmp_path / "mid.weights.h5")
    fresh = masked_net()
    fresh.load_weights(tmp_path / "mid.weights.h5")
    assert closed(fresh) == closed(masked)
    builders.assert_same_outputs(fresh, masked)


def test_a_checkpoint_in_fit_can_be_loaded(tmp_path):
    masked = masked_net()
    path = tmp_path / "best.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    callback = FilterPruningCallback(PolynomialDecay(final_sparsity=0.5, end_step=8))
    masked.fit(X, Y, batch_size=32, callbacks=[callback, checkpoint], verbose=0)
    assert closed(keras.models.load_model(path)) == closed(masked)


def test_masked_models_are_cloned_with_their_gates():
    masked = masked_net("nested")
    filterprune.prune(masked, 0.5)
    clone = keras.models.clone_model(masked)
    clone.set_weights(masked.get_weights())
    assert closed(clone) == closed(masked)
    builders.assert_same_outputs(clone, masked)


@pytest.mark.parametrize("name", ["sequential", "residual"])
def test_a_compact_model_keeps_its_optimizer(name, tmp_path):
    masked = masked_net(name)
    fit(masked, epochs=2)
    small = filterprune.compact(masked)
    for extension in FORMATS:
        small.save(tmp_path / f"small.{extension}")
        loaded = keras.models.load_model(tmp_path / f"small.{extension}")
        builders.assert_same_outputs(small, loaded)
        assert loaded.count_params() < masked.count_params()
        assert int(to_numpy(loaded.optimizer.iterations)) == 16
        if extension == "keras":
            assert_all_equal(state(loaded.optimizer), state(small.optimizer))
            assert any(value.any() for value in state(loaded.optimizer)[2:])
            loaded.fit(X, Y, batch_size=32, verbose=0)


def my_loss(y_true, y_pred):
    losses = keras.losses.sparse_categorical_crossentropy(
        y_true, y_pred, from_logits=True
    )
    return keras.ops.mean(losses)


def test_compact_comes_compiled_with_a_loss_of_ones_own():
    masked = masked_net()
    masked.compile("adam", my_loss)
    fit(masked, epochs=2)
    small = filterprune.compact(masked)
    assert small.compiled
    assert int(to_numpy(small.optimizer.iterations)) == 16
    expected = masked.evaluate(X, Y, verbose=0)
    # Keras leaves metrics of an earlier `compile` in what `masked` evaluates.
    received = small.evaluate(X, Y, verbose=0)
    assert np.ravel(received)[0] == pytest.approx(np.ravel(expected)[0], rel=1e-3)


# Runs in a process that cannot import filterprune, far from the repository.
STRANGER = """
import sys

sys.modules["filterprune"] = None
import pathlib

import keras
import numpy as np

here = pathlib.Path(sys.argv[1])
paths = [p for p in sorted(here.iterdir()) if p.suffix in (".keras", ".h5")]
for path in paths:
    model = keras.models.load_model(path)
    data = np.load(here / f"{path.stem}.npz")
    count = len(data.files) - int(data["outputs"]) - 1
    x = [data[f"x{i}"] for i in range(count)]
    inputs = keras.tree.flatten(model.inputs)
    x = {t.name: a for t, a in zip(inputs, x)} if len(x) > 1 else x[0]
    for i, y in enumerate(keras.tree.flatten(model(x))):
        expected = data[f"y{i}"]
        y = keras.ops.convert_to_numpy(y)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    if path.name == "plain_keras.keras":
        model.fit(x, np.zeros(len(expected)), verbose=0)
    print(path.name, "agrees")
assert not any(name.split(".")[0] == "filterprune" for name in sys.modules
               if sys.modules[name])
"""


def test_compact_models_are_loaded_where_there_is_no_filterprune(tmp_path):
    names = (
        "plain",
        "sequential",
        "squeeze_excite",
        "nested",
        "multi_io",
        "operations",
    )
    saved = []
    for name in names:
        masked = filterprune.wrap_model(builders.build(name))
        if name in ("plain", "sequential"):
            builders.compiled(masked)
        filterprune.prune(masked, 0.5)
        small = filterprune.compact(masked)
        # Keras cannot load operations such as `x + y` from an h5 file.
        for extension in FORMATS[: 1 if name == "operations" else 2]:
            stem = f"{name}_{extension}"
            small.save(tmp_path / f"{stem}.{extension}")
            x = builders.sample(small)
            arrays = {f"x{i}": a for i, a in enumerate(keras.tree.flatten(x))}
            found = builders.outputs(masked, x)
            arrays |= {f"y{i}": a for i, a in enumerate(found)}
            np.savez(tmp_path / f"{stem}.npz", outputs=len(found), **arrays)
            saved.append(f"{stem}.{extension} agrees")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert set(saved) <= set(result.stdout.splitlines())


def test_a_compact_model_is_made_of_keras_alone():
    for name in builders.BUILDERS:
        masked = filterprune.wrap_model(builders.build(name))
        filterprune.prune(masked, 0.5)
        small = filterprune.compact(masked)
        assert "filterprune" not in small.to_json()
        for layer in builders.leaves(small).values():
            assert type(layer).__module__.startswith("keras.")
