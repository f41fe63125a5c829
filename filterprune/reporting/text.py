"""A report as text: tables for a terminal."""

import io

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
    from rich.padding import Padding
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
        costs.add_row(escape(layer.name), *cells(layer))
    costs.add_section()
    costs.add_row("total", *cells(report))
    yield costs
    if report.uncounted:
        yield Padding(escape(not_counted(report)), (0, 2))


def words(group) -> str:
    """Whether a group can be pruned, and why what stays does."""
    text = "yes" if group.prunable else f"no: {group.reason}"
    return text + "".join(f"; some stay: {reason}" for reason in group.stays)


def change(old, new, arrow: str = " \u2192 ") -> str:
    """A figure, and what it becomes if that is something else."""
    return f"{old:,}" if old == new else f"{old:,}{arrow}{new:,}"


def cells(part, arrow: str = " \u2192 ") -> list[str]:
    """What a layer costs, or a whole report, each figure of `FIGURES`.

    Args:
        part: a `LayerReport` or a `Report`.
        arrow: what stands between a figure and what it becomes.
    """
    figures = [(getattr(part.before, n), getattr(part.after, n)) for n in FIGURES]
    texts = dict(zip(FIGURES, (change(*pair, arrow) for pair in figures), strict=True))
    if not getattr(part, "counted", True):
        texts["macs"] = "not counted"
    elif getattr(part, "uncounted", ()):
        texts["macs"] = f"at least {texts['macs']}"
    return list(texts.values())


def not_counted(report) -> str:
    """Whose MACs are not counted, in a sentence; empty if all are."""
    names = [f"`{name}`" for name in report.uncounted[:5]]
    more = len(report.uncounted) - len(names)
    listed = ", ".join(names) + (f" and {more} more" if more else "")
    return (
        f"MACs are not counted in {listed}: filterprune cannot look into "
        + ("this layer." if len(report.uncounted) == 1 else "these layers.")
        if names
        else ""
    )
