"""Rebuilding a model's graph with other layers in it."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import keras

from filterprune.channels.trace import (
    Graph,
    copy_object,
    copy_operation,
    has_functional_constructor,
    is_graph,
    is_layer,
    trace,
    without_mask,
)
from filterprune.errors import PruningWarning


def copy_layer(layer, /, **config):
    """A fresh layer with the config of `layer`, some entries changed.

    Args:
        layer: any layer. It must round-trip through its config if entries are
            to be changed.
        **config: entries that replace those of `layer.get_config()`.

    Returns:
        The new layer. It may be built already, and have the same weights.
    """
    try:
        return type(layer).from_config({**layer.get_config(), **config})
    except Exception:
        if config and config != {"name": layer.name}:
            raise
        return copy_object(layer)


def build_alike(layer, new) -> None:
    """Build `new` as `layer` was built and give it the same weights."""
    if not layer.built:
        return
    config = layer.get_build_config() or {}
    shape = config.get("input_shape")
    by_call = type(layer).build is keras.layers.Layer.build and layer.weights
    if by_call and shape is not None:  # its parts are built when it is called
        new(keras.ops.zeros([size or 1 for size in shape]))
    elif not new.built:
        new.build_from_config(config)
    copy_weights(layer, new)


def copy_weights(layer, new) -> None:
    """Give `new`, a built copy of `layer`, its weights."""
    if layer.weights:
        new.set_weights(layer.get_weights())
    finalize = getattr(new, "finalize_state", None)  # preprocessing layers
    if finalize is not None and layer.weights:
        finalize()


def warn_of_ties(pairs, name: str) -> None:
    """Warn of layers that share weights: their copies each have their own.

    Args:
        pairs: the layers of a model with their copies.
        name: the model's name.
    """
    owners: dict[int, list[str]] = {}
    for old, new in pairs:
        kept = {id(weight) for weight in new.weights}
        for weight in old.weights:
            if id(weight) not in kept:
                owners.setdefault(id(weight), []).append(old.name)
    ties = {tuple(names) for names in owners.values() if len(names) > 1}
    for names in sorted(ties):
        listed = " and ".join(f"'{layer}'" for layer in names)
        warnings.warn(
            f"The layers {listed} of '{name}' share weights. In the new model each "
            "has its own, equal to begin with, and training will part them. Call "
            "one layer several times to share its weights.",
            PruningWarning,
            stacklevel=4,
        )


@dataclasses.dataclass(eq=False)
class Rebuilder:
    """Runs a model's calls again, with other operations and input shapes.

    Attributes:
        make: from an operation of the old model to that of the new one; asked
            once for each operation that is no nested model.
        shape: from a tensor of the old model to its shape in the new one.
        arguments: from an operation and the arguments of a call to those of
            the new call.
        after: from an old operation to a layer to call on its output, or None.
    """

    make: Callable[[Any], Any]
    shape: Callable = lambda tensor: tensor.shape
    arguments: Callable = lambda op, args, kwargs: (args, kwargs)
    after: Callable = lambda op: None
    made: dict[int, Any] = dataclasses.field(default_factory=dict)
    _afters: dict[int, Any] = dataclasses.field(default_factory=dict)
    pairs: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)

    def rebuild(self, model):
        """The new model. The old one is not touched."""
        if isinstance(model, keras.Sequential):
            new = self._rebuild_sequential(model)
        else:
            new = self._rebuild_functional(trace(model))
        if not model.trainable:
            new.trainable = False
            for old, layer in self.pairs:
                layer.trainable = old.trainable
        return new

    def _op(self, op):
        if id(op) not in self.made:
            if is_graph(op):
                new = self.rebuild(op)
            else:
                new = self.make(op)
                if is_layer(op):
                    self.pairs.append((op, new))
            self.made[id(op)] = new
            self._afters[id(op)] = self.after(op)
        return self.made[id(op)]

    def _inputs(self, graph: Graph) -> list:
        return [
            keras.Input(
                batch_shape=self.shape(tensor),
                dtype=tensor.dtype,
                name=name,
                sparse=tensor.sparse,
            )
            for tensor, name in zip(graph.inputs, graph.input_names, strict=True)
        ]

    def _rebuild_sequential(self, model):
        new = keras.Sequential(name=model.name, trainable=model.trainable)
        new.add(self._inputs(trace(model))[0])
        for layer in model.layers:
            new.add(self._op(layer))
            if self._afters[id(layer)] is not None:
                new.add(self._afters[id(layer)])
        return new

    def _rebuild_functional(self, graph: Graph):
        tensors: dict[int, Any] = {
            id(old): fresh
            for old, fresh in zip(graph.inputs, self._inputs(graph), strict=True)
        }
        for node in graph.nodes:
            op = self._op(node.op)
            args, kwargs = self.arguments(node.op, *node.fill(tensors))
            if is_layer(op):
                kwargs = without_mask(op, kwargs)
            outputs = op(*args, **kwargs)
            after = self._afters[id(node.op)]
            if after is not None:
                outputs = after(outputs)
            for old, fresh in zip(
                node.outputs, keras.tree.flatten(outputs), strict=True
            ):
                tensors[id(old)] = fresh
        inputs, outputs = keras.tree.map_structure(
            lambda tensor: tensors[id(tensor)],
            (graph.input_struct, graph.output_struct),
        )
        plain = not has_functional_constructor(graph.model)
        cls = keras.Model if plain else type(graph.model)
        return cls(inputs, outputs, name=graph.model.name)


def remake(op):
    """A copy of any operation: of a layer by its config, unbuilt."""
    return copy_layer(op) if is_layer(op) else copy_operation(op)
