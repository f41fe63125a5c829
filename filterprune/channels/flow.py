"""Channel flow: one pass over a model's graph that labels every channel.

`flow(model)` runs the rule of every call, in order, nested models included.
What comes out says, for every tensor, which of its positions live and die
together, and for every weight, which of its axes run along which labels.
Wrapping, pruning, cost, compaction and the report all read this one result.
"""

import functools
import inspect
from collections.abc import Callable

import keras
import numpy as np

from filterprune.channels import registry
from filterprune.channels.activations import activation_layer
from filterprune.channels.calls import (
    Ambiguous,
    Call,
    Flow,
    Gate,
    calling,
    current,
    describe,
)
from filterprune.channels.constants import spread
from filterprune.channels.labels import Channels, fit
from filterprune.channels.moves import longest_axis
from filterprune.channels.remaking import why_not_remade
from filterprune.channels.trace import (
    Graph,
    Node,
    call_parameters,
    call_signature,
    copy_object,
    has_graph,
    is_graph,
    is_keras_operation,
    is_layer,
    is_of_keras,
    model_in,
    replaced_method,
    takes_training,
    trace,
    without_mask,
)
from filterprune.errors import one_line
from filterprune.running import attributes_kept


def flow(model) -> Flow:
    """Analyse a functional or sequential model.

    Args:
        model: a built functional or sequential Keras model, masked or not.

    Returns:
        The `Flow`. The model is not touched.
    """
    result = Flow(model)
    graph = trace(model)
    inputs = [
        result.pinned(tensor.shape, f"comes from the input `{tensor.name}`")
        for tensor in graph.inputs
    ]
    outputs = _visit_graph(result, graph, inputs, prefix="", training=False)
    for channels, name in zip(outputs, graph.output_names, strict=True):
        result.table.pin(channels.labels, f"reaches the output `{name}`", first=True)
    _keep_rectangular(result)
    return result


def keeps_apart(model, axis: int) -> bool:
    """Whether a model does with each channel of its inputs the same, and no more.

    Args:
        model: a built functional model.
        axis: the axis of channels of all inputs and outputs.
    """
    result = Flow(model)
    graph = trace(model)
    shapes = [tuple(tensor.shape) for tensor in (*graph.inputs, *graph.outputs)]
    if any(len(shape) != len(shapes[0]) for shape in shapes):
        return False
    size = shapes[0][axis]
    if size is None or any(shape[axis] != size for shape in shapes):
        return False
    channels = result.table.new(size)
    inputs = [
        Channels(tuple(x.shape), spread(channels, len(x.shape), axis))
        for x in graph.inputs
    ]
    outputs = _visit_graph(result, graph, inputs, prefix="", training=False)
    roots = result.table.roots()
    apart = np.unique(roots[channels]).size == size
    kept = all(
        y.labels.size == size and (roots[y.labels.ravel()] == roots[channels]).all()
        for y in outputs
    )
    return apart and kept and not result.barriers and not result.table.reasons()


def gates_of(layer, *shapes, mask=None) -> list[Gate]:
    """How the channels of one built layer are gated, apart from any model.

    Args:
        layer: a built layer that has a rule.
        *shapes: the shapes of its inputs, `None` for unknown sizes.
        mask: the masked layer around it, if there is one.

    Returns:
        The `Gate`s, that of the output first.

    Raises:
        ValueError: if the layer's channels cannot be gated.
    """
    xs = tuple(keras.KerasTensor(s, dtype=layer.compute_dtype) for s in shapes)
    ys = tuple(keras.tree.flatten(layer.compute_output_spec(*xs)))
    result = Flow(layer)
    inputs = tuple(result.pinned(x.shape, "an input") for x in xs)
    call = Call(result, layer, mask, Node(layer, xs, {}, xs, ys), "", inputs)
    with calling(call):
        try:
            apply_rule(call)
        except Ambiguous as error:
            raise ValueError(f"{describe(layer)} cannot be masked: {error}") from None
    if not call.gates:
        raise ValueError(f"{describe(layer)} cannot be masked: it has no channels")
    return call.gates


