"""Reading a Keras model's graph: the only file that touches Keras' private API.

Keras publishes no way to walk the calls of a functional model. What is used
here, and nothing else: `Functional` (the class behind `keras.Model(x, y)`),
its `_nodes_by_depth`, `_inputs_struct` and `_outputs_struct`, the `Node`s in
it (`operation`, `arguments`, `input_tensors`, `outputs`, `is_input`),
`Sequential._functional`, `KerasTensor._keras_history`, `Operation._inbound_nodes`
and `_outbound_nodes`, `Layer._flatten_layers`, `Variable._path` and
`_autocast`, `Tracker` and what it tracks, `DynamicBackend`, `Operation._auto_config`,
`get_keras_mask`, `_fn` of metrics made of a function, `_flash_attention` of
attention layers, and the attributes that `copy_object` leaves behind.
`tests/channels/test_trace.py` fails loudly when Keras changes one of them.
"""

import dataclasses
import functools
import inspect
import itertools
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras.src.backend import get_keras_mask
from keras.src.utils.backend_utils import DynamicBackend
from keras.src.utils.tracking import TrackedDict, TrackedList, TrackedSet, Tracker

from filterprune.channels.copying import Copier

# Where a layer notes that it was called: Keras exports no ONNX of a model that was not.
CALLED = "_called"


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

    @property
    def names(self) -> set[str]:
        """The names of all operations; in one graph each has another one."""
        return {node.op.name for node in self.nodes} | set(self.input_names)


def free_name(wanted: str, taken) -> str:
    """A name that is not taken: `wanted`, or that with a number."""
    numbered = (f"{wanted}_{number}" for number in itertools.count(1))
    return next(n for n in itertools.chain([wanted], numbered) if n not in taken)


def _functional(model):
    """The `Functional` behind a functional or built sequential model, or None."""
    if isinstance(model, keras.Sequential):
        return model._functional
    if isinstance(model, keras.Model) and hasattr(model, "_nodes_by_depth"):
        return model
    return None


def has_graph(op) -> bool:
    """Whether `op` is a functional or built sequential model."""
    return _functional(op) is not None


def is_graph(op) -> bool:
    """Whether `op` is a model that computes what its graph does, and nothing else."""
    return has_graph(op) and replaced_method(op) is None


def replaced_method(op) -> str | None:
    """What an operation computes with in place of what is known of its type.

    Returns:
        The name of a method that the object itself has another one for, or, for a
        functional or sequential model, `"Net.call"` where its class `Net` overrides
        `call`; `None` if there is nothing of the kind.
    """
    wrapped = ("build", "quantize")  # by Keras, in every layer
    own = [key for key, value in vars(op).items() if callable(value)]
    own = [key for key in own if callable(getattr(type(op), key, None))]
    if not has_graph(op):
        return next((key for key in own if key not in wrapped), None)
    if not set(own).isdisjoint(_CALLS):
        return "call"
    base = keras.Sequential if isinstance(op, keras.Sequential) else _Functional
    classes = type(op).__mro__[: type(op).__mro__.index(base)]
    found = [
        (c, name)
        for c in classes
        for name in _CALLS
        if name in vars(c) and (c.__module__.split(".", 1)[0], name) not in _CHECKS
    ]
    return f"{found[0][0].__name__}.{found[0][1]}" if found else None


_CALLS = ("call", "__call__")
# By the package: overrides that check what they are given and pass it on.
_CHECKS = {("keras_hub", "__call__")}
_Functional: Any = type(keras.Model(*[keras.Input((1,))] * 2))


def model_in(op):
    """The functional or sequential model that a wrapper of layers wraps, or None."""
    inner = getattr(op, "layer", None)
    return inner if isinstance(op, keras.layers.Wrapper) and is_graph(inner) else None


def shared_layers(model) -> list[str]:
    """The layers with weights in a model that are called outside of it as well."""
    ops = [node.op for node in trace(model).nodes]
    return sorted(
        {
            op.name
            for op in ops
            if is_layer(op)
            and op.weights
            and len(op._inbound_nodes) > sum(other is op for other in ops)
        }
    )


