"""Calling a layer's parts in the layer's place, on symbolic tensors."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras

from filterprune.channels.registry import calls_itself
from filterprune.channels.trace import (
    carry_mask,
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


class Trial:
    """A functional model of one call of a copy of a composite layer.

    Args:
        layer: the layer.
        function_of: see `inline`.
        args, kwargs: the call's arguments, symbolic tensors among them.

    Raises:
        Exception: whatever the layer raises for symbolic tensors.
    """

    def __init__(self, layer, function_of, args, kwargs):
        self.copy = copy_object(layer)
        self.inputs: list[Any] = []
        self.masks: list[Any] = []
        args, kwargs = keras.tree.map_structure(self._fresh, (args, kwargs))
        self.outputs = inline(self.copy, function_of, args, kwargs)
        made = [y for y in keras.tree.flatten(self.outputs) if _is_symbolic(y)]
        self.model = keras.Model([*self.inputs, *self.masks], made)

    def play(self, args, kwargs, twin: Callable):
        """Do the same with other tensors, which may know more of their sizes.

        Args:
            args, kwargs: the arguments.
            twin: from a layer that the copy calls to the one to call instead.

        Returns:
            The outputs, in the structure in which the layer gives them.
        """
        given = [x for x in keras.tree.flatten((args, kwargs)) if _is_symbolic(x)]
        masks = [mask_of(x) for x in given if mask_of(x) is not None]
        inputs = [*self.inputs, *self.masks]
        known = dict(zip(map(id, inputs), [*given, *masks], strict=True))
        for node in trace(self.model).nodes:
            own, named = node.fill(known)
            op = twin(node.op) if is_layer(node.op) else _resized(node.op, own)
            outputs = keras.tree.flatten(op(*own, **named))
            for old, new in zip(node.outputs, outputs, strict=True):
                known[id(old)] = new
                if id(mask_of(old)) in known:
                    carry_mask(new, known[id(mask_of(old))])
        return keras.tree.map_structure(
            lambda y: known[id(y)] if _is_symbolic(y) else y, self.outputs
        )

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

    def why_not(self, layer, function_of, args, kwargs) -> str | None:
        """Why this does not stand for the layer, or None."""
        if calls_itself(type(layer)) and self.leaves_out():
            return "it has weights that it does not call a part with"
        if takes_training(layer):
            again = {**kwargs, "training": True}
            if Trial(layer, function_of, args, again).sequence() != self.sequence():
                return "it calls other parts in training"
        return self.difference(layer, args, kwargs)

    def leaves_out(self) -> bool:
        """Whether a weight of the layer is no variable of the model."""
        known = {id(variable) for variable in self.model.variables}
        return not known.issuperset(id(weight) for weight in self.copy.weights)

    def difference(self, layer, args, kwargs) -> str | None:
        """Whether the model computes something else than the layer."""
        model, places = self._replica(args, kwargs)
        inputs = keras.tree.flatten(generate_inputs(model, size=_SIZE))
        given = inputs[: len(places)]
        masks = [keras.ops.ones_like(mask) for mask in inputs[len(places) :]]
        found = keras.tree.flatten(model([*given, *masks]))
        values = iter(given)
        args, kwargs = keras.tree.map_structure(
            lambda x: next(values) if _is_symbolic(x) else x, (args, kwargs)
        )
        wanted = keras.tree.flatten(layer(*args, **kwargs))[: len(found)]
        worst = max(map(relative_difference, wanted, found), default=0.0)
        if worst < _TOLERANCE:
            return None
        return f"its parts alone compute something else (by {worst:.2g})"

    def _replica(self, args, kwargs) -> tuple:
        """The model once more, as `play` makes it, and its inputs but for masks."""
        places, masks = [], []

        def place(value):
            if not _is_symbolic(value):
                return value
            places.append(keras.Input(batch_shape=value.shape, dtype=value.dtype))
            if mask_of(value) is not None:
                shape = mask_of(value).shape
                masks.append(keras.Input(batch_shape=shape, dtype="bool"))
                carry_mask(places[-1], masks[-1])
            return places[-1]

        args, kwargs = keras.tree.map_structure(place, (args, kwargs))
        outputs = keras.tree.flatten(self.play(args, kwargs, twin=lambda op: op))
        made = [y for y in outputs if _is_symbolic(y)]
        return keras.Model([*places, *masks], made), places


def has_own_weights(layer) -> bool:
    """Whether a layer has weights that no part of it has."""
    parts = {id(weight) for part in parts_of(layer) for weight in part.weights}
    return any(id(weight) not in parts for weight in layer.weights)


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
_TOLERANCE = 1e-2  # of half precision too
