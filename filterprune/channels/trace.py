"""Reading a Keras model's graph: the only file that touches Keras' private API.

Keras publishes no way to walk the calls of a functional model. What is used
here, and nothing else: `Functional` (the class behind `keras.Model(x, y)`),
its `_nodes_by_depth`, `_inputs_struct` and `_outputs_struct`, the `Node`s in
it (`operation`, `arguments`, `input_tensors`, `outputs`, `is_input`),
`Sequential._functional`, `KerasTensor._keras_history`, `Operation._inbound_nodes`
and `_outbound_nodes`, `Layer._flatten_layers`, `Variable._path` and
`DotNotTrackScope`, `Operation._auto_config`, `get_keras_mask`, `_fn` of
metrics made of a function, and `_flash_attention` of attention layers.
`tests/channels/test_trace.py` fails loudly when Keras changes one of them.
"""

import copy
import dataclasses
import functools
import inspect
import sys
import types
from typing import Any

import keras
import numpy as np
from keras.src.backend import get_keras_mask
from keras.src.utils.tracking import DotNotTrackScope


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of one operation: `outputs = op(*args, **kwargs)`."""

    op: Any
    args: tuple
    kwargs: dict
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]

    def fill(self, tensors: dict[int, Any]) -> tuple[tuple, dict]:
        """The arguments with every tensor replaced by `tensors[id(tensor)]`."""

        def switch(value):
            if isinstance(value, keras.KerasTensor):
                return tensors[id(value)]
            return value

        return keras.tree.map_structure(switch, (self.args, self.kwargs))


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The calls of a functional model, inputs first."""

    model: keras.Model
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]
    nodes: tuple[Node, ...]
    input_struct: Any
    output_struct: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def _functional(model):
    """The `Functional` behind a functional or built sequential model, or None."""
    if isinstance(model, keras.Sequential):
        return model._functional
    if isinstance(model, keras.Model) and hasattr(model, "_nodes_by_depth"):
        return model
    return None


def is_graph(op) -> bool:
    """Whether `op` is a functional or sequential model whose calls can be read."""
    return _functional(op) is not None


def model_in(op):
    """The functional or sequential model that a wrapper of layers wraps, or None."""
    inner = getattr(op, "layer", None)
    return inner if isinstance(op, keras.layers.Wrapper) and is_graph(inner) else None


def check_model(model, what: str = "model") -> None:
    """Raise unless `model` is a built functional or sequential Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected `{what}` to be a Keras model. "
            f"Received: {what}={model!r} (of type {type(model).__name__})"
        )
    if is_graph(model):
        return
    if isinstance(model, keras.Sequential):
        raise ValueError(
            f"Expected `{what}` to be built. Received: the Sequential model "
            f"'{model.name}', whose input shape is not known yet. Call "
            "`model.build(input_shape)` or start it with `keras.Input(shape)`."
        )
    raise ValueError(
        f"Expected `{what}` to be a Functional or Sequential model. Received: "
        f"the subclassed model '{model.name}' (of type {type(model).__name__}), "
        "whose calls Keras does not record. Build it with the functional API: "
        "`x = keras.Input(shape); keras.Model(x, model.call(x))`."
    )


def trace(model) -> Graph:
    """Read the graph of a functional or sequential model.

    Args:
        model: a built functional or sequential Keras model.

    Returns:
        A `Graph`, its nodes in the order in which Keras runs them.
    """
    function = _functional(model)
    nodes = []
    by_depth = function._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if node.operation is None or node.is_input:
                continue
            arguments = node.arguments
            nodes.append(
                Node(
                    node.operation,
                    tuple(arguments.args),
                    _given(arguments.kwargs),
                    tuple(arguments.keras_tensors),
                    tuple(node.outputs),
                )
            )
    return Graph(
        model,
        tuple(function.inputs),
        tuple(function.outputs),
        tuple(nodes),
        function._inputs_struct,
        function._outputs_struct,
        tuple(tensor._keras_history.operation.name for tensor in function.inputs),
        tuple(function.output_names),
    )


def _given(kwargs) -> dict:
    """Keyword arguments without the context that Keras fills in as None."""
    return {
        key: value
        for key, value in kwargs.items()
        if not (key in ("mask", "training") and value is None)
    }


def functional_arguments(model) -> dict | None:
    """What `type(model)(inputs, outputs, name=..., ...)` takes to rebuild a model.

    Returns:
        The keyword arguments of its own constructor beyond those of Keras', as the
        model's attributes of those names have them; `None` if its constructor is
        another one.
    """
    plain = type(keras.Model(*[keras.Input((1,))] * 2))
    if not isinstance(model, plain):
        return None
    spec = inspect.getfullargspec(type(model).__init__)
    whole = inspect.getfullargspec(plain.__init__)
    if spec.args[1:] != whole.args[1:] and (spec.args[1:] or not spec.varargs):
        return None
    own = [name for name in spec.kwonlyargs if name not in whole.args]
    if not (spec.varkw or "name" in (*spec.args, *spec.kwonlyargs)):
        return None
    return {name: getattr(model, name) for name in own if hasattr(model, name)}


def parts_of(layer) -> list:
    """The layers that a layer is made of, itself not counted."""
    return [part for part in layer._flatten_layers() if part is not layer]


def part_named(layer, name: str):
    """The layer of a name that a layer holds, or None."""
    if not is_layer(layer):
        return None
    return next((part for part in own_parts(layer) if part.name == name), None)


def own_parts(layer) -> list:
    """The layers that a layer holds itself, without those that they hold."""
    return layer._flatten_layers(include_self=False, recursive=False)


def widths_of(layer, axis: int) -> set:
    """The sizes along an axis of what a layer made in all of its calls."""
    made = [node.outputs[0].shape for node in layer._inbound_nodes]
    return {shape[axis] for shape in made if -len(shape) <= axis < len(shape)}


def members_of(layer) -> list[tuple[str, Any]]:
    """The attributes of a layer that may hold layers, with their names."""
    own = {**vars(layer), **(vars(layer).get("_modules") or {})}  # on PyTorch
    return [
        (name, value)
        for name, value in own.items()
        if name not in ("_layers", "_modules")
        and (is_layer(value) or isinstance(value, (list, tuple, dict)))
    ]


def forgotten_config(layer) -> dict[str, Any]:
    """Arguments of a layer that Keras' own config of it leaves out."""
    flash = getattr(layer, "_flash_attention", None)
    return {} if flash is None else {"flash_attention": flash}


