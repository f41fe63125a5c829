"""The plots show what was found; they were looked at, too."""

import sys

import builders
import keras
import numpy as np
import pytest
from builders import build

import filterprune
from filterprune import plots

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _closed():
    yield
    matplotlib.pyplot.close("all")


@pytest.fixture
def masked():
    masked = filterprune.wrap_model(build("plain"))
    filterprune.prune(masked, 0.0, overrides={"conv1": 0.5, "conv2": 0.25})
    return masked


def drawn(ax):
    """Whether the figure can be drawn without a warning."""
    ax.figure.canvas.draw()
    return True


def heights(ax):
    return [[bar.get_height() for bar in bars] for bars in ax.containers]


def names(ax, axis="x"):
    return [label.get_text() for label in getattr(ax, f"get_{axis}ticklabels")()]


def test_widths_before_and_after_in_graph_order(masked):
    ax = filterprune.analyze(masked).plot()
    assert heights(ax) == [[8, 16, 16, 10], [4, 12, 16, 10]]
    assert names(ax) == ["conv1", "conv2", "hidden", "head"]
    assert ax.get_yscale() == "linear"
    assert drawn(ax)


def test_widths_that_differ_much_are_on_a_logarithmic_scale():
    report = filterprune.analyze(builders.mlp(4, 512, 3))
    assert report.plot().get_yscale() == "log"


def test_axes_that_are_given_are_drawn_on(masked):
    _, given = matplotlib.pyplot.subplots()
    assert filterprune.analyze(masked).plot(ax=given) is given
    assert plots.tradeoff([(1e6, 0.9)], ax=given) is given


def test_sparsity_over_steps():
    masked = filterprune.wrap_model(builders.mlp(4, 16, 3))
    masked.compile("sgd", "mse", **builders.EAGERLY)
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5, end_step=8)
    callback = filterprune.FilterPruningCallback(schedule, target="macs", frequency=1)
    options = {"batch_size": 8, "epochs": 3, "verbose": 0, "callbacks": [callback]}
    history = masked.fit(np.ones((32, 4)), np.ones((32, 3)), **options)
    ax = plots.sparsity(history)
    found = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert found["filters"][:, 0].tolist() == [4, 8, 12]
    np.testing.assert_allclose(found["filters"][:, 1], history.history["sparsity"])
    np.testing.assert_allclose(found["MACs"][:, 1], history.history["macs_removed"])
    assert ax.get_xlabel() == "step"
    assert drawn(ax)
    ax = plots.sparsity(history.history)
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert ax.get_xlabel() == "epoch"


def test_a_history_without_sparsity_is_refused():
    with pytest.raises(ValueError, match=r"loss.*FilterPruningCallback"):
        plots.sparsity({"loss": [1.0]})


def test_importance_and_the_cut(masked):
    selector = filterprune.selection.Selector(masked)
    scores, gone = selector.scores(), selector.closed()
    before = builders.snapshot(masked)
    ax = plots.importance(masked)
    assert builders.snapshot(masked) == before
    assert names(ax, "y") == ["conv1", "conv2", "hidden"]
    cuts = [line for line in ax.lines if np.ptp(line.get_xdata()) == 0]
    assert len(cuts) == 2  # nothing of `hidden` is closed
    for cut, part in zip(cuts, selector.slots.slices):
        low, high = scores[part][gone[part]].max(), scores[part][~gone[part]].min()
        assert low <= cut.get_xdata()[0] <= high
    assert drawn(ax)


def test_importance_of_what_would_be_closed(masked):
    before = builders.snapshot(masked)
    ax = plots.importance(masked, "l1", sparsity=0.5, scope="layer", min_filters=2)
    assert builders.snapshot(masked) == before
    assert "50%" in ax.get_title("left")
    with pytest.raises(ValueError, match="min_filters=0"):
        plots.importance(masked, sparsity=0.5, min_filters=0)
    with pytest.raises(ValueError, match="has none"):
        plots.importance(build("plain"), sparsity=0.5)


def test_importance_of_few_far_above_the_others_is_on_a_logarithmic_scale():
    masked = filterprune.wrap_model(builders.mlp(4, 512, 3))
    ax = plots.importance(masked, sparsity=0.5)
    assert ax.get_xscale() == "log"
    assert plots.importance(masked, "l1").get_xscale() == "linear"
    bars = [patch.get_data() for patch in ax.patches]
    assert sum((values - base).sum() > 0 for values, _, base in bars) == 2
    assert drawn(ax)


def result(groups, metric="loss"):
    values = np.linspace(1, 2, groups * 3).reshape(groups, 3)
    names = tuple(f"layer{i}" for i in range(groups))
    before = {metric: 0.5}
    return filterprune.Sensitivity(names, (0.1, 0.5, 0.9), before, {metric: values})


def test_sensitivity_of_few_groups_as_lines():
    found = result(3)
    ax = found.plot()
    for line, row in zip(ax.lines, found.values["loss"]):
        assert line.get_xdata()[0] == 0
        assert line.get_ydata().tolist() == [0.5, *row]
    assert [line.get_label() for line in ax.lines[:3]] == list(found.groups)
    assert drawn(ax)


@pytest.mark.parametrize(("metric", "dark"), [("loss", True), ("accuracy", False)])
def test_sensitivity_of_many_groups_as_a_map(metric, dark):
    """What is worse is darker."""
    found = result(20, metric)
    ax = found.plot(metric)
    (image,) = ax.collections
    np.testing.assert_allclose(
        np.ravel(image.get_array()), found.values[metric].ravel()
    )
    assert names(ax, "y") == list(found.groups)
    high, low = image.cmap(1.0), image.cmap(0.0)
    assert (sum(high[:3]) < sum(low[:3])) == dark
    assert drawn(ax)


def test_a_metric_that_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"\['loss'\].*metric='accuracy'"):
        plots.sensitivity(result(2), "accuracy")


def test_accuracy_against_macs(masked):
    report = filterprune.analyze(masked)
    series = {"ours": [(report, 0.9), (2e3, 0.5)], "theirs": [(9e4, 0.8)]}
    ax = plots.tradeoff(series, dense=(report.before.macs, 0.95))
    ours, theirs, dense = ax.lines
    assert ours.get_xydata().tolist() == [[2e3, 0.5], [report.after.macs, 0.9]]
    assert theirs.get_label() == "theirs"
    assert dense.get_xydata().tolist() == [[report.before.macs, 0.95]]
    assert ax.get_xscale() == "log"
    assert drawn(ax)


def test_large_models_fit_a_figure():
    model = keras.Sequential([keras.Input((4,))])
    for _ in range(42):
        model.add(keras.layers.Dense(4))
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5)
    for ax in (filterprune.analyze(masked).plot(), plots.importance(masked)):
        assert max(ax.figure.get_size_inches()) <= 16
        assert drawn(ax)


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch, masked):
    report = filterprune.analyze(masked)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "filterprune\[plot\]"'):
        report.plot()
