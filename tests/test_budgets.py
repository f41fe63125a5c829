"""Budgets are met, bounds bind, and what cannot be met is refused."""

import builders
import keras
import numpy as np
import pytest
from builders import build, closed
from exactness import check_exact, randomise, to_numpy

import filterprune
from filterprune import FilterPruningCallback, IterativeSparsity, PolynomialDecay
from filterprune.budget import Budget
from filterprune.limits import Limits
from filterprune.selection import Selector

FRACTIONS = np.linspace(0.03, 0.97, 20)
NETS = {"ResNet50": 8, "MobileNetV2": 8, "EfficientNetB0": 2}  # widths' multiple
SCOPES = ("global", "layer", "isomorphic")
X, Y = builders.digits(256)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def wrapped(name="plain"):
    return filterprune.wrap_model(build(name))


def widths(masked):
    return {g.name: g.alive for g in filterprune.analyze(masked).prunable}


@pytest.fixture(scope="module", params=NETS)
def net(request):
    keras.utils.clear_session(free_memory=False)
    constructor = getattr(keras.applications, request.param)
    model = constructor(weights=None, input_shape=(64, 64, 3), classes=10)
    return filterprune.wrap_model(randomise(model)), NETS[request.param]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="numpy alone")
class TestOnRealNets:
    @pytest.mark.parametrize(
        ("target", "scope"),
        [*[("macs", scope) for scope in SCOPES], ("params", "global")],
    )
    def test_twenty_budgets_are_met_within_a_percent(self, net, target, scope):
        self.check(net[0], Limits(scope), Budget(target))

    @pytest.mark.parametrize("target", ["macs", "params"])
    def test_they_are_with_widths_that_are_multiples(self, net, target):
        masked, multiple = net
        limits = Limits(round_to=multiple)
        selector = self.check(masked, limits, Budget(target))
        chosen = selector.select(0.6)
        for part, group in zip(
            selector.slots.slices, selector.slots.groups, strict=True
        ):
            kept = int((~chosen[part]).sum())
            assert kept % multiple == 0 or kept == group.size

    @staticmethod
    def check(masked, limits, budget):
        selector = Selector(masked, "l2", limits, budget)
        reachable = selector.reachable
        met = [fraction for fraction in FRACTIONS if fraction <= reachable]
        assert len(met) == 20
        for fraction in met:
            chosen = selector.select(fraction)
            found = budget.removed(selector.slots, chosen)
            assert found == pytest.approx(fraction, abs=0.01)
        return selector


@pytest.mark.parametrize("target", ["macs", "params", "bytes"])
@pytest.mark.parametrize("name", ["plain", "residual", "squeeze_excite", "depthwise"])
def test_what_is_left_is_what_the_compact_model_costs(name, target):
    masked = wrapped(name)
    full = getattr(filterprune.analyze(masked).before, target)
    filterprune.prune(masked, 0.5, target=target)
    small = check_exact(masked)
    left = getattr(filterprune.analyze(small).before, target)
    if target == "params":
        assert left == small.count_params()
    step = 0.13  # one channel of nets as small as these
    assert left / full == pytest.approx(0.5, abs=step)


