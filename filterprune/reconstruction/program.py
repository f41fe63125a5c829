"""A model as a list of calls, nested models laid open, to run it one by one."""

import dataclasses
from typing import Any

import keras

from filterprune.channels.trace import Graph, is_graph, is_layer, takes_training, trace
from filterprune.running import undisturbed


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One call of one layer or operation.

    Attributes:
        op: the layer or operation.
        path: its path: its name, behind those of the models it is nested in.
        node: the call in its graph.
        tensors: the symbolic tensors that it is called with, without masks that Keras
            lets come along.
        inputs: the key of each of them.
        outputs: the key of each tensor that it makes.
    """

    op: Any
    path: str
    node: Any
    tensors: tuple
    inputs: tuple
    outputs: tuple


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The calls of a model in order.

    Attributes:
        steps: the calls.
        inputs: the keys of the model's inputs.
        outputs: those of its outputs.
        last: for each key the number of the last step that reads it.
    """

    steps: tuple[Step, ...]
    inputs: tuple
    outputs: tuple
    last: dict


def program_of(model) -> Program:
    """The calls of a functional or sequential model, in the order of its graph."""
    graph = trace(model)
    keys = {id(tensor): ("", id(tensor)) for tensor in graph.inputs}
    steps: list[Step] = []
    outputs = _lay_open(graph, keys, "", steps)
    steps = _shared_together(steps, {keys[id(t)] for t in graph.inputs})
    last = {key: number for number, step in enumerate(steps) for key in step.inputs}
    last |= dict.fromkeys(outputs, len(steps))
    return Program(
        tuple(steps), tuple(keys[id(t)] for t in graph.inputs), outputs, last
    )


def _lay_open(graph: Graph, keys: dict, prefix: str, steps: list[Step]) -> tuple:
    """Add the calls of a graph; the keys of its outputs."""
    for node in graph.nodes:
        given = tuple(tensor for tensor in node.inputs if id(tensor) in keys)
        own = tuple(keys[id(tensor)] for tensor in given)
        path = prefix + node.op.name
        inner = trace(node.op) if is_graph(node.op) else None
        if inner is not None and len(inner.inputs) == len(own):
            known = dict(zip(map(id, inner.inputs), own, strict=True))
            made = _lay_open(inner, known, f"{path}/", steps)
        else:
            # A nested model called twice has the same tensors both times.
            made = tuple((len(steps), id(tensor)) for tensor in node.outputs)
            steps.append(Step(node.op, path, node, given, own, made))
        keys |= dict(zip(map(id, node.outputs), made, strict=True))
    return tuple(keys[id(tensor)] for tensor in graph.outputs)


def _shared_together(steps: list[Step], known: set) -> list[Step]:
    """The calls in an order in which those of a shared layer follow each other.

    They cannot where a layer reads what it gives itself.
    """
    by_op: dict[int, list[Step]] = {}
    for number, step in enumerate(steps):
        shared = getattr(step.op, "weights", ())
        by_op.setdefault(id(step.op) if shared else number, []).append(step)
    units, found = list(by_op.values()), []
    while units:
        left = []
        for unit in units:
            if all(known.issuperset(step.inputs) for step in unit):
                found += unit
                known |= {key for step in unit for key in step.outputs}
            else:
                left.append(unit)
        if len(left) == len(units):
            left = [[step] for unit in units for step in unit]
        units = left
    return found


def run_step(step: Step, values: dict, weights: dict[int, Any]) -> list:
    """The outputs of one call in inference mode; no variable changes.

    Args:
        step: the call.
        values: for the key of each of its tensors the value.
        weights: values to use instead of those that variables have, by their id.
    """
    known = {
        id(tensor): values[key]
        for tensor, key in zip(step.tensors, step.inputs, strict=True)
    }

    def switch(value):
        # A mask that comes along with a tensor has no value of its own.
        return known.get(id(value)) if isinstance(value, keras.KerasTensor) else value

    args, kwargs = keras.tree.map_structure(switch, (step.node.args, step.node.kwargs))
    if is_layer(step.op):
        kwargs = {k: v for k, v in kwargs.items() if k != "training" and v is not None}
        if takes_training(step.op):
            kwargs["training"] = False
    own = [
        (variable, keras.ops.convert_to_tensor(weights[id(variable)], variable.dtype))
        for variable in getattr(step.op, "variables", ())
        if id(variable) in weights
    ]
    with undisturbed(step.op, values=own):
        return keras.tree.flatten(step.op(*args, **kwargs))
