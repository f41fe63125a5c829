"""Who reads whom: the edges between the calls of a model, from its analysis."""

from filterprune.channels.calls import Flow
from filterprune.channels.trace import model_in


def sources(flow: Flow) -> list[tuple[int, ...]]:
    """For each call the calls whose outputs it reads.

    Nested models are seen through, as they are in `flow.calls`.

    Args:
        flow: the channel flow of a model.

    Returns:
        For each of `flow.calls`, in order, the numbers of the calls that made
        its tensors, each once. What comes from the model's input number `i` is
        `-1 - i`.
    """
    found: list[tuple[int, ...]] = [()] * len(flow.calls)
    position = iter(range(len(flow.calls)))
    called = {id(call.node) for call in flow.calls}

    def visit(graph, given):
        known = dict(zip(map(id, graph.inputs), given, strict=True))
        for node in graph.nodes:
            read = [known[id(tensor)] for tensor in node.inputs]
            inner = flow.graphs.get(id(node.op))
            if inner is None and id(node) not in called:  # a wrapper of a model
                inner, read = flow.graphs[id(model_in(node.op))], read[:1]
            if inner is not None and len(inner.inputs) == len(read):
                made = visit(inner, read)
            else:
                number = next(i for i in position if flow.calls[i].node is node)
                found[number] = tuple(dict.fromkeys(read))
                made = [number] * len(node.outputs)
            known |= zip(map(id, node.outputs), made, strict=True)
        return [known[id(tensor)] for tensor in graph.outputs]

    outer = flow.graphs[id(flow.model)]
    visit(outer, [-1 - i for i in range(len(outer.inputs))])
    return found
