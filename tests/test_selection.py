"""Which gates close: budgets, limits, ties, and what is closed already."""

import builders
import keras
import numpy as np
import pytest
from builders import BUILDERS, build, closed
from exactness import assert_equal, to_numpy
from keras import layers

import filterprune
from filterprune.limits import Limits
from filterprune.selection import Selector

SPARSITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def wrapped(name, seed=0):
    return filterprune.wrap_model(build(name, seed))


def open_counts(masked):
    return {path: gates.count(False) for path, gates in closed(masked).items()}


def reopened(before, after):
    """The layers with a gate that was closed and is open now."""
    return {
        path
        for path, gates in before.items()
        if any(old and not new for old, new in zip(gates, after[path], strict=True))
    }


def fork():
    """A group with three filters a slot, and one with one."""
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 1, name="a")(inputs)
    for name in ("b", "c"):
        x = layers.Add()([x, layers.Conv2D(4, 1, name=name)(inputs)])
    y = layers.Conv2D(4, 1, name="single")(inputs)
    x = layers.Concatenate()([x, y])
    x = layers.Dense(2, name="head")(layers.Flatten()(x))
    return builders.randomise(keras.Model(inputs, x))


@pytest.mark.parametrize("name", BUILDERS)
def test_layer_scope_takes_the_same_fraction_of_every_group(name):
    for sparsity in SPARSITIES:
        masked = wrapped(name)
        selector = Selector(masked, limits=Limits(scope="layer", min_filters=1))
        selector.update(sparsity)
        for group in filterprune.analyze(masked).prunable:
            expected = min(int(sparsity * group.size + 0.5), group.size - 1)
            assert group.size - group.alive == expected


@pytest.mark.parametrize("name", BUILDERS)
def test_global_budget_is_met_within_one_slot(name):
    for sparsity in (0.0, 0.1, 0.25, 0.5):
        masked = wrapped(name)
        reached = filterprune.prune(masked, sparsity)
        selector = Selector(masked)
        slot = max(g.filters.max() for g in selector.groups) / selector.filters
        assert abs(reached - sparsity) <= slot / 2 + 1e-9
        assert reached == pytest.approx(selector.sparsity())


def test_the_sparsity_returned_is_the_fraction_of_closed_filters():
    masked = wrapped("residual")
    reached = filterprune.prune(masked, 0.4)
    gates = [closed(masked)[name] for name in ("stem", "inner", "outer")]
    assert reached == pytest.approx(np.mean(np.concatenate(gates)))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_least_important_filters_are_closed(scope):
    model = builders.mlp(4, 8, 6, 2)
    builders.randomise(model)
    order = {}
    for name in ("d0", "d1"):
        layer = model.get_layer(name)
        order[name] = np.random.default_rng(5).permutation(layer.units)
        scale = 1.0 + order[name]
        layer.kernel.assign(np.ones(layer.kernel.shape) * scale)
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, scope=scope)
    gates = closed(masked)
    assert sum(gates["d0"]) + sum(gates["d1"]) == 7
    for name, ranks in order.items():
        dearest = max(ranks[np.array(gates[name])])
        assert dearest < min(ranks[~np.array(gates[name])])


def test_global_scope_does_not_mind_the_scale_of_a_layer():
    model = build("plain")
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, criterion="l2")
    kernel = model.get_layer("conv2").kernel
    kernel.assign(kernel * 1000.0)
    scaled = filterprune.wrap_model(model)
    filterprune.prune(scaled, 0.5, criterion="l2")
    assert closed(scaled) == closed(masked)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_ties_go_to_the_filter_that_comes_first(scope):
    model = builders.mlp(4, 8, 6, 2)
    for weight in model.weights:
        weight.assign(np.ones(weight.shape))
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, scope=scope)
    for gates in closed(masked).values():
        assert gates == sorted(gates, reverse=True)
    again = filterprune.wrap_model(model)
    filterprune.prune(again, 0.5, scope=scope)
    assert closed(again) == closed(masked)


