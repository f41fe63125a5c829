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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from filterprune.channels import registry
from filterprune.channels.activations import activation_layer
from filterprune.channels.inheriting import why_not_remade
from filterprune.channels.labels import Channels, LabelTable, fit
from filterprune.channels.trace import (
    Graph,
    Node,
    call_parameters,
    call_signature,
    copy_object,
    is_graph,
    is_keras_operation,
    is_layer,
    model_in,
    takes_training,
    trace,
    without_mask,
)
from filterprune.sums import peek

_CURRENT: contextvars.ContextVar["Call"] = contextvars.ContextVar("filterprune_call")


class Ambiguous(Exception):
    """Raised by a rule for a call it cannot explain: the call is a barrier."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Place:
    """Where gates multiply an output of a call.

    Attributes:
        output: the number of the output.
        axis: its axis of channels.
        gates: the number of the gate of each channel, `(channels,)`.
    """

    output: int
    axis: int
    gates: np.ndarray


@dataclasses.dataclass(eq=False, repr=False)
class Gate:
    """Where channels that one call makes, or passes on, can be closed.

    Attributes:
        labels: the labels along the output's gated axis; broadcastable to the
            output where they differ along other axes too. A vector of channels
            inside of the layer, or in several outputs.
        axis: the gated axis of the output.
        weights: for each weight that a closed gate zeroes part of, the number of
            the gate of each of its entries, an array that broadcasts to it.
        makers: the weights that make the channels, and their axes of those: that
            which constants are folded into is the first. Importance is read from
            them.
        makes: whether the layer makes new channels (a convolution), or passes
            channels on (a normalisation).
        keeps_zero: whether the layer turns zero into zero without a gate.
        outputs: the outputs that the gates multiply; empty if those on weights
            are enough.
        states: for each state that the layer keeps where its gates are (`output`
            numbers the states).
        name: the name of channels inside of the layer, such as `heads`; empty
            for those of the output.
        kind: what sort of channels they are: see `filterprune.channels.kinds`.
        reads: the labels that the layer makes the channels of, if it reads one
            tensor.
        seen: for channels inside of the layer the parts of it, by their names, at
            whose inputs or outputs they can be observed; for each whether that
            is the output, and labels that broadcast to it.
        call: the call whose gate it is.
    """

    labels: np.ndarray
    axis: int
    weights: dict[str, np.ndarray]
    makers: dict[str, int]
    makes: bool
    keeps_zero: bool
    outputs: tuple[Place, ...] = ()
    states: tuple[Place, ...] = ()
    name: str = ""
    kind: str = "channels"
    reads: np.ndarray | None = None
    seen: Sequence[tuple[str, bool, np.ndarray]] = ()
    call: "Call" = None  # type: ignore[assignment]  # set when the call gets it

    @property
    def size(self) -> int:
        return self.labels.shape[self.axis]

    @property
    def factor(self) -> tuple[str, int] | None:
        """The first of `makers`, `None` if there is none."""
        return next(iter(self.makers.items()), None)

    @property
    def path(self) -> str:
        """The path of the layer, and the name of channels inside of it."""
        return f"{self.call.path}/{self.name}" if self.name else self.call.path

    @property
    def variable(self):
        """The masked layer's weight that holds these gates."""
        return self.call.mask.gates[self.name]

    def closed(self) -> np.ndarray:
        """Which gates of the masked layer are closed, `(channels,)` bool."""
        return peek(self.variable) == 0

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the channels are in the outputs."""
        if self.outputs or self.name:
            return self.outputs
        return (Place(0, self.axis, np.arange(self.size)),)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Loop:
    """A cell that reads its own channels again in the next time step.

    Attributes:
        path: its path in the layer.
        labels: the labels of its first state, which broadcast to that.
        passed_on: whether what it gives is read by the next cell, in the layer.
        carries: what part of the state goes on as it is, without being read by
            weights: a function of the cell, its input and the state; `None` for
            nothing.
    """

    path: str
    labels: np.ndarray
    passed_on: bool = False
    carries: Callable | None = None


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
        gates: how the output is gated, if it can be, and channels inside of the
            layer; the output's gate is the first.
        products: what is multiplied and summed, and at how many positions of a
            sample: the name of a weight, or where tensors are multiplied the
            labels along each axis.
        holder: the call of the layer that this one is held by, or None.
        training: whether the graph itself asks for training mode, as in
            `BatchNormalization()(x, training=True)`.
        times: how many times it is made for one sample, as in every time step.
        takes: arguments, other than the first, with which a masked layer can be
            called as the layer is.
        reads: weights that `inputs[0]` is multiplied by, and their axes of its
            channels.
        carried: which of `inputs` the layer goes on from without reading them as
            such: states.
        loops: the cells in it that read their own channels again.
    """

    flow: "Flow"
    op: Any
    mask: Any
    node: Node
    path: str
    inputs: tuple[Channels, ...]
    gates: list[Gate] = dataclasses.field(default_factory=list)
    products: list[tuple[Any, int]] = dataclasses.field(default_factory=list)
    holder: "Call | None" = None
    training: bool = False
    times: int = 1
    takes: tuple[str, ...] = ()
    reads: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    carried: list[Channels] = dataclasses.field(default_factory=list)
    loops: list[Loop] = dataclasses.field(default_factory=list)

    @property
    def outputs(self) -> tuple[tuple, ...]:
        """The static shapes of the call's outputs."""
        return tuple(tuple(tensor.shape) for tensor in self.node.outputs)

    @property
    def gate(self) -> Gate | None:
        """The gate of the output's channels, if there is one."""
        return next((gate for gate in self.gates if not gate.name), None)

    @property
    def makes(self) -> bool:
        """Whether the call makes channels."""
        return any(gate.makes for gate in self.gates)

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
        scales: for each weight's name a function of `survivors` that gives by
            what its surviving part is multiplied.
    """

    layer: Any
    path: str
    axes: dict[str, tuple] = dataclasses.field(default_factory=dict)
    config: dict[str, Callable] = dataclasses.field(default_factory=dict)
    arguments: dict[int, Channels] = dataclasses.field(default_factory=dict)
    rewrite: Callable | None = None
    after: Callable | None = None
    scales: dict[str, Callable] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False, repr=False)
class Flow:
    """What one model's graph says about its channels.

    Attributes:
        marks: pairs of labels and what operations take them for: their kind.
    """

    model: Any
    table: LabelTable = dataclasses.field(default_factory=LabelTable)
    calls: list[Call] = dataclasses.field(default_factory=list)
    steps: list[Step] = dataclasses.field(default_factory=list)
    bindings: dict[int, Binding] = dataclasses.field(default_factory=dict)
    tensors: dict[int, Channels] = dataclasses.field(default_factory=dict)
    vectors: list[Channels] = dataclasses.field(default_factory=list)
    graphs: dict[int, Graph] = dataclasses.field(default_factory=dict)
    barriers: dict[str, str] = dataclasses.field(default_factory=dict)
    marks: list[tuple[np.ndarray, str]] = dataclasses.field(default_factory=list)

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
    for key, value in known.items():
        first = result.tensors.setdefault(key, value)
        if first is not value:  # a nested model, or a layer in it, called again
            result.table.tie(first.labels, value.labels)
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
    _carry_activation(call)
    for gate in call.gates:
        gate.call = call
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
    to_mask = is_layer(bare) and call.mask is None and call.holder is None
    if to_mask and call.gates and not _fits_a_mask(call):
        call.gates.clear()
    for channels, shape in zip(outputs, call.outputs, strict=True):
        _check_labels(call, channels, shape)
    return outputs


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
    table = call.flow.table
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
                keep = max(varies, key=lambda axis: (labels.shape[axis], axis))
                table.tie_along(labels, keep)
                tied = True
        if not tied:
            return