def _visit_graph(
    result: Flow, graph: Graph, inputs, prefix: str, training: bool, times: int = 1
) -> list[Channels]:
    result.graphs.setdefault(id(graph.model), graph)
    known = dict(zip(map(id, graph.inputs), inputs, strict=True))
    for node in graph.nodes:
        channels = [known[id(tensor)] for tensor in node.inputs]
        for tensor, value in zip(
            node.outputs,
            _visit(result, node, channels, prefix, training, times),
            strict=True,
        ):
            known[id(tensor)] = value
            result.vectors.append(value)
            result.made_by[id(value)] = node.op
    for key, value in known.items():
        first = result.tensors.setdefault(key, value)
        if first is not value:  # a nested model, or a layer in it, called again
            result.table.tie(first.labels, value.labels)
    result.note_ties(f"{describe(graph.model)}, which is called several times")
    return [known[id(tensor)] for tensor in graph.outputs]


def _visit(
    result: Flow, node: Node, inputs, prefix: str, training: bool, times: int
) -> list[Channels]:
    op = node.op
    path = prefix + op.name
    # That of a nested model overrules those of the layers in it.
    training = training or bool(node.kwargs.get("training"))
    if is_graph(op):
        graph = result.graphs.get(id(op)) or trace(op)
        if len(graph.inputs) == len(inputs):
            return _visit_graph(result, graph, inputs, path + "/", training, times)
    axis = registry.unseen_axis(type(op))
    if axis is not None and model_in(op) is not None:
        call = Call(result, op, None, node, path, tuple(inputs))
        with calling(call):
            try:
                return _visit_model_in(call, axis, training, times)
            except Ambiguous as error:
                result.calls.append(call)
                return _barrier(call, str(error), result.table.count)
    mask = op if getattr(type(op), "masks_channels", False) else None
    bare = op.layer if mask is not None else op
    call = Call(result, bare, mask, node, path, tuple(inputs))
    call.training = training and takes_training(bare)
    call.times = times
    result.calls.append(call)
    mark = result.table.count
    with calling(call):
        try:
            outputs = apply_rule(call)
        except Ambiguous as error:
            outputs = _barrier(call, str(error), mark)
        except Exception as error:
            reason = f"its rule failed with {type(error).__name__}: {error}"
            outputs = _barrier(call, reason, mark)
    _share_gates(call)
    result.note_ties(describe(bare))
    _carry_activation(call)
    if call.gates:
        outputs = _gated(call, outputs)
    return outputs


def _visit_model_in(call: Call, axis: int, training: bool, times: int):
    """Visit the model that a layer calls at each position along an axis."""
    inner = model_in(call.op)
    graph = call.flow.graphs.get(id(inner)) or trace(inner)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise Ambiguous(f"it calls {describe(inner)}, which has several tensors")
    seen = leave_out(call.inputs[0], axis)
    times *= call.inputs[0].shape[axis] or 1
    prefix = f"{call.path}/"
    (made,) = _visit_graph(call.flow, graph, [seen], prefix, training, times)
    return [put_back(made, axis, call.outputs[0])]


def leave_out(x: Channels, axis: int) -> Channels:
    """What a held layer sees that does not see an axis.

    What differs along it is tied.
    """
    shape = tuple(size for i, size in enumerate(x.shape) if i != axis)
    first = np.take(x.labels, [0], axis)
    call = current()
    call.flow.table.tie(x.labels, first)
    seen = Channels(shape, np.squeeze(first, axis))
    call.step([x], [seen], lambda valuation, values: [_one(values[0], axis)])
    return seen


def put_back(x: Channels, axis: int, shape: tuple) -> Channels:
    """What leaves a held layer, with an axis again that it does not see."""
    whole = Channels(shape, np.expand_dims(x.labels, axis))
    current().step([x], [whole], lambda _, values: [np.expand_dims(values[0], axis)])
    return whole


def _one(value: np.ndarray, axis: int) -> np.ndarray:
    """Values without an axis; unknown where they differ along it."""
    shape = tuple(1 if i == axis else size for i, size in enumerate(value.shape))
    return np.squeeze(fit(value, shape), axis)


