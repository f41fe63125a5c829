"""Layers that hold one other layer and call it: its rule speaks for them."""

import dataclasses

import keras
import numpy as np

from filterprune.channels import registry
from filterprune.channels.flow import (
    Ambiguous,
    Call,
    Gate,
    apply_rule,
    calling,
    current,
    describe,
)
from filterprune.channels.labels import Channels, fit
from filterprune.channels.trace import Node, takes_training


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
    known = registry.known_type(type(layer)) is type(layer)
    if not known or registry.layer_rule(type(layer)) is None:
        raise Ambiguous(f"it holds {describe(layer)}, for which no rule is known")
    own = {id(w) for w in outer.op.weights} - {id(w) for w in layer.weights}
    if outer.training and own:
        raise Ambiguous(f"it changes {describe(layer)} whenever it is called")
    flow = outer.flow
    seen = _without(x, without)
    taken = keras.KerasTensor(seen.shape, dtype=outer.node.inputs[0].dtype)
    given = layer.compute_output_spec(taken)
    node = Node(layer, (taken,), {}, (taken,), (given,))
    inner = Call(flow, layer, None, node, outer.path, (seen,), holder=outer)
    inner.training = outer.training and takes_training(layer)
    mark = len(flow.steps)
    if without is not None:
        inner.step([x], [seen], lambda valuation, v: [_one(v[0], without)])
    try:
        with calling(inner):
            (made,) = apply_rule(inner)
    except Exception:
        del flow.steps[mark:]
        raise
    finally:
        binding = flow.bindings.pop(id(layer), None)
    if without is not None:
        labels = np.expand_dims(made.labels, without)
        whole = Channels(outer.outputs[0], labels)
        inner.step(
            [made], [whole], lambda valuation, v: [np.expand_dims(v[0], without)]
        )
        made = whole
    for step in flow.steps[mark:]:
        step.call = outer
    if binding is not None:
        _adopt(outer, name, layer, binding)
    times = 1 if without is None else x.shape[without] or 1
    outer.products += [
        (f"{name}.{what}" if isinstance(what, str) else what, n * times)
        for what, n in inner.products
    ]
    if inner.inner:
        raise Ambiguous(f"it holds {describe(layer)}, which has channels inside")
    if inner.gate is not None:
        outer.gate = _lifted(inner.gate, name, without)
        mask = outer.mask
        if mask is not None and mask.gated_axis not in (None, outer.gate.axis):
            raise Ambiguous("its gates run along another axis than its channels")
    return made


def _without(x: Channels, axis: int | None) -> Channels:
    """What a held layer sees: what differs along the axis is tied."""
    if axis is None:
        return x
    shape = tuple(size for i, size in enumerate(x.shape) if i != axis)
    first = np.take(x.labels, [0], axis)
    current().flow.table.tie(x.labels, first)
    return Channels(shape, np.squeeze(first, axis))


def _one(value: np.ndarray, axis: int) -> np.ndarray:
    """Values without an axis; unknown where they differ along it."""
    shape = tuple(1 if i == axis else size for i, size in enumerate(value.shape))
    return np.squeeze(fit(value, shape), axis)


def _adopt(outer: Call, name: str, layer, binding) -> None:
    """What was bound for the held layer is bound for its holder."""
    for weight, axes in binding.axes.items():
        outer.flow.bind(outer, f"{name}.{weight}", axes)

    def config(survivors):
        spec = keras.saving.serialize_keras_object(layer)
        changes = {key: count(survivors) for key, count in binding.config.items()}
        spec.pop("build_config", None)  # it is to be built for fewer channels
        return {**spec, "config": {**spec["config"], **changes}}

    outer.flow.binding(outer).config[name] = config


def _lifted(gate: Gate, name: str, axis: int | None) -> Gate:
    """The gate of a held layer as that of its holder."""
    labels, gated = gate.labels, gate.axis
    if axis is not None:
        labels = np.expand_dims(labels, axis)
        gated += gated >= axis
    factors = tuple((f"{name}.{part}", axis) for part, axis in gate.factors)
    weights = {f"{name}.{part}": shape for part, shape in gate.weights.items()}
    return dataclasses.replace(
        gate, labels=labels, axis=gated, weights=weights, factors=factors
    )
