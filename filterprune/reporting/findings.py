"""From an analysis to the parts of a report."""

import math
from collections.abc import Collection

import numpy as np

from filterprune.channels.calls import Call
from filterprune.channels.edges import sources
from filterprune.channels.groups import Analysis
from filterprune.channels.labels import Channels
from filterprune.channels.survivors import Survivors
from filterprune.cost import Cost
from filterprune.reporting.parts import GroupReport, LayerReport, NodeReport


def group_parts(analysis: Analysis, dead: np.ndarray, stays) -> tuple[GroupReport, ...]:
    """A `GroupReport` for each group, in graph order."""
    return tuple(
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


def node_parts(
    analysis: Analysis, survivors: Survivors, groups: tuple[GroupReport, ...]
) -> tuple[NodeReport, ...]:
    """A `NodeReport` for each input and each call, in graph order."""
    flow = analysis.flow
    graph = flow.graphs[id(flow.model)]
    owners = {gate.path: gate.call.path for gate in analysis.makers}
    reasons: dict[str, str | None] = {}
    for group in groups:  # of a layer in several groups: only if all are fixed
        for path in (owners[path] for path in group.layers):
            if reasons.setdefault(path, group.reason) is not None:
                reasons[path] = group.reason
    count = len(graph.inputs)
    nodes = [
        NodeReport(name, "InputLayer", (), tuple(tensor.shape), tuple(tensor.shape))
        for name, tensor in zip(graph.input_names, graph.inputs, strict=True)
    ]
    for call, read in zip(flow.calls, sources(flow), strict=True):
        made = flow.tensors[id(call.node.outputs[0])]
        barrier = flow.barriers.get(call.path)
        inputs = tuple(count + i if i >= 0 else -1 - i for i in read)
        width, width_after = _widths(call, made, survivors)
        nodes.append(
            NodeReport(
                call.path,
                type(call.op).__name__,
                inputs,
                made.shape,
                survivors.shape(made),
                width,
                width_after,
                call.makes,
                barrier or reasons.get(call.path),
                barrier is not None,
            )
        )
    return tuple(nodes)


def layer_parts(
    nodes: tuple[NodeReport, ...],
    before: dict[str, Cost],
    after: dict[str, Cost],
    uncounted: Collection[str],
) -> tuple[LayerReport, ...]:
    """A `LayerReport` for each layer with weights, in graph order."""
    first = {node.name: node for node in reversed(nodes)}
    return tuple(
        LayerReport(
            name,
            before[name],
            after[name],
            first[name].kind,
            first[name].width,
            first[name].width_after,
            first[name].makes,
            name not in uncounted,
        )
        for name in before
    )


def _widths(call: Call, made: Channels, survivors: Survivors):
    """The channels of a tensor, and how many survive; `None` for unknown."""
    sizes = made.labels.shape
    axis = max(range(len(sizes)), key=lambda i: (sizes[i], i), default=0)
    if call.gate is not None:
        axis = call.gate.places[0].axis
    if math.prod(sizes) == 1 and call.gate is None:
        return None, None
    return made.shape[axis], survivors.shape(made)[axis]
