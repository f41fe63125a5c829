"""A report as plain data: nested for JSON, flat for a data frame."""

import dataclasses
from typing import Any

from filterprune.cost import Cost
from filterprune.reporting.parts import removed
from filterprune.reporting.text import FIGURES


def to_dict(report) -> dict[str, Any]:
    """A report in dicts, lists, strings and numbers."""
    return {
        "model": report.model_name,
        "masked": report.masked,
        "before": dataclasses.asdict(report.before),
        "after": dataclasses.asdict(report.after),
        "groups": [
            {**_plain(group), "prunable": group.prunable} for group in report.groups
        ],
        "layers": [_plain(layer) for layer in report.layers],
        "nodes": [_plain(node) for node in report.nodes],
        "barriers": list(report.barriers),
        "uncounted": list(report.uncounted),
    }


def to_rows(report) -> list[dict[str, Any]]:
    """A flat dict for each layer, all with the same keys."""
    return [_row(report, layer) for layer in report.layers]


def _row(report, layer) -> dict[str, Any]:
    groups = [group for group in report.groups if _is_of(group, layer.name)]
    fixed = [group.reason for group in groups if not group.prunable]
    stays = [reason for group in groups for reason in group.stays]
    row = {
        "layer": layer.name,
        "kind": layer.kind,
        "makes": layer.makes,
        "prunable": len(fixed) < len(groups) if groups else None,
        "reason": "; ".join(dict.fromkeys([*fixed, *stays])) or None,
        "width": layer.width,
        "width_after": layer.width_after,
        "removed": removed(layer.width, layer.width_after),
    }
    for figure in FIGURES:
        row |= _figures(figure, layer.before, layer.after)
    if not layer.counted:
        row |= {"macs": None, "macs_after": None}
    return row


def _is_of(group, name: str) -> bool:
    """Whether a layer makes channels of a group, such as its heads."""
    return any(path == name or path.startswith(f"{name}/") for path in group.layers)


def _figures(name: str, before: Cost, after: Cost) -> dict[str, int]:
    return {name: getattr(before, name), f"{name}_after": getattr(after, name)}


def _plain(part) -> dict[str, Any]:
    """A part of a report with lists for its tuples."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(part).items()
    }
