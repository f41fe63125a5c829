"""Channel flow: one pass over a model's graph that labels every channel.

`flow(model)` runs the rule of every call, in order, nested models included.
What comes out says, for every tensor, which of its positions live and die
together, and for every weight, which of its axes run along which labels.
Wrapping, pruning, cost, compaction and the report all read this one result.
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from filterprune.channels import registry
from filterprune.channels.activations import activation_layer
from filterprune.channels.inheriting import why_not_remade
from filterprune.channels.labels import Channels, LabelTable
from filterprune.channels.trace import (
    Graph,
    Node,
    call_parameters,
    copy_object,
    is_graph,
    is_keras_operation,
    is_layer,
    takes_training,
    trace,
    without_mask,
)

_CURRENT: contextvars.ContextVar["Call"] = contextvars.ContextVar("filterprune_call")


class Ambiguous(Exception):
    """Raised by a rule for a call it cannot explain: the call is a barrier."""


@dataclasses.dataclass(eq=False, repr=False)
class Gate:
    """Where one call's output channels can be closed.

    Attributes:
        labels: the labels along the output's gated axis; broadcastable to the
            output where they differ along other axes too.
        axis: the gated axis of the output.
        weights: for each weight that a closed gate zeroes the shape in which
            the gates broadcast to it; empty if the gate acts on the output.
        factor: the weight that a channel's importance is read from, and its
            axis of output channels; `None` if there is none.
        makes: whether the layer makes new channels (a convolution), or passes
            channels on (a normalisation).
        keeps_zero: whether the layer turns zero into zero without a gate.
    """

    labels: np.ndarray
    axis: int
    weights: dict[str, tuple]
    factor: tuple[str, int] | None
    makes: bool
    keeps_zero: bool

    @property
    def size(self) -> int:
        return self.labels.shape[self.axis]


@dataclasses.dataclass(eq=False, repr=False)
class Step:
    """How to tell what the dead channels of some outputs are worth."""

    call: "Call"
    inputs: tuple[Channels, ...]
    outputs: tuple[Channels, ...]
    worth: Callable


@dataclasses.dataclass(eq=False, repr=False)
class Call:
    """One call of a layer or operation, as the rules see it.

    Attributes:
        op: what was called; of a masked layer, the layer in it.
        mask: the masked layer, or None.
        path: the name of `op`, behind those of the models it is nested in.
        inputs: the channels of the call's tensors.
        gate: how the output is gated, if it can be.
        products: names of weights that are multiplied, and at how many
            positions of a sample.
        holder: the call of the layer that this one is held by, or None.
        training: whether the graph itself asks for training mode, as in
            `BatchNormalization()(x, training=True)`.
    """

    flow: "Flow"
    op: Any
    mask: Any
    node: Node
    path: str
    inputs: tuple[Channels, ...]
    gate: Gate = None  # type: ignore[assignment]  # None if it has none
    products: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    holder: "Call | None" = None
    training: bool = False

    @property
    def outputs(self) -> tuple[tuple, ...]:
        """The static shapes of the call's outputs."""
        return tuple(tuple(tensor.shape) for tensor in self.node.outputs)

    @property
    def layer(self):
        """What was called: the masked layer if there is one."""
        return self.op if self.mask is None else self.mask

    def run(self, *arrays, weights=()) -> np.ndarray:
        """Run the bare operation with arrays in place of its tensors.

        Its state is left as it was. Where the graph asks for training mode,
        `predict` and `model(x, training=False)` overrule it: what differs in
        inference mode is unknown (NaN).

        Args:
            *arrays: one for each of the call's tensors.
            weights: pairs of a variable and the value to run with.
        """
        tensors = {id(t): a for t, a in zip(self.node.inputs, arrays, strict=True)}
        args, kwargs = self.node.fill(tensors)
        kwargs.pop("training", None)
        modes = [{"training": True}, {"training": False}] if self.training else [{}]
        results = []
        for mode in modes:
            with keras.StatelessScope(list(weights)):
                output = self.op(*args, **kwargs, **mode)
            array = keras.ops.convert_to_numpy(output)
            results.append(np.asarray(array, "float64"))
        return np.where(results[0] == results[-1], results[0], np.nan)

    def move(self, *arrays):
        """Run a mover of data on integers, whatever the layer's dtype."""
        tensors = {id(t): a for t, a in zip(self.node.inputs, arrays, strict=True)}
        args, kwargs = self.node.fill(tensors)
        kwargs.pop("training", None)
        return self.op.call(*args, **kwargs)

    def step(self, inputs, outputs, worth) -> None:
        self.flow.steps.append(Step(self, tuple(inputs), tuple(outputs), worth))