@pytest.mark.parametrize("left", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("target", ["macs", "params", "bytes", "filters"])
def test_an_absolute_budget_is_not_overrun(target, left):
    masked = wrapped("residual")
    selector = Selector(masked, budget=Budget(target))
    budget = left * selector.budget.full(selector.slots)
    filterprune.prune(masked, target=target, budget=budget)
    used = selector.budget.left(selector.slots, selector.closed())
    assert 0.8 * budget <= used <= budget


@pytest.mark.parametrize("target", ["macs", "params", "bytes"])
def test_a_budget_out_of_reach_is_refused_with_the_smallest_figure(target):
    masked = wrapped()
    selector = Selector(masked, limits=Limits(min_filters=4), budget=Budget(target))
    least = (1 - selector.reachable) * selector.budget.full(selector.slots)
    with pytest.raises(ValueError, match=f"keeps at least {least:,.0f}:"):
        filterprune.prune(masked, 0.99, target=target, min_filters=4)
    with pytest.raises(ValueError, match=f"keeps at least {least:,.0f}:"):
        filterprune.prune(masked, target=target, budget=1, min_filters=4)
    masked.compile("sgd", LOSS)
    callback = FilterPruningCallback(
        PolynomialDecay(), target=target, budget=1, min_filters=4
    )
    with pytest.raises(ValueError, match=f"keeps at least {least:,.0f}:"):
        masked.fit(X, Y, verbose=0, callbacks=[callback])
    assert int(to_numpy(masked.optimizer.iterations)) == 0
    assert not any(map(any, closed(masked).values()))
    filterprune.prune(masked, target=target, budget=least, min_filters=4)
    assert set(widths(masked).values()) == {4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 0.5, "budget": 10}, "either"),
        ({"sparsity": 0.5, "target": "flops"}, "target"),
        ({"budget": -1, "target": "macs"}, "above 0"),
        ({"sparsity": 0.5, "scope": "block"}, "scope"),
        ({"sparsity": 0.5, "rounding": "even"}, "rounding"),
        ({"sparsity": 0.5, "max_sparsity": 1.5}, "max_sparsity"),
        ({"sparsity": 0.5, "overrides": {"conv9": 0.5}}, "Did you mean 'conv"),
        ({"sparsity": 0.5, "overrides": {"conv1": {"ratio": 1}}}, "override"),
        ({"sparsity": 0.5, "overrides": {"conv1": 1.5}}, "fraction"),
        ({"sparsity": 0.5, "scope": {"a": "dense*"}}, "matches none"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    masked = wrapped()
    with pytest.raises(ValueError, match=message):
        filterprune.prune(masked, **arguments)
    assert not any(map(any, closed(masked).values()))


class TestBounds:
    def test_a_ratio_of_its_own_holds_whatever_the_scores(self):
        masked = wrapped()
        filterprune.prune(masked, 0.5, overrides={"conv2": 0.25, "hidden": 0.75})
        found = widths(masked)
        assert (found["conv2"], found["hidden"]) == (12, 4)

    def test_a_pattern_reaches_all_it_matches_and_the_last_word_counts(self):
        masked = wrapped()
        filterprune.prune(masked, 0.4, overrides={"conv*": 0.25, "conv2": 0.5})
        found = widths(masked)
        assert (found["conv1"], found["conv2"]) == (6, 8)

    def test_a_nested_model_is_named_as_a_whole(self):
        masked = wrapped("nested")
        paths = [p for g in Selector(masked).groups for p in g.layers if "/" in p]
        folder = paths[0].split("/")[0]
        filterprune.prune(masked, 0.3, overrides={folder: {"max_sparsity": 0.0}})
        for group in filterprune.analyze(masked).prunable:
            if any(path.startswith(f"{folder}/") for path in group.layers):
                assert group.alive == group.size

    @pytest.mark.parametrize("scope", SCOPES)
    def test_no_group_loses_more_than_max_sparsity(self, scope):
        masked = wrapped("residual")
        filterprune.prune(masked, 0.5, scope=scope, max_sparsity=0.6)
        for group in filterprune.analyze(masked).prunable:
            assert group.alive >= 0.4 * group.size
        with pytest.warns(filterprune.PruningWarning, match="out of reach"):
            filterprune.prune(masked, 0.9, scope=scope, max_sparsity=0.6)

    def test_floors_and_multiples_of_single_layers(self):
        masked = wrapped()
        overrides = {"conv1": {"min_filters": 7}, "conv2": {"round_to": 4}}
        filterprune.prune(masked, 0.6, overrides=overrides)
        found = widths(masked)
        assert found["conv1"] >= 7
        assert found["conv2"] % 4 == 0

    @pytest.mark.parametrize(
        ("rounding", "expected"), [("nearest", 8), ("up", 12), ("down", 8)]
    )
    def test_widths_are_rounded_as_asked(self, rounding, expected):
        masked = wrapped()
        overrides = {"conv2": 7 / 16}  # 9 of 16 stay
        filterprune.prune(
            masked, 0.4, round_to=4, rounding=rounding, overrides=overrides
        )
        assert widths(masked)["conv2"] == expected

    def test_a_bound_binds_and_the_others_make_up_for_it(self):
        free, bound = wrapped(), wrapped()
        filterprune.prune(free, 0.5)
        overrides = {"conv2": {"max_sparsity": 0.1}}
        assert filterprune.prune(bound, 0.5, overrides=overrides) == 0.5
        assert widths(bound)["conv2"] == 15


class TestScopes:
    def test_groups_of_ones_own_lose_the_same_fraction(self):
        masked = wrapped()
        scope = {"convolutions": ["conv1", "conv2"], "rest": "hidden"}
        filterprune.prune(masked, 0.5, scope=scope)
        found = widths(masked)
        assert found["conv1"] + found["conv2"] == 12
        assert found["hidden"] == 8

    def test_like_structures_are_ranked_together(self):
        masked = wrapped()
        selector = Selector(masked, limits=Limits("isomorphic"))
        pools = {frozenset(selector.groups[i].name for i in p) for p in selector.pools}
        # conv1 is read by a convolution, conv2 by a dense layer, hidden by another.
        assert len(pools) == 3

    def test_blocks_of_one_kind_are(self):
        x = image = keras.Input((8, 8, 4))
        for number in range(3):
            y = keras.layers.Conv2D(8, 1, activation="relu", name=f"in{number}")(x)
            y = keras.layers.Conv2D(4, 3, padding="same", name=f"out{number}")(y)
            x = keras.layers.Add()([x, y])
        y = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
        masked = filterprune.wrap_model(keras.Model(image, y))
        selector = Selector(masked, limits=Limits("isomorphic"))
        assert [g.name for g in selector.groups] == ["in0", "in1", "in2"]
        assert [pool.tolist() for pool in selector.pools] == [[0, 1, 2]]

    def test_each_like_structure_loses_its_share(self):
        masked = wrapped("residual")
        selector = Selector(masked, limits=Limits("isomorphic"))
        selector.update(0.5)
        chosen, filters = selector.closed(), selector.slots.filters
        for pool in selector.pools:
            here = np.isin(selector.slots.group_of, pool)
            share = filters[here & chosen].sum() / filters[here].sum()
            assert share == pytest.approx(0.5, abs=filters.max() / filters[here].sum())


class TestInFit:
    def fit(self, masked, epochs=2, **kwargs):
        masked.compile("adam", LOSS)
        schedule = kwargs.pop("schedule", PolynomialDecay(final_sparsity=0.5))
        callback = FilterPruningCallback(schedule, frequency=2, **kwargs)
        return masked.fit(
            X, Y, batch_size=32, epochs=epochs, verbose=0, callbacks=[callback]
        ).history

    def test_the_schedule_moves_towards_a_budget_of_macs(self):
        masked = wrapped()
        full = filterprune.analyze(masked).before.macs
        history = self.fit(
            masked, epochs=4, target="macs", budget=0.3 * full, end_fraction=0.6
        )
        removed = history["macs_removed"]
        assert removed == sorted(removed)
        assert removed[0] < removed[-1] == pytest.approx(0.7, abs=0.08)
        small = check_exact(masked)
        assert filterprune.analyze(small).before.macs <= 0.3 * full

    def test_ratios_of_single_layers_are_approached(self):
        masked = wrapped()
        self.fit(masked, overrides={"conv2": 0.25})
        assert widths(masked)["conv2"] == 12

    def test_rounds_of_pruning_and_recovery(self):
        masked = wrapped()
        schedule = IterativeSparsity(0.75, end_step=16, rounds=2)
        history = self.fit(masked, epochs=3, schedule=schedule)
        assert history["sparsity"] == pytest.approx([0.5, 0.75, 0.75], abs=0.03)

    @pytest.mark.parametrize("softness", [0.0, 0.5])
    def test_closed_gates_may_open_again_until_a_stated_step(self, softness):
        masked = wrapped()
        rng = np.random.default_rng(0)
        seen = []

        def any_score(kernel):
            return rng.random(kernel.shape[1])

        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                gates = [
                    keras.ops.convert_to_numpy(layer.gate)
                    for layer in builders.masked_layers(self.model).values()
                ]
                seen.append(np.concatenate(gates))

        masked.compile("adam", LOSS)
        pruning = FilterPruningCallback(
            PolynomialDecay(final_sparsity=0.5, end_step=14),
            frequency=1,
            criterion=any_score,
            regrow_until=10,
            softness=softness,
        )
        masked.fit(
            X, Y, batch_size=32, epochs=2, verbose=0, callbacks=[pruning, Watch()]
        )
        early, late = np.array(seen[:9]), np.array(seen[9:])
        assert (np.diff((early < 1).astype(int), axis=0) < 0).any()  # reopened
        assert (np.diff((late < 1).astype(int), axis=0) >= 0).all()  # not any more
        assert set(np.unique(late)) == {0.0, 1.0}
        assert set(np.unique(early)) == {softness, 1.0}
        small = check_exact(masked)
        assert small.count_params() < masked.count_params()


@pytest.mark.parametrize("scope", SCOPES)
def test_ties_are_settled_alike_every_time(scope):
    found = []
    for _ in range(2):
        model = build("residual")
        for weight in model.trainable_weights:
            weight.assign(np.ones(weight.shape))
        masked = filterprune.wrap_model(model)
        filterprune.prune(masked, 0.5, scope=scope, target="macs")
        found.append(closed(masked))
    assert found[0] == found[1]


class TestBudgetsThatMeanSomethingElse:
    @pytest.mark.parametrize("target", ["macs", "params", "bytes", "filters"])
    @pytest.mark.parametrize("budget", [0.5, 0.25, 1e-3])
    def test_a_fraction_is_told_to_be_a_sparsity(self, target, budget):
        words = rf"`sparsity={1 - budget:g}`"
        with pytest.raises(ValueError, match=words):
            filterprune.prune(wrapped(), target=target, budget=budget)
        with pytest.raises(ValueError, match=words):
            FilterPruningCallback(PolynomialDecay(), target=target, budget=budget)

    @pytest.mark.parametrize("target", ["macs", "params", "bytes", "filters"])
    def test_one_that_the_model_meets_already_is_warned_of(self, target):
        masked = wrapped()
        words = r"Nothing is pruned: 'plain' has [\d,]+ .*budget of 1,000,000,000"
        with pytest.warns(filterprune.PruningWarning, match=words):
            assert filterprune.prune(masked, target=target, budget=1e9) == 0
        callback = FilterPruningCallback(PolynomialDecay(), target=target, budget=1e9)
        builders.compiled(masked)
        with pytest.warns(filterprune.PruningWarning, match=words):
            masked.fit(X, Y, verbose=0, callbacks=[callback])

    def test_the_very_cost_of_the_model_is_no_mistake(self):
        masked = wrapped()
        cost = filterprune.analyze(masked).before.macs
        assert filterprune.prune(masked, target="macs", budget=cost) == 0
