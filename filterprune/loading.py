"""Whether the layers of a model come back from a file, each by itself.

A backbone of keras-hub, or any model whose class has a constructor of its own, is
saved as the arguments of that constructor, and a composite layer as its own config.
Neither file says anything of the layers inside. Rebuilt, such a model is a plain
functional one, and Keras loads each layer from the config of that layer: with
functions that it can find by name, for one.
"""

import contextlib
import inspect
import json
import warnings
from collections.abc import Callable
from types import FunctionType

import keras

from filterprune.channels.registry import layer_rule, own_call
from filterprune.channels.remaking import NOT_RUN, why_not_alike
from filterprune.channels.trace import (
    Node,
    complete_config,
    copy_object,
    functional_arguments,
    is_graph,
    is_layer,
    is_of_keras,
    own_parts,
    parts_of,
    trace,
    without_mask,
)
from filterprune.errors import one_line, warn


def hides_layers(model) -> bool:
    """Whether a file of a model says nothing of its layers, but one of a copy does."""
    if isinstance(model, keras.Sequential):
        return type(model) is not keras.Sequential
    return functional_arguments(model) is None


def why_not_loaded(op) -> str | None:
    """Why Keras could not load a layer from its own config, or None.

    Args:
        op: a layer, or another operation. It may be one that `complete_config` mends.
    """
    op = _with_config(op)
    parts = [op, *(parts_of(op) if is_layer(op) else ())]
    own = [value for part in parts for value in _own_functions(part)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lambdas
        try:
            if not own and all(is_of_keras(type(part)) for part in parts):
                op.get_config()
                return None
            config = keras.saving.serialize_keras_object(op)
            written = json.dumps(config)
            config["config"].pop("name", None)
            key = (type(op), json.dumps(config), *own)
        except NotImplementedError:
            return "its class has no `get_config`"
        except Exception as error:
            return f"Keras cannot write its config: {one_line(error, _MOST)}"
    if not all(isinstance(one, FunctionType) and not one.__closure__ for one in own):
        return _why_not_read(op, json.loads(written))  # objects are not kept alive
    if key not in _FOUND:
        _FOUND[key] = _why_not_read(op, json.loads(written))
    return _FOUND[key]


def _with_config(op):
    """The operation, or a copy of it that has a config."""
    with contextlib.suppress(Exception):
        op.get_config()
        return op
    op = copy_object(op)
    complete_config(op)
    return op


_MOST = 150  # characters of an error
_FOUND: dict[tuple, str | None] = {}


def _own_functions(op) -> list:
    wrapped = ("build", "quantize")  # by Keras, in every layer
    return [
        value
        for key, value in vars(op).items()
        if key not in wrapped and _is_own(value) and not is_layer(value)
    ]


def _is_own(value) -> bool:
    """Whether an attribute is a function or object that is not Keras'."""
    return callable(value) and not isinstance(value, type) and not is_of_keras(value)


def _why_not_read(op, written: dict) -> str | None:
    try:
        new = keras.saving.deserialize_keras_object(written)
    except Exception as error:
        return f"Keras cannot read its config: {one_line(error, _MOST)}"
    for key in written["config"]:
        value = getattr(op, key, None)
        if inspect.isfunction(value) and getattr(new, key, None) is not value:
            return f"its `{key}` would come back as another function"
    return None


def why_not_the_same(node: Node) -> str | None:
    """Why an operation would not come back from a file as it is, or None.

    Args:
        node: a call of it.
    """
    reason = why_not_loaded(node.op)
    if reason is None and is_layer(node.op) and not is_of_keras(type(node.op)):
        op = _with_config(node.op)
        found = why_not_alike(op, node, _loaded) or NOT_RUN
        reason = None if found.startswith(NOT_RUN) else one_line(found, _MOST)
    return reason


def _loaded(layer, node: Node):
    """The layer as Keras loads it, built by its config or when it is called."""
    new = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    )
    fresh = {
        id(x): keras.KerasTensor(x.shape, x.dtype, x.sparse, name="x")
        for x in node.inputs
    }
    args, kwargs = node.fill(fresh)
    new(*args, **without_mask(new, kwargs))
    if layer.weights:
        new.set_weights(layer.get_weights())
    return new


