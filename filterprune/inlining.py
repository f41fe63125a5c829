"""Calling a layer's parts in the layer's place, on symbolic tensors."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from filterprune.channels.registry import own_call
from filterprune.channels.trace import (
    copy_object,
    copy_operation,
    is_layer,
    mask_of,
    members_of,
    own_parts,
    parts_of,
    takes_training,
    trace,
)
from filterprune.inputs import generate_inputs
from filterprune.running import seeds_of, undisturbed
from filterprune.verification import relative_difference, tolerance_of


def inline(layer, function_of: Callable, args, kwargs, training: bool | None = None):
    """Do what a composite layer does: the parts that it calls join the graph.

    Args:
        layer: the composite layer.
        function_of: from a layer to the function that calls its parts, or None if
            it is none to take apart.
        args, kwargs: symbolic tensors, and other arguments.
        training: the mode in which Keras would call it and the composites in it.

    Returns:
        The outputs, in the structure in which the layer gives them.
    """
    if takes_training(layer) and kwargs.get("training") is None:
        kwargs = {**kwargs, "training": training}
    with _opened(layer, function_of, training):
        return function_of(layer)(layer, *_cast(layer, args), **_cast(layer, kwargs))


def is_symbolic(value) -> bool:
    """Whether a value is a symbolic tensor."""
    return isinstance(value, keras.KerasTensor)


class _Inlined:
    """Stands for a composite part of a layer, and is inlined when it is called."""

    def __init__(self, layer, function_of, training):
        self.layer = layer
        self.function_of = function_of
        self.training = training

    def __call__(self, *args, **kwargs):
        return inline(self.layer, self.function_of, args, kwargs, self.training)

    def __getattr__(self, name):
        return getattr(self.layer, name)


@contextlib.contextmanager
def _opened(layer, function_of, training) -> Iterator[None]:
    """Within it the composite parts of a layer are inlined as well."""

    def switch(value):
        if is_layer(value):
            part = function_of(value) is not None
            return _Inlined(value, function_of, training) if part else value
        if isinstance(value, (list, tuple)):
            return [switch(one) for one in value]
        if isinstance(value, dict):
            return {key: switch(one) for key, one in value.items()}
        return value

    before = dict(vars(layer))
    parts = {id(part) for part in own_parts(layer) if function_of(part) is not None}
    for name, value in members_of(layer):
        if parts.intersection(id(one) for one in keras.tree.flatten(value)):
            vars(layer)[name] = switch(value)
    added = {name for name in vars(layer) if name not in before}
    try:
        yield
    finally:
        for name, value in before.items():
            vars(layer)[name] = value
        for name in added:
            del vars(layer)[name]


def _cast(layer, arguments):
    """Arguments in the dtype that Keras hands to the layer's `call`."""

    def cast(value):
        wanted = layer.compute_dtype
        if not is_symbolic(value) or not layer.autocast or "float" not in value.dtype:
            return value
        return value if value.dtype == wanted else keras.ops.cast(value, wanted)

    return keras.tree.map_structure(cast, arguments)


