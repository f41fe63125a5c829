"""Penalties on whole groups: formulas, and what they do in `fit`."""

import builders
import keras
import numpy as np
import pytest
from exactness import assert_close, check_exact, to_numpy

import filterprune
from filterprune.slots import Slots, masked_analysis

X, Y = builders.digits(256)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PENALTIES = {
    "group lasso": lambda **k: filterprune.GroupLasso(0.5, **k),
    "group decay": lambda **k: filterprune.GroupWeightDecay(0.5, **k),
    "scale": lambda **k: filterprune.ScaleL1(0.5, **k),
    "growing": lambda **k: filterprune.GrowingRegularization(5.0, **k),
}


def net(name="plain", rate=0.0):
    """With a rate of 0 nothing but the penalty could move a weight."""
    masked = filterprune.wrap_model(builders.build(name))
    masked.compile(keras.optimizers.SGD(rate), LOSS)
    return masked


def fit(masked, *callbacks, epochs=2):
    masked.fit(X, Y, batch_size=32, epochs=epochs, verbose=0, callbacks=callbacks)


def weights(masked, path):
    return [to_numpy(w) for w in masked.get_layer(path).layer.weights]


def slots_of(masked):
    return Slots(masked_analysis(masked))


def test_group_lasso_is_its_proximal_step():
    """For `hidden`: its kernel's columns, and the rows of the head."""
    masked = net()
    kernel, _ = weights(masked, "hidden")
    head = to_numpy(masked.get_layer("head").kernel)
    penalty = filterprune.GroupLasso(0.5)
    slots = slots_of(masked)
    parts = list(slots.parts(*penalty.roles))
    found = penalty.shrink(slots, parts, amount=0.1)
    norms = np.sqrt((kernel**2).sum(axis=0) + (head**2).sum(axis=1))
    count = kernel.shape[0] + head.shape[1]
    expected = np.maximum(1 - 0.1 * 0.5 * np.sqrt(count) / norms, 0)
    for part, factor in zip(parts, found, strict=True):
        if (part.path, part.role) in (("hidden", "maker"), ("head", "reader")):
            assert_close(factor, expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 4.0])
@pytest.mark.parametrize("alike", [False, True])
def test_group_decay_is_its_formula(alpha, alike):
    """For `conv1`: its kernel, the norm behind it and the kernel that reads it."""
    masked = net()
    layers = [masked.get_layer(name).layer for name in ("conv1", "conv2")]
    if alike:  # no channel matters less
        for layer in layers:
            layer.kernel.assign(np.ones(layer.kernel.shape))
    made, read = (to_numpy(layer.kernel).astype("float64") for layer in layers)
    norms = np.sqrt((made**2).sum(axis=(0, 1, 2)) + (read**2).sum(axis=(0, 1, 3)))
    lack = np.zeros(8)
    if not alike:
        lack = (norms.max() - norms) / (norms.max() - norms.min())
    penalty = filterprune.GroupWeightDecay(0.3, alpha=alpha)
    slots = slots_of(masked)
    parts = list(slots.parts(*penalty.roles))
    found = penalty.shrink(slots, parts, amount=0.2)
    wanted = [("conv1", "maker"), ("conv1_bn", "scale"), ("conv2", "reader")]
    compared = 0
    for part, factor in zip(parts, found, strict=True):
        if (part.path, part.role) in wanted:
            assert_close(factor, 1 - 0.2 * 0.3 * 2 ** (alpha * lack), rtol=1e-6)
            compared += 1
    assert compared == 3


def test_group_decay_parts_what_matters_from_what_does_not():
    """The weakest filters end far smaller, the strongest about as they were."""
    masked = net(rate=0.05)
    kernel = masked.get_layer("hidden").layer.kernel
    order = np.argsort(np.linalg.norm(to_numpy(kernel), axis=0))
    before = np.linalg.norm(to_numpy(kernel), axis=0)
    fit(masked, filterprune.GroupWeightDecay(0.5, frequency=1, end_fraction=1.0))
    left = np.linalg.norm(to_numpy(kernel), axis=0) / before
    assert left[order[:2]].max() < 0.9 * left[order[-2:]].min()


