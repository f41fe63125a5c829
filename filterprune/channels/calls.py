"""Calls as rules see them, and what rules say of them.

A rule is run for each call of a layer or operation. What it finds is kept in a
`Flow`: gates, bindings of weights to labels, and steps that tell what absent channels
are worth.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from filterprune.channels.activations import LINEAR, activation_of
from filterprune.channels.labels import Channels, LabelTable
from filterprune.channels.trace import Graph, Node, free_name, is_layer
from filterprune.running import undisturbed
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
        kind: what sort of channels they are: see `filterprune.channels.kinds`; empty
            if the other layers that make them say so.
        reads: the labels that the layer makes the channels of, if it reads one
            tensor.
        seen: for channels inside of the layer the parts of it, by their names, at
            whose inputs or outputs they can be observed; for each whether that
            is the output, and labels that broadcast to it.
        behind: whether the gates are a layer of their own behind the call, which
            cannot be masked itself; and there only where channels could not be
            removed without them.
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
    behind: bool = False
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
        arrays: what the operation was made with and broadcasts with its input, such
            as a bound for each channel.
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
    arrays: list[np.ndarray] = dataclasses.field(default_factory=list)

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
    def is_linear(self) -> bool:
        """Whether it multiplies its input by weights, adds a bias, and does no more."""
        return (
            bool(self.products)
            and not self.loops
            and [gate.name for gate in self.gates] == [""]
            and not self.gates[0].outputs
            and activation_of(self.op) is LINEAR
        )

    @property
    def is_gated_behind(self) -> bool:
        """Whether its gates are a layer of their own: that of an operation always."""
        return not is_layer(self.op) or any(gate.behind for gate in self.gates)

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
            with undisturbed(self.op, values=weights):
                output = self.op(*args, **kwargs, **mode)
            array = keras.ops.convert_to_numpy(output)
            results.append(np.asarray(array, "float64"))
        return np.where(results[0] == results[-1], results[0], np.nan)

    def move(self, *arrays):
        """Run a mover of data on integers, whatever the layer's dtype."""
        tensors = {id(t): a for t, a in zip(self.node.inputs, arrays, strict=True)}
        args, kwargs = self.node.fill(tensors)
        kwargs.pop("training", None)
        with undisturbed(self.op):
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
        whole: whether the layer is copied whole even where channels go.
    """

    layer: Any
    path: str
    axes: dict[str, tuple] = dataclasses.field(default_factory=dict)
    config: dict[str, Callable] = dataclasses.field(default_factory=dict)
    arguments: dict[int, Channels] = dataclasses.field(default_factory=dict)
    rewrite: Callable | None = None
    after: Callable | None = None
    scales: dict[str, Callable] = dataclasses.field(default_factory=dict)
    whole: bool = False


@dataclasses.dataclass(eq=False, repr=False)
class Flow:
    """What one model's graph says about its channels.

    Attributes:
        marks: pairs of labels and what operations take them for: their kind.
        tied: how many ties there were once an operation had been looked at, and it
            in words.
        made_by: what made each tensor, by the id of its `Channels`.
        calls_of: the calls of each layer, by the layer's id.
        unequal: the ids of layers that are called on different numbers of channels.
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
    tied: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    made_by: dict[int, Any] = dataclasses.field(default_factory=dict)
    calls_of: dict[int, list[Call]] = dataclasses.field(default_factory=dict)
    unequal: set[int] = dataclasses.field(default_factory=set)

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

    def note_ties(self, by: str) -> None:
        """Remember what tied the labels that were tied since this was called last."""
        if self.table.ties > (self.tied[-1][0] if self.tied else 0):
            self.tied.append((self.table.ties, by))

    def tied_by(self, labels: np.ndarray) -> str:
        """What tied labels together that are all tied."""
        steps = np.array([count for count, _ in self.tied])
        return self.tied[self.table.step_tying(labels, steps)][1]

    def gate_path(self, call: Call) -> str:
        """The path of a gate behind an operation: a layer that is added for it."""
        names: set[str] = set()
        for graph in self.graphs.values():
            if any(node is call.node for node in graph.nodes):
                names |= graph.names
        prefix = call.path.removesuffix(call.layer.name)
        return prefix + free_name(f"{call.layer.name}_gate", names)

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
