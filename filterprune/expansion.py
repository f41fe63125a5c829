"""Composite layers taken apart: what they call takes their place in the model."""

from collections.abc import Callable, Iterable
from typing import Any

import keras

from filterprune.channels.likeness import likeness, likeness_of_arguments
from filterprune.channels.registry import calls_itself, composite_call, layer_rule
from filterprune.channels.trace import (
    Node,
    check_model,
    copy_object,
    is_graph,
    is_layer,
    mask_of,
    own_parts,
    parts_of,
    trace,
)
from filterprune.compiling import recompile
from filterprune.errors import one_line, warn
from filterprune.inlining import (
    TOLERANCE,
    Trial,
    has_own_weights,
    is_symbolic,
)
from filterprune.rebuilding import Rebuilder, copy_whole
from filterprune.verification import is_same


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
            has weights of its own, calls other parts in training, is handed a mask
            by Keras (give masks as arguments), or cannot be called with symbolic
            tensors.

    Example:

    ```python
    class FeedForward(keras.layers.Layer):
        def build(self, input_shape):
            self.inner = keras.layers.Dense(64, activation="gelu", name="inner")
            self.outer = keras.layers.Dense(input_shape[-1], name="outer")
            self.inner.build(input_shape)
            self.outer.build((*input_shape[:-1], 64))

        def call(self, inputs):
            return inputs + self.outer(self.inner(inputs))

    x = keras.Input((16, 8))
    y = FeedForward(name="block")(keras.layers.Dense(32)(x))
    blocks = keras.Model(x, keras.layers.Dense(2)(y))
    masked = filterprune.wrap_model(filterprune.expand(blocks, [FeedForward]))
    ```
    """
    check_model(model)
    asked = [layers] if isinstance(layers, type) else list(layers)
    if not all(isinstance(cls, type) for cls in asked):
        raise TypeError(
            f"Expected `layers` to be layer classes. Received: layers={layers!r}"
        )
    return expand_but(model, lambda layer: False, asked)[0]


def expand_but(model, kept: Callable, asked: Iterable[type] = ()) -> tuple[Any, list]:
    """Expand composite layers, but for those for which `kept` is true.

    Returns:
        The new model, and the runs of `model` that it was compared in.
    """
    expander = _Expander(kept, tuple(asked))
    if not expander.has_some(model):
        return model, []
    whole = expander.rebuild(model)
    found = is_same(model, whole)
    runs = [] if found is None else found.runs
    if found is not None and found.difference > TOLERANCE:  # as the report will say
        if asked:
            raise ValueError(
                f"'{model.name}' computes something else when its composite layers "
                "are expanded. Please report it; the model is unharmed."
            )
        return model, runs
    if model.compiled:
        recompile(model, whole)
    return whole, runs


class _Expander(Rebuilder):
    """Rebuilds a model with what composite layers call in their place.

    Args:
        kept: which layers to leave alone.
        asked: layer classes to expand that are not declared.
    """

    def __init__(self, kept: Callable, asked: tuple):
        super().__init__(self._make, call=self._call)
        self._kept = kept
        self._asked = asked
        self._given_up: set[int] = set()
        self._extra: dict[tuple, Any] = {}
        self._trials: dict[tuple, tuple[Trial, str | None]] = {}

    def has_some(self, model) -> bool:
        """Whether there is a layer to expand."""
        ops = [node.op for node in trace(model).nodes]
        return any(
            self.has_some(op) if is_graph(op) else self._function(op) is not None
            for op in ops
        )

    def _rebuild_sequential(self, model):
        if self.has_some(model):
            return self._rebuild_functional(trace(model))
        return super()._rebuild_sequential(model)

    def _function(self, op) -> Callable | None:
        """How an operation calls its parts, if it is a composite to expand."""
        if not is_layer(op) or id(op) in self._given_up or self._kept(op):
            return None
        if not own_parts(op) or is_graph(op):
            return None
        if type(op) in self._asked:
            return composite_call(type(op)) or _own_call
        if layer_rule(type(op)) is not None:
            return None
        return composite_call(type(op))

    def _make(self, op):
        new = copy_whole(op)
        if self._function(op) is not None:
            self._name_parts(new)
        return new

    def _name_parts(self, layer) -> None:
        """Name the parts of a layer after it, so that names are unique."""
        for part in own_parts(layer):
            part.name = self.free_name(f"{layer.name}_{part.name}")
            if self._function(part) is not None:
                self._name_parts(part)

    def _call(self, old, new, args, kwargs):
        if self._function(old) is None:
            return new(*args, **kwargs)
        given = {key: value for key, value in kwargs.items() if key != "training"}
        flat = keras.tree.flatten((args, given))
        trial = reason = None
        if calls_itself(type(old)) and has_own_weights(old):
            reason = "it has weights of its own"
        elif any(mask_of(x) is not None for x in flat if is_symbolic(x)):
            reason = "Keras hands it a mask, which its parts alone do not hand on"
        else:
            try:
                trial, reason = self._trial(old, new, args, given)
            except Exception as error:
                reason = (
                    f"it cannot be called with symbolic tensors ({one_line(error)})"
                )
        if trial is None or reason is not None:
            self._give_up(old, str(reason))
            for part, own in zip(parts_of(new), parts_of(old)):
                part.name = own.name
            return new(*args, **kwargs)
        parts = dict(zip(map(id, parts_of(trial.copy)), parts_of(new), strict=True))

        def twin(layer):
            found = parts.get(id(layer))
            if found is None:  # a layer that a function made for it
                key = (id(new), layer.name)
                if key not in self._extra:
                    self._extra[key] = copy_object(layer)
                    self._extra[key].name = self.free_name(layer.name)
                found = self._extra[key]
            return found

        return trial.play(args, given, twin, self.free_name)

    def _trial(self, old, new, args, kwargs) -> tuple[Trial, str | None]:
        """A trial of a call, and why it does not stand for it.

        Layers that are alike, as the blocks of a net, share one.
        """
        tensors = tuple(x for x in keras.tree.flatten((args, kwargs)) if is_symbolic(x))
        alike, tells_all = likeness(old)
        how, tell_all = likeness_of_arguments(Node(old, args, kwargs, tensors, ()))
        key = (alike, how, *map(self._function, parts_of(old)))
        if key in self._trials:
            return self._trials[key]
        trial = Trial(new, self._function, args, kwargs)
        found = trial, trial.why_not(old, self._function, args, kwargs)
        if tells_all and tell_all:
            self._trials[key] = found
        return found

    def _give_up(self, layer, reason: str) -> None:
        message = (
            f"The composite layer '{layer.name}' (of type {type(layer).__name__}) "
            f"cannot be expanded: {reason}."
        )
        if type(layer) in self._asked:
            raise ValueError(f"{message} Write a rule for it, or leave it as it is.")
        if not type(layer).__module__.startswith("keras_hub."):  # not asked for
            warn(f"{message} It is kept.")
        self._given_up.add(id(layer))


def _own_call(layer, *args, **kwargs):
    return layer.call(*args, **kwargs)
