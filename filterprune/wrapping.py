"""Wrapping layers and whole models: the first of the three moves."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from filterprune.channels.calls import Call
from filterprune.channels.flow import gates_of
from filterprune.channels.groups import Analysis, study
from filterprune.channels.registry import known_type, layer_rule, unseen_axis
from filterprune.channels.survivors import Survivors
from filterprune.channels.trace import (
    check_model,
    copy_operation,
    is_graph,
    is_layer,
    is_of_keras,
    model_in,
    parts_of,
    replaced_method,
    shared_layers,
    widths_of,
)
from filterprune.compiling import Move, compile_alike, recompile
from filterprune.errors import warn
from filterprune.expansion import expand, expand_but
from filterprune.inputs import check_inputs
from filterprune.layers.base import Masked, masked_class
from filterprune.layers.following import Gate
from filterprune.layers.normalising import MaskedActivation
from filterprune.loading import hides_layers, warn_of_unloadable
from filterprune.rebuilding import (
    Rebuilder,
    around,
    copy_whole,
    warn_of_ties,
)
from filterprune.slots import nothing_to_prune
from filterprune.subclassed import as_functional
from filterprune.suggestions import suggests_keywords
from filterprune.verification import verify_layer, verify_wrapped


def wrap(layer):
    """Wrap one layer: a `clone_function` for `keras.models.clone_model`.

    Layers that make channels (`Conv2D`, `Dense`, ...) and layers that would
    turn an absent channel into something else (`BatchNormalization`,
    `Activation("sigmoid")`, ...) come back masked. Any other layer comes back
    as a copy, a nested functional or sequential model as a masked copy, and an
    operation that is no layer as a copy too. Weights come along.

    A single layer does not know its model: `wrap` also masks layers whose
    filters can never be removed, such as the last one. Their gates stay open.
    `filterprune.wrap_model` sees the whole graph and leaves them alone.

    Args:
        layer: a Keras layer, built or not, or an operation of a graph.

    Returns:
        A new layer (or operation). `layer` is not touched.

    Raises:
        ValueError: if the layer is masked already.
        filterprune.VerificationError: if the masked layer, its gates open, computes
            something else. That is tried where the layer is not Keras' own, or where
            its masked kin computes by itself, as normalisations do.

    Example:

    ```python
    masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    ```
    """
    if isinstance(layer, Masked):
        raise ValueError(
            f"Expected a layer that is not masked yet. Received: '{layer.name}' "
            f"(of type {type(layer).__name__}). The model was wrapped already; "
            "wrap the original model instead."
        )
    if not isinstance(layer, keras.Operation):
        raise TypeError(
            "Expected a Keras layer (or an operation of a graph). Received: "
            f"{layer!r} (of type {type(layer).__name__})"
        )
    if not is_layer(layer):
        return copy_operation(layer)
    if is_graph(layer):
        _warn_of_sharing(layer)
        return keras.models.clone_model(layer, clone_function=wrap)
    inner = model_in(layer)
    if inner is not None and unseen_axis(type(layer)) is not None:
        return around(layer, wrap(inner))
    axis = 1 if keras.config.image_data_format() == "channels_first" else -1
    several = not layer.weights and len(widths_of(layer, axis)) > 1
    if several or not _needs_gate(layer):  # gates would fit one of its calls alone
        return copy_whole(layer)
    masked = _masked(layer, axis)
    own = type(masked).call is not Masked.call or type(masked) is Masked
    if layer.built and (own or not is_of_keras(type(layer))):
        # Of another copy: to run it is to build it, which the model is to do.
        verify_layer(layer, _masked(layer, axis))
    return masked


def _warn_of_sharing(model) -> None:
    """Warn of layers of a nested model that `clone_model` will copy again."""
    shared = shared_layers(model)
    if shared:
        listed = ", ".join(f"'{name}'" for name in shared[:5])
        warn(
            f"Layers of the nested model '{model.name}' are called outside of it too: "
            f"{listed}{', ...' if len(shared) > 5 else ''}. `keras.models.clone_model` "
            "clones a nested model apart from what is around it, so that the copies "
            "do not share weights. `filterprune.wrap_model` keeps them shared."
        )


@suggests_keywords
def wrap_model(model, exclude: Any = (), verify: Any = True):
    """Wrap a whole model, knowing its graph.

    Gates are put where they can close something: not on filters that reach a
    model output, nor on layers before them that need none.

    Args:
        model: a built Keras model. Of a subclassed one `call` is traced, and the masked
            model is functional.
        exclude: what to leave as it is: a layer name, a layer type, a
            predicate `fn(layer) -> bool`, or an iterable of those. The name of
            a nested model excludes all that is in it; a layer in it is named
            `"backbone/conv1"` or just `"conv1"`.
        verify: whether to run both models, all gates open, on generated inputs and
            compare; or inputs to run them on, arrays in the structure that the model
            takes, where generated ones do not fit. Defaults to `True`.

    Returns:
        A masked model that computes what `model` does, with its weights,
        compiled if `model` is. `model` is not touched. If nothing in it can be
        pruned, it has no gates, and a `PruningWarning` says why.

    Raises:
        TypeError: if `model` is no Keras model, or an entry of `exclude` is
            neither a name, a type nor a predicate.
        ValueError: if `model` is not built, cannot be traced or is masked already, or
            if an entry of `exclude` matches no layer, or if `verify` are no
            inputs of it.
        filterprune.VerificationError: if the outputs of both models differ; it
            names the first layer whose output does.

    Example:

    ```python
    masked = filterprune.wrap_model(model, exclude=("head",))
    print(filterprune.analyze(masked))
    ```
    """
    model = as_functional(model)
    plain, inputs = model, check_inputs(model, verify)
    kept = _exclusion(model, exclude, layers=True)
    # `exclude` names nested models, so that they are dissolved only after this.
    hidden = hides_layers(plain)
    model, runs = expand_but(model, kept, dissolves=False, tell=not hidden)
    excluded = _exclusion(model, exclude)
    analysis = study(model, excluded)
    if analysis.masks:
        raise ValueError(
            f"Expected a model that is not masked yet. Received: '{model.name}', "
            f"whose layer '{analysis.masks[0].path}' is masked already."
        )
    chosen = _to_mask(analysis)
    if not chosen:
        warn(f"{nothing_to_prune(analysis)}. The wrapped model has no gates.")
    if hidden and not chosen:  # the class can go on saving itself
        masked = _copied(plain)
    else:
        masked = _wrap_chosen(model, chosen, hidden=hidden)
    if verify is not False:
        verify_wrapped(plain, masked, inputs, runs)
    return masked


def _copied(model) -> Any:
    """A copy of a model, of its own class."""
    new = copy_whole(model)
    if model.compiled:
        recompile(model, new)
    return new


def wrap_paths(model, paths, keep_state=False):
    """Wrap exactly the layers of a model that are named by their paths.

    Args:
        model: a plain model.
        paths: the paths of the layers.
        keep_state: whether the optimizer's state comes along.

    Raises:
        ValueError: if one of them is not in the model, or cannot be masked.
    """
    check_model(model)
    model = expand(model)
    analysis = study(model)
    if analysis.masks:
        raise ValueError(
            f"Expected a model that is not masked yet. Received: '{model.name}'."
        )
    chosen, found = {}, set()
    for call in analysis.flow.calls:
        for gate in call.gates:
            behind = call.is_gated_behind
            path = analysis.flow.gate_path(call) if behind else gate.path
            if path in paths:
                found.add(path)
                chosen[id(call.op)] = call
    missing = [path for path in paths if path not in found]
    if missing:
        raise ValueError(
            f"Expected layers of the model '{model.name}' whose channels can be "
            f"masked. Received: {missing[:5]}. "
            + _suggestion(missing[0], analysis.flow.calls)
        )
    return _wrap_chosen(model, chosen, keep_state)


def _wrap_chosen(model, chosen: dict[int, Call], keep_state=False, hidden=False):
    """A copy of a model with the layers of some calls (by the layer's id) masked."""

    def make(op):
        if id(op) not in chosen or chosen[id(op)].is_gated_behind:
            return copy_whole(op)
        return _masked(op, chosen[id(op)].gates[0].axis)

    def after(op):
        """A gate behind an operation that cannot be masked, such as `ops.sigmoid`."""
        if id(op) not in chosen or not chosen[id(op)].is_gated_behind:
            return None
        call = chosen[id(op)]
        name = call.flow.gate_path(call).rsplit("/", 1)[-1]
        return Gate(keras.layers.Identity(name=name), call.gates[0].axis)

    rebuilder = Rebuilder(make, after=after, hidden=hidden)
    masked = rebuilder.rebuild(model)
    warn_of_ties(rebuilder.pairs, model.name)
    warn_of_unloadable(model, rebuilder.unloadable)
    if model.compiled and keep_state:
        moves = [
            Move(old, new, ())
            for layer, copy in rebuilder.pairs
            for old, new in zip(layer.weights, _unmasked(copy).weights, strict=True)
        ]
        compile_alike(model, masked, moves, Survivors(np.ones(0, bool)))
    elif model.compiled:
        recompile(model, masked)
    return masked


def _unmasked(layer):
    """The layer in a masked one, which has weights of its own; others as they are."""
    return layer.layer if isinstance(layer, Masked) else layer


def _needs_gate(layer) -> bool:
    """Whether a layer seen alone makes channels or would revive absent ones."""
    if layer_rule(type(layer)) is None or replaced_method(layer) is not None:
        return False
    shape = _input_shape(layer)
    if shape is None or not layer.built:
        cls, own = masked_class(type(layer)), type(layer)
        if cls not in (None, MaskedActivation) and known_type(own) is own:
            # A recurrent layer may have a cell that no rule is known for.
            parts = [type(part) for part in parts_of(layer)]
            return all(is_of_keras(part) or layer_rule(part) for part in parts)
        shape = (None, 4)  # any will do for a layer that has no weights
    try:
        gates = gates_of(layer, shape)
    except Exception:  # its outputs cannot be gated
        return False
    return any(gate.makes or not gate.keeps_zero for gate in gates)


def _input_shape(layer):
    config = layer.get_build_config() or {}
    shape = config.get("input_shape")
    if shape is None or any(isinstance(size, (list, tuple)) for size in shape):
        return None
    return tuple(shape)


def _masked(layer, axis: int) -> Masked:
    """A masked layer around a copy of `layer`."""
    cls = masked_class(type(layer)) or Masked
    return cls(copy_whole(layer), axis=axis)


def _to_mask(analysis: Analysis) -> dict[int, Call]:
    """Which layers to mask (by id), and a call of each."""
    prunable = {int(root) for group in analysis.prunable for root in group.roots}
    chosen = {}
    for call in analysis.flow.calls:
        if not analysis.gated(call):
            continue
        slots = [analysis.slots(gate) for gate in call.gates]
        if prunable.intersection(np.concatenate(slots).tolist()):
            chosen[id(call.op)] = call
    return chosen


def _exclusion(model, exclude, layers=False) -> Callable:
    """A predicate on calls for an `exclude` argument, checked to match.

    Args:
        model: the model.
        exclude: the argument.
        layers: whether the predicate is to be one on layers.
    """
    if isinstance(exclude, (str, type)) or callable(exclude):
        exclude = (exclude,)
    if not isinstance(exclude, Iterable):
        raise TypeError(f"Expected `exclude` to be iterable. Received: {exclude!r}")
    tests = [(entry, _test(entry)) for entry in exclude]
    calls = study(model).flow.calls if tests else []
    for entry, test in tests:
        if not any(test(call) for call in calls):
            raise ValueError(
                "Expected every entry of `exclude` to match a layer of the model "
                f"'{model.name}'. Received: {entry!r}, which matches none. "
                + _suggestion(entry, calls)
            )
    if layers:
        found = {id(call.op) for call in calls if any(test(call) for _, test in tests)}
        return lambda layer: id(layer) in found
    return lambda call: any(test(call) for _, test in tests)


def _suggestion(entry, calls) -> str:
    names = [call.path for call in calls]
    near = difflib.get_close_matches(str(entry), names, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    listed = ", ".join(f"'{name}'" for name in names[:8])
    return f"{hint}Its layers are {listed}{', ...' if len(names) > 8 else ''}."


def _test(entry) -> Callable[[Call], bool]:
    if isinstance(entry, str):
        return lambda call: (
            call.op.name == entry
            or call.path == entry
            or f"/{call.path}".find(f"/{entry}/") >= 0
        )
    if isinstance(entry, type):
        return lambda call: isinstance(call.op, entry)
    if callable(entry):
        return lambda call: is_layer(call.op) and bool(entry(call.op))
    raise TypeError(
        "Expected `exclude` to hold layer names, layer types or predicates. "
        f"Received: {entry!r} (of type {type(entry).__name__})"
    )
