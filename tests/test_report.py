"""`analyze`: groups, sizes, who is alive, and in words why the rest must stay."""

import dataclasses

import builders
import keras
import pytest
from builders import BUILDERS, build
from keras import layers

import filterprune


class Mystery(layers.Layer):
    """A layer that nobody has told filterprune about: it couples all channels."""

    def call(self, x):
        return keras.ops.cumsum(x, axis=-1) + keras.ops.flip(x, axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape


def with_mystery():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, name="before")(inputs)
    x = Mystery(name="mystery")(x)
    x = layers.Conv2D(6, 3, name="after")(x)
    x = layers.Flatten()(x)
    return builders.randomise(
        keras.Model(inputs, layers.Dense(2, name="head")(x), name="odd")
    )


def by_layer(report):
    """The group of every layer that makes channels."""
    return {name: group for group in report.groups for name in group.layers}


# Model: its groups by the layers in them, their sizes, the filters in all.
GROUPS = {
    "plain": {("conv1",): (8, 8), ("conv2",): (16, 16), ("hidden",): (16, 16)},
    "residual": {("stem", "outer"): (8, 16), ("inner",): (12, 12)},
    "squeeze_excite": {
        ("conv", "expand"): (8, 16),
        ("reduce",): (4, 4),
        ("project",): (6, 6),
    },
    # `again` reads what it makes, so it is tied to the tower before it.
    "shared": {("tower", "again"): (8, 16)},
    "nested": {
        ("backbone/conv1",): (8, 8),
        ("backbone/conv2",): (6, 6),
        ("top/hidden",): (10, 10),
    },
    "multi_io": {("conv",): (8, 8), ("embed",): (7, 7)},
    "operations": {("a", "b"): (6, 12), ("c",): (4, 4)},
    "depthwise": {
        ("expand",): (8, 8),
        ("project",): (6, 6),
        ("separable",): (10, 10),
        ("transpose",): (4, 4),
    },
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_layers_and_their_sizes(name):
    model = build(name)
    for each in (model, filterprune.wrap_model(model)):
        report = filterprune.analyze(each)
        found = {g.layers: (g.size, g.filters) for g in report.prunable}
        assert found == GROUPS[name]
        assert all(group.alive == group.size for group in report.groups)
        assert all(group.reason is None for group in report.prunable)
    assert report.masked
    assert not filterprune.analyze(model).masked


@pytest.mark.parametrize("name", BUILDERS)
def test_alive_is_what_the_gates_say_and_what_compact_keeps(name):
    masked = filterprune.wrap_model(build(name))
    filterprune.prune(masked, 0.5)
    report = filterprune.analyze(masked)
    small = filterprune.compact(masked)
    gates, kept = builders.masked_layers(masked), builders.leaves(small)
    for group in report.prunable:
        assert 0 < group.alive <= group.size
        if len(group.layers) == 1:
            (path,) = group.layers
            assert gates[path].alive == kept[path].bias.shape[0] == group.alive
    assert any(group.alive < group.size for group in report.prunable)


@pytest.mark.parametrize("name", BUILDERS)
def test_filters_that_reach_an_output_say_so(name):
    model = build(name)
    fixed = filterprune.analyze(model).fixed
    names = getattr(model, "output_names", None) or [model.layers[-1].name]
    assert {group.reason for group in fixed} <= {
        f"reaches the output `{output}`" for output in names
    }
    assert fixed
    assert not any(group.prunable for group in fixed)


def test_outputs_are_named_each():
    groups = by_layer(filterprune.analyze(build("multi_io")))
    assert groups["features"].reason == "reaches the output `features`"
    assert groups["head"].reason == "reaches the output `head`"


def test_an_unknown_layer_is_a_barrier_and_named():
    report = filterprune.analyze(with_mystery())
    (barrier,) = report.barriers
    assert "`mystery_cumsum` (Cumsum)" in barrier
    assert "in order" in barrier
    groups = by_layer(report)
    assert "read by `mystery_cumsum` (Cumsum)" in groups["before"].reason
    assert groups["after"].prunable
    assert not groups["head"].prunable


def test_all_else_is_pruned_around_an_unknown_layer():
    model = with_mystery()
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5)
    report = filterprune.analyze(masked)
    assert by_layer(report)["after"].alive == 3
    small = filterprune.compact(masked)
    builders.assert_same_outputs(masked, small, rtol=1e-3, atol=1e-4)
    assert small.count_params() < model.count_params()


def test_channels_that_a_softmax_couples_say_so():
    inputs = keras.Input((4,))
    x = layers.Dense(6, activation="softmax", name="soft")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    reason = by_layer(filterprune.analyze(model))["soft"].reason
    assert "`soft`" in reason
    assert "softmax" in reason


def test_excluded_layers_say_that_they_have_no_gate():
    masked = filterprune.wrap_model(build("plain"), exclude="hidden")
    reason = by_layer(filterprune.analyze(masked))["hidden"].reason
    assert "`hidden`" in reason
    assert "no gate" in reason