def test_ties_between_layers_are_spread_over_them():
    model = builders.mlp(4, 8, 24, 2)
    for weight in model.weights:
        weight.assign(np.ones(weight.shape))
    masked = filterprune.wrap_model(model)
    assert filterprune.prune(masked, 0.5) == 0.5
    shares = [np.mean(gates) for gates in closed(masked).values()]
    assert shares == pytest.approx([0.5, 0.5], abs=0.07)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_sparsity_out_of_reach_is_warned_of_with_figures(scope):
    masked = wrapped("plain")  # 8, 16 and 16 filters
    figures = r"no more than 0\.700 .* 0\.200 less"
    with pytest.warns(filterprune.PruningWarning, match=figures):
        reached = filterprune.prune(masked, 0.9, scope=scope, min_filters=4)
    assert reached == 0.7
    assert all(g.alive == 4 for g in filterprune.analyze(masked).prunable)


def test_kernels_of_zeros_are_ranked_too():
    model = builders.mlp(4, 8, 2)
    model.get_layer("d0").kernel.assign(np.zeros((4, 8)))
    masked = filterprune.wrap_model(model)
    assert filterprune.prune(masked, 0.5) == 0.5


@pytest.mark.filterwarnings("ignore:A sparsity of")
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(("least", "expected"), [(1, 1), (3, 3), (100, None)])
def test_every_group_keeps_its_floor(scope, least, expected):
    for name in ("plain", "residual", "depthwise"):
        masked = wrapped(name)
        filterprune.prune(masked, 0.999, scope=scope, min_filters=least)
        for group in filterprune.analyze(masked).prunable:
            assert group.alive == (expected or group.size)


@pytest.mark.filterwarnings("ignore:A sparsity of")
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("multiple", [2, 4])
def test_round_to_leaves_multiples(scope, multiple):
    for sparsity in SPARSITIES:
        masked = wrapped("plain")
        filterprune.prune(masked, sparsity, scope=scope, round_to=multiple)
        groups = filterprune.analyze(masked).prunable
        assert [group.alive % multiple for group in groups] == [0, 0, 0]
        assert min(group.alive for group in groups) >= multiple
        if sparsity == 0:
            assert all(group.alive == group.size for group in groups)


def test_round_to_keeps_all_of_a_group_that_is_no_multiple():
    masked = filterprune.wrap_model(builders.randomise(builders.mlp(4, 10, 2)))
    assert filterprune.prune(masked, 0.1, round_to=4) == pytest.approx(0.2)
    masked = filterprune.wrap_model(builders.randomise(builders.mlp(4, 10, 2)))
    assert filterprune.prune(masked, 0.0, round_to=4) == 0.0


@pytest.mark.parametrize("name", BUILDERS)
def test_tied_layers_get_the_same_gates(name):
    masked = wrapped(name)
    filterprune.prune(masked, 0.5)
    gates = closed(masked)
    for group in filterprune.analyze(masked).prunable:
        first, *others = group.layers
        for other in others:
            if len(gates[first]) == len(gates[other]) == group.size:
                assert gates[other] == gates[first]
    for path in gates:  # what follows a convolution closes with it
        for suffix in ("_bn", "_sigmoid"):
            if path + suffix in gates:
                assert gates[path + suffix] == gates[path]


@pytest.mark.filterwarnings("ignore:A sparsity of")
@pytest.mark.parametrize("wrapper", [builders.clone, filterprune.wrap_model])
def test_weights_and_filters_that_cannot_go_are_left_alone(wrapper):
    masked = wrapper(build("multi_io"))
    values = [to_numpy(w) for w in masked.weights if w.name != "gate"]
    filterprune.prune(masked, 0.9)
    after = [to_numpy(w) for w in masked.weights if w.name != "gate"]
    for old, new in zip(values, after, strict=True):
        assert_equal(old, new)
    for path in ("features", "head"):
        assert not any(closed(masked).get(path, []))