def in_other_words(layer) -> Callable | None:
    """How to do what a layer does that no file can hold, or None.

    Returns:
        `None` for a layer that can be loaded, or for which nothing is known; else
        a function of the layer and the arguments of its call, made for
        `filterprune.inlining.Trial`, which finds out whether it computes the same.
    """
    if own_parts(layer) or why_not_loaded(layer) is None:
        return None
    if layer_rule(type(layer)) is not None and not is_of_keras(type(layer)):
        return None
    if not layer.variables:
        return own_call  # the operations that it calls
    try:
        bare = _without_activation(layer)
    except Exception:  # it has none, or none that can be set
        return None
    return _activated if why_not_loaded(bare) is None else None


def _without_activation(layer):
    bare = copy_object(layer)
    if not _is_own(bare.activation):
        raise ValueError("it is an activation of Keras'")
    bare.activation = keras.activations.linear
    return bare


def _activated(layer, *args, **kwargs):
    """Do what a layer does, its activation function behind it."""
    if "_bare" not in vars(layer):
        vars(layer)["_bare"] = _without_activation(layer)
    return layer.activation(vars(layer)["_bare"](*args, **kwargs))


def tied_models(graph) -> set[int]:
    """The ids of nested models that share layers with what is around them.

    Keras cannot load those: the file of the outer model has each of the shared
    layers twice, and nothing in it says that it is one.
    """
    places: dict[int, set[tuple[int, ...]]] = {}
    for node in graph.nodes:
        for leaf, path in _leaves(node.op):
            places.setdefault(id(leaf), set()).add(path)
    return {
        model
        for paths in places.values()
        if len({path[:1] for path in paths}) > 1
        for path in paths
        for model in path
    }


def _leaves(op, path: tuple[int, ...] = ()) -> list[tuple]:
    """The layers with weights of a nested model, or the layer, and models around."""
    if is_graph(op):
        nodes = trace(op).nodes
        return [leaf for node in nodes for leaf in _leaves(node.op, (*path, id(op)))]
    return [(op, path)] if is_layer(op) and op.weights else []


def can_dissolve(node) -> bool:
    """Whether the calls of a nested model can take the place of a call of it."""
    given = [x for x in keras.tree.flatten(node.args) if x is not None]
    inputs = trace(node.op).inputs
    return (
        not node.kwargs.keys() - {"mask"}
        and len(given) == len(inputs)
        and all(
            isinstance(x, keras.KerasTensor)
            and x.dtype == own.dtype
            and len(x.shape) == len(own.shape)
            for x, own in zip(given, inputs)
        )
    )


def _is_found(cls: type) -> bool:
    """Whether Keras finds a class by its name."""
    if cls.__module__.split(".", 1)[0] in ("keras", "keras_hub"):
        return True
    name = keras.saving.get_registered_name(cls)
    return keras.saving.get_registered_object(name) is cls


def warn_of_unloadable(model, reasons: dict[str, str]) -> None:
    """Warn of layers that Keras will not load, though it loads the original model.

    Args:
        model: the original model.
        reasons: from the name of a layer to why.
    """
    if not reasons or not _is_found(type(model)):
        return
    listed = "; ".join(f"'{name}' ({why})" for name, why in list(reasons.items())[:3])
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    warn(
        f"What is made of '{model.name}' is a plain functional model, and Keras will "
        f"not load all of its layers from a file by themselves: {listed}{more}. "
        "Register their classes and functions with "
        "`@keras.saving.register_keras_serializable()` and give the classes a "
        "`get_config` that has every argument, or save the weights alone."
    )
