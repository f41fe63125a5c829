"""Plots, by matplotlib: widths, sparsity, importance, sensitivity, accuracy."""

from collections.abc import Mapping

import numpy as np

from filterprune.criteria.base import Scorer
from filterprune.limits import Limits
from filterprune.report import Report
from filterprune.selection import Selector

__all__ = ["importance", "sensitivity", "sparsity", "tradeoff", "widths"]
KEPT, GONE, LIGHT, INK = "#2f6690", "#d9480f", "#d8d8d3", "#3a3a38"
# Told apart with any colour vision: Okabe and Ito, "Color universal design", 2008.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def widths(report, ax=None):
    """The width of every layer that makes channels, in graph order.

    Args:
        report: a `filterprune.Report`.
        ax: the `matplotlib` axes to draw on. Defaults to `None`: new ones.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:

    ```python
    filterprune.prune(masked, sparsity=0.5)
    ax = filterprune.plots.widths(filterprune.analyze(masked))
    ax.figure.savefig("widths.png")
    ```
    """
    layers = [layer for layer in report.layers if layer.makes and layer.width]
    ax = _axes(ax, (min(max(0.2 * len(layers) + 2, 5), 16), 4))
    places = np.arange(len(layers))
    before = np.array([layer.width for layer in layers])
    after = np.array([layer.width_after for layer in layers])
    ax.bar(places, before, 0.8, color=LIGHT, label="as it is")
    ax.bar(places, after, 0.8, color=KEPT, label="compacted")
    if layers and before.max() > 16 * before.min():
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    names = [layer.name for layer in layers]
    ax.set_xticks(places, names, rotation=90, fontsize=8 if len(layers) < 40 else 6)
    ax.set_xlim(-0.7, len(layers) - 0.3)
    ax.set_ylabel("channels")
    ax.set_title(f"Widths in {report.model_name}", loc="left")
    return _finish(ax, "y")


