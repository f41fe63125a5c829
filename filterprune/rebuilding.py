"""Rebuilding a model's graph with other layers in it."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from filterprune.channels.likeness import of_any_layer
from filterprune.channels.registry import unseen_axis
from filterprune.channels.trace import (
    Graph,
    copy_object,
    copy_operation,
    forgotten_config,
    functional_arguments,
    is_graph,
    is_layer,
    is_of_keras,
    model_in,
    parts_of,
    trace,
    without_mask,
)
from filterprune.errors import warn


def copy_layer(layer, /, **config):
    """A fresh layer with the config of `layer`, some entries changed.

    Args:
        layer: any layer. It must round-trip through its config if entries are
            to be changed; its functions and regularizers need not.
        **config: entries that replace those of `layer.get_config()`.

    Returns:
        The new layer. It may be built already, and have the same weights.
    """
    alike = not config or config == {"name": layer.name}
    try:
        given = {**_config(layer), **forgotten_config(layer)}
        new = type(layer).from_config({**given, **_own_objects(layer, given), **config})
    except Exception:
        if not alike:
            raise
        return copy_object(layer)
    if not alike or is_of_keras(type(layer)) or _is_faithful(layer, new):
        return new
    return copy_object(layer)


def _config(layer) -> dict:
    """The config of a layer, also if that of an object in it is not to be had."""
    try:
        return layer.get_config()
    except NotImplementedError:
        shell = object.__new__(type(layer))
        for key, value in vars(layer).items():
            shell.__dict__[key] = None if _is_own(value) else value
        return shell.get_config()


def _is_own(value) -> bool:
    """Whether an attribute is a function or object of the user's own."""
    return callable(value) and not isinstance(value, type) and not is_of_keras(value)


def around(wrapper, model):
    """A copy of a wrapper of a layer, around another model."""
    config = wrapper.get_config()
    del config["layer"]
    return type(wrapper)(model, **config)


def _own_objects(layer, config: dict) -> dict:
    """Functions and objects of the user's own among what a config describes.

    A config names them, and the name may be unknown to Keras, or be that of one
    of its own: a function `hard_sigmoid` would come back as another one.
    """
    found = {}
    for key in config:
        value = getattr(layer, key, None)
        if _is_own(value):
            found[key] = copy_object(value) if is_layer(value) else value
    return found


def _is_faithful(layer, new) -> bool:
    """Whether a copy has the name and attributes of the layer, as far as both do.

    A config that forgets an argument gives a layer with its default.
    """
    if new.name != layer.name:
        return False
    for old, copied in zip([layer, *parts_of(layer)], [new, *parts_of(new)]):
        for key in vars(old).keys() & vars(copied).keys() - of_any_layer():
            if not _are_alike(vars(old)[key], vars(copied)[key]):
                return False
    return True


def _are_alike(old, new) -> bool:
    if new is None or old is new:  # what `build` sets is not there yet
        return True
    if isinstance(old, np.ndarray):
        return np.array_equal(old, new)
    if isinstance(old, (bool, int, float, str, type(None))):
        return bool(np.all(old == new))
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(map(_are_alike, old, new))
    if inspect.isfunction(old):
        return inspect.isfunction(new) and old.__code__ == new.__code__
    return True


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
    for old, fresh in zip(states_of(layer), states_of(new)):
        fresh.assign(old)


def states_of(layer) -> list:
    """The states that a stateful recurrent layer goes on from, all in a row.

    Keras keeps them out of a layer's weights and out of files.
    """
    states = layer.states if getattr(layer, "stateful", False) else None
    if isinstance(states, keras.Variable):
        return [states]
    found: list = []
    for part in states or ():
        nested = isinstance(part, (list, tuple))
        found += keras.tree.flatten(list(part)) if nested else [part]
    return found


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
        warn(
            f"The layers {listed} of '{name}' share weights. In the new model each "
            "has its own, equal to begin with, and training will part them. Call "
            "one layer several times to share its weights."
        )


@dataclasses.dataclass(eq=False)
class Rebuilder:
    """Runs a model's calls again, with other operations and input shapes.

    Attributes:
        make: from an operation of the old model to that of the new one, or None
            for none; asked once for each operation that is no nested model.
        shape: from a tensor of the old model to its shape in the new one.
        arguments: from an operation and the arguments of a call to those of
            the new call.
        after: from an old operation to a layer to call on its output, or None.
        call: from an old operation, the new one and the arguments of a call to
            its outputs.
    """

    make: Callable[[Any], Any]
    shape: Callable = lambda tensor: tensor.shape
    arguments: Callable = lambda op, args, kwargs: (args, kwargs)
    after: Callable = lambda op: None
    call: Callable = lambda old, op, args, kwargs: op(*args, **kwargs)
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
            inner = model_in(op)
            if is_graph(op):
                new = self.rebuild(op)
            elif inner is not None and unseen_axis(type(op)) is not None:
                new = around(op, self.rebuild(inner))
            else:
                new = self.make(op)
                if is_layer(op) and new is not None:
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
            if self._op(layer) is not None:
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
            if op is None:
                outputs = args[0]
            else:
                if is_layer(op):
                    kwargs = without_mask(op, kwargs)
                outputs = self.call(node.op, op, args, kwargs)
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
        return _model_alike(graph.model, inputs, outputs)


def _model_alike(model, inputs, outputs):
    """A model of the same class with other inputs and outputs, if that can be."""
    own = functional_arguments(model)
    if own is not None:
        with contextlib.suppress(Exception):
            return type(model)(inputs, outputs, name=model.name, **own)
    _warn_of_methods(model)
    return keras.Model(inputs, outputs, name=model.name)


def _warn_of_methods(model) -> None:
    """Warn if a model's own class trains in a way that the new one will not."""
    own = [
        name
        for name in ("train_step", "test_step", "predict_step", "compute_loss")
        if getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    if own:
        warn(
            f"The new '{model.name}' is a plain functional model, without the "
            f"`{'`, `'.join(own)}` of {type(model).__name__}: its constructor does "
            "not take `(inputs, outputs, name=...)`. Let it do so, with further "
            "arguments by keyword, to keep the class."
        )


def remake(op):
    """A copy of any operation: of a layer by its config, unbuilt."""
    return copy_layer(op) if is_layer(op) else copy_operation(op)


def copy_built(op):
    """A copy of any operation, of a layer with the same weights."""
    if not is_layer(op):
        return remake(op)
    try:
        new = copy_layer(op)
        build_alike(op, new)
    except Exception:
        return copy_object(op)
    return new