def check_model(model, what: str = "model") -> None:
    """Raise unless `model` is a built functional or sequential Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected `{what}` to be a Keras model. "
            f"Received: {what}={model!r} (of type {type(model).__name__})"
        )
    if is_graph(model):
        return
    if has_graph(model):
        raise ValueError(
            f"Expected `{what}` to compute what its graph does. Received: "
            f"'{model.name}' (of type {type(model).__name__}), where "
            f"`{replaced_method(model)}` is defined anew. That would be lost. "
            "Put it into the graph as layers or operations, or pass the graph alone: "
            "`keras.Model(model.inputs, model.outputs)`."
        )
    if isinstance(model, keras.Sequential):
        raise ValueError(
            f"Expected `{what}` to be built. Received: the Sequential model "
            f"'{model.name}', whose input shape is not known yet. Call "
            "`model.build(input_shape)` or start it with `keras.Input(shape)`."
        )
    raise ValueError(
        f"Expected `{what}` to be a Functional or Sequential model. Received: "
        f"the subclassed model '{model.name}' (of type {type(model).__name__}), "
        "whose calls Keras does not record. `filterprune.wrap_model` traces them, and "
        "so does the functional API: `x = keras.Input(shape); keras.Model(x, "
        "model.call(x))`."
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


def inputs_like(graph: Graph, shape: Callable = lambda tensor: tensor.shape) -> list:
    """Fresh inputs for a graph, of other shapes if that is asked for."""
    return [
        keras.Input(
            batch_shape=shape(tensor),
            dtype=tensor.dtype,
            name=name,
            sparse=tensor.sparse,
            optional=is_optional(tensor),
            **({"ragged": True} if getattr(tensor, "ragged", False) else {}),
        )
        for tensor, name in zip(graph.inputs, graph.input_names, strict=True)
    ]


def replay(graph: Graph, inputs, call: Callable) -> tuple:
    """Make the calls of a graph again, on other tensors.

    Args:
        graph: the graph.
        inputs: a tensor for each of its inputs.
        call: from a node and the arguments of the new call to its outputs.

    Returns:
        The inputs and the outputs, each in the structure that the model has.
    """
    tensors = dict(zip(map(id, graph.inputs), inputs, strict=True))
    for node in graph.nodes:
        outputs = keras.tree.flatten(call(node, *node.fill(tensors)))
        tensors.update(zip(map(id, node.outputs), outputs, strict=True))
    return keras.tree.map_structure(
        lambda tensor: tensors[id(tensor)], (graph.input_struct, graph.output_struct)
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
    if not isinstance(model, _Functional):
        return None
    spec = inspect.getfullargspec(type(model).__init__)
    whole = inspect.getfullargspec(_Functional.__init__)
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
    """The attributes of a layer that may hold layers or weights, with their names."""
    own = {**vars(layer), **(vars(layer).get("_modules") or {})}  # on PyTorch
    kinds = (keras.layers.Layer, keras.Variable, list, tuple, dict)
    return [
        (name, value)
        for name, value in own.items()
        if name not in _LISTS and isinstance(value, kinds)
    ]


# Where Keras and PyTorch note what a layer holds by its attributes.
_LISTS = ("_layers", "_modules", "_trainable_variables", "_non_trainable_variables")


def forgotten_config(layer) -> dict[str, Any]:
    """Arguments of a layer that Keras' own config of it leaves out."""
    flash = getattr(layer, "_flash_attention", None)
    return {} if flash is None else {"flash_attention": flash}


def is_autocast(variable) -> bool:
    """Whether a layer sees a variable in the dtype that it computes in."""
    return variable._autocast


def is_optional(tensor) -> bool:
    """Whether a symbolic tensor is an input for which `None` may be given."""
    return bool(getattr(operation_of(tensor), "optional", False))


def operation_of(tensor):
    """What makes a symbolic tensor."""
    return tensor._keras_history.operation


def mask_of(tensor):
    """The mask that Keras lets a tensor carry along, or None."""
    return get_keras_mask(tensor)


def is_layer(op) -> bool:
    """Whether `op` is a layer (as opposed to a bare `keras.ops` operation)."""
    return isinstance(op, keras.layers.Layer)