@dataclasses.dataclass(eq=False, repr=False)
class Binding:
    """The labels along the axes of one layer's weights, and what to rewrite.

    Attributes:
        axes: for each weight's name a tuple with, for each axis, the labels
            along it, or `None` where nothing is ever removed.
        config: for each config entry (of a layer) or attribute (of an
            operation) a function of `count` that gives its new value.
        arguments: for each constant array among the arguments (by its id) the
            labels of its positions.
        rewrite: a function of `survivors` and the arguments of a call that
            gives those of the new call; `None` to leave them.
        after: a function of `survivors` that gives what to apply to the output
            (a function of it, or `None` for nothing); `None` for nothing ever.
    """

    layer: Any
    path: str
    axes: dict[str, tuple] = dataclasses.field(default_factory=dict)
    config: dict[str, Callable] = dataclasses.field(default_factory=dict)
    arguments: dict[int, Channels] = dataclasses.field(default_factory=dict)
    rewrite: Callable | None = None
    after: Callable | None = None


@dataclasses.dataclass(eq=False, repr=False)
class Flow:
    """What one model's graph says about its channels."""

    model: Any
    table: LabelTable = dataclasses.field(default_factory=LabelTable)
    calls: list[Call] = dataclasses.field(default_factory=list)
    steps: list[Step] = dataclasses.field(default_factory=list)
    bindings: dict[int, Binding] = dataclasses.field(default_factory=dict)
    tensors: dict[int, Channels] = dataclasses.field(default_factory=dict)
    vectors: list[Channels] = dataclasses.field(default_factory=list)
    graphs: dict[int, Graph] = dataclasses.field(default_factory=dict)
    barriers: dict[str, str] = dataclasses.field(default_factory=dict)

    def binding(self, call: Call) -> Binding:
        return self.bindings.setdefault(id(call.op), Binding(call.op, call.path))

    def bind(self, call: Call, weight: str, axes: tuple) -> None:
        """Let the axes of a weight run along labels; tie on a second call."""
        bound = self.binding(call).axes
        if weight not in bound:
            bound[weight] = axes
            return
        for old, new in zip(bound[weight], axes, strict=True):
            if old is not None and new is not None:
                self.table.tie(old, new)

    def pinned(self, shape, reason: str) -> Channels:
        """The channels of a tensor none of which can ever be removed."""
        labels = self.table.new(*(1,) * len(shape))
        self.table.pin(labels, reason)
        return Channels(tuple(shape), labels)


def current() -> Call:
    """The call whose rule is being run."""
    return _CURRENT.get()


@contextlib.contextmanager
def calling(call: Call) -> Iterator[None]:
    """The context in which the rule of a call is run."""
    token = _CURRENT.set(call)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def describe(op) -> str:
    """How the report names an operation: `name` (Class)."""
    return f"`{op.name}` ({type(op).__name__})"


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


def gate_of(layer, input_shape, mask=None) -> Gate:
    """How the outputs of one built layer are gated, apart from any model.

    Args:
        layer: a built layer that has a rule.
        input_shape: the shape of its input, `None` for unknown sizes.
        mask: the masked layer around it, if there is one.

    Returns:
        The `Gate`.

    Raises:
        ValueError: if the layer's outputs cannot be gated.
    """
    x = keras.KerasTensor(input_shape, dtype=layer.compute_dtype)
    y = keras.KerasTensor(layer.compute_output_spec(x).shape)
    result = Flow(layer)
    inputs = (result.pinned(x.shape, "an input"),)
    call = Call(result, layer, mask, Node(layer, (x,), {}, (x,), (y,)), "", inputs)
    with calling(call):
        try:
            apply_rule(call)
        except Ambiguous as error:
            raise ValueError(f"{describe(layer)} cannot be masked: {error}") from None
    if call.gate is None:
        raise ValueError(f"{describe(layer)} cannot be masked: it has no channels")
    return call.gate


def _visit_graph(
    result: Flow, graph: Graph, inputs, prefix: str, training: bool
) -> list[Channels]:
    result.graphs.setdefault(id(graph.model), graph)
    known = dict(zip(map(id, graph.inputs), inputs, strict=True))
    for node in graph.nodes:
        channels = [known[id(tensor)] for tensor in node.inputs]
        for tensor, value in zip(
            node.outputs,
            _visit(result, node, channels, prefix, training),
            strict=True,
        ):
            known[id(tensor)] = value
            result.vectors.append(value)
    for key, value in known.items():
        first = result.tensors.setdefault(key, value)
        if first is not value:  # a nested model, or a layer in it, called again
            result.table.tie(first.labels, value.labels)
    return [known[id(tensor)] for tensor in graph.outputs]


