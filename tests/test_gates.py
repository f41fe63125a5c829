"""Kept indices as JSON, and replayed on a fresh copy of the architecture."""

import json

import builders
import keras
import numpy as np
import pytest
from exactness import check_exact

import filterprune


def fresh(name):
    """The architecture again, with the layer names of the first time."""
    keras.utils.clear_session(free_memory=False)
    return builders.randomise(builders.BUILDERS[name](), seed=7)


@pytest.mark.parametrize("name", sorted(builders.BUILDERS))
@pytest.mark.parametrize("wrapper", [filterprune.wrap_model, builders.clone])
def test_gates_are_replayed_through_json(name, wrapper):
    masked = wrapper(fresh(name))
    filterprune.prune(masked, sparsity=0.4)
    kept = json.loads(json.dumps(filterprune.kept_indices(masked)))
    assert any(len(numbers) for numbers in kept.values())
    again = filterprune.replay(fresh(name), kept)
    assert filterprune.kept_indices(again) == kept
    assert builders.closed(again) == builders.closed(masked)
    small = check_exact(again, limit=1e-4)
    assert small.count_params() == filterprune.compact(masked).count_params()


def test_the_indices_are_those_of_the_open_gates():
    masked = filterprune.wrap_model(builders.plain())
    builders.close(masked.get_layer("conv1"), 0, 3)
    kept = filterprune.kept_indices(masked)
    assert kept["conv1"] == [1, 2, 4, 5, 6, 7]
    assert kept["hidden"] == list(range(16))


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"conv9": [0]}, "conv9.*Did you mean 'conv"),
        ({"conv1": [0, 8]}, "'conv1' to be a list of integers from 0 to 7"),
        ({"conv1": [-1]}, "'conv1' to be a list of integers from 0 to 7"),
        ({"conv1": [10**30]}, "'conv1' to be a list of integers from 0 to 7"),
        ({"conv1": [0.0, 1.0]}, "'conv1' to be a list of integers"),
        ({"conv1": [float("nan")]}, "'conv1' to be a list of integers"),
        ({"conv1": [True, False]}, "'conv1' to be a list of integers"),
        ({"conv1": ["0", "1"]}, "'conv1' to be a list of integers"),
        ({"conv1": [[0], 1]}, "'conv1' to be a list of integers"),
        ({"conv1": np.array([[0], [1]])}, "'conv1' to be a list of integers"),
        ({"conv1": "012"}, "'conv1' to be a list of integers.*of type str"),
        ({"conv1": {"0": 1}}, "'conv1' to be a list of integers.*of type dict"),
        ({"conv1": 3}, "'conv1' to be a list of integers.*of type int"),
        ({"conv1": None}, "'conv1' to be a list of integers.*of type NoneType"),
        ({"conv1": [0.5] * 10**5}, r"\[0.5, 0.5, .*\.\.\.\]"),
        ({}, "an empty dict"),
        ({1: [0]}, "to be paths of layers. Received: 1"),
        (None, "to be a dict.*of type NoneType"),
        ([1, 2], "to be a dict.*of type list"),
        ("conv1", "to be a dict.*of type str"),
    ],
)
def test_indices_that_do_not_fit(kept, words):
    model = builders.plain()
    before = builders.snapshot(model)
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        filterprune.replay(model, kept)
    assert caught.value.args[0].startswith("Expected") and len(str(caught.value)) < 500
    assert builders.snapshot(model) == before


@pytest.mark.parametrize(
    "numbers", [(1, 3), np.array([1, 3]), np.array([3, 1], "uint8"), [3, 1, 1]]
)
def test_other_sequences_of_integers(numbers):
    again = filterprune.replay(builders.plain(), {"conv1": numbers})
    assert filterprune.kept_indices(again) == {"conv1": [1, 3]}


def test_h5py_shows_the_gates_under_names(tmp_path):
    """Documented: a weights file has them as `.../<layer>/vars/<number>`."""
    import h5py

    masked = filterprune.wrap_model(builders.plain())
    builders.close(masked.get_layer("conv1"), 2)
    masked.save_weights(tmp_path / "masked.weights.h5")
    with h5py.File(tmp_path / "masked.weights.h5") as file:
        gate = file["layers/masked_conv2d/vars/0"][()]
    assert gate.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(gate == 0, masked.get_layer("conv1").closed())