def sparsity(history, ax=None):
    """The sparsity over a fit, and the fractions of a budget that are gone.

    Args:
        history: what `fit` returned, or a dict of lists such as its `history`
            or the columns that `keras.callbacks.CSVLogger` wrote.
        ax: the `matplotlib` axes to draw on. Defaults to `None`: new ones.

    Returns:
        The axes. They run over optimizer steps where `history` knows how many an
        epoch has, else over epochs.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `history` holds no `"sparsity"`.

    Example:

    ```python
    masked.compile("adam", "mse")
    callback = filterprune.FilterPruningCallback(
        filterprune.PolynomialDecay(final_sparsity=0.5), frequency=1)
    history = masked.fit(x, y, epochs=3, callbacks=[callback], verbose=0)
    filterprune.plots.sparsity(history)
    ```
    """
    logs = history if isinstance(history, Mapping) else history.history
    if "sparsity" not in logs:
        raise ValueError(
            "Expected a history with `sparsity`. Received one with "
            f"{sorted(logs)}. `fit(callbacks=[filterprune.FilterPruningCallback("
            "...)])` puts it there."
        )
    count = len(logs["sparsity"])
    epochs = np.asarray(getattr(history, "epoch", None) or range(count)) + 1
    steps = (getattr(history, "params", None) or {}).get("steps")
    ax = _axes(ax, (6, 3.6))
    names = ["sparsity", *(name for name in logs if name.endswith("_removed"))]
    for name, colour in zip(names, (GONE, KEPT, *SERIES)):
        label = "filters" if name == "sparsity" else name.removesuffix("_removed")
        label = "MACs" if label == "macs" else label
        values = np.asarray(logs[name], float)
        ax.plot(epochs * (steps or 1), values, "o-", ms=3, color=colour, label=label)
    ax.set_ylim(0, 1)
    ax.set_xlim(left=0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_xlabel("step" if steps else "epoch")
    ax.set_title("Removed while training", loc="left")
    return _finish(ax, "y")


def importance(
    masked,
    criterion: Scorer = "group",
    sparsity: float | None = None,
    ax=None,
    **limits,
):
    """How important the channels of each group are, and where the cut is.

    Args:
        masked: a masked model. It is not touched.
        criterion: how channels are scored, as in `filterprune.prune`.
            Defaults to `"group"`.
        sparsity: the fraction that would be closed, as in `filterprune.prune`.
            Defaults to `None`: the gates as they are.
        ax: the `matplotlib` axes to draw on. Defaults to `None`: new ones.
        **limits: `scope`, `min_filters`, `round_to`, `rounding`,
            `max_sparsity` and `overrides`, as in `filterprune.prune`.

    Returns:
        The axes: a histogram for each group, in graph order from the top.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the model has no gates or nothing in it can be pruned.

    Example:

    ```python
    filterprune.plots.importance(masked, sparsity=0.5, scope="layer")
    ```
    """
    selector = Selector(masked, criterion, Limits(**limits))
    closed = selector.closed() if sparsity is None else selector.select(sparsity)
    scores, slices = selector.scores(), selector.slots.slices
    ax = _axes(ax, (7, min(max(0.32 * len(slices) + 1.2, 2.5), 16)))
    edges = _bins(scores, ax)
    scores = np.clip(scores, edges[0], edges[-1])
    for number, part in enumerate(slices):
        base = len(slices) - 1 - number
        found, gone = scores[part], closed[part]
        counts = np.histogram(found, edges)[0]
        low = np.histogram(found[gone], edges)[0]
        scale = 0.85 / max(counts.max(), 1)
        labels = ("closed", "open") if number == 0 else (None, None)
        options = {"baseline": base, "fill": True, "lw": 0}
        ax.stairs(base + counts * scale, edges, color=KEPT, label=labels[1], **options)
        ax.stairs(base + low * scale, edges, color=GONE, label=labels[0], **options)
        ax.axhline(base, color=LIGHT, lw=0.6, zorder=0)
        if gone.any() and not gone.all() and found[gone].max() <= found[~gone].min():
            cut = (found[gone].max() + found[~gone].min()) / 2
            ax.plot([cut, cut], [base, base + 0.9], color=INK, lw=1.2)
    names = [group.name for group in selector.groups]
    small = 8 if len(names) < 40 else 5
    ax.set_yticks(np.arange(len(names))[::-1] + 0.4, names, fontsize=small)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.1, len(names))
    ax.set_xlabel("importance")
    ax.set_title(f"{closed.mean():.0%} of the channels closed", loc="left")
    return _finish(ax, None)


def _bins(scores, ax):
    """The edges of bins: on a log scale if a few scores are far above the others."""
    known = scores[scores > 0]
    if not known.size or (scores < 0).any() or known.max() < 10 * np.median(known):
        return np.histogram_bin_edges(scores, bins=80)
    ax.set_xscale("log")
    return np.geomspace(known.min(), known.max(), 81)


def sensitivity(result, metric="loss", ax=None):
    """The loss, or a metric, against the sparsity of each group by itself.

    Args:
        result: what `filterprune.sensitivity` returned.
        metric: which of its values to draw. Defaults to `"loss"`.
        ax: the `matplotlib` axes to draw on. Defaults to `None`: new ones.

    Returns:
        The axes: a line for each of up to eight groups, and for more a map with
        a row for each, in graph order from the top.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `result` has no such metric.

    Example:

    ```python
    result = filterprune.sensitivity(model, (x, y), verbose=0)
    filterprune.plots.sensitivity(result)
    ```
    """
    if metric not in result.values:
        raise ValueError(
            f"Expected `metric` to be one of {sorted(result.values)}. "
            f"Received: metric={metric!r}"
        )
    values, before = result.values[metric], result.baseline[metric]
    count = len(result.groups)
    if count > 8:
        return _map(result, metric, ax)
    ax = _axes(ax, (6, 4))
    for name, row, colour in zip(result.groups, values, _shades(count)):
        points = (0.0, *result.sparsities), (before, *row)
        ax.plot(*points, "o-", ms=3, color=colour, label=name)
    ax.axhline(before, color=INK, lw=0.8, ls=":")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_xlabel("closed channels of one group")
    ax.set_ylabel(metric)
    ax.set_title("Sensitivity of each group", loc="left")
    return _finish(ax, "both")