class Trial:
    """A functional model of one call of a copy of a composite layer.

    Args:
        layer: the layer.
        function_of: see `inline`.
        args, kwargs: the call's arguments, symbolic tensors among them.
        training: see `inline`.

    Raises:
        Exception: whatever the layer raises for symbolic tensors.
    """

    def __init__(self, layer, function_of, args, kwargs, training=None):
        self.layer = layer
        self.function_of = function_of
        self.copy = copy_object(layer)
        self.inputs, own, named = _inputs_like(args, kwargs)
        self.outputs = inline(self.copy, function_of, own, named, training)
        made = [y for y in keras.tree.flatten(self.outputs) if is_symbolic(y)]
        self.model = keras.Model(self.inputs, made)
        self.nodes = trace(self.model).nodes
        self._told: set[int] = set()

    def play(self, args, kwargs, twin: Callable, name_for: Callable = str):
        """Do the same with other tensors, which may know more of their sizes.

        Args:
            args, kwargs: the arguments.
            twin: from a layer that the copy calls to the one to call instead.
            name_for: from the name of an operation that is no layer to that to give it.

        Returns:
            The outputs, in the structure in which the layer gives them.
        """
        given = [x for x in keras.tree.flatten((args, kwargs)) if is_symbolic(x)]
        known = dict(zip(map(id, self.inputs), given, strict=True))
        for number, node in enumerate(self.nodes):
            own, named = node.fill(known)
            if number in self._told or _is_default(node.op, named):
                named.pop("training", None)
            op = twin(node.op) if is_layer(node.op) else _resized(node.op, own)
            if not is_layer(op):
                op.name = name_for(op.name)
            outputs = keras.tree.flatten(op(*own, **named))
            for old, new in zip(node.outputs, outputs, strict=True):
                known[id(old)] = new
        return keras.tree.map_structure(
            lambda y: known[id(y)] if is_symbolic(y) else y, self.outputs
        )

    def why_not(self, layer, function_of, args, kwargs) -> str | None:
        """Why this does not stand for the layer that was copied, or None."""
        if function_of(layer) is own_call and self._leaves_out():
            return "it has weights that it does not call a part with"
        given = keras.tree.flatten([(node.args, node.kwargs) for node in self.nodes])
        handed = any(isinstance(value, keras.Variable) for value in given)
        if handed and function_of(layer) is own_call:
            return "it hands a weight of a part to an operation"
        if len(self.copy.losses) > sum(
            len(part.losses) for part in own_parts(self.copy)
        ):
            return "it adds a loss"
        if any(mask_of(y) is not None for y in self.model.outputs):
            return "it makes a mask that its parts alone do not hand on"
        trained = Trial(self.layer, function_of, args, kwargs, training=True)
        if trained._sequence() != self._sequence():
            return "it calls other parts in training"
        for number, pair in enumerate(zip(self.nodes, trained.nodes, strict=True)):
            modes = [node.kwargs.get("training") for node in pair]
            if modes[0] != modes[1]:  # what the layer was told is told its parts
                self._told.add(number)
        return self._difference(layer, args, kwargs)

    def _sequence(self) -> list:
        """What is called, in order."""
        numbers = {id(part): n for n, part in enumerate(parts_of(self.copy))}
        return [(type(node.op), numbers.get(id(node.op))) for node in self.nodes]

    def _leaves_out(self) -> bool:
        """Whether a weight of the layer is no variable of the model."""
        known = {id(variable) for variable in self.model.variables}
        for part in parts_of(self.copy):
            if self.function_of(part) not in (None, own_call):  # it sees to its own
                known.update(map(id, part.weights))
        return not known.issuperset(id(weight) for weight in self.copy.weights)

    def _difference(self, layer, args, kwargs) -> str | None:
        """Whether the model computes something else than the layer.

        With other weights than the layer has: an operation that was handed one keeps
        its value, and is no function of it. Not where a function makes layers that
        hold weights of the layer.
        """
        inputs, own, named = _inputs_like(args, kwargs)
        outputs = keras.tree.flatten(self.play(own, named, twin=lambda op: op))
        model = keras.Model(inputs, [y for y in outputs if is_symbolic(y)])
        given = keras.tree.flatten(generate_inputs(model, size=_SIZE))
        functions = [self.function_of(part) for part in (layer, *parts_of(layer))]
        drawn = all(function in (None, own_call) for function in functions)
        weights = layer.weights if drawn else []
        values = [*map(_drawn, weights, range(len(weights)))]
        with undisturbed(model, values=zip(self.copy.weights, values), seed=1):
            found = keras.tree.flatten(model(given))
        left = iter(given)
        args, kwargs = keras.tree.map_structure(
            lambda x: next(left) if is_symbolic(x) else x, (args, kwargs)
        )
        with undisturbed(layer, values=zip(layer.weights, values), seed=1):
            for _ in range(1 if seeds_of(layer) else 2):  # some count their calls
                wanted = keras.tree.flatten(layer(*args, **kwargs))[: len(found)]
        worst = max(map(relative_difference, wanted, found), default=0.0)
        if worst < min(TOLERANCE, tolerance_of(model)):
            return None
        return f"its parts alone compute something else (by {worst:.2g})"


def _drawn(weight, seed: int):
    """Another value for a weight, of its own order; a variance stays positive."""
    if "float" not in weight.dtype:
        return keras.ops.convert_to_tensor(weight)
    rng = np.random.default_rng(seed)
    value = keras.ops.convert_to_numpy(weight).astype("float64")
    value = value * rng.uniform(0.5, 1.5, value.shape) + rng.uniform(
        0, 0.1, value.shape
    )
    return keras.ops.cast(value, weight.dtype)


def _inputs_like(args, kwargs) -> tuple:
    """Inputs like the symbolic tensors among arguments, and those in their place."""
    inputs: list[Any] = []

    def fresh(value):
        if not is_symbolic(value):
            return value
        inputs.append(keras.Input(batch_shape=value.shape, dtype=value.dtype))
        return inputs[-1]

    args, kwargs = keras.tree.map_structure(fresh, (args, kwargs))
    return inputs, args, kwargs


def _is_default(op, kwargs) -> bool:
    """Whether a layer was called in training mode only because it always is.

    Said anew, Keras would take it for the mode of the layers that follow.
    """
    if not takes_training(op) or kwargs.get("training") is not True:
        return False
    return inspect.signature(op.call).parameters["training"].default is True


def has_own_weights(layer) -> bool:
    """Whether a layer has variables that no part of it has, such as a metric's."""
    parts = {id(variable) for part in parts_of(layer) for variable in part.variables}
    return any(id(variable) not in parts for variable in layer.variables)


def _resized(op, args):
    """A copy of a bare operation; a reshape finds out one size itself.

    A layer asks a tensor for its sizes; a symbolic one does not know all of them.
    """
    given = getattr(op, "newshape", None)
    if isinstance(given, (list, tuple)) and None in given:
        return copy_operation(op, newshape=_with_one_open([*given], args[0].shape))
    return copy_operation(op)


def _with_one_open(sizes: list, shape) -> tuple:
    """The sizes of a reshape of a tensor, of which one is to be found out."""
    rest = [place for place, size in enumerate(sizes) if place and size in (None, -1)]
    whole = sizes[0] is shape[0] is None and None not in shape[1:]
    if whole and len(rest) == 1:
        known = math.prod(size for size in sizes[1:] if size not in (None, -1))
        sizes[rest[0]] = math.prod(shape[1:]) // max(known, 1)
    return tuple(-1 if size is None else size for size in sizes)


_SIZE = 4
TOLERANCE = 1e-2  # of half precision too