def test_channels_that_a_plain_layer_revives_say_which():
    """Only convolutions are masked; their BatchNormalization makes constants."""
    model = build("plain")

    def convolutions_only(layer):
        if isinstance(layer, layers.Conv2D):
            return filterprune.wrap(layer)
        return type(layer).from_config(layer.get_config())

    masked = keras.models.clone_model(model, clone_function=convolutions_only)
    reason = by_layer(filterprune.analyze(masked))["conv1"].reason
    assert "`conv1_bn` (BatchNormalization)" in reason
    assert "`conv2` (Conv2D)" in reason


def test_one_survivor_is_kept_and_the_report_says_so():
    masked = filterprune.wrap_model(build("plain"))
    builders.close(masked.get_layer("hidden"), *range(16))
    report = filterprune.analyze(masked)
    group = by_layer(report)["hidden"]
    assert group.alive == 1
    assert "`hidden` would be left without channels" in group.stays
    assert "would be left without channels" in str(report)


@pytest.mark.parametrize("name", ["residual", "nested", "multi_io"])
def test_analyzing_touches_nothing(name):
    model = build(name)
    for each in (model, filterprune.wrap_model(model)):
        before = builders.snapshot(each)
        print(filterprune.analyze(each))
        assert builders.snapshot(each) == before


def test_the_report_cannot_be_changed():
    report = filterprune.analyze(build("plain"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.masked = True


class TestPrinted:
    @pytest.mark.parametrize("name", BUILDERS)
    def test_names_totals_and_reasons_are_there(self, name, capsys):
        masked = filterprune.wrap_model(build(name))
        filterprune.prune(masked, 0.5)
        report = filterprune.analyze(masked)
        print(report)
        text = capsys.readouterr().out
        assert f"'{masked.name}'" in text
        for layer in report.layers:
            assert layer.name in text
        for group in report.fixed:
            assert f"no: {group.reason}" in text
        for cost in (report.before, report.after):
            for figure in (cost.params, cost.macs, cost.bytes):
                assert f"{figure:,}" in text

    def test_barriers_are_there(self):
        text = str(filterprune.analyze(with_mystery()))
        assert "Not understood" in text
        assert "`mystery_cumsum` (Cumsum): it goes through" in text

    @pytest.mark.parametrize("width", [60, 80, 100, 140])
    def test_no_line_is_too_long_and_no_figure_is_lost(self, width):
        report = filterprune.analyze(build("nested"))
        text = report.render(width=width)
        assert max(map(len, text.splitlines())) <= width
        assert f"{report.before.macs:,}" in text

    def test_it_is_plain_text(self):
        text = str(filterprune.analyze(build("plain")))
        assert "\x1b" not in text
        assert "[/" not in text

    def test_names_with_square_brackets_are_not_markup(self):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="a[red]b")])
        assert "a[red]b" in str(filterprune.analyze(model))


@keras.saving.register_keras_serializable("tests")
class Hidden(layers.Layer):
    """It uses the weights of a part without calling it: its MACs are not known."""

    def build(self, shape):
        self.inner = layers.Dense(shape[-1])
        self.inner.build(shape)

    def call(self, x):
        return keras.ops.flip(x @ self.inner.kernel + self.inner.bias, axis=-1)


class TestNotCounted:
    """What cannot be looked into is no zero in the costs."""

    @pytest.fixture
    def model(self):
        inputs = keras.Input((8, 8, 3))
        x = layers.Conv2D(8, 3, name="seen")(inputs)
        x = layers.Conv2D(4, 1, name="counted")(Hidden(name="hidden")(x))
        x = layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, x, name="partly")

    def test_it_is_named(self, model):
        report = filterprune.analyze(model)
        assert report.uncounted == ("hidden",)
        counted = {layer.name: layer.counted for layer in report.layers}
        assert counted == {
            "seen": True,
            "hidden": False,
            "counted": True,
            "head": True,
        }

    def test_every_form_of_the_report_says_so(self, model):
        report = filterprune.analyze(model)
        text = " ".join(str(report).split())
        assert "hidden 72 not counted 288" in text
        assert f"at least {report.before.macs:,}" in text
        assert "MACs are not counted in `hidden`" in text
        for page in (report.to_html(), report._repr_html_()):
            assert "MACs are not counted in `hidden`" in page
            assert page.count(">not counted<") == 1
        assert "not all are counted" in report.to_html()
        rows = {row["layer"]: row for row in report.rows()}
        assert rows["hidden"]["macs"] is rows["hidden"]["macs_after"] is None
        assert rows["hidden"]["params"] == 72
        assert report.to_dict()["uncounted"] == ["hidden"]

    def test_fractions_of_macs_are_warned_of(self, model):
        masked = filterprune.wrap_model(model)
        words = "`hidden` are not counted"
        with pytest.warns(filterprune.PruningWarning, match=words):
            filterprune.prune(masked, 0.05, target="macs")
        filterprune.prune(masked, 0.2)  # of the filters: nothing to say

    def test_layers_that_multiply_nothing_are_no_gap(self):
        report = filterprune.analyze(build("plain"))
        assert report.uncounted == ()
        assert "not counted" not in str(report) + report.to_html()
