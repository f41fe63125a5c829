"""Composite layers taken apart: what they call takes their place in the model."""

import warnings
from collections.abc import Callable, Iterable

import keras

from filterprune.channels.registry import composite_call, layer_rule
from filterprune.channels.trace import (
    carry_mask,
    check_model,
    copy_object,
    is_graph,
    is_layer,
    mask_of,
    own_parts,
    takes_training,
    trace,
)
from filterprune.compiling import recompile
from filterprune.errors import PruningWarning
from filterprune.rebuilding import Rebuilder, build_alike, copy_layer, remake


def expand(model, layers=()):
    """Take composite layers apart: put what they call in their place.

    A layer that holds others, such as a transformer block, is a closed box to the
    analysis. Expanded, the layers in it become layers of the model, named after
    both: `block/dense` is then `block_dense`. The result computes the same, has the
    same weights, and can be wrapped as if the layers had been written with the
    functional API. `filterprune.wrap_model` does so by itself with classes declared
    by `filterprune.composite` and with the layers of `keras-hub`.

    Args:
        model: a built functional or sequential Keras model. It is not touched.
        layers: further layer classes to take apart, an iterable. Defaults to none.

    Returns:
        A new model, compiled if `model` is; `model` itself if there is nothing to
        expand. A `Sequential` that holds a composite layer becomes a functional
        model.

    Raises:
        TypeError: if `model` is no Keras model or `layers` are no classes.
        ValueError: if `model` is subclassed or not built, or a layer of `layers`
            has weights of its own, works differently in training, or cannot be
            called with symbolic tensors.

    Example:

    ```python
    model = filterprune.expand(model, [MyTransformerBlock])
    masked = filterprune.wrap_model(model)
    ```
    """
    check_model(model)
    asked = [layers] if isinstance(layers, type) else list(layers)
    if not all(isinstance(cls, type) for cls in asked):
        raise TypeError(
            f"Expected `layers` to be layer classes. Received: layers={layers!r}"
        )
    return expand_but(model, lambda layer: False, asked)


def expand_but(model, kept: Callable, asked: Iterable[type] = ()):
    """Expand composite layers, but for those for which `kept` is true."""
    whole = model
    given_up: set[str] = set()
    while True:
        expander = _Expander(kept, tuple(asked), given_up)
        if not expander.has_some(whole):
            break
        whole = expander.expand(whole)
    if whole is not model and model.compiled:
        recompile(model, whole)
    return whole


class _Expander:
    """One pass over a model: composite layers in composite layers take another.

    Args:
        kept: which layers to leave alone.
        asked: layer classes to expand that are not declared.
        given_up: the names of layers that cannot be expanded, added to.
    """

    def __init__(self, kept: Callable, asked: tuple, given_up: set[str]):
        self._kept = kept
        self._asked = asked
        self._given_up = given_up

    def has_some(self, model) -> bool:
        """Whether there is a layer to expand."""
        ops = [node.op for node in trace(model).nodes]
        return any(
            self.has_some(op) if is_graph(op) else self._function(op) is not None
            for op in ops
        )

    def expand(self, model):
        rebuilder = _InPlace(self._make, call=self._call, has_some=self.has_some)
        return rebuilder.rebuild(model)

    def _function(self, op) -> Callable | None:
        """How an operation calls its parts, if it is a composite to expand."""
        if not is_layer(op) or op.name in self._given_up or self._kept(op):
            return None
        if type(op) in self._asked:
            return composite_call(type(op)) or _own_call
        if layer_rule(type(op)) is not None or not own_parts(op):
            return None
        return composite_call(type(op))

    def _make(self, op):
        if self._function(op) is None:
            return _copied(op)
        new = copy_object(op)
        for part in own_parts(new):
            part.name = f"{op.name}_{part.name}"
        return new

    def _call(self, old, new, args, kwargs):
        function = self._function(old)
        if function is None:
            return new(*args, **kwargs)
        reason = _why_not(old, function, args, kwargs)
        if reason is not None:
            self._give_up(old, reason)
            for part, own in zip(own_parts(new), own_parts(old), strict=True):
                part.name = own.name
            return new(*args, **kwargs)
        outputs = function(new, *_cast(new, args), **_cast(new, kwargs))
        _carry_masks(new, args, kwargs, outputs)
        return outputs

    def _give_up(self, layer, reason: str) -> None:
        message = (
            f"The composite layer '{layer.name}' (of type {type(layer).__name__}) "
            f"cannot be expanded: {reason}."
        )
        if type(layer) in self._asked:
            raise ValueError(f"{message} Write a rule for it, or leave it as it is.")
        if not type(layer).__module__.startswith("keras_hub."):  # not asked for
            warnings.warn(f"{message} It is kept.", PruningWarning, stacklevel=5)
        self._given_up.add(layer.name)


