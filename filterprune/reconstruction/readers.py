"""What of a layer can be fitted, and how it is run with other weights."""

import dataclasses
from typing import Any

import keras
import numpy as np

from filterprune.channels.activations import LINEAR, activation_of
from filterprune.channels.calls import Call, Gate
from filterprune.channels.labels import Channels
from filterprune.channels.registry import weight_of
from filterprune.channels.remaking import remake
from filterprune.channels.survivors import Survivors
from filterprune.channels.trace import is_layer
from filterprune.reconstruction.least_squares import Fit, Moments, Rows
from filterprune.reconstruction.program import Step, run_step

# How far what is said of a layer may be from what it gives, relative to the largest.
ROUNDING = 1e-2
# With more inputs than that, products of samples take less time than those of inputs.
MOST_INPUTS = 3000


def readers_of(step: Step, call: Call, survivors: Survivors) -> "list[Reader]":
    """What of a layer can be fitted, in the order in which the layer computes it.

    What its rule says tells which weights multiply what the layer reads, which of
    them makes its outputs, and what runs along their axes.
    """
    if not is_layer(call.op):
        return []
    products = [name for name, _ in call.products if isinstance(name, str)]
    gate = call.gate
    last = gate.factor[0] if gate is not None and gate.factor and call.inputs else None
    if last not in products or call.loops:
        last = None
    found: list[Reader] = []
    for name in products:
        if name != last:
            reads = _read_by(step, call, name)
            if reads is not None:
                found.append(Projection(step, call, survivors, name, *reads))
    if last is not None and gate is not None:
        found.append(LastReader(step, call, survivors, gate))
    return [reader for reader in found if all(v.trainable for v in reader.known)]


def _read_by(step: Step, call: Call, name: str) -> tuple[int, int, int] | None:
    """Which tensor a weight multiplies at each position, if it does just that.

    Returns:
        The number of the tensor, its axis of channels and that of the weight, or None.
    """
    axes = call.flow.bindings[id(call.op)].axes.get(name, ())
    found: dict[Any, tuple[int, int, int]] = {}
    for number, (key, channels) in enumerate(zip(step.inputs, call.inputs)):
        place = channel_axis(channels)
        if place is None:
            continue
        labels = channels.labels.ravel()
        for axis, own in enumerate(axes):
            # The taps of a kernel come before its channels: then it reads neighbours.
            taps = weight_of(call.op, name).shape[:axis]
            at_once = all(size == 1 for size in taps)
            if own is not None and at_once and np.array_equal(own, labels):
                found.setdefault(key, (number, place, axis))
    return next(iter(found.values())) if len(found) == 1 else None