class TestClosedStaysClosed:
    @pytest.mark.parametrize("scope", ["global", "layer"])
    @pytest.mark.parametrize("name", ["plain", "residual", "concat"])
    def test_when_more_is_pruned_with_other_scores(self, name, scope):
        rng = np.random.default_rng(0)
        masked = wrapped(name)
        selector = Selector(
            masked, lambda kernel: rng.random(kernel.shape[1]), Limits(scope)
        )
        before, last = closed(masked), 0.0
        for sparsity in np.linspace(0.05, 0.9, 12):
            reached = selector.update(float(sparsity))
            after = closed(masked)
            assert reopened(before, after) == set()
            assert reached >= last
            before, last = after, reached

    @pytest.mark.parametrize("scope", ["global", "layer"])
    @pytest.mark.parametrize("less", [0.0, 0.2])
    def test_when_less_is_asked_for(self, scope, less):
        masked = wrapped("plain")
        reached = filterprune.prune(masked, 0.5, scope=scope)
        before = closed(masked)
        assert filterprune.prune(masked, less, scope=scope) == reached
        assert closed(masked) == before

    def test_when_the_same_is_asked_for_again(self):
        for sparsity in np.arange(0.05, 0.75, 0.025):
            masked = filterprune.wrap_model(fork())
            filterprune.prune(masked, float(sparsity), min_filters=1)
            before = closed(masked)
            filterprune.prune(masked, float(sparsity), min_filters=1)
            assert closed(masked) == before, sparsity

    @pytest.mark.parametrize("scope", ["global", "layer"])
    def test_when_it_was_closed_by_hand(self, scope):
        masked = wrapped("plain")
        builders.close(masked.get_layer("conv1"), 0, 1, 2, 3, 4)
        builders.close(masked.get_layer("conv1_bn"), 0, 1, 2, 3, 4)
        filterprune.prune(masked, 0.25, scope=scope)
        assert closed(masked)["conv1"][:5] == [True] * 5

    def test_when_round_to_asks_for_more_open_ones(self):
        masked = wrapped("plain")
        filterprune.prune(masked, 0.4, scope="layer")
        before = closed(masked)
        filterprune.prune(masked, 0.4, scope="layer", round_to=4)
        assert reopened(before, closed(masked)) == set()
        assert all(count % 4 == 0 for count in open_counts(masked).values())


def test_selector_serves_a_training_loop_of_ones_own():
    masked = wrapped("plain")
    selector = Selector(masked, limits=Limits(scope="layer", round_to=4))
    assert selector.filters == 8 + 16 + 16
    assert selector.sparsity() == 0.0
    assert selector.update(0.5) == selector.sparsity() == 0.5
    assert open_counts(masked) == {
        "conv1": 4,
        "conv1_bn": 4,
        "conv2": 8,
        "conv2_bn": 8,
        "conv2_sigmoid": 8,
        "hidden": 8,
    }


@pytest.mark.parametrize("wrapper", [builders.clone, filterprune.wrap_model])
def test_both_ways_of_wrapping_prune_the_same(wrapper):
    masked = wrapper(build("residual"))
    filterprune.prune(masked, 0.5)
    expected = filterprune.wrap_model(build("residual"))
    filterprune.prune(expected, 0.5)
    found = closed(masked)
    for path, gates in closed(expected).items():
        assert found[path] == gates


@pytest.mark.filterwarnings("ignore:A sparsity of")
class TestRelativeFloor:
    """`min_filters` as a fraction of each group."""

    @pytest.mark.parametrize("scope", ["global", "layer"])
    def test_it_is_rounded_up(self, scope):
        masked = wrapped("plain")  # 8, 16 and 16 filters
        filterprune.prune(masked, 0.999, scope=scope, min_filters=0.3)
        found = [g.alive for g in filterprune.analyze(masked).prunable]
        assert found == [3, 5, 5]

    def test_overrides_have_their_own(self):
        masked = wrapped("plain")
        overrides = {"conv1": {"min_filters": 0.5}, "conv2": {"min_filters": 7}}
        filterprune.prune(masked, 0.999, overrides=overrides)
        found = [g.alive for g in filterprune.analyze(masked).prunable]
        assert found == [4, 7, 1]

    @pytest.mark.parametrize("criterion", ["l1", "group", "random"])
    @pytest.mark.parametrize("width", [3, 8, 16, 32, 64])
    def test_no_default_takes_a_residual_stream_to_one_channel(self, width, criterion):
        inputs = keras.Input((6, 8))
        x = layers.Dense(width, name="stem")(inputs)
        y = layers.Dense(64, activation="relu")(x)
        x = layers.LayerNormalization()(x + layers.Dense(width)(y))
        masked = filterprune.wrap_model(keras.Model(inputs, layers.Dense(3)(x)))
        filterprune.prune(masked, 0.95, criterion=criterion)
        (stream,) = [
            g for g in filterprune.analyze(masked).prunable if "stem" in g.layers
        ]
        assert stream.alive >= max(2, width / 20)

    def test_one_channel_is_left_where_that_is_asked_for(self):
        masked = wrapped("residual")
        filterprune.prune(masked, 0.999, min_filters=1)
        assert {g.alive for g in filterprune.analyze(masked).prunable} == {1}
