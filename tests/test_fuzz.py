"""Random graphs, random gates: masked and compact agree in float64, always."""

import os
import warnings

import exactness
import keras
import numpy as np
import pytest
from custom_layers import OPAQUE
from exactness import assert_untouched, close_at_random, randomise, state_of
from graphs import models, open_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import filterprune
from filterprune.channels.groups import study
from filterprune.inputs import generate_inputs

# Of each of the four ways, in the normal run and in the slow one.
COUNT = int(os.environ.get("FILTERPRUNE_FUZZ", "20"))
MANY = 1300
SETTINGS = settings(
    max_examples=COUNT,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def check_exact(masked):
    """Exact, as far as the backend has float64.

    A normalisation of the one channel that is left multiplies what is rounding there:
    where that is float32's, it is no longer small.
    """
    limit = None if keras.backend.backend() == "tensorflow" else 1e-3
    # What is promised is equality in inference; other warnings are errors.
    warnings.filterwarnings("ignore", ".*in training mode", filterprune.PruningWarning)
    exactness.check_exact_but_for_rounding(masked, limit, batch_size=5)


@pytest.fixture(autouse=True)
def _double_precision(_fresh_keras):
    keras.config.set_floatx("float64")


def check_exact_or_refused(masked):
    """Gates set by hand can make statistics that no plain layer takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)
        try:
            check_exact(masked)
        except ValueError as error:
            assert "takes statistics over its channels" in str(error)


def is_understood(barrier):
    """Whether it is a layer that is opaque, or whose rule says no.

    Where pixels are told apart as channels are, some rules do.
    """
    if any(f"({cls.__name__})" in barrier for cls in OPAQUE):
        return True
    return "no rule is known" not in barrier and "its rule failed" not in barrier


def check_wrapped_by_graph(model, seed):
    """Wrap, close and compact; the model that is given stays as it is."""
    before = state_of(randomise(model, seed))
    masked = filterprune.wrap_model(model)
    assert all(map(is_understood, filterprune.analyze(masked).barriers))
    if study(masked).prunable:
        close_at_random(masked, seed)
        check_exact(masked)
        report = filterprune.analyze(masked)
        assert all(not group.stays for group in report.groups)
    assert_untouched(model, before)


@SETTINGS
@given(models(), st.integers(0, 99))
def test_wrapped_by_graph(model, seed):
    """All that is called prunable goes: nothing closed stays."""
    check_wrapped_by_graph(model, seed)


@SETTINGS
@given(open_models(), st.integers(0, 99))
def test_wrapped_by_graph_for_images_of_any_size(model, seed):
    """What holds on one size of image holds on others."""
    check_wrapped_by_graph(model, seed)


@settings(SETTINGS, max_examples=max(1, COUNT // 4))
@given(models(), st.integers(0, 99))
def test_reconstructed(model, seed):
    """Fitted weights are compacted as exactly, and outputs are not further off."""
    masked = filterprune.wrap_model(randomise(model, seed))
    if not study(masked).prunable:
        return
    close_at_random(masked, seed)
    batches = [(generate_inputs(masked, 10, number),) for number in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        report = filterprune.reconstruct(masked, batches, refine=0)
    assert report.after <= report.before
    check_exact(masked)


@SETTINGS
@given(models(), st.integers(0, 99))
def test_wrapped_layer_by_layer_gates_set_by_hand(model, seed):
    """Every gate for itself, tied or not: what cannot go stays, exactly."""
    model = randomise(model, seed)
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    rng = np.random.default_rng(seed)
    for gate in study(masked).masks:
        gate.variable.assign(rng.integers(0, 2, gate.size))
    check_exact_or_refused(masked)


@SETTINGS
@given(models(), st.integers(0, 99))
def test_only_convolutions_wrapped(model, seed):
    """Nothing that follows is gated: constants are folded, or the filter stays."""
    kinds = (keras.layers.Conv2D, keras.layers.Dense)

    def only_makers(layer):
        return filterprune.wrap(layer) if type(layer) in kinds else copy(layer)

    def copy(layer):
        if not isinstance(layer, keras.layers.Layer):
            return layer
        return type(layer).from_config(layer.get_config())

    masked = keras.models.clone_model(
        randomise(model, seed), clone_function=only_makers
    )
    for source, target in zip(model.weights, _without_gates(masked), strict=True):
        target.assign(source)
    rng = np.random.default_rng(seed)
    for gate in study(masked).masks:
        gate.variable.assign(rng.integers(0, 2, gate.size))
    check_exact_or_refused(masked)


@pytest.mark.slow
@pytest.mark.parametrize(
    "test, graphs",
    [
        (test_wrapped_by_graph, models()),
        (test_wrapped_by_graph_for_images_of_any_size, open_models()),
        (test_wrapped_layer_by_layer_gates_set_by_hand, models()),
        (test_only_convolutions_wrapped, models()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_many_more(test, graphs):
    """5,200 graphs."""
    check = test.hypothesis.inner_test
    settings(SETTINGS, max_examples=MANY)(given(graphs, st.integers(0, 99))(check))()


def _without_gates(model):
    return [w for w in model.weights if w.name != "gate"]