def _share_gates(call: Call) -> None:
    """Let all calls of a layer have the same gates: it has only one of each."""
    calls = call.flow.calls_of.setdefault(id(call.layer), [])
    calls.append(call)
    # A call may read what the others make, as an embedding that scores its entries.
    sizes = {tuple(gate.size for gate in one.gates) for one in calls if one.gates}
    if len(sizes) > 1 or id(call.layer) in call.flow.unequal:
        call.flow.unequal.add(id(call.layer))
        for one in calls:
            one.gates.clear()
    table = call.flow.table
    for old, new in zip(calls[0].gates, call.gates) if calls[1:] else ():
        if new.makes or not new.keeps_zero:
            vectors = [table.tie_along(gate.labels, gate.axis) for gate in (old, new)]
            table.tie(*vectors)


def _carry_activation(call: Call) -> None:
    """Let an activation that has weights come along: its config has none."""
    activation = activation_layer(call.op)
    if activation is not None:
        config = call.flow.binding(call).config
        config["activation"] = lambda survivors: copy_object(activation)


def apply_rule(call: Call, function: Callable | None = None) -> list[Channels]:
    """The channels that come out of a call, by the rule of what was called.

    Args:
        call: the call.
        function: a rule to use instead of the one of its type.
    """
    bare = call.op
    tensors = dict(zip(map(id, call.node.inputs), call.inputs, strict=True))
    args, kwargs = call.node.fill(tensors)
    kwargs = {k: v for k, v in kwargs.items() if k != "training" and v is not None}
    if is_layer(bare):
        kwargs = without_mask(bare, kwargs)
    function = function or _rule_of(bare)
    is_known = is_layer(bare) and function is not registry.unknown_rule()
    replaced = replaced_method(bare)
    if replaced is not None and (is_known or has_graph(bare)):
        what = "does not run its graph alone" if has_graph(bare) else "was replaced"
        raise Ambiguous(f"`{replaced}` of this {type(bare).__name__} {what}")
    if getattr(bare, "quantization_mode", None):
        raise Ambiguous(f"it is quantized ({bare.quantization_mode})")
    if getattr(bare, "lora_enabled", False):
        raise Ambiguous("it has LoRA weights; merge them first")
    if is_known:
        args, kwargs = _in_order(bare, args, kwargs)
    try:
        _signature(function).bind(bare, *args, **kwargs)
    except TypeError as error:
        raise Ambiguous(f"it is called in a way its rule does not know: {error}")
    with attributes_kept(bare):  # some rules run it
        outputs = keras.tree.flatten(function(bare, *args, **kwargs))
    if is_known:
        _check_copies(call)
    masked = call.mask is not None or call.is_gated_behind
    to_mask = not masked and call.holder is None
    if to_mask and call.gates and not _fits_a_mask(call):
        call.gates.clear()
    for gate in call.gates:
        gate.call = call
    for channels, shape in zip(outputs, call.outputs, strict=True):
        _check_labels(call, channels, shape)
    return outputs


def _check_copies(call: Call) -> None:
    """Raise unless the layer can be made again where channels of it go."""
    layer = call.op
    if is_of_keras(type(layer)):
        return
    binding = call.flow.binding(call)
    reason = why_not_remade(layer, call.node, binding.config)
    if reason is None:
        return
    # A layer without weights that remembers no shapes works on fewer channels too.
    binding.whole = not (binding.config or layer.weights or call.holder) and (
        type(layer).build is keras.layers.Layer.build
    )
    if not binding.whole:
        raise Ambiguous(reason)


def _rule_of(op) -> Callable:
    """The rule for an operation; raises with the reason if there is none."""
    function = stated = None
    if is_layer(op):
        function = registry.layer_rule(type(op))
        stated = registry.barrier_reason(type(op))
    elif is_keras_operation(op):
        function = registry.operation_rule(type(op))
        stated = registry.operation_barrier_reason(type(op))
    if function is None and (stated or not is_layer(op)):
        raise Ambiguous(stated or "no rule is known for it")
    return function or registry.unknown_rule()


