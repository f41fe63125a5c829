"""Calling a layer's parts in the layer's place, on symbolic tensors."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from filterprune.channels.registry import calls_itself
from filterprune.channels.trace import (
    carry_mask,
    change_operation,
    copy_object,
    is_layer,
    mask_of,
    members_of,
    own_parts,
    parts_of,
    takes_training,
    trace,
)
from filterprune.verification import generate_inputs, relative_difference


def inline(layer, function_of: Callable, args, kwargs):
    """Do what a composite layer does: the parts that it calls join the graph.

    Args:
        layer: the composite layer.
        function_of: from a layer to the function that calls its parts, or None if
            it is none to take apart.
        args, kwargs: symbolic tensors, and other arguments.

    Returns:
        The outputs, in the structure in which the layer gives them.
    """
    with _opened(layer, function_of):
        outputs = function_of(layer)(layer, *_cast(layer, args), **_cast(layer, kwargs))
    given = keras.tree.flatten((args, kwargs))
    mask = mask_of(given[0]) if given else None
    if mask is not None and layer.supports_masking:
        for output in keras.tree.flatten(outputs):
            if _is_symbolic(output):
                carry_mask(output, mask)
    return outputs


def _is_symbolic(value) -> bool:
    return isinstance(value, keras.KerasTensor)


def leave_open(model) -> None:
    """Let reshapes into a shape with an unknown size find that out themselves.

    A layer asks a tensor for its sizes; a symbolic one does not know all of them.
    """
    for node in trace(model).nodes:
        shape = getattr(node.op, "newshape", None)
        if isinstance(shape, (list, tuple)) and None in shape:
            sizes = [-1 if size is None else size for size in shape]
            if sizes.count(-1) == 1:
                change_operation(node.op, newshape=tuple(sizes))


class _Inlined:
    """Stands for a composite part of a layer, and is inlined when it is called."""

    def __init__(self, layer, function_of):
        self.layer = layer
        self.function_of = function_of

    def __call__(self, *args, **kwargs):
        return inline(self.layer, self.function_of, args, kwargs)

    def __getattr__(self, name):
        return getattr(self.layer, name)


@contextlib.contextmanager
def _opened(layer, function_of) -> Iterator[None]:
    """Within it the composite parts of a layer are inlined as well."""

    def switch(value):
        if is_layer(value):
            part = function_of(value) is not None
            return _Inlined(value, function_of) if part else value
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
    try:
        yield
    finally:
        for name in vars(layer).keys() - before.keys():
            del vars(layer)[name]
        vars(layer).update(before)


def _cast(layer, arguments):
    """Arguments in the dtype that Keras hands to the layer's `call`."""

    def cast(value):
        wanted = layer.compute_dtype
        if not _is_symbolic(value) or not layer.autocast:
            return value
        if "float" not in value.dtype or value.dtype == wanted:
            return value
        new = keras.ops.cast(value, wanted)
        if mask_of(value) is not None:
            carry_mask(new, mask_of(value))
        return new

    return keras.tree.map_structure(cast, arguments)


def why_not_inlined(layer, function_of, args, kwargs) -> str | None:
    """Why a layer cannot be inlined; found out on copies, on tensors like these."""
    kwargs = {key: value for key, value in kwargs.items() if key != "training"}
    try:
        plain = _Trial(layer, function_of, args, kwargs)
        if takes_training(layer):
            trained = _Trial(layer, function_of, args, {**kwargs, "training": True})
            if plain.sequence() != trained.sequence():
                return "it calls other parts in training"
        if calls_itself(type(layer)) and plain.leaves_out():
            return "it has weights of its own"
        return plain.difference(layer, args, kwargs)
    except Exception as error:
        return f"it cannot be called with symbolic tensors ({error})"


class _Trial:
    """A functional model of one call of a copy of a layer."""

    def __init__(self, layer, function_of, args, kwargs):
        self.copy = copy_object(layer)
        for number, part in enumerate(parts_of(self.copy)):
            part.name = f"part_{number}_{part.name}"
        self.inputs: list[Any] = []
        self.masks: list[Any] = []
        args, kwargs = keras.tree.map_structure(self._fresh, (args, kwargs))
        outputs = inline(self.copy, function_of, args, kwargs)
        made = [
            y for y in keras.tree.flatten(outputs) if _is_symbolic(y)
        ]  # no constants
        self.model = keras.Model([*self.inputs, *self.masks], made)
        leave_open(self.model)

    def _fresh(self, value):
        """An input like a tensor, and one like the mask that it carries along."""
        if not _is_symbolic(value):
            return value
        tensor = keras.Input(batch_shape=value.shape, dtype=value.dtype)
        self.inputs.append(tensor)
        mask = mask_of(value)
        if mask is not None:
            self.masks.append(keras.Input(batch_shape=mask.shape, dtype="bool"))
            carry_mask(tensor, self.masks[-1])
        return tensor

    def sequence(self) -> list:
        """What is called, in order."""
        return [
            (type(node.op), node.op.name if is_layer(node.op) else "")
            for node in trace(self.model).nodes
        ]

    def leaves_out(self) -> bool:
        """Whether a weight of the layer is no variable of the model."""
        known = {id(variable) for variable in self.model.variables}
        return not known.issuperset(id(weight) for weight in self.copy.weights)

    def difference(self, layer, args, kwargs) -> str | None:
        """Whether the model computes something else than the layer."""
        inputs = keras.tree.flatten(generate_inputs(self.model, size=_SIZE))
        given = inputs[: len(self.inputs)]
        masks = [keras.ops.ones_like(mask) for mask in inputs[len(given) :]]
        left = iter(given)

        def fill(value):
            return next(left) if _is_symbolic(value) else value

        args, kwargs = keras.tree.map_structure(fill, (args, kwargs))
        wanted = keras.tree.flatten(layer(*args, **kwargs))[: len(self.model.outputs)]
        found = keras.tree.flatten(self.model([*given, *masks]))
        worst = max(map(relative_difference, wanted, found), default=0.0)
        if worst < _TOLERANCE:
            return None
        return f"its parts alone compute something else (by {worst:.2g})"


_SIZE = 4
_TOLERANCE = 1e-2  # of half precision too
