"""Composite layers taken apart: what they call takes their place in the model."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import keras

from filterprune.channels.likeness import likeness, likeness_of_arguments
from filterprune.channels.registry import (
    composite_call,
    is_traced,
    keep_whole,
    layer_rule,
    makes_masks,
    own_call,
)
from filterprune.channels.trace import (
    Node,
    check_model,
    copy_object,
    has_graph,
    is_graph,
    is_layer,
    is_of_keras,
    is_optional,
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
    is_symbolic,
    makes_a_mask,
    why_not_held,
)
from filterprune.loading import (
    hides_layers,
    in_other_words,
    warn_of_unloadable,
)
from filterprune.rebuilding import Rebuilder, copy_whole, warn_of_ties
from filterprune.verification import is_same


def expand(model, layers=()):
    """Take layers of your own apart: put what they call in their place.

    A layer with code of its own, such as a transformer block, is a closed box to the
    analysis. Expanded, the layers, weights and operations in it become layers and
    operations of the model, named after both: `block/dense` is then `block_dense`. The
    result computes the same, has the same weights, and can be wrapped as if it had been
    written with the functional API. `filterprune.wrap_model` expands layers too. It
    keeps a layer whole if the expansion is not proved, or the layer works on each
    channel alone; `filterprune.analyze` says why.

    Args:
        model: a built functional or sequential Keras model. It is not touched.
        layers: layer classes that must be taken apart, an iterable. Defaults to none.

    Returns:
        A new model, compiled if `model` is; `model` itself if there is nothing to
        expand. A `Sequential` that holds a composite layer becomes a functional
        model.

    Raises:
        TypeError: if `model` is no Keras model or `layers` are no classes.
        ValueError: if `model` is subclassed or not built, or a layer of `layers`
            has variables that are no weights, calls other parts in training, is handed
            a mask by Keras (give masks as arguments), or cannot be called with
            symbolic tensors.

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
    return expand_but(model, lambda layer: False, layers, tell=True)[0]


def expand_as(model, layer):
    """A functional model of what a layer, the only one of a model, calls.

    Raises:
        ValueError: if it cannot be expanded, or computes something else then.
    """
    return expand_but(model, lambda part: False, [type(layer)], outermost=layer)[0]


def expand_but(
    model,
    kept: Callable,
    layers: Any = (),
    dissolves: bool = True,
    tell: bool = False,
    traces: bool = True,
    outermost=None,
) -> tuple[Any, list]:
    """Expand composite layers, but for those for which `kept` is true.

    Args:
        model: as for `expand`.
        kept: which layers to leave alone.
        layers: as for `expand`.
        dissolves: see `Rebuilder`.
        tell: whether to warn of layers that a file of the result cannot hold.
        traces: whether to expand layers of classes that are not declared, too.
        outermost: a layer whose parts keep their names.

    Returns:
        The new model, and the runs of `model` that it was compared in.
    """
    check_model(model)
    asked = [layers] if isinstance(layers, type) else list(layers)
    if not all(isinstance(cls, type) for cls in asked):
        raise TypeError(
            f"Expected `layers` to be layer classes. Received: layers={layers!r}"
        )
    expander = _Expander(kept, tuple(asked), dissolves, traces, outermost)
    if not expander.has_some(model):
        return model, []
    whole = expander.rebuild(model)
    if not expander.has_expanded:  # a rebuilt model may be one that cannot be saved
        return model, []
    found = is_same(model, whole)
    runs = [] if found is None else found.runs
    unlike = found is not None and found.difference > min(TOLERANCE, found.tolerance)
    if expander.traced and (found is None or unlike):
        for layer in expander.traced:  # nobody declared those
            keep_whole(layer, "the whole model is not proved to compute the same")
        return expand_but(model, kept, asked, dissolves, tell, False, outermost)
    if unlike:  # as the report will say
        if asked:
            raise ValueError(
                f"'{model.name}' computes something else when its composite layers "
                "are expanded. Please report it; the model is unharmed."
            )
        return model, runs
    if tell:
        warn_of_ties(expander.pairs, model.name)
        warn_of_unloadable(model, expander.unloadable)
    if model.compiled:
        recompile(model, whole)
    return whole, runs


def _is_of_hub(layer) -> bool:
    return type(layer).__module__.startswith("keras_hub.")


