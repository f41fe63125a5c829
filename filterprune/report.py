"""The report: what can be pruned, what cannot and why, and what it costs."""

import dataclasses
import json
from typing import Any

import numpy as np

from filterprune.channels.groups import Analysis, study
from filterprune.cost import Cost, layer_costs, total, uncounted
from filterprune.expansion import expand_but
from filterprune.reporting import findings, page, records, text
from filterprune.reporting.parts import GroupReport, LayerReport, NodeReport
from filterprune.subclassed import as_functional


@dataclasses.dataclass(frozen=True)
class Report:
    """What `filterprune.analyze` found. `print(report)` shows it as tables.

    Attributes:
        model_name: the model's name.
        masked: whether the model has gates.
        groups: a `GroupReport` for each group, in graph order.
        layers: a `LayerReport` for each layer with weights, in graph order.
        barriers: what could not be understood, and why, in words.
        before, after: the `Cost` of the model as it is, and compacted.
        nodes: a `NodeReport` for each input and each call of a layer or an
            operation, in graph order: the graph, nested models seen through.
        uncounted: the paths of layers that cannot be looked into. Their MACs are
            not in `before` and `after`.
    """

    model_name: str
    masked: bool
    groups: tuple[GroupReport, ...]
    layers: tuple[LayerReport, ...]
    barriers: tuple[str, ...]
    before: Cost
    after: Cost
    nodes: tuple[NodeReport, ...] = ()
    uncounted: tuple[str, ...] = ()

    @property
    def prunable(self) -> tuple[GroupReport, ...]:
        """The groups that can be pruned."""
        return tuple(group for group in self.groups if group.prunable)

    @property
    def fixed(self) -> tuple[GroupReport, ...]:
        """The groups that must stay, each with its reason."""
        return tuple(group for group in self.groups if not group.prunable)

    def render(self, width: int = 100) -> str:
        """The report as text.

        Args:
            width: how many characters a line has at most. Defaults to 100.
        """
        return text.render(self, width)

    def __str__(self) -> str:
        return self.render()

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers, for JSON.

        Returns:
            A dict with `model`, `masked`, `before`, `after`, `groups`, `layers`,
            `nodes`, `barriers` and `uncounted`, as the attributes of `Report`.
        """
        return records.to_dict(self)

    def to_json(self, indent: int | None = None) -> str:
        """The report as JSON.

        Args:
            indent: by how many spaces to indent, as in `json.dumps`. Defaults to
                `None`: everything on one line.

        Returns:
            What `to_dict()` gives, as a string.
        """
        return json.dumps(self.to_dict(), indent=indent)

    def rows(self) -> list[dict[str, Any]]:
        """The layers as flat records, for `pandas.DataFrame(report.rows())`.

        Returns:
            For each layer with weights, in graph order, a dict with the keys
            `layer`, `kind`, `makes` (whether it makes channels), `prunable`
            (`None` where it makes none), `reason` (why something in it stays,
            or `None`), `width`, `width_after`, `removed` (a fraction of the
            width), `params`, `params_after`, `macs`, `macs_after` (`None` where
            they are not counted), `bytes` and `bytes_after`.
        """
        return records.to_rows(self)

    def to_html(self) -> str:
        """The report as one page of HTML that needs no other file.

        It has the totals, the graph drawn and coloured by what is removed, the
        layers as a table that can be sorted, and the groups with the reasons
        for what stays. It follows the light or dark scheme of the reader.

        Returns:
            The page.

        Example:

        ```python
        import pathlib

        page = filterprune.analyze(masked).to_html()
        pathlib.Path("report.html").write_text(page, encoding="utf-8")
        ```
        """
        return page.render(self)

    def _repr_html_(self) -> str:
        return page.tables(self)

    def plot(self, ax=None):
        """Plot the width of every layer, as it is and compacted.

        Args:
            ax: the `matplotlib` axes to draw on. Defaults to `None`: new ones.

        Returns:
            The axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        from filterprune import plots

        return plots.widths(self, ax=ax)


def analyze(model) -> Report:
    """Find out what of a model can be pruned, what cannot, and what it costs.

    Args:
        model: a built Keras model; a subclassed one is traced. If it has gates, "after"
            means compacted with the gates as they are; if it has none, the report says
            what `filterprune.wrap_model` would make prunable.

    Returns:
        A `Report`.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if `model` is not built, or subclassed and cannot be traced.

    Example:

    ```python
    report = filterprune.analyze(model)
    print(report)
    for group in report.fixed:
        print(group.name, group.reason)
    ```
    """
    model = as_functional(model, tell=False)
    return report_on(study(expand_but(model, lambda layer: False)[0]))


def report_on(analysis: Analysis) -> Report:
    """The report on an analysis that was made already."""
    dead, _, stays = analysis.decide()
    survivors = analysis.survivors(dead)
    before = layer_costs(analysis, analysis.survivors(np.zeros_like(dead)))
    after = layer_costs(analysis, survivors)
    groups = findings.group_parts(analysis, dead, stays)
    nodes = findings.node_parts(analysis, survivors, groups)
    unknown = uncounted(analysis)
    return Report(
        analysis.model.name,
        bool(analysis.masks),
        groups,
        findings.layer_parts(nodes, before, after, unknown),
        tuple(analysis.flow.barriers.values()),
        total(before),
        total(after),
        nodes,
        unknown,
    )