def takes_training(op) -> bool:
    """Whether an operation is told apart training from inference."""
    return is_layer(op) and "training" in call_parameters(op)


def no_mode(layer) -> dict:
    """The arguments that tell a layer no mode, where its `call` must be told one."""
    if not takes_training(layer):
        return {}
    default = call_signature(layer).parameters["training"].default
    return {"training": None} if default is inspect.Parameter.empty else {}


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
    else:
        complete_config(fresh)
    return fresh


def complete_config(op) -> None:
    """Let Keras write the config of an operation whose arguments it has not noted.

    Keras notes those of a class without `get_config`, if all are plain values: a
    dtype policy in `Identity(dtype=policy)` is none, but every config has that. The
    others are taken from the attributes of their names, if it has all.
    """
    try:
        op.get_config()
    except Exception as error:
        if not isinstance(error, NotImplementedError):
            return
        parameters = list(inspect.signature(type(op).__init__).parameters.values())
        names = {
            parameter.name
            for parameter in parameters[1:]
            if parameter.kind
            in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        } - {"name", "trainable", "dtype", "activity_regularizer"}
        if all(hasattr(op, name) for name in names):
            noted = type(keras.layers.Identity()._auto_config)
            given = {name: getattr(op, name) for name in names}
            given = keras.tree.map_structure(_plain_number, given)
            vars(op)["_auto_config"] = noted(**given)


def _plain_number(value):
    return value.item() if isinstance(value, np.generic) else value


def copy_object(layer):
    """A copy of a layer that owes nothing to its config.

    Every attribute is copied deeply, variables and layers in it included, also
    where a function refers to them, but the graph that the layer stands in is left
    behind. What cannot be copied, such as an open file, is shared.

    Args:
        layer: any layer, or a function or other object.

    Returns:
        A layer of the same class and state that shares no variable with it.
    """
    return Copier(_copy_special)(layer)


def _copy_special(copy: Copier, value):
    """Copies of what Keras and its backend know; see `Copier`."""
    if type(value).__module__ == "builtins":  # most of it; to ask Keras takes long
        return value if _is_function_of_keras(value) else NotImplemented
    if isinstance(value, keras.Variable):
        return _copy_variable(copy, value)
    if isinstance(value, keras.layers.Layer):
        return (_copy_graph if has_graph(value) else _copy)(copy, value)
    if isinstance(value, keras.Operation):
        return copy_operation(value)
    if isinstance(value, (keras.KerasTensor, keras.DTypePolicy, DynamicBackend)):
        return value
    if isinstance(value, Tracker):
        return _copy_tracker(copy, value)
    if isinstance(value, (TrackedDict, TrackedList, TrackedSet)):
        return _copy_tracked(copy, value)
    if isinstance(value, _SILENT) and all(copy(v) is v for v in vars(value).values()):
        return value
    if keras.backend.backend() != "torch" and keras.ops.is_tensor(value):
        return value
    return _copy_table(value) if _is_table(value) else NotImplemented


def _is_function_of_keras(value) -> bool:
    """Whether a value is a function of Keras', such as `relu`, that holds nothing."""
    return isinstance(value, types.FunctionType) and (
        value.__closure__ is None and is_of_keras(value)
    )


# What belongs to no layer: a regularizer is the same for all that it is given to.
_SILENT = (
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
)
# What a layer has for the graph that it stands in, and for its last call.
_LEFT_BEHIND: dict[str, Callable] = {
    "_inbound_nodes": list,
    "_outbound_nodes": list,
    "_losses": list,
    "_loss_ids": set,
}
# What `compile` and `fit` give to a model.
_COMPILED: dict[str, Any] = {
    "compiled": False,
    "loss": None,
    "optimizer": None,
    "train_function": None,
    "test_function": None,
    "predict_function": None,
    "_compile_config": None,
    "_compile_loss": None,
    "_compile_metrics": None,
    "_loss_tracker": None,
}


