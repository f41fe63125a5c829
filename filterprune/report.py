"""The report: what can be pruned, what cannot and why, and what it costs."""

import dataclasses
import io

import numpy as np

from filterprune.channels.groups import Analysis, study
from filterprune.channels.trace import check_model
from filterprune.cost import Cost, layer_costs, total
from filterprune.expansion import expand


@dataclasses.dataclass(frozen=True)
class GroupReport:
    """One group: layers whose channels are kept or removed together.

    Attributes:
        name: the first layer's path, and how many more there are.
        layers: the paths of all layers that make the channels.
        size: how many channels each of them has in this group.
        alive: how many of those survive.
        filters: how many filters the group has over all its layers.
        reason: why nothing in it can be pruned; `None` if it can.
        kind: what sort of channels they are, such as `"heads"`; see
            `filterprune.prune`.
        stays: why closed channels stay nonetheless, each reason once.
    """

    name: str
    layers: tuple[str, ...]
    size: int
    alive: int
    filters: int
    reason: str | None
    stays: tuple[str, ...] = ()
    kind: str = "channels"

    @property
    def prunable(self) -> bool:
        """Whether channels of the group can be removed."""
        return self.reason is None


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer with weights.

    Attributes:
        name: the layer's path.
        before, after: what it costs as it is, and compacted.
    """

    name: str
    before: Cost
    after: Cost


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
    """

    model_name: str
    masked: bool
    groups: tuple[GroupReport, ...]
    layers: tuple[LayerReport, ...]
    barriers: tuple[str, ...]
    before: Cost
    after: Cost

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
        from rich.console import Console

        stream = io.StringIO()
        console = Console(file=stream, width=width, color_system=None)
        for table in self._tables():
            console.print(table)
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

    def __str__(self) -> str:
        return self.render()

    def _tables(self):
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        groups = Table(
            title=escape(f"Groups of channels in '{self.model_name}'"),
            box=box.SIMPLE_HEAD,
            title_justify="left",
        )
        groups.add_column("layers", overflow="fold")
        groups.add_column("kind")
        groups.add_column("size", justify="right")
        groups.add_column("alive", justify="right")
        groups.add_column("prunable", overflow="fold")
        for group in self.groups:
            words = "yes" if group.prunable else f"no: {group.reason}"
            words += "".join(f"; some stay: {reason}" for reason in group.stays)
            groups.add_row(
                escape(group.name),
                group.kind,
                str(group.size),
                str(group.alive),
                escape(words),
            )
        yield groups
        if self.barriers:
            barriers = Table(title="Not understood", box=box.SIMPLE_HEAD)
            barriers.title_justify = "left"
            barriers.add_column("what, and why", overflow="fold")
            for barrier in self.barriers:
                barriers.add_row(escape(barrier))
            yield barriers
        costs = Table(title="Cost", box=box.SIMPLE_HEAD, title_justify="left")
        costs.add_column("layer", overflow="fold")
        for name in ("params", "MACs", "bytes"):
            costs.add_column(name, justify="right", no_wrap=True)
        for layer in self.layers:
            costs.add_row(escape(layer.name), *_cells(layer.before, layer.after))
        costs.add_section()
        costs.add_row("total", *_cells(self.before, self.after))
        yield costs


def _cells(before: Cost, after: Cost) -> list[str]:
    """Each figure, and what it becomes if that is something else."""
    cells = []
    for name in ("params", "macs", "bytes"):
        old, new = getattr(before, name), getattr(after, name)
        cells.append(f"{old:,}" if old == new else f"{old:,} \u2192 {new:,}")
    return cells


def analyze(model) -> Report:
    """Find out what of a model can be pruned, what cannot, and what it costs.

    Args:
        model: a built functional or sequential Keras model. If it has gates,
            "after" means compacted with the gates as they are; if it has none,
            the report says what `filterprune.wrap_model` would make prunable.

    Returns:
        A `Report`.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if `model` is subclassed or not built.

    Example:

    ```python
    report = filterprune.analyze(model)
    print(report)
    for group in report.fixed:
        print(group.name, group.reason)
    ```
    """
    check_model(model)
    return report_on(study(expand(model)))


def report_on(analysis: Analysis) -> Report:
    """The report on an analysis that was made already."""
    dead, _, stays = analysis.decide()
    everything = analysis.survivors(np.zeros_like(dead))
    before = layer_costs(analysis, everything)
    after = layer_costs(analysis, analysis.survivors(dead))
    groups = tuple(
        GroupReport(
            group.name,
            group.layers,
            group.size,
            int((~dead[group.roots]).sum()),
            int(group.filters.sum()),
            group.reason,
            tuple(
                sorted({stays[root] for root in group.roots.tolist() if root in stays})
            ),
            group.kind,
        )
        for group in analysis.groups
    )
    return Report(
        analysis.model.name,
        bool(analysis.masks),
        groups,
        tuple(LayerReport(name, before[name], after[name]) for name in before),
        tuple(analysis.flow.barriers.values()),
        total(before),
        total(after),
    )