def _map(result, metric, ax):
    values, before = result.values[metric], result.baseline[metric]
    ax = _axes(ax, (6, min(0.2 * len(result.groups) + 1.5, 16)))
    rises = metric.endswith(("acc", "accuracy", "auc"))  # the better, the higher
    image = ax.pcolormesh(values, cmap="Oranges_r" if rises else "Oranges")
    bar = ax.figure.colorbar(image, ax=ax, label=metric)
    bar.ax.axhline(before, color=INK, lw=1.2)
    names = [f"{value:.0%}" for value in result.sparsities]
    ax.set_xticks(np.arange(len(names)) + 0.5, names)
    small = 8 if len(result.groups) < 40 else 5
    ax.set_yticks(np.arange(len(result.groups)) + 0.5, result.groups, fontsize=small)
    ax.invert_yaxis()
    ax.set_xlabel("closed channels of one group")
    ax.set_title(f"Sensitivity of each group, from {before:.3g}", loc="left")
    return ax


def tradeoff(series, dense=None, metric: str = "accuracy", ax=None):
    """Accuracy against multiply-accumulates: what pruning costs and gains.

    Args:
        series: a dict from names to lists of points `(macs, accuracy)`, or one
            such list. In place of `macs` may stand a `filterprune.Report`, which
            then counts compacted.
        dense: the point of the model before pruning. Defaults to `None`.
        metric: what the second number of a point is. Defaults to `"accuracy"`.
        ax: the `matplotlib` axes to draw on. Defaults to `None`: new ones.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:

    ```python
    filterprune.plots.tradeoff(
        {"l2": [(3e6, 0.91), (1e6, 0.88)], "Taylor": [(3e6, 0.92), (1e6, 0.9)]},
        dense=(5e6, 0.92),
    )
    ```
    """
    if not isinstance(series, Mapping):
        series = {"": series}
    ax = _axes(ax, (6, 4))
    lines = {name: sorted(map(_point, points)) for name, points in series.items()}
    for number, (name, points) in enumerate(lines.items()):
        style = {"color": SERIES[number % len(SERIES)], "label": name or None}
        ax.plot(*zip(*points), "o-", ms=4, **style)
    everything = [macs for points in lines.values() for macs, _ in points]
    if dense is not None:
        macs, accuracy = _point(dense)
        ax.plot(macs, accuracy, "*", ms=11, color=INK, label="dense")
        everything.append(macs)
    if everything and max(everything) > 8 * min(everything) > 0:
        ax.set_xscale("log")
    from matplotlib.ticker import EngFormatter

    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel("MACs of one sample")
    ax.set_ylabel(metric)
    ax.set_title(f"{metric.capitalize()} against cost", loc="left")
    return _finish(ax, "both")


def _point(point) -> tuple[float, float]:
    macs, value = point
    return float(macs.after.macs if isinstance(macs, Report) else macs), float(value)


def _shades(count: int):
    """Colours in an order that shows, from dark to light."""
    from matplotlib import colormaps

    return colormaps["plasma"](np.linspace(0.0, 0.85, max(count, 1)))


def _axes(ax, size):
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError(
            "Plots need matplotlib, which cannot be found. Install it with: "
            'pip install "filterprune[plot]"'
        ) from None
    if ax is None:
        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    return ax


def _finish(ax, grid):
    """The legend, if there is something to tell apart; quiet lines around."""
    ax.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        ax.grid(axis=grid, color=LIGHT, lw=0.6)
        ax.set_axisbelow(True)
    count = len(ax.get_legend_handles_labels()[1])
    if count > 1:
        beside = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": count}
        ax.legend(frameon=False, fontsize=8, **(beside if count == 2 else {}))
    return ax
