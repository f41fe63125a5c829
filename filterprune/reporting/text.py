"""A report as text: tables for a terminal."""

import io

from filterprune.cost import Cost

FIGURES = ("params", "macs", "bytes")


def render(report, width: int) -> str:
    """The tables of a report, no line longer than `width`."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_jupyter=False)
    for table in tables(report):
        console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def tables(report):
    """The tables of a report, for `rich`: groups, what is not understood, cost."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    groups = Table(
        title=escape(f"Groups of channels in '{report.model_name}'"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    groups.add_column("layers", overflow="fold")
    groups.add_column("kind")
    groups.add_column("size", justify="right")
    groups.add_column("alive", justify="right")
    groups.add_column("prunable", overflow="fold")
    for group in report.groups:
        groups.add_row(
            escape(group.name),
            group.kind,
            str(group.size),
            str(group.alive),
            escape(words(group)),
        )
    yield groups
    if report.barriers:
        barriers = Table(title="Not understood", box=box.SIMPLE_HEAD)
        barriers.title_justify = "left"
        barriers.add_column("what, and why", overflow="fold")
        for barrier in report.barriers:
            barriers.add_row(escape(barrier))
        yield barriers
    costs = Table(title="Cost", box=box.SIMPLE_HEAD, title_justify="left")
    costs.add_column("layer", overflow="fold")
    for name in ("params", "MACs", "bytes"):
        costs.add_column(name, justify="right", no_wrap=True)
    for layer in report.layers:
        costs.add_row(escape(layer.name), *_cells(layer.before, layer.after))
    costs.add_section()
    costs.add_row("total", *_cells(report.before, report.after))
    yield costs


def words(group) -> str:
    """Whether a group can be pruned, and why what stays does."""
    text = "yes" if group.prunable else f"no: {group.reason}"
    return text + "".join(f"; some stay: {reason}" for reason in group.stays)


def change(old, new) -> str:
    """A figure, and what it becomes if that is something else."""
    return f"{old:,}" if old == new else f"{old:,} \u2192 {new:,}"


def _cells(before: Cost, after: Cost) -> list[str]:
    return [change(getattr(before, name), getattr(after, name)) for name in FIGURES]