class _Expander(Rebuilder):
    """Rebuilds a model with what composite layers call in their place.

    Args:
        kept: which layers to leave alone.
        asked: layer classes to expand that are not declared.
        dissolves: see `Rebuilder`.
        traces: whether to expand layers of other classes, too, if that is proved.
        outermost: a layer whose parts keep their names.
    """

    def __init__(
        self, kept: Callable, asked: tuple, dissolves: bool, traces: bool, outermost
    ):
        super().__init__(self._make, call=self._call, dissolves=dissolves)
        self._kept = kept
        self._asked = asked
        self._traces = traces
        self._outermost = outermost
        self.has_expanded = False
        self.traced: list = []
        self._given_up: set[int] = set()
        self._extra: dict[tuple, Any] = {}
        self._trials: dict[tuple, tuple[Trial, str | None]] = {}

    def has_some(self, model, hidden: bool = False) -> bool:
        """Whether there is a layer to expand, or to put in other words."""
        hidden = hidden or self.hidden or hides_layers(model)
        return any(
            self.has_some(node.op, hidden)
            if is_graph(node.op)
            else self._is_expanded(node, hidden)
            for node in trace(model).nodes
        )

    def _is_expanded(self, node, hidden: bool) -> bool:
        """Whether a call is one to expand, as far as that is cheap to tell."""
        op = node.op
        function = self._function(op, hidden)
        if function is not own_call or own_parts(op) or self._is_asked(op):
            return function is not None
        kwargs = {key: value for key, value in node.kwargs.items() if key != "training"}
        _, reason = self._found(op, op, node.args, kwargs)
        if reason is not None:
            self._give_up(op, reason)
        return reason is None

    def _rebuild_sequential(self, model):
        if self.has_some(model):
            return self._rebuild_functional(trace(model))
        return super()._rebuild_sequential(model)

    def _function(self, op, hidden: bool = True) -> Callable | None:
        """How to do what an operation does by other layers and operations, or None.

        Args:
            op: an operation.
            hidden: whether it is a layer of a composite, or of a model, that is
                saved without it.
        """
        if not is_layer(op) or id(op) in self._given_up or self._kept(op):
            return None
        if is_graph(op):
            return None
        other = in_other_words(op) if hidden and not own_parts(op) else None
        if other is not None:
            return other
        if layer_rule(type(op)) is not None and type(op) not in self._asked:
            return None
        if self._is_asked(op):
            return composite_call(type(op)) or own_call
        if not self._traces or not is_traced(op):
            return None
        reason = why_not_held(op)
        if reason is not None:
            keep_whole(op, reason)
        return own_call if reason is None else None

    def _is_asked(self, op) -> bool:
        """Whether the class of a layer is declared, or named in the call."""
        return type(op) in self._asked or composite_call(type(op)) is not None

    def _make(self, op):
        new = copy_whole(op)
        if self._function(op, self.hidden) is not None:
            self._name_parts(new, "" if op is self._outermost else f"{new.name}_")
        return new

    def _name_parts(self, layer, prefix: str) -> None:
        """Name the parts of a layer after it, so that names are unique."""
        for part in own_parts(layer):
            part.name = self.free_name(f"{prefix}{part.name}")
            if self._function(part) is not None:
                self._name_parts(part, f"{part.name}_")

    def _call(self, old, new, args, kwargs):
        function = self._function(old, self.hidden)
        if function is None:
            return new(*args, **kwargs)
        given = {key: value for key, value in kwargs.items() if key != "training"}
        trial, reason = self._found(old, new, args, given)
        if trial is None or reason is not None:
            self._give_up(old, str(reason))
            keep_whole(new, str(reason))
            for part, own in zip(parts_of(new), parts_of(old)):
                part.name = own.name
            return new(*args, **kwargs)
        for number, why in trial.whole.items():
            keep_whole(parts_of(new)[number], why)
        parts = dict(zip(map(id, parts_of(trial.copy)), parts_of(new), strict=True))
        names = {part.name for part in (new, *parts_of(new))}

        def twin(layer):
            found = parts.get(id(layer))
            if found is None:  # a layer that was made for it
                number = trial.number_held(layer)
                key = (id(new), layer.name if number is None else number)
                if key not in self._extra and number is not None:
                    weight = new.weights[number]
                    name = self.free_name(f"{new.name}_{weight.name}")
                    self._extra[key] = trial.hold_again(number, weight, name)
                elif key not in self._extra:
                    self._extra[key] = copy_object(layer)
                    if layer.name not in names:  # it stands for none of them
                        self._extra[key].name = self.free_name(layer.name)
                found = self._extra[key]
            return found

        self.has_expanded = True
        if not self._is_asked(old):
            self.traced.append(old)
        prefix = "" if old is self._outermost else f"{old.name}_"

        def name_for(name):
            return self.free_name(prefix + re.sub(r"_\d+$", "", name))

        outputs = trial.play(args, given, twin, name_for)
        for node in trial.nodes:
            called = twin(node.op) if is_layer(node.op) else node.op
            super().note_loading(node, called, old)
        return outputs

    def _found(self, old, new, args, kwargs) -> tuple[Trial | None, str | None]:
        """A trial of a call of a layer, and why it does not stand for it, if so."""
        trial = None
        reason = why_not_held(old) if self._function(old) is own_call else None
        given = [x for x in keras.tree.flatten((args, kwargs)) if is_symbolic(x)]
        if reason is None and any(mask_of(x) is not None for x in given):
            reason = "Keras hands it a mask, which its parts alone do not hand on"
        if reason is None and any(map(is_optional, given)):
            reason = "it reads an optional input, for which there may be none"
        masks = makes_masks(old) and not has_graph(old)
        if reason is None and masks and makes_a_mask(old, args, kwargs):
            reason = "it makes a mask, in its `compute_mask`"
        for function_of in () if reason else self._ways(old):
            trial, reason = self._tried(function_of, old, new, args, kwargs)
            if reason is None:
                break
        return trial, reason

    def _tried(
        self, function_of, old, new, args, kwargs
    ) -> tuple[Trial | None, str | None]:
        """A trial of a call; parts whose code cannot be traced stay layers."""
        whole: dict[int, str] = {}
        while True:
            try:
                return self._trial(function_of, old, new, args, kwargs, whole)
            except Exception as error:
                what = "it cannot be called with symbolic tensors"
                reason = f"{what} ({one_line(error)})"
                part = getattr(error, "part", None)
                if part is None or part in whole:
                    return None, reason
                whole = {**whole, part: reason}

    def _ways(self, old) -> Iterator[Callable]:
        """Functions from a layer to how to do what it does, the best of them first."""
        yield self._function
        if any(self._function(part) and not own_parts(part) for part in parts_of(old)):
            # If the code of a part cannot be traced, call the part as a layer.
            yield lambda part: self._function(part) if own_parts(part) else None
        if any(in_other_words(part) is not None for part in parts_of(old)):
            yield lambda part: self._function(part, hidden=False)

    def note_loading(self, node, new, owner=None) -> None:
        if self._function(node.op, self.hidden) is None:  # it was called as it is
            super().note_loading(node, new, owner)

    def _trial(
        self, function_of, old, new, args, kwargs, whole
    ) -> tuple[Trial, str | None]:
        """A trial of a call, and why it does not stand for it.

        Layers that are alike, as the blocks of a net, share one: unless it calls a
        layer that was made for the first of them, with its weights.
        """
        tensors = tuple(x for x in keras.tree.flatten((args, kwargs)) if is_symbolic(x))
        alike, tells_all = likeness(old)
        how, tell_all = likeness_of_arguments(Node(old, args, kwargs, tensors, ()))
        key = (alike, how, *whole, *map(function_of, parts_of(old)))
        if key in self._trials:
            return self._trials[key]
        trial = Trial(new, function_of, args, kwargs, whole=whole)
        single = not (own_parts(old) or is_of_keras(type(old)))
        if single and trial.keeps_channels(args, kwargs):
            reason: str | None = ""  # the layer itself can be made smaller
        else:
            reason = trial.why_not(old, function_of, args, kwargs)
        found = trial, reason
        own_parts_only = {id(part) for part in parts_of(trial.copy)}.issuperset(
            id(node.op)
            for node in trial.nodes
            if getattr(node.op, "weights", ()) and trial.number_held(node.op) is None
        )
        if tells_all and tell_all and own_parts_only:
            self._trials[key] = found
        return found

    def _give_up(self, layer, reason: str) -> None:
        self._given_up.add(id(layer))
        if reason:
            keep_whole(layer, reason)
        if not own_parts(layer):  # which is not asked for
            return
        message = (
            f"The composite layer '{layer.name}' (of type {type(layer).__name__}) "
            f"cannot be expanded: {reason}."
        )
        if type(layer) in self._asked:
            raise ValueError(f"{message} Write a rule for it, or leave it as it is.")
        if self._is_asked(layer) and not _is_of_hub(layer):
            warn(f"{message} It is kept.")