def channel_axis(channels: Channels) -> int | None:
    """The one axis of a tensor that channels run along, or None."""
    axes = [axis for axis, size in enumerate(channels.labels.shape) if size > 1]
    return axes[0] if len(axes) == 1 else None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kernel is a matrix for each group: `(groups, inputs, outputs)`.

    Attributes:
        shape: the shape of the kernel.
        in_axes: its axes that an output's inputs run along.
        out_axes: the others, one behind the other.
        groups: how many groups of outputs there are that read inputs of their own.
    """

    shape: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    groups: int

    @property
    def in_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.in_axes)

    @property
    def inputs(self) -> int:
        """How many inputs an output has."""
        return int(np.prod(self.in_shape))

    @property
    def outputs(self) -> int:
        """How many outputs a group has."""
        return int(np.prod([self.shape[axis] for axis in self.out_axes])) // self.groups

    def matrix(self, kernel: np.ndarray) -> np.ndarray:
        array = np.transpose(kernel, (*self.in_axes, *self.out_axes))
        array = array.reshape(self.inputs, self.groups, self.outputs)
        return np.moveaxis(array, 1, 0)

    def kernel(self, matrix: np.ndarray) -> np.ndarray:
        order = (*self.in_axes, *self.out_axes)
        array = np.moveaxis(matrix, 0, 1).reshape([self.shape[i] for i in order])
        return np.transpose(array, np.argsort(order))


class Reader:
    """A weight that multiplies what a layer reads, and a bias that is added.

    Args:
        step: a call of the layer.
        call: what the rule says of it.
        survivors: which channels there still are.
        name: the name of the weight.
        out_axes: its axes that outputs run along.
        groups: how many groups of outputs there are.

    Attributes:
        name: its name.
        axes: for each of its axes the labels along it, or None.
        kernel: the weight.
        bias: the bias, or None.
        layout: how the weight is a matrix.
        alive: which inputs there still are, `(inputs,)` bool.
    """

    def __init__(self, step, call, survivors, name, out_axes, groups):
        self.step, self.call, self.name = step, call, name
        self.kernel = weight_of(call.op, name)
        shape = tuple(self.kernel.shape)
        in_axes = tuple(i for i in range(len(shape)) if i not in out_axes)
        self.layout = Layout(shape, in_axes, tuple(out_axes), groups)
        self.bias = weight_of(call.op, f"{name.rpartition('.')[0]}.bias".lstrip("."))
        outputs = groups * self.layout.outputs
        if self.bias is not None and int(np.prod(self.bias.shape)) != outputs:
            self.bias = None
        bound = call.flow.bindings[id(call.op)].axes
        self.axes = bound.get(name, (None,) * len(shape))
        alive = np.ones(self.layout.in_shape, bool)
        for place, axis in enumerate(in_axes):
            labels = self.axes[axis]
            if labels is not None:
                view = [1] * len(in_axes)
                view[place] = -1
                alive &= survivors.mask(labels).reshape(view)
        self.alive = alive.ravel()

    @property
    def known(self) -> list:
        """The weights that a fit may change."""
        return [v for v in (self.kernel, self.bias) if v is not None]

    @property
    def inputs(self) -> int:
        """How many inputs of an output there still are."""
        return int(self.alive.sum())

    def moments(self) -> Moments:
        """Moments of what each group reads and is to give, still empty."""
        shape = (self.layout.groups, self.inputs, self.layout.outputs)
        return Rows(shape) if self.inputs > MOST_INPUTS else Moments(shape)

    def positions(self, step: Step, tensors) -> int:
        """At how many positions a call has outputs for a batch of what it reads."""
        raise NotImplementedError

    def add(self, moments: Moments, step: Step, pair, rows: int, rng, values) -> bool:
        """Take a batch in.

        Args:
            moments: to add to.
            step: the call that reads the batch.
            pair: what that call reads in the original model, and now.
            rows: at how many positions to look.
            rng: what draws them.
            values: the values of variables in the original model, by their id.

        Returns:
            Whether the layer is what its rule says. If not, nothing can be fitted.
        """
        raise NotImplementedError

    def _add(self, moments: Moments, x, wanted, matrix) -> None:
        parts = wanted.reshape(len(wanted), self.layout.groups, -1)
        wanted = np.moveaxis(parts, 1, 0).astype("float64")
        # Constants of removed channels stay, and are folded when compacting.
        rest = x[:, :, ~self.alive] @ matrix[:, ~self.alive]
        moments.add(x[:, :, self.alive], wanted - rest)

    def old(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights of each group, of what there still is, and its bias."""
        layout = self.layout
        matrix = layout.matrix(keras.ops.convert_to_numpy(self.kernel))
        bias = np.zeros((layout.groups, layout.outputs))
        if self.bias is not None:
            bias = keras.ops.convert_to_numpy(self.bias).reshape(bias.shape)
        return matrix[:, self.alive].astype("float64"), bias.astype("float64")

    def assign(self, found: Fit) -> None:
        """Give the layer the weights that were found."""
        matrix = self.layout.matrix(keras.ops.convert_to_numpy(self.kernel)).copy()
        matrix[:, self.alive] = found.weights
        self.kernel.assign(self.layout.kernel(matrix))
        if self.bias is not None:
            self.bias.assign(found.bias.reshape(self.bias.shape))


class Projection(Reader):
    """A weight that multiplies channels at each position, whatever follows inside.

    Such are the projections of attention and the input kernels of recurrent layers.

    Args:
        number: the number of the tensor that it multiplies.
        axis: its axis of channels.
        own: the axis of the weight.
    """

    def __init__(self, step, call, survivors, name, number: int, axis: int, own: int):
        ndim = len(weight_of(call.op, name).shape)
        super().__init__(step, call, survivors, name, range(own + 1, ndim), 1)
        self.number, self.axis = number, axis

    def positions(self, step, tensors) -> int:
        x = tensors[self.number]
        return int(np.prod(x.shape)) // x.shape[self.axis]

    def add(self, moments, step, pair, rows, rng, values) -> bool:
        old, new = (_columns(tensors[self.number], self.axis) for tensors in pair)
        chosen = np.sort(rng.permutation(len(new))[:rows])
        now = self.layout.matrix(keras.ops.convert_to_numpy(self.kernel))
        before = self.layout.matrix(values[id(self.kernel)])[0]
        wanted = old[chosen] @ before
        if self.bias is not None:
            wanted = wanted + values[id(self.bias)].ravel()
        self._add(moments, new[chosen][None], wanted, now)
        return True