class _InPlace(Rebuilder):
    """A rebuilder that makes a functional model of a sequential one to expand."""

    def __init__(self, make, call, has_some):
        super().__init__(make, call=call)
        self._has_some = has_some

    def _rebuild_sequential(self, model):
        if self._has_some(model):
            return self._rebuild_functional(trace(model))
        return super()._rebuild_sequential(model)


def _own_call(layer, *args, **kwargs):
    return layer.call(*args, **kwargs)


def _copied(op):
    """A copy of an operation with the same weights."""
    if not is_layer(op):
        return remake(op)
    try:
        new = copy_layer(op)
        build_alike(op, new)
    except Exception:
        return copy_object(op)
    return new


def _cast(layer, arguments):
    """Arguments in the dtype that Keras hands to the layer's `call`."""

    def cast(value):
        wanted = layer.compute_dtype
        if not isinstance(value, keras.KerasTensor) or not layer.autocast:
            return value
        if "float" not in value.dtype or value.dtype == wanted:
            return value
        new = keras.ops.cast(value, wanted)
        if mask_of(value) is not None:
            carry_mask(new, mask_of(value))
        return new

    return keras.tree.map_structure(cast, arguments)


def _carry_masks(layer, args, kwargs, outputs) -> None:
    """Let the outputs carry the mask that the layer would have them carry."""
    given = keras.tree.flatten((args, kwargs))
    mask = mask_of(given[0]) if given else None
    if mask is None or not layer.supports_masking:
        return
    for output in keras.tree.flatten(outputs):
        carry_mask(output, mask)


def _why_not(layer, function, args, kwargs) -> str | None:
    """Why a layer cannot be expanded; found out on copies, on tensors like these."""
    try:
        plain = _traced(layer, function, args, kwargs)
        if takes_training(layer):
            trained = _traced(layer, function, args, {**kwargs, "training": True})
            if _sequence(plain) != _sequence(trained):
                return "it calls other parts in training"
    except Exception as error:
        return f"it cannot be called with symbolic tensors ({error})"
    return None if plain is not None else "it has weights of its own"


def _traced(layer, function, args, kwargs):
    """A functional model of one call; None if that leaves weights out."""
    copy = copy_object(layer)
    inputs = []

    def fresh(value):
        if not isinstance(value, keras.KerasTensor):
            return value
        tensor = keras.Input(batch_shape=value.shape, dtype=value.dtype)
        inputs.append(tensor)
        if mask_of(value) is not None:
            mask = keras.Input(batch_shape=mask_of(value).shape, dtype="bool")
            inputs.append(mask)
            carry_mask(tensor, mask)
        return tensor

    args, kwargs = keras.tree.map_structure(fresh, (args, kwargs))
    for number, part in enumerate(own_parts(copy)):
        part.name = f"{part.name}_{number}"
    outputs = function(copy, *args, **kwargs)
    model = keras.Model(inputs, outputs)
    known = {id(variable) for variable in model.variables}
    return model if known.issuperset(id(v) for v in copy.weights) else None


def _sequence(model) -> list | None:
    """What a model calls, in order."""
    if model is None:
        return None
    return [
        (type(node.op), node.op.name if is_layer(node.op) else "")
        for node in trace(model).nodes
    ]