def _copy(copy: Copier, layer):
    """A layer that is no functional or sequential model, with all that it holds."""
    new = _blank(type(layer))
    copy.note(layer, new)
    # Keras wraps `build` for each layer, and the wrapper builds that layer.
    wrapped = {name for name in ("build", "quantize") if name in vars(new)}
    for variable in layer.variables:
        copy(variable)
    _copy_attributes(copy, layer, new, vars(layer).keys() - wrapped)
    return new


def _copy_attributes(copy: Copier, layer, new, names) -> None:
    for name in [name for name in vars(layer) if name in names]:
        if name in _LEFT_BEHIND:
            value = _LEFT_BEHIND[name]()
        elif name in _COMPILED and isinstance(layer, keras.Model):
            value = _COMPILED[name]
        else:
            value = copy(vars(layer)[name])
        object.__setattr__(new, name, value)


def _copy_graph(copy: Copier, model):
    """A functional or sequential model, of copies of its operations.

    Its graph is recorded anew. Of what else it has only what its own class gives
    it is copied: it is not compiled.
    """
    graph = trace(model)
    inputs = inputs_like(graph)
    if isinstance(model, keras.Sequential):
        new = keras.Sequential([*inputs, *map(copy, model.layers)], name=model.name)
    else:
        made = replay(graph, inputs, lambda *call: _call_copy(copy, *call))
        new = keras.Model(*made, name=model.name)
    own = vars(model).keys() - vars(new).keys() - _COMPILED.keys()
    kept = {name for name in vars(new) if name.startswith(("_call", "call_"))}
    new.__class__ = type(model)
    copy.note(model, new)
    kept |= {"_dtype_policy", "_trainable", "_supports_masking"} | (own & {"call"})
    _copy_attributes(copy, model, new, kept)
    for name in own - kept:  # by the ways of Keras, which keeps track of layers
        setattr(new, name, copy(vars(model)[name]))
    return new


def _call_copy(copy: Copier, node: Node, args, kwargs):
    op = copy(node.op)
    return op(*args, **(without_mask(op, kwargs) if is_layer(op) else kwargs))


def _copy_tracker(copy: Copier, tracker):
    """What a layer keeps track of by the ids of its variables and layers."""
    new = object.__new__(type(tracker))
    copy.note(tracker, new)
    vars(new).update((key, copy(value)) for key, value in vars(tracker).items())
    new.stored_ids = {
        name: {id(value) for value in store} for name, (_, store) in new.config.items()
    }
    return new


def _copy_tracked(copy: Copier, value):
    """A collection that tells a tracker of what is added to it."""
    parts = value.items() if isinstance(value, dict) else value
    new = type(value)([copy(part) for part in parts])
    new.tracker = copy(value.tracker)
    return new


def _is_table(value) -> bool:
    """Whether a value is a resource of TensorFlow's, such as a lookup table."""
    return any(cls.__name__ == "CapturableResource" for cls in type(value).__mro__)


def _copy_table(table):
    """A table of its own if it can be written to; any other is shared."""
    if type(table).__name__ != "MutableHashTable":
        return table
    keys, values = table.export()
    new = type(table)(
        table.key_dtype, table.value_dtype, default_value=table._default_value
    )
    new.insert(keys, values)
    return new


def _blank(cls):
    """A layer that nothing was done to but what Keras does on its own."""
    try:
        return cls.__new__(cls)
    except Exception:  # a class that wants arguments even there
        return object.__new__(cls)


def _copy_variable(copy: Copier, variable):
    fresh = keras.Variable(
        keras.ops.convert_to_numpy(variable),
        # TensorFlow never watches a variable that was not trainable when it was made.
        trainable="float" in variable.dtype,
        dtype=variable.dtype,
        autocast=variable._autocast,
        aggregation=variable.aggregation,
        name=variable.name,
    )
    fresh.trainable = variable.trainable
    fresh._path = variable._path
    layout = getattr(variable, "_layout", None)
    if layout is not None:  # Keras looks for one by the path, at first another
        fresh._layout = layout
        fresh.assign(variable.value)
    copy.note(variable, fresh)
    copy.note(variable.value, fresh.value)  # PyTorch's layers list these
    for name in ("regularizer", "constraint", "overwrite_with_gradient"):
        if hasattr(variable, name):
            setattr(fresh, name, copy(getattr(variable, name)))
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