def test_scales_are_soft_thresholded():
    masked = net()
    before = weights(masked, "conv1_bn")[0]
    penalty = filterprune.ScaleL1(2.0)
    slots = slots_of(masked)
    parts = list(slots.parts("scale"))
    factors = penalty.shrink(slots, parts, amount=0.3)
    expected = np.sign(before) * np.maximum(np.abs(before) - 0.6, 0)
    (index,) = [i for i, part in enumerate(parts) if part.path == "conv1_bn"]
    assert_close(before * factors[index], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("graph", ["plain", "residual"])
def test_weights_shrink_by_groups_and_pruning_stays_exact(name, graph):
    masked, free = net(graph, rate=0.05), net(graph, rate=0.05)
    fit(free)
    fit(masked, PENALTIES[name](frequency=2, end_fraction=0.6))
    roles = ("scale",) if name == "scale" else ("maker", "reader")
    size = [
        sum(np.square(p.rows[:, p.slots >= 0]).sum() for p in slots_of(m).parts(*roles))
        for m in (masked, free)
    ]
    assert size[0] < 0.9 * size[1]
    filterprune.prune(masked, 0.5)
    small = check_exact(masked)
    assert small.count_params() < masked.count_params()


def test_growing_decay_spares_those_that_matter():
    masked = net(rate=0.05)
    slots = slots_of(masked)
    before = slots.model.get_layer("hidden")
    order = np.argsort(np.linalg.norm(weights(masked, "hidden")[0], axis=0))
    options = {"criterion": "l2", "frequency": 1, "end_fraction": 1.0}
    fit(masked, filterprune.GrowingRegularization(20.0, **options))
    norms = np.linalg.norm(to_numpy(before.layer.kernel), axis=0)
    assert norms[order[:4]].max() < 0.5 * norms[order[-4:]].min()


@pytest.mark.parametrize("name", PENALTIES)
def test_a_rate_of_zero_and_the_end_leave_weights_alone(name):
    masked = net(rate=0.0)
    before = [to_numpy(w) for w in masked.trainable_weights]
    fit(masked, PENALTIES[name](frequency=1))
    for old, new in zip(before, masked.trainable_weights, strict=True):
        assert np.array_equal(old, to_numpy(new))


@pytest.mark.parametrize("name", ["group lasso", "group decay"])
def test_weights_that_are_not_finite_are_refused(name):
    masked = net(rate=0.05)
    kernel = masked.get_layer("hidden").layer.kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(ValueError, match="are not finite"):
        fit(masked, PENALTIES[name](frequency=1, end_fraction=1.0))


def test_it_ends_where_it_is_told_to():
    seen = []

    class Spy(filterprune.GroupLasso):
        def shrink(self, slots, parts, amount):
            seen.append(round(amount / 0.01))
            return super().shrink(slots, parts, amount)

    fit(net(rate=0.01), Spy(frequency=3, end_step=7), epochs=2)
    assert seen == [3, 3, 1]
    seen.clear()
    fit(net(rate=0.01), Spy(frequency=5, end_fraction=0.5), epochs=2)
    assert sum(seen) == 8


def test_what_makes_no_sense_is_refused():
    for wrong in ({"strength": 0}, {"strength": 1, "frequency": 0}):
        with pytest.raises(ValueError, match="Expected"):
            filterprune.GroupLasso(**wrong)
    for wrong in (-1, np.inf, np.nan, True):
        with pytest.raises(ValueError, match="alpha"):
            filterprune.GroupWeightDecay(alpha=wrong)
    with pytest.raises(ValueError, match="sparsity"):
        filterprune.GrowingRegularization(sparsity=1.5)
    mlp = filterprune.wrap_model(builders.mlp(4, 8, 2))
    mlp.compile("sgd", "mse")
    with pytest.raises(ValueError, match="scale prunable channels"):
        mlp.fit(
            np.ones((8, 4)),
            np.ones((8, 2)),
            verbose=0,
            callbacks=[filterprune.ScaleL1()],
        )
    plain = builders.compiled(builders.plain())
    with pytest.raises(ValueError, match="gates"):
        fit(plain, filterprune.GroupLasso())
