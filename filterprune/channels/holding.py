"""Layers that hold other layers and call them: the rules of those speak for them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from filterprune.channels import registry
from filterprune.channels.calls import (
    Ambiguous,
    Binding,
    Call,
    Gate,
    Place,
    calling,
    current,
    describe,
)
from filterprune.channels.flow import apply_rule, leave_out, put_back
from filterprune.channels.labels import Channels
from filterprune.channels.trace import Node, takes_training


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """What was found of a call of a held layer.

    Attributes:
        layer: the layer.
        channels: the `Channels` of its outputs.
        gates: its gates, with weights named from the holder.
        reads: the weights that read its first input, and their axes.
        sizes: the entries of its config that count channels; `None` if nothing is
            ever removed from it.
    """

    layer: Any
    channels: list[Channels]
    gates: list[Gate]
    reads: list[tuple[str, int]]
    sizes: dict[str, Callable] | None

    def config(self, survivors) -> dict:
        """The layer's config, as an entry of its holder's, with other sizes."""
        spec = keras.saving.serialize_keras_object(self.layer)
        sizes = self.sizes or {}
        changes = {key: count(survivors) for key, count in sizes.items()}
        spec.pop("build_config", None)  # it is to be built for fewer channels
        return {**spec, "config": {**spec["config"], **changes}}


def enter(
    layer,
    args: tuple,
    outputs: Sequence[tuple],
    name: str,
    rule: Callable | None = None,
    times: int = 1,
) -> Held:
    """Run the rule of a layer that the current one holds.

    What it says of weights is said of the holder: its `kernel` is the holder's
    `layer.kernel`. Gates and config are left to the holder's own rule.

    Args:
        layer: the held layer.
        args: the `Channels` that it is called with, nested as they are passed.
        outputs: the shapes of what it gives.
        name: the path of the layer in its holder.
        rule: its rule; defaults to the one of its type.
        times: how many times it is called for one sample.
    """
    outer = current()
    known = registry.known_type(type(layer)) is type(layer)
    if rule is None and not (known and registry.layer_rule(type(layer))):
        raise Ambiguous(f"it holds {describe(layer)}, for which no rule is known")
    flow = outer.flow
    inner = Call(flow, layer, None, _node(layer, args, outputs), outer.path, ())
    inner.inputs = tuple(x for x in keras.tree.flatten(args) if _is_channels(x))
    inner.holder = outer
    inner.training = outer.training and takes_training(layer)
    mark = len(flow.steps)
    try:
        with calling(inner):
            made = apply_rule(inner, rule)
    except Exception:
        del flow.steps[mark:]
        raise
    finally:
        binding = flow.bindings.pop(id(layer), None)
    for step in flow.steps[mark:]:
        step.call = outer
    if binding is not None:
        _adopt(outer, name, binding)
    outer.products += [
        (f"{name}.{what}" if isinstance(what, str) else what, n * times)
        for what, n in inner.products
    ]
    outer.loops += [
        dataclasses.replace(found, path=f"{name}.{found.path}".rstrip("."))
        for found in inner.loops
    ]
    reads = [(f"{name}.{weight}", axis) for weight, axis in inner.reads]
    gates = [_renamed(gate, name) for gate in inner.gates]
    return Held(layer, made, gates, reads, binding.config if binding else None)


def _is_channels(value) -> bool:
    return isinstance(value, Channels)


def _node(layer, args, outputs) -> Node:
    """A call of a layer as if it stood in the graph."""
    dtype = current().node.inputs[0].dtype

    def symbol(value):
        return keras.KerasTensor(value.shape, dtype) if _is_channels(value) else value

    args = keras.tree.map_structure(symbol, args)
    flat = [x for x in keras.tree.flatten(args) if isinstance(x, keras.KerasTensor)]
    made = tuple(keras.KerasTensor(shape) for shape in outputs)
    return Node(layer, tuple(args), {}, tuple(flat), made)


def _adopt(outer: Call, name: str, binding: Binding) -> None:
    """What was bound for the held layer is bound for its holder."""
    for weight, axes in binding.axes.items():
        outer.flow.bind(outer, f"{name}.{weight}", axes)
    outer.flow.binding(outer).arguments.update(binding.arguments)


def _renamed(gate: Gate, name: str) -> Gate:
    """The gate of a held layer, with its weights named from the holder."""
    return dataclasses.replace(
        gate,
        weights={f"{name}.{part}": numbers for part, numbers in gate.weights.items()},
        makers={f"{name}.{part}": axis for part, axis in gate.makers.items()},
    )


def hold(x: Channels, name: str = "layer", without: int | None = None) -> Channels:
    """The layer holds another one, and does to channels what that one does.

    The rule of the held layer is run, and what it says of weights, config and
    gates is said of the holder: its `kernel` is the holder's `layer.kernel`.

    Args:
        x: the `Channels` read.
        name: the attribute, and the config entry, of the held layer.
        without: an axis of the input that the held layer does not see, such
            as that of time.

    Returns:
        The `Channels` of the output.
    """
    outer = current()
    layer = getattr(outer.op, name)
    if getattr(layer, "stateful", False):
        raise Ambiguous(f"it holds {describe(layer)}, which keeps its state")
    own = {id(w) for w in outer.op.weights} - {id(w) for w in layer.weights}
    if outer.training and own:
        raise Ambiguous(f"it changes {describe(layer)} whenever it is called")
    seen, times = x, 1
    if without is not None:
        seen, times = leave_out(x, without), x.shape[without] or 1
    taken = keras.KerasTensor(seen.shape, dtype=outer.node.inputs[0].dtype)
    given = keras.tree.flatten(layer.compute_output_spec(taken))
    held = enter(layer, (seen,), [y.shape for y in given], name, times=times)
    if held.sizes is not None:
        outer.flow.binding(outer).config[name] = held.config
    (made,) = held.channels
    outer.gates[:] = held.gates
    if any(gate.seen for gate in held.gates):
        raise Ambiguous(f"it holds {describe(layer)}, which has channels inside")
    if without is not None:
        made = put_back(made, without, outer.outputs[0])
        outer.gates[:] = [_lifted(gate, without) for gate in held.gates]
    mask, gate = outer.mask, outer.gate
    axis = None if mask is None else mask.gated_axis
    if gate is not None and axis not in (None, gate.axis):
        raise Ambiguous("its gates run along another axis than its channels")
    return made


def shifted(place: Place, axis: int) -> Place:
    """A place in an output that got another axis."""
    return dataclasses.replace(place, axis=place.axis + (place.axis >= axis))


def _lifted(gate: Gate, axis: int) -> Gate:
    """The gate of a held layer that does not see an axis, as that of its holder."""
    outputs = tuple(shifted(place, axis) for place in gate.outputs)
    if gate.labels.ndim == 1:  # one for each gate, wherever that acts
        return dataclasses.replace(gate, outputs=outputs)
    labels = np.expand_dims(gate.labels, axis)
    gated = gate.axis + (gate.axis >= axis)
    return dataclasses.replace(gate, labels=labels, axis=gated, outputs=outputs)