def mask_of(tensor):
    """The mask that Keras lets a tensor carry along, or None."""
    return get_keras_mask(tensor)


def is_layer(op) -> bool:
    """Whether `op` is a layer (as opposed to a bare `keras.ops` operation)."""
    return isinstance(op, keras.layers.Layer)


def takes_training(op) -> bool:
    """Whether an operation is told apart training from inference."""
    return is_layer(op) and "training" in call_parameters(op)


def call_parameters(layer) -> tuple[str, ...]:
    """The names of what a layer's `call` takes."""
    return tuple(call_signature(layer).parameters)


def call_signature(layer) -> inspect.Signature:
    """What a layer's `call` takes."""
    call = layer.call
    if inspect.ismethod(call):
        return _signature_of_method(call.__func__)
    return inspect.signature(call)


@functools.lru_cache(maxsize=1024)
def _signature_of_method(function) -> inspect.Signature:
    # Once for each class: reading a signature takes as long as a whole rule.
    return inspect.signature(types.MethodType(function, object()))


def without_mask(layer, kwargs: dict) -> dict:
    """Keyword arguments without a mask that the layer takes no notice of.

    Keras records the mask that comes along with a tensor for every layer.
    """
    if "mask" not in kwargs or "mask" in call_parameters(layer):
        return kwargs
    return {key: value for key, value in kwargs.items() if key != "mask"}


def is_of_keras(value) -> bool:
    """Whether a class or function, or the class of an object, is Keras' own."""
    named = value if hasattr(value, "__module__") else type(value)
    return str(named.__module__).split(".", 1)[0] == "keras"


def is_keras_operation(op) -> bool:
    """Whether `op` is an operation of `keras.ops`, and not somebody's own."""
    return not is_layer(op) and is_of_keras(type(op))


def copy_operation(op, **changes):
    """A copy of a bare operation, outside every graph, with changed attributes.

    Its config is changed along, because that is what a file holds.
    """
    changes = keras.tree.map_structure(_plain_number, changes)
    fresh = _blank(type(op))  # `copy.copy` wants a config, which arrays do not have
    fresh.__dict__ = {**op.__dict__, "_inbound_nodes": [], "_outbound_nodes": []}
    fresh.__dict__.update(changes)
    given = getattr(op, "_auto_config", None)
    if given is not None:
        fresh.__dict__["_auto_config"] = type(given)(**{**given.config, **changes})
    return fresh


def _plain_number(value):
    return value.item() if isinstance(value, np.generic) else value


def copy_object(layer):
    """A copy of a layer that does not round-trip through its config.

    Every attribute is copied deeply, variables and layers in it included, but
    the graph that the layer stands in is left behind.

    Args:
        layer: any layer.

    Returns:
        A layer of the same class and state that shares no variable with it.
    """
    memo: dict[int, Any] = {id(m): m for m in list(sys.modules.values())}
    inner = layer._flatten_layers()
    wrappers: dict[int, dict] = {}
    for part in inner:
        fresh = memo[id(part)] = _blank(type(part))
        # Keras wraps `build` for each layer, and the wrapper builds that layer.
        wrappers[id(part)] = {
            name: vars(fresh)[name]
            for name in ("build", "quantize")
            if name in vars(fresh)
        }
        for name in ("_inbound_nodes", "_outbound_nodes"):
            memo[id(getattr(part, name))] = []
        backend = getattr(part, "backend", None)  # a stand-in for a module
        memo[id(backend)] = backend
        for variable in part.variables:
            if id(variable) not in memo:
                memo[id(variable)] = _copy_variable(variable)
    with DotNotTrackScope():  # the copy of what is tracked is copied as well
        for part in inner:
            fresh = memo[id(part)]
            for key, value in vars(part).items():
                if key not in wrappers[id(part)]:
                    object.__setattr__(fresh, key, copy.deepcopy(value, memo))
    return memo[id(layer)]


def _blank(cls):
    """A layer that nothing was done to but what Keras does on its own."""
    try:
        return cls.__new__(cls)
    except Exception:  # a class that wants arguments even there
        return object.__new__(cls)


def _copy_variable(variable):
    fresh = keras.Variable(
        keras.ops.convert_to_numpy(variable),
        trainable=variable.trainable,
        dtype=variable.dtype,
        name=variable.name,
    )
    fresh._path = variable._path
    for name in ("regularizer", "constraint"):
        setattr(fresh, name, getattr(variable, name, None))
    return fresh


def metric_functions(model) -> list:
    """Metric functions, which Keras wraps in metric objects."""
    found = []
    for metric in model.metrics:
        for part in getattr(metric, "metrics", [metric]):
            function = getattr(part, "_fn", None)
            if function is not None and hasattr(function, "__name__"):
                found.append(function)
    return found


def adafactor_factors(optimizer) -> tuple[list, list]:
    """The means of squared gradients over the columns and over the rows."""
    return optimizer._r, optimizer._c
