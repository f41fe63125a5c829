"""Latency as a cost: tables, what is interpolated, and budgets in seconds."""

import json

import builders
import keras
import numpy as np
import pytest
from builders import build, closed
from exactness import check_exact, to_numpy

import filterprune
from filterprune import FilterPruningCallback, LatencyModel, PolynomialDecay
from filterprune.budget import Budget
from filterprune.channels.groups import study
from filterprune.latency import measuring
from filterprune.latency.tables import Interpolation, Table
from filterprune.latency.units import nearest, units
from filterprune.limits import Limits
from filterprune.origin import Origin
from filterprune.selection import Selector

X, Y = builders.digits(128)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def time_of(sizes):
    """What a call of these sizes takes in the tests that follow, in seconds."""
    return 1e-3 * float(np.prod([size + 1.0 for size in sizes]))


def made_up(masked, rehearsals=0, points=9):
    """A latency model of made-up times, so that nothing depends on the machine."""
    analysis = study(masked)
    tables = {}
    for plan in measuring.make_plans(analysis, 1, points)[0]:
        figures = dict(zip(plan.names, map(time_of, plan.sizes), strict=True))
        tables.setdefault(plan.unit.signature, []).append(plan.table(figures))
    model = LatencyModel(tables, 1, {}, rehearsals)
    total = model.bind(analysis).sums.total(np.ones(analysis.flow.table.count, bool))
    model.calibrate([(0.0, 0.0), (total, total)])
    return model


class TestInterpolation:
    TABLE = Table((np.array([2, 4, 8]), np.array([1, 3])), np.arange(6.0).reshape(3, 2))

    def total(self, rows, columns):
        axes = [np.arange(8), 8 + np.arange(3)]
        alive = np.concatenate([np.arange(8) < rows, np.arange(3) < columns])
        return Interpolation([self.TABLE], [axes]).total(alive)

    def test_what_was_measured_comes_back(self):
        for i, rows in enumerate([2, 4, 8]):
            for j, columns in enumerate([1, 3]):
                assert self.total(rows, columns) == self.TABLE.seconds[i, j]

    def test_between_and_below_it_is_linear(self):
        assert self.total(6, 2) == pytest.approx((2 + 3 + 4 + 5) / 4)
        assert self.total(3, 1) == pytest.approx(1.0)
        assert self.total(5, 3) == pytest.approx(3.5)
        assert self.total(1, 3) == pytest.approx(0.0)

    def test_calls_of_no_axis_or_one_add_up(self):
        tables = [
            Table((), np.array(5.0)),
            Table((np.array([4]),), np.array([7.0])),
            Table((np.array([1, 5]),), np.array([1.0, 9.0])),
        ]
        sums = Interpolation(tables, [[], [np.arange(4)], [np.arange(5)]])
        assert sums.total(np.arange(5) < 3) == pytest.approx(5 + 7 + 5)

    def test_slopes_are_what_one_channel_more_costs(self):
        axes = [np.array([0, 0, 1, 1, 2, 2, 3, 3]), 4 + np.arange(3)]
        sums = Interpolation([self.TABLE], [axes])
        alive = np.array([1, 1, 1, 0, 1, 1, 0], bool)
        slopes = sums.slopes(alive)
        for root in (3, 6):
            more = alive.copy()
            more[root] = True
            assert slopes[root] == pytest.approx(sums.total(more) - sums.total(alive))


def test_widths_that_are_timed_are_likely_ones():
    assert [nearest(share * 64, 64) for share in (0.01, 0.3, 0.5, 1.0)] == [
        8,
        16,
        32,
        64,
    ]
    assert [nearest(share * 10, 10) for share in (0.01, 0.34, 1.0)] == [1, 3, 10]
    assert nearest(29, 30) == 30