_signature = functools.lru_cache(maxsize=1024)(inspect.signature)


def _in_order(layer, args, kwargs) -> tuple[tuple, dict]:
    """Arguments with tensors in their places: rules name their own parameters."""
    names = call_parameters(layer)
    given = list(args)
    for name in names[len(args) :]:
        if not any(
            isinstance(x, Channels) for x in keras.tree.flatten(kwargs.get(name))
        ):
            break
        if name == "mask":
            break
        given.append(kwargs[name])
    placed = names[len(args) : len(given)]
    return tuple(given), {k: v for k, v in kwargs.items() if k not in placed}


def _fits_a_mask(call: Call) -> bool:
    """Whether a masked layer can be called as its layer is here."""
    signature = call_signature(call.op)
    first = next(iter(signature.parameters), None)
    try:
        given = signature.bind(*call.node.args, **call.node.kwargs).arguments
    except TypeError:
        return False
    known = (first, "training", "mask", *call.takes)
    return first in given and not any(
        value is not None and key not in known for key, value in given.items()
    )


def _check_labels(call: Call, channels: Channels, shape) -> None:
    fits = len(channels.labels.shape) == len(shape) and all(
        label in (1, size) or size is None
        for label, size in zip(channels.labels.shape, shape)
    )
    if not fits:
        raise Ambiguous(
            f"its rule gives labels of shape {channels.labels.shape} for an "
            f"output of shape {tuple(shape)}"
        )


def _barrier(call: Call, reason: str, mark: int) -> list[Channels]:
    """Fix all that a call reads and makes, and all labels its rule made."""
    table, reason = call.flow.table, one_line(reason)
    call.flow.bindings.pop(id(call.op), None)
    for step in call.flow.steps:
        if step.call.op is call.op and step.call is not call:  # an earlier call
            for channels in (*step.inputs, *step.outputs):
                table.pin(
                    channels.labels, f"goes through {describe(call.op)}: {reason}"
                )
    call.gates.clear()
    call.products.clear()
    call.flow.steps[:] = [s for s in call.flow.steps if s.call is not call]
    call.flow.barriers[call.path] = f"{describe(call.op)}: {reason}"
    if table.count > mark:
        table.pin(np.arange(mark, table.count), f"made by {describe(call.op)}")
    for channels in call.inputs:
        table.pin(channels.labels, f"read by {describe(call.op)}: {reason}")
    return [
        call.flow.pinned(shape, f"comes out of {describe(call.op)}: {reason}")
        for shape in call.outputs
    ]


def _gated(call: Call, made: list[Channels]) -> list[Channels]:
    """The outputs behind the gates of a call: worth zero where those are closed."""
    after = [Channels(channels.shape, channels.labels) for channels in made]

    def worth(valuation, values):
        values = list(values)
        for gate in call.gates:
            closed = valuation.closed(call, gate) if gate.places else None
            if closed is None:
                continue
            valuation.zeroed(call, np.compress(closed, gate.labels, gate.axis))
            for place in gate.places:
                shape = [1] * made[place.output].ndim
                shape[place.axis] = place.gates.size
                shut = closed[place.gates].reshape(shape)
                values[place.output] = np.where(shut, 0.0, values[place.output])
        return values

    call.step(made, after, worth)
    return after


def _keep_rectangular(result: Flow) -> None:
    """Tie labels until every tensor loses whole slabs along one axis only."""
    table = result.table
    while True:
        roots = table.roots()
        tied = False
        seen: set[int] = set()
        for channels in result.vectors:
            labels = channels.labels
            if id(labels) in seen or sum(size > 1 for size in labels.shape) < 2:
                continue
            seen.add(id(labels))
            found = roots[labels]
            varies = [
                axis
                for axis in range(labels.ndim)
                if (found != np.take(found, [0], axis)).any()
            ]
            if len(varies) > 1:
                keep = longest_axis(found, varies)
                table.tie_along(labels, keep)
                op = describe(result.made_by[id(channels)])
                result.note_ties(f"{op}, whose output has them along several axes")
                tied = True
        if not tied:
            return
