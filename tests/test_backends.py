"""The same gates and fitted weights from the same data on every backend."""

import json
import os
import pathlib
import subprocess
import sys

import builders
import keras
import numpy as np
import pytest

import filterprune

REFERENCE = pathlib.Path(__file__).parent / "reference_gates.json"
FITTED = REFERENCE.with_name("reference_weights.json")
NETS = ("plain", "residual", "sequential")


def gates_after_training(name):
    """Gates after two epochs on real digits, from weights drawn by numpy."""
    masked = filterprune.wrap_model(builders.randomise(builders.BUILDERS[name]()))
    images, labels = builders.digits(128)
    masked.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    schedule = filterprune.PolynomialDecay(final_sparsity=0.6, end_step=6)
    callback = filterprune.FilterPruningCallback(schedule, frequency=2)
    options = {"batch_size": 32, "shuffle": False, "verbose": 0}
    masked.fit(images, labels, epochs=2, callbacks=[callback], **options)
    return {
        path: np.flatnonzero(closed).tolist()
        for path, closed in builders.closed(masked).items()
    }


def weights_after_reconstruction(name):
    """Two numbers for each weight: its norm and its product with a fixed vector."""
    masked = filterprune.wrap_model(builders.randomise(builders.BUILDERS[name]()))
    filterprune.prune(masked, 0.5, criterion="l2")
    images, _ = builders.digits(200)
    filterprune.reconstruct(masked, images, refine=0)
    found = {}
    for weight in masked.trainable_weights:
        value = keras.ops.convert_to_numpy(weight).astype("float64").ravel()
        vector = np.cos(np.arange(len(value)))
        found[weight.path] = [float(np.linalg.norm(value)), float(value @ vector)]
    return found


@pytest.mark.parametrize("name", NETS)
def test_fitted_weights_are_those_of_every_other_backend(name):
    """Within a ten-thousandth."""
    expected = json.loads(FITTED.read_text())[name]
    found = weights_after_reconstruction(name)
    assert found.keys() == expected.keys()
    for path, (norm, product) in expected.items():
        np.testing.assert_allclose(
            found[path], (norm, product), 1e-4, 1e-4 * norm, err_msg=path
        )


@pytest.mark.parametrize("name", NETS)
def test_gates_are_those_of_every_other_backend(name):
    """`python tests/test_backends.py` writes the references, on TensorFlow."""
    expected = json.loads(REFERENCE.read_text())[name]
    found = gates_after_training(name)
    assert found.keys() == expected.keys()
    assert any(expected.values())
    apart = [path for path in found if found[path] != expected[path]]
    assert apart == []


def test_no_other_backend_is_imported():
    program = (
        "import sys, filterprune.demo, filterprune.cli; "
        "print(*[m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    backend = keras.backend.backend()
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.split() == [backend]


if __name__ == "__main__":
    for path, function in (
        (REFERENCE, gates_after_training),
        (FITTED, weights_after_reconstruction),
    ):
        reference = {}
        for net in NETS:
            keras.utils.clear_session()
            reference[net] = function(net)
        path.write_text(json.dumps(reference, indent=1) + "\n")