def _visit(
    result: Flow, node: Node, inputs, prefix: str, training: bool
) -> list[Channels]:
    op = node.op
    path = prefix + op.name
    # That of a nested model overrules those of the layers in it.
    training = training or bool(node.kwargs.get("training"))
    if is_graph(op):
        graph = result.graphs.get(id(op)) or trace(op)
        if len(graph.inputs) == len(inputs):
            return _visit_graph(result, graph, inputs, path + "/", training)
    mask = op if getattr(type(op), "masks_channels", False) else None
    bare = op.layer if mask is not None else op
    call = Call(result, bare, mask, node, path, tuple(inputs))
    call.training = training and takes_training(bare)
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
    _carry_activation(call)
    if call.gate is not None:
        outputs = [_gated(call, outputs[0])]
    return outputs


def _carry_activation(call: Call) -> None:
    """Let an activation that has weights come along: its config has none."""
    activation = activation_layer(call.op)
    if activation is not None:
        config = call.flow.binding(call).config
        config["activation"] = lambda survivors: copy_object(activation)


def apply_rule(call: Call) -> list[Channels]:
    """The channels that come out of a call, by the rule of what was called."""
    bare = call.op
    tensors = dict(zip(map(id, call.node.inputs), call.inputs, strict=True))
    args, kwargs = call.node.fill(tensors)
    kwargs = {k: v for k, v in kwargs.items() if k != "training" and v is not None}
    if is_layer(bare):
        kwargs = without_mask(bare, kwargs)
        function = registry.layer_rule(type(bare))
        stated = registry.barrier_reason(type(bare))
    elif is_keras_operation(bare):
        function = registry.operation_rule(type(bare))
        stated = registry.operation_barrier_reason(type(bare))
    else:
        function = stated = None
    if function is None:
        if stated or not is_layer(bare):
            raise Ambiguous(stated or "no rule is known for it")
        function = registry.unknown_rule()
    if getattr(bare, "quantization_mode", None):
        raise Ambiguous(f"it is quantized ({bare.quantization_mode})")
    if getattr(bare, "lora_enabled", False):
        raise Ambiguous("it has LoRA weights; merge them first")
    if is_layer(bare) and function is not registry.unknown_rule():
        args, kwargs = _in_order(bare, args, kwargs)
    try:
        _signature(function).bind(bare, *args, **kwargs)
    except TypeError as error:
        raise Ambiguous(f"it is called in a way its rule does not know: {error}")
    outputs = keras.tree.flatten(function(bare, *args, **kwargs))
    if is_layer(bare) and registry.known_type(type(bare)) is not type(bare):
        reason = why_not_remade(bare, call.flow.binding(call).config)
        if reason is not None:
            raise Ambiguous(reason)
    if call.mask is None and is_layer(bare) and not _fits_a_mask(bare, call.node):
        call.gate = None  # type: ignore[assignment]
    for channels, shape in zip(outputs, call.outputs, strict=True):
        _check_labels(call, channels, shape)
    return outputs


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


def _fits_a_mask(layer, node: Node) -> bool:
    """Whether a masked layer can be called as its layer is here."""
    first = next(iter(call_parameters(layer)), None)
    return len(node.args) + (first in node.kwargs) == 1 and not any(
        value is not None and key not in (first, "training", "mask")
        for key, value in node.kwargs.items()
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
    table = call.flow.table
    call.flow.bindings.pop(id(call.op), None)
    for step in call.flow.steps:
        if step.call.op is call.op and step.call is not call:  # an earlier call
            for channels in (*step.inputs, *step.outputs):
                table.pin(
                    channels.labels, f"goes through {describe(call.op)}: {reason}"
                )
    call.gate = None  # type: ignore[assignment]
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


def _gated(call: Call, made: Channels) -> Channels:
    """The channels behind the gate of a call: worth zero where it is closed."""
    gate = call.gate
    after = Channels(made.shape, made.labels)

    def worth(valuation, values):
        closed = valuation.closed(call, gate)
        if closed is None:
            return values
        shape = [1] * made.ndim
        shape[gate.axis] = closed.size
        return [np.where(closed.reshape(shape), 0.0, values[0])]

    call.step([made], [after], worth)
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
                keep = max(varies, key=lambda axis: (labels.shape[axis], axis))
                table.tie_along(labels, keep)
                tied = True
        if not tied:
            return