class TestUnits:
    @pytest.mark.parametrize("name", builders.BUILDERS)
    def test_every_call_is_found_whatever_its_gates(self, name):
        model = build(name)
        masked = filterprune.wrap_model(model)
        plain, gated = (units(study(m), 2) for m in (model, masked))
        assert [u.call.path for u in plain] == [u.call.path for u in gated]
        assert [u.signature for u in plain] == [u.signature for u in gated]
        assert max(len(u.axes) for u in plain) <= 2

    def test_like_calls_are_one(self):
        x = inputs = keras.Input((8, 8, 8))
        for number in range(4):
            x = keras.layers.Conv2D(8, 3, padding="same", name=f"c{number}")(x)
        model = keras.Model(inputs, keras.layers.Conv2D(8, 3, name="last")(x))
        found = {u.call.path: u for u in units(study(model), 1)}
        assert found["c1"].signature == found["c2"].signature
        assert found["c1"].signature != found["last"].signature
        assert [len(found[name].axes) for name in ("c0", "c1", "last")] == [1, 2, 1]

    def test_a_batch_of_another_size_takes_another_time(self):
        analysis = study(build("plain"))
        one, eight = (units(analysis, size)[0].signature for size in (1, 8))
        assert one != eight


class TestMeasuring:
    def test_of_real_layers(self, capsys):
        model = build("squeeze_excite")
        before = builders.snapshot(model)
        latency = filterprune.measure_latency(model, batch_size=2, points=2, verbose=0)
        assert builders.snapshot(model) == before
        assert capsys.readouterr().out == ""
        assert latency.batch_size == 2
        assert latency.environment["backend"] == keras.backend.backend()
        assert 0 < latency.predict(model) < 1
        masked = filterprune.wrap_model(model)
        assert latency.predict(masked) == pytest.approx(latency.predict(model))

    @pytest.mark.parametrize("name", ["concat", "nested"])
    def test_of_models_of_every_shape(self, name):
        latency = filterprune.measure_latency(build(name), points=2, verbose=0)
        masked = filterprune.wrap_model(build(name))
        filterprune.prune(masked, 0.5)
        assert latency.predict(filterprune.compact(masked)) > 0

    def test_what_is_known_is_not_timed_again(self, tmp_path, monkeypatch):
        model = build("plain")
        first = filterprune.measure_latency(model, points=2, verbose=0)
        (path,) = tmp_path.glob("filterprune/latency-*.json")
        assert not list(tmp_path.glob("filterprune/*.tmp"))
        content = json.loads(path.read_text())
        assert content["environment"]["keras"] == keras.__version__

        def refuse(*args, **kwargs):
            raise AssertionError("timed again")

        monkeypatch.setattr(measuring, "shortest", refuse)
        again = filterprune.measure_latency(model, points=2, verbose=0)
        assert again.predict(model) == first.predict(model)
        path.write_text("{")  # broken: all is timed again
        with pytest.raises(AssertionError, match="timed again"):
            filterprune.measure_latency(model, points=2, verbose=0)

    def test_a_folder_that_cannot_be_written_to_is_warned_of(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.warns(filterprune.PruningWarning, match="cannot be kept"):
            filterprune.measure_latency(
                builders.mlp(4, 4, 2), points=2, verbose=0, cache_dir=tmp_path / "file"
            )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"batch_size": 0}, "batch_size"),
            ({"points": 1}, "points"),
            ({"rehearsals": -1}, "rehearsals"),
        ],
    )
    def test_arguments_that_make_no_sense(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            filterprune.measure_latency(builders.plain(), **arguments)

    def test_open_sizes_are_refused(self):
        model = builders.plain(shape=(None, None, 1))
        with pytest.raises(ValueError, match="input sizes are known"):
            filterprune.measure_latency(model)


class TestBudgets:
    @pytest.mark.parametrize("left", [0.8, 0.5, 0.3])
    @pytest.mark.parametrize("options", [{}, {"round_to": 2}, {"scope": "layer"}])
    def test_budgets_are_met(self, left, options):
        masked = filterprune.wrap_model(build("residual"))
        latency = made_up(masked)
        full = latency.predict(masked)
        filterprune.prune(masked, target=latency, budget=left * full, **options)
        assert 0.5 * left * full <= latency.predict(masked) <= left * full
        small = check_exact(masked)
        assert latency.predict(small) == pytest.approx(latency.predict(masked))

    def test_a_fraction_is_one_of_the_whole_latency(self):
        masked = filterprune.wrap_model(build("plain"))
        latency = made_up(masked)
        full = latency.predict(masked)
        filterprune.prune(masked, 0.4, target=latency)
        assert latency.predict(masked) == pytest.approx(0.6 * full, rel=0.1)

    def test_more_is_kept_than_by_macs_of_what_takes_as_long(self):
        masked = filterprune.wrap_model(build("plain"))
        latency = made_up(masked)
        selector = Selector(masked, budget=Budget(latency))
        value = selector.scores() * selector.slots.filters
        others = Selector(masked, budget=Budget("macs"))
        more = []
        for left in (0.7, 0.5, 0.35):
            chosen = selector.select(1 - left)
            budget = selector.budget.left(selector.slots, chosen)
            fits = [
                value[~c].sum()
                for c in map(others.select, np.linspace(0, 0.95, 40))
                if selector.budget.left(selector.slots, c) <= budget
            ]
            more.append(value[~chosen].sum() - max(fits))
        assert min(more) >= 0
        assert max(more) > 0

    def test_every_group_keeps_something_however_dear(self):
        masked = filterprune.wrap_model(build("residual"))
        selector = Selector(masked, budget=Budget(made_up(masked)))
        chosen = selector.select(0.5)
        shares = [(~chosen[part]).mean() for part in selector.slots.slices]
        assert min(shares) > 0.2

    def test_closed_stays_closed(self):
        masked = filterprune.wrap_model(build("residual"))
        latency = made_up(masked)
        before = closed(masked)
        for fraction in (0.1, 0.3, 0.2, 0.6):
            filterprune.prune(masked, fraction, target=latency)
            after = closed(masked)
            for name, gates in before.items():
                assert not (np.array(gates) & ~np.array(after[name])).any()
            before = after

    def test_out_of_reach_is_refused_in_seconds(self):
        masked = filterprune.wrap_model(build("plain"))
        latency = made_up(masked)
        full = latency.predict(masked)
        with pytest.raises(ValueError, match=rf"0\.001000 seconds .* has {full:.6f}"):
            filterprune.prune(masked, target=latency, budget=0.001, min_filters=4)
        assert not any(map(any, closed(masked).values()))

    def test_another_model_is_refused(self):
        latency = made_up(build("plain"))
        masked = filterprune.wrap_model(build("residual"))
        with pytest.raises(ValueError, match=r"layer '\w+' was not, .*measure_latency"):
            filterprune.prune(masked, 0.5, target=latency)
        with pytest.raises(ValueError, match="layers were measured"):
            latency.predict(masked)

    def test_what_is_no_target_is_refused(self):
        masked = filterprune.wrap_model(build("plain"))
        with pytest.raises(ValueError, match="measure_latency"):
            filterprune.prune(masked, 0.5, target="speed")

    def test_by_its_name_it_is_measured(self, monkeypatch):
        asked = []

        def measure(model):
            asked.append(model)
            return made_up(model)

        monkeypatch.setattr("filterprune.budget.measure_latency", measure)
        masked = filterprune.wrap_model(build("plain"))
        filterprune.prune(masked, 0.5, target="latency")
        assert asked == [masked]


class TestRehearsal:
    """What is chosen is timed as a whole, and chosen anew by that."""

    def slower(self, monkeypatch, factor):
        """Let all but the whole model take longer than its layers say."""
        timed = []

        def run(self, alive):
            return self.sums.total(alive) * (1 if alive.all() else factor)

        def shortest(runs, budget):
            timed.append(runs)
            return runs

        monkeypatch.setattr("filterprune.latency.model.Latency._run", run)
        monkeypatch.setattr("filterprune.latency.model.shortest", shortest)
        return timed

    @pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
    def test_a_budget_is_met_as_measured(self, monkeypatch, factor):
        timed = self.slower(monkeypatch, factor)
        masked = filterprune.wrap_model(build("residual"))
        latency = made_up(masked, rehearsals=3)
        full = latency.predict(masked)
        filterprune.prune(masked, target=latency, budget=0.5 * full)
        sums = latency.bind(study(masked)).sums
        dead, *_ = study(masked).decide()
        taken = factor * sums.total(~dead)
        assert 0.8 * 0.5 * full <= taken <= 1.02 * 0.5 * full
        assert len(timed) <= (1 if factor == 1 else 3)

    def test_in_fit_too(self, monkeypatch):
        timed = self.slower(monkeypatch, 1.2)
        masked = filterprune.wrap_model(build("plain"))
        masked.compile("adam", LOSS, **builders.WITHOUT_XLA)
        latency = made_up(masked, rehearsals=2)
        pruning = FilterPruningCallback(
            PolynomialDecay(final_sparsity=0.5, end_step=6), frequency=2, target=latency
        )
        history = masked.fit(X, Y, batch_size=16, verbose=0, callbacks=[pruning])
        assert history.history["latency_removed"] == pytest.approx([0.5], abs=0.1)
        assert 1 <= len(timed) <= 2  # before the first step, and not again

    def test_of_real_models(self):
        masked = filterprune.wrap_model(build("plain"))
        latency = filterprune.measure_latency(masked, points=2, verbose=0)
        assert latency.rehearsals == 2
        try:
            filterprune.prune(masked, 0.1, target=latency)
        except ValueError as error:  # so small that all it takes is overhead
            assert "within reach" in str(error)
        else:
            check_exact(masked)


@pytest.mark.parametrize("criterion", ["l2", "group"])
def test_in_many_steps_the_same_is_left_as_in_one(criterion):
    """Shares are of all that there was, whatever is closed already."""
    left = []
    for steps in (1, 12):
        masked = filterprune.wrap_model(build("plain"))
        budget = Budget(made_up(masked))
        selector = Selector(masked, criterion, Limits(), budget)
        for step in range(steps):
            selector.update(0.7 * (step + 1) / steps)
        open_ = ~selector.closed()
        left.append([int(open_[part].sum()) for part in selector.slots.slices])
    assert left[0] == pytest.approx(left[1], abs=2)  # prices changed on the way


@pytest.mark.parametrize("name", ["concat", "shared", "multi_io", "nested"])
def test_a_compact_model_takes_what_the_masked_one_is_predicted_to(name):
    """Nearly: calls of many vectors, such as a concatenation, shrink evenly."""
    masked = filterprune.wrap_model(build(name))
    latency = made_up(masked)
    filterprune.prune(masked, 0.5)
    found = latency.predict(filterprune.compact(masked))
    assert found == pytest.approx(latency.predict(masked), rel=0.1)


def test_latency_of_a_model_that_was_compacted_and_wrapped_again():
    """Fractions stay those of the model as it was."""
    from filterprune.shrinking import _shrunk

    masked = filterprune.wrap_model(build("residual"))
    latency = made_up(masked)
    full = latency.predict(masked)
    origin = Origin(masked)
    filterprune.prune(masked, 0.3, target=latency)
    new = _shrunk(masked, origin)
    Selector(new, "l2", Limits(), Budget(latency), origin).update(0.6)
    small = filterprune.compact(new)
    assert latency.predict(small) == pytest.approx(0.4 * full, rel=0.1)
    assert to_numpy(small.weights[0]).shape[-1] < to_numpy(masked.weights[0]).shape[-1]


def test_what_is_gone_keeps_its_last_scores():
    """Shares of a group are of all that there was."""
    from filterprune.shrinking import _shrunk

    masked = filterprune.wrap_model(build("residual"))
    origin, criterion = Origin(masked), filterprune.criteria.get("l2")
    before = origin.scores(criterion)
    filterprune.prune(masked, 0.5, criterion="l2")
    _shrunk(masked, origin, criterion)
    gone = origin.place < 0
    assert gone.any() and before[gone].min() > 0
    assert origin.scores(criterion)[gone].tolist() == before[gone].tolist()
