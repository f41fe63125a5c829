"""Subclassed models: a functional model of the same layers takes their place."""

import contextlib
import itertools

import keras

from filterprune.channels.trace import (
    check_model,
    copy_object,
    has_graph,
    inputs_like,
    is_graph,
    no_mode,
    trace,
)
from filterprune.compiling import recompile
from filterprune.expansion import expand_as
from filterprune.inputs import reads_ids
from filterprune.rebuilding import warn_of_methods


def as_functional(model, tell: bool = True):
    """A functional model that computes what a model does.

    Args:
        model: a built Keras model, which is not touched.
        tell: whether to warn of what the new model lacks.

    Returns:
        `model` itself if it is a functional or sequential one. Else its `call` is
        traced with symbolic tensors: the layers and operations in it become those of
        a functional model, with copies of its weights, and compiled if `model` is.

    Raises:
        TypeError: if it is no Keras model.
        ValueError: if it is not built, its inputs are not known, or its `call` cannot
            be traced.
    """
    subclassed = isinstance(model, keras.Model) and not is_graph(model)
    if not subclassed or (isinstance(model, keras.Sequential) and not has_graph(model)):
        check_model(model)
        return model
    inputs = _inputs_of(model)
    inputs, whole = _traced_with_dtypes(model, inputs)
    reads = reads_ids(trace(whole))
    floats = ["float" in x.dtype for x in keras.tree.flatten(inputs)]
    if any(map(all, zip(reads, floats))) and not has_graph(model):
        whole = _traced(model, _with_ids(inputs, reads))
    if tell:
        warn_of_methods(
            model, "Its `call` is all that was traced: train the new one in a loop"
        )
    if model.compiled:
        recompile(model, whole)
    return whole


def _with_ids(inputs, which):
    """Inputs of which some are integers: Keras notes shapes, but no dtypes."""
    ids = iter(which)
    return keras.tree.map_structure(
        lambda x: keras.Input(
            x.shape[1:], name=x.name, dtype="int32" if next(ids) else x.dtype
        ),
        inputs,
    )


def _traced_with_dtypes(model, inputs):
    """The inputs for which a model can be traced, and the functional model.

    Where it takes no floats, as few of the inputs as possible are integers.
    """
    try:
        return inputs, _traced(model, inputs)
    except Exception:
        count = len(keras.tree.flatten(inputs))
        choices = itertools.product((False, True), repeat=min(count, _MOST))
        for which in () if has_graph(model) else sorted(choices, key=sum)[1:]:
            with contextlib.suppress(Exception):
                other = _with_ids(inputs, [*which, *[False] * (count - len(which))])
                return other, _traced(model, other)
        raise


_MOST = 3  # inputs whose dtype is found by trial


def _traced(model, inputs):
    copy = copy_object(model)
    if any(x.name == copy.name for x in keras.tree.flatten(inputs)):
        copy.name = f"{copy.name}_model"
    outer = keras.Model(inputs, copy(inputs, **no_mode(copy)), name=model.name)
    return expand_as(outer, copy)


def _inputs_of(model):
    """Symbolic inputs of a subclassed model, in the structure that it takes."""
    if has_graph(model):
        graph = trace(model)
        fresh = dict(zip(map(id, graph.inputs), inputs_like(graph), strict=True))
        if len(graph.inputs) == 1:  # of which Keras may keep a list
            return fresh[id(graph.inputs[0])]
        return keras.tree.map_structure(lambda x: fresh[id(x)], graph.input_struct)
    shapes = (model.get_build_config() or {}).get("input_shape")
    built = any(layer.built for layer in model.layers)  # others may go unused
    if shapes is None or not built or not model.layers:
        raise ValueError(
            f"Expected `model` to be built. Received: the subclassed model "
            f"'{model.name}' (of type {type(model).__name__}), whose layers or inputs "
            "are not known yet. Call it once on data, as in `model(x[:1])`."
        )
    return _symbolic(shapes)


def _symbolic(shapes, name=None):
    if isinstance(shapes, dict):
        return {key: _symbolic(shape, key) for key, shape in shapes.items()}
    if any(isinstance(size, (list, tuple)) for size in shapes):
        found = [_symbolic(shape) for shape in shapes]  # Keras may keep its own kind
        return tuple(found) if isinstance(shapes, tuple) else found
    return keras.Input(shapes[1:], name=name)
