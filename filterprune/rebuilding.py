"""Rebuilding a model's graph with other layers in it."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from filterprune.channels.registry import unseen_axis
from filterprune.channels.trace import (
    Graph,
    complete_config,
    copy_object,
    copy_operation,
    free_name,
    functional_arguments,
    inputs_like,
    is_graph,
    is_layer,
    model_in,
    parts_of,
    replay,
    trace,
    without_mask,
)
from filterprune.errors import warn
from filterprune.loading import (
    can_dissolve,
    hides_layers,
    tied_models,
    why_not_loaded,
    why_not_the_same,
)


def around(wrapper, model):
    """A copy of a wrapper of a layer, around another model."""
    config = wrapper.get_config()
    del config["layer"]
    return type(wrapper)(model, **config)


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
        hidden: whether the model was saved without its layers until now; see
            `filterprune.loading`.
        dissolves: whether then a nested model that shares layers with what is
            around it is replaced by its calls, because Keras cannot load it.
        unloadable: from the names of layers that Keras will not load, though it
            loads the model that they are hidden in, to why.
    """

    make: Callable[[Any], Any]
    shape: Callable = lambda tensor: tensor.shape
    arguments: Callable = lambda op, args, kwargs: (args, kwargs)
    after: Callable = lambda op: None
    call: Callable = lambda old, op, args, kwargs: op(*args, **kwargs)
    hidden: bool = False
    dissolves: bool = True
    unloadable: dict[str, str] = dataclasses.field(default_factory=dict)
    made: dict[int, Any] = dataclasses.field(default_factory=dict)
    _afters: dict[int, Any] = dataclasses.field(default_factory=dict)
    _loads: dict[int, bool] = dataclasses.field(default_factory=dict)
    _names: set[str] = dataclasses.field(default_factory=set)
    pairs: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)

    def rebuild(self, model):
        """The new model. The old one is not touched."""
        outer, self._names = self._names, trace(model).names
        hidden, self.hidden = self.hidden, self.hidden or hides_layers(model)
        if isinstance(model, keras.Sequential):
            new = self._rebuild_sequential(model)
        else:
            new = self._rebuild_functional(trace(model))
        self._names, self.hidden = outer, hidden
        if not model.trainable:
            new.trainable = False
            for old, layer in self.pairs:
                layer.trainable = old.trainable
        return new

    def free_name(self, wanted: str) -> str:
        """A name for a further operation in the graph that is being rebuilt."""
        name = free_name(wanted, self._names)
        self._names.add(name)
        return name

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

    def note_loading(self, node, new, owner=None) -> None:
        """Let Keras load an operation that was hidden, or note why it cannot.

        Args:
            node: a call of the old operation.
            new: the new one.
            owner: the layer that it was a part of, if any.
        """
        for part in (new, *parts_of(new)) if is_layer(new) else ():
            complete_config(part)
        if id(owner) not in self._loads:
            self._loads[id(owner)] = owner is None or why_not_loaded(owner) is None
        if self._loads[id(owner)]:
            reason = why_not_the_same(node)
            if reason is not None:
                self.unloadable[new.name] = reason

    def _rebuild_sequential(self, model):
        new = keras.Sequential(name=model.name, trainable=model.trainable)
        new.add(inputs_like(trace(model), self.shape)[0])
        for node in trace(model).nodes:
            layer = node.op
            if self._op(layer) is not None:
                new.add(self._op(layer))
                if self.hidden and not is_graph(layer):
                    self.note_loading(node, self._op(layer))
            if self._afters[id(layer)] is not None:
                new.add(self._afters[id(layer)])
        return new

    def _rebuild_functional(self, graph: Graph):
        tied = tied_models(graph) if self.hidden and self.dissolves else ()
        outer = {id(node.op) for node in graph.nodes}

        def call(node, args, kwargs):
            if id(node.op) in tied:
                if can_dissolve(node):
                    return self._dissolve(node.op, args, call, outer)
                self.unloadable[node.op.name] = "it shares layers with what is around"
            op = self._op(node.op)
            args, kwargs = self.arguments(node.op, args, kwargs)
            if op is None:
                outputs = args[0]
            else:
                if is_layer(op):
                    kwargs = without_mask(op, kwargs)
                outputs = self.call(node.op, op, args, kwargs)
                if self.hidden and not is_graph(op):
                    self.note_loading(node, op)
            after = self._afters[id(node.op)]
            return outputs if after is None else after(outputs)

        inputs, outputs = replay(graph, inputs_like(graph, self.shape), call)
        return _model_alike(graph.model, inputs, outputs)

    def _dissolve(self, model, args, call: Callable, outer: set[int]):
        """Make the calls of a nested model in its place."""
        graph = trace(model)
        for node in graph.nodes:
            if id(node.op) in outer or id(node.op) in self.made or is_graph(node.op):
                continue
            new = self._op(node.op)
            if new is not None:
                new.name = self.free_name(new.name)
        return replay(graph, keras.tree.flatten(args), call)[1]


def _model_alike(model, inputs, outputs):
    """A model of the same class with other inputs and outputs, if that can be."""
    own = functional_arguments(model)
    if own is not None:
        with contextlib.suppress(Exception):
            return type(model)(inputs, outputs, name=model.name, **own)
    warn_of_methods(
        model,
        "Its constructor does not take `(inputs, outputs, name=...)`. Let it do so, "
        "with further arguments by keyword, to keep the class",
    )
    return keras.Model(inputs, outputs, name=model.name)


def warn_of_methods(model, because: str) -> None:
    """Warn if a model's own class trains in a way that the new one will not.

    Args:
        model: the model.
        because: why the new one is of another class, as a sentence without a stop.
    """
    own = [
        name
        for name in ("train_step", "test_step", "predict_step", "compute_loss")
        if getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    if own:
        warn(
            f"The new '{model.name}' is a plain functional model, without the "
            f"`{'`, `'.join(own)}` of {type(model).__name__}. {because}."
        )


def copy_whole(op):
    """A copy of any operation with all its state, of a layer with its weights."""
    return copy_object(op) if is_layer(op) else copy_operation(op)
