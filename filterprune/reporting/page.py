"""A report as HTML: one page that needs no other file, and tables for notebooks."""

import importlib.resources
import string
from html import escape

from filterprune.reporting.drawing import draw
from filterprune.reporting.parts import removed
from filterprune.reporting.text import FIGURES, cells, change, not_counted

UNITS = {"params": "parameters", "macs": "MACs", "bytes": "bytes"}


def render(report) -> str:
    """The whole page: totals, graph, layers, groups, what is not understood."""
    folder = importlib.resources.files("filterprune.reporting")
    template = folder.joinpath("page.html").read_text(encoding="utf-8")
    barriers = ""
    if report.barriers:
        barriers = (
            f"<section>\n<h2>Not understood</h2>\n{_barriers(report)}\n</section>"
        )
    return string.Template(template).substitute(
        title=escape(f"Pruning of {report.model_name}"),
        lead=_lead(report),
        cards="\n".join(_cards(report)),
        graph=draw(report.nodes),
        layers=_layers(report, sortable=True) + _note(report),
        groups=_groups(report),
        barriers=barriers,
    )


def tables(report) -> str:
    """Totals, groups and layers as plain tables: what a notebook shows."""
    parts = [
        f"<p><b>{escape(report.model_name)}</b>: {_lead(report)}</p>",
        f"<p>{'; '.join(_totals(report))}</p>",
        _note(report),
        f"<details open><summary>Groups</summary>{_groups(report)}</details>",
        f"<details><summary>Layers</summary>{_layers(report)}</details>",
    ]
    if report.barriers:
        parts.append(f"<p>Not understood:</p>{_barriers(report)}")
    return f"<div>{''.join(parts)}</div>"


def _lead(report) -> str:
    if report.masked:
        return "As it is \u2192 compacted with the gates as they are."
    return "Without gates. This is what <code>wrap_model</code> would let go of."


def _totals(report) -> list[str]:
    texts = zip(cells(report), UNITS.values(), strict=True)
    return [f"{text} {unit}" for text, unit in texts]


def _note(report) -> str:
    """Whose MACs are not counted, as a paragraph; empty if all are."""
    return f"<p>{escape(not_counted(report))}</p>" if report.uncounted else ""


def _cards(report):
    for name, unit in UNITS.items():
        old, new = getattr(report.before, name), getattr(report.after, name)
        large = f"{old / new:.2f}\u00d7 fewer" if 0 < new < old else f"{old:,}"
        small = f"{unit}: {change(old, new)}" if new < old else unit
        if name == "macs" and report.uncounted:
            small += ", not all are counted"
        yield _card(large, small)
    size = sum(group.filters for group in report.prunable)
    alive = sum(group.filters * group.alive // group.size for group in report.prunable)
    yield _card(f"{removed(size, alive):.1%}", f"of {size:,} prunable filters removed")
    fixed = len(report.fixed)
    text = f"of {len(report.groups)} groups can be pruned"
    yield _card(str(len(report.groups) - fixed), text)


def _card(large: str, small: str) -> str:
    return f'<div class="card"><b>{escape(large)}</b><span>{escape(small)}</span></div>'


def _layers(report, sortable: bool = False) -> str:
    heads = [("layer", ""), ("kind", "wide"), ("width", "n"), ("removed", "n")]
    heads += [("params", "n"), ("MACs", "n wide"), ("bytes", "n wide")]
    rows = []
    for layer in report.layers:
        gone = removed(layer.width, layer.width_after)
        width = "" if layer.width is None else change(layer.width, layer.width_after)
        row = [
            _cell(layer.name, "name"),
            _cell(layer.kind, "wide"),
            _cell(width, "n", layer.width or 0),
            _cell(f"{gone:.0%}" if gone else "", "n bar", gone),
        ]
        costs = zip(FIGURES, cells(layer), ("n", "n wide", "n wide"), strict=True)
        for name, text, style in costs:
            row.append(_cell(text, style, getattr(layer.before, name)))
        rows.append(f"<tr>{''.join(row)}</tr>")
    return _table(heads, rows, sortable)


def _groups(report) -> str:
    heads = [
        ("layers", ""),
        ("kind", ""),
        ("kept", "n"),
        ("removed", "n"),
        ("what stays, and why", ""),
    ]
    rows = []
    for group in report.groups:
        gone = removed(group.size, group.alive)
        why = "; ".join([group.reason or "", *group.stays]).strip("; ")
        rows.append(
            f"<tr>{_names(group.layers)}"
            + _cell(group.kind, "")
            + _cell(f"{group.alive:,} of {group.size:,}", "n")
            + _cell(f"{gone:.0%}" if gone else "", "n bar", gone)
            + _cell(why, "name")
            + "</tr>"
        )
    return _table(heads, rows)


def _names(layers) -> str:
    """The layers of a group; of many the first, and the others on demand."""
    if len(layers) == 1:
        return _cell(layers[0], "name")
    rest = "<br>".join(escape(name) for name in layers[1:])
    summary = f"{escape(layers[0])} (+{len(layers) - 1})"
    return (
        f'<td class="name"><details><summary>{summary}</summary>{rest}</details></td>'
    )


def _barriers(report) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in report.barriers)}</ul>"


def _table(heads, rows, sortable: bool = False) -> str:
    cells = []
    for text, style in heads:
        kind = f' class="{style}"' if style else ""
        inner = escape(text)
        if sortable:
            kind += ' aria-sort="none"'
            inner = f'<button type="button">{inner}</button>'
        cells.append(f'<th scope="col"{kind}>{inner}</th>')
    name = ' class="sortable"' if sortable else ""
    head = f"<thead><tr>{''.join(cells)}</tr></thead>"
    return f"<table{name}>{head}<tbody>{''.join(rows)}</tbody></table>"


def _cell(text: str, style: str, value: float | None = None) -> str:
    """A cell with what it is sorted by, and for a fraction a bar so long."""
    part = f' style="--part: {value:.1%}"' if "bar" in style and value else ""
    key = escape(text if value is None else f"{value:g}")
    return f'<td class="{style}" data-v="{key}"{part}>{escape(text)}</td>'