class LastReader(Reader):
    """The weight that makes what a layer gives, before its activation.

    The layer itself tells which number is an input of which output at which position:
    it runs with kernels that are one at some inputs and zero at all others. So strides,
    dilations, padding, transposition and attention are right whatever the layer does.
    """

    def __init__(self, step, call, survivors, gate: Gate):
        name, axis = gate.factor  # type: ignore[misc]  # the caller has looked
        shape = tuple(weight_of(call.op, name).shape)
        wide = 1 if shape[axis] == gate.size else 2  # a depthwise multiplier
        groups = 1
        if not gate.makes:  # each channel by itself
            groups = np.unique(gate.labels).size
        elif gate.reads is not None:
            axes = call.flow.bindings[id(call.op)].axes.get(name, ())
            along = [x.size for i, x in enumerate(axes) if x is not None and i != axis]
            groups = max(1, gate.reads.size // max(along, default=1))
        out_axes = range(axis, axis + wide)
        super().__init__(step, call, survivors, name, out_axes, groups)
        self.gate = gate
        self._twin = call.op
        if activation_of(call.op) is not LINEAR:
            self._twin = remake(call.op, activation="linear")
            if not self._twin.built:
                self._twin.build_from_config(call.op.get_build_config())

    def positions(self, step, tensors) -> int:
        return len(self._run(step, tensors, self._now()))

    def add(self, moments, step, pair, rows, rng, values) -> bool:
        old, new = pair
        own = self._now()
        matrix = self.layout.matrix(own[id(self.kernel)]).astype("float64")
        given = self._run(step, new, own, {"bias": 0.0})
        chosen = np.sort(rng.permutation(len(given))[:rows])
        x = self._direct(new, len(given))
        x = None if x is None else x[:, chosen].astype("float64")
        if x is None or not self._agree(x @ matrix, given[chosen]):
            x = self._inputs(step, new, chosen, own)
            if not self._agree(x @ matrix, given[chosen]):
                return False
        wanted = self._run(step, old, values)[chosen]
        self._add(moments, x, wanted, matrix)
        return True

    def _agree(self, said: np.ndarray, given: np.ndarray) -> bool:
        """Whether outputs of groups, `(groups, rows, outputs)`, are what is given."""
        said = np.moveaxis(said, 0, 1).reshape(given.shape)
        bound = ROUNDING * np.abs(given).max(initial=0) + 1e-30
        return bool(np.allclose(said, given, 0, bound))

    def _now(self) -> dict[int, np.ndarray]:
        """The weights as the masked layer has them: zero where it is closed inside."""
        own = {id(v): keras.ops.convert_to_numpy(v) for v in self.call.op.weights}
        for gate in self.call.gates:
            if gate.name:
                opened = ~gate.closed()
                for name, numbers in gate.weights.items():
                    key = id(weight_of(self.call.op, name))
                    own[key] = own[key] * opened[numbers]
        return own

    def _direct(self, tensors, total: int) -> np.ndarray | None:
        """What is read at each position, if that may be all that an output reads."""
        axis = channel_axis(self.call.inputs[0])
        if axis is None or len(tensors) > 1 or self.layout.groups > 1:
            return None
        columns = _columns(tensors[0], axis)
        if columns.shape != (total, self.layout.inputs):
            return None
        return columns[None]

    def _inputs(self, step, tensors, chosen, own) -> np.ndarray:
        """What the outputs of each group read, `(groups, rows, inputs)` float64."""
        layout = self.layout
        columns = []
        for start in range(0, layout.inputs, layout.outputs):
            part = np.eye(layout.inputs, layout.outputs, -start)
            kernel = layout.kernel(np.broadcast_to(part, (layout.groups, *part.shape)))
            y = self._run(step, tensors, own, {"kernel": kernel, "bias": 0.0})[chosen]
            columns.append(y.reshape(len(chosen), layout.groups, layout.outputs))
        found = np.concatenate(columns, axis=-1)[..., : layout.inputs]
        return np.moveaxis(found, 1, 0).astype("float64")

    def _run(self, step: Step, tensors, values, other=()) -> np.ndarray:
        """What the layer gives, before its activation, `(positions, outputs)`.

        Args:
            step: the call.
            tensors: what it reads.
            values: the values of its weights, by their id.
            other: a `kernel` and a `bias` to use instead.
        """
        values = dict(values)
        for name, value in dict(other).items():
            variable = getattr(self, name)
            if variable is not None:
                values[id(variable)] = np.broadcast_to(value, variable.shape)
        pairs = zip(self.call.op.weights, self._twin.weights, strict=True)
        weights = {id(twin): values[id(own)] for own, twin in pairs}
        bare = dataclasses.replace(step, op=self._twin)
        inputs = dict(zip(step.inputs, tensors, strict=True))
        y = keras.ops.convert_to_numpy(run_step(bare, inputs, weights)[0])
        return np.moveaxis(y, self.gate.axis, -1).reshape(-1, self.gate.size)


def _columns(x, axis: int) -> np.ndarray:
    """The channels of a tensor at each position, `(positions, channels)`."""
    array = keras.ops.convert_to_numpy(x)
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
