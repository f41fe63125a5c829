"""Criteria against numpy, and how they reach the kernels of real layers."""

import builders
import keras
import numpy as np
import pytest
from exactness import assert_close, to_numpy
from keras import layers

import filterprune
from filterprune import criteria
from filterprune.selection import Selector

NORMS = {
    "l1": lambda rows: np.linalg.norm(rows, ord=1, axis=0),
    "l2": lambda rows: np.linalg.norm(rows, ord=2, axis=0),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(1, 1), (27, 16), (5, 3)])
def test_norms_are_those_of_numpy(name, shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    assert_close(criteria.get(name)(kernel), NORMS[name](kernel))
    assert criteria.get(name)(np.zeros(shape)).tolist() == [0.0] * shape[1]


def test_a_function_is_a_criterion():
    assert criteria.get(criteria.l1) is criteria.l1
    assert criteria.get(np.max) is np.max


@pytest.mark.parametrize("wrong", ["l3", "L2", "", None, 2])
def test_an_unknown_criterion_is_refused(wrong):
    with pytest.raises(ValueError, match=r"criterion.*l1.*l2.*Received") as info:
        criteria.get(wrong)
    assert repr(wrong) in str(info.value)


# A layer of 5 filters, its input, and its kernel with the filters last.
KERNELS = {
    "Conv1D": (layers.Conv1D(5, 3), (8, 2), lambda w: w[0]),
    "Conv2D": (layers.Conv2D(5, 3), (8, 8, 2), lambda w: w[0]),
    "Conv2DTranspose": (
        layers.Conv2DTranspose(5, 3),
        (8, 8, 2),
        lambda w: np.moveaxis(w[0], -2, -1),
    ),
    "SeparableConv2D": (layers.SeparableConv2D(5, 3), (8, 8, 2), lambda w: w[1]),
    "Dense": (layers.Dense(5), (8, 8, 2), lambda w: w[0]),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("layer", "shape", "pick"), KERNELS.values(), ids=KERNELS)
def test_filters_are_scored_by_their_kernel(layer, shape, pick, norm):
    layer = type(layer).from_config(layer.get_config())
    inputs = keras.Input(shape)
    x = layers.Dense(2, name="head")(layers.Flatten()(layer(inputs)))
    model = builders.randomise(keras.Model(inputs, x))
    kernel = pick(layer.get_weights()).reshape(-1, 5)
    expected = NORMS[norm](kernel) / NORMS[norm](kernel).mean()
    found = Selector(filterprune.wrap_model(model), norm).scores()
    assert_close(found, expected, rtol=1e-6)


def test_a_slot_scores_the_mean_of_its_filters():
    model = builders.build("residual")
    selector = Selector(filterprune.wrap_model(model), "l1")
    (stem,) = [i for i, g in enumerate(selector.groups) if "stem" in g.layers]
    start = sum(group.size for group in selector.groups[:stem])
    scores = []
    for name in ("stem", "outer"):
        rows = to_numpy(model.get_layer(name).kernel).reshape(-1, 8)
        scores.append(NORMS["l1"](rows) / NORMS["l1"](rows).mean())
    found = selector.scores()[start : start + 8]
    assert_close(found, np.mean(scores, axis=0), rtol=1e-6)


def test_a_criterion_of_ones_own_sees_each_kernel_as_a_matrix():
    shapes = []

    def last_is_dearest(kernel):
        shapes.append(kernel.shape)
        return np.arange(kernel.shape[1])

    masked = filterprune.wrap_model(builders.build("plain"))
    filterprune.prune(masked, 0.5, criterion=last_is_dearest, scope="layer")
    assert set(shapes) == {(9, 8), (72, 16), (16, 16)}
    assert builders.closed(masked)["conv1"] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    "bad",
    [
        lambda kernel: np.ones(kernel.shape),
        lambda kernel: np.ones(3),
        lambda kernel: 1.0,
        lambda kernel: np.full(kernel.shape[1], np.nan),
    ],
)
def test_scores_that_are_none_are_refused(bad):
    masked = filterprune.wrap_model(builders.build("plain"))
    with pytest.raises(ValueError, match=r"criterion.*8 finite scores.*conv1"):
        filterprune.prune(masked, 0.5, criterion=bad)
    assert not any(map(any, builders.closed(masked).values()))
