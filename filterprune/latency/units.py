"""What is timed: the calls of a model one by one, at several sizes."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator

import keras
import numpy as np

from filterprune.channels.calls import Call
from filterprune.channels.groups import Analysis
from filterprune.channels.labels import Channels
from filterprune.channels.registry import weight_of
from filterprune.channels.survivors import Survivors
from filterprune.channels.trace import is_layer, parts_of, takes_training, without_mask
from filterprune.latency.running import runner
from filterprune.resizing import Resizer
from filterprune.verification import generate_inputs

# Vectors of channels are kept at multiples of this where they are large enough.
MULTIPLE = 8
# The smallest share of its channels that a call is timed with.
SMALLEST = 1 / 16


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """Channels by which the size of a call changes.

    Attributes:
        entries: the root of everything that is counted, `(entries,)`.
        parts: the roots that can go, in sets that shrink alike.
    """

    entries: np.ndarray
    parts: tuple[np.ndarray, ...]

    @property
    def size(self) -> int:
        """How many channels the largest set has."""
        return max(part.size for part in self.parts)

    def gone(self, keep: int) -> np.ndarray:
        """The roots that go if `keep` of `size` channels stay."""
        share = keep / self.size
        return np.concatenate(
            [part[max(round(share * part.size), 1) :] for part in self.parts]
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """One call of a model, apart from its size.

    Attributes:
        call: the call.
        signature: what tells it from calls that take another time.
        axes: by what its size changes, two at most.
    """

    call: Call
    signature: str
    axes: tuple[Axis, ...]

    def points(self, count: int) -> Iterator[tuple[int, ...]]:
        """The sizes to time it at: how many channels each axis keeps."""
        grids = [widths(axis.size, count) for axis in self.axes]
        for index in np.ndindex(*[len(grid) for grid in grids]):
            yield tuple(grid[i] for grid, i in zip(grids, index, strict=True))


def widths(size: int, count: int) -> list[int]:
    """About `count` numbers of channels up to `size`, multiples if it is large."""
    shares = np.linspace(0, 1, count)
    return sorted({nearest(max(share, SMALLEST) * size, size) for share in shares})


def nearest(width: float, size: int) -> int:
    """A number of channels near `width` that is likely to be asked for."""
    if width >= size:
        return size
    if size >= 2 * MULTIPLE:
        width = MULTIPLE * max(round(width / MULTIPLE), 1)
    return min(max(round(width), 1), size)


def units(analysis: Analysis, batch_size: int) -> list[Unit]:
    """Every call of a model that computes something.

    Args:
        analysis: the analysis of a model, masked or plain.
        batch_size: how many samples a batch has.
    """
    free = np.zeros(analysis.flow.table.count, bool)
    for group in analysis.prunable:
        free[group.roots] = True
    return [
        _unit(analysis, call, free, batch_size)
        for call in analysis.flow.calls
        if not getattr(call.layer, "is_added", False)
    ]


def _unit(analysis: Analysis, call: Call, free: np.ndarray, batch_size: int) -> Unit:
    inputs = list(call.inputs)
    outputs = [analysis.flow.tensors[id(tensor)] for tensor in call.node.outputs]
    vectors = [_vector(analysis, x, free) for x in (*inputs, *outputs)]
    shapes = [
        [
            None if vector is not None and axis == vector[0] else size
            for axis, size in enumerate((batch_size, *x.shape[1:]))
        ]
        for x, vector in zip((*inputs, *outputs), vectors, strict=True)
    ]
    dtypes = [str(tensor.dtype) for tensor in call.node.inputs]
    signature = json.dumps(
        [type(call.op).__name__, _config(analysis, call), shapes, dtypes],
        default=_describe,
        sort_keys=True,
    )
    along = [v[1] for v in vectors if v is not None]
    return Unit(call, signature, _axes(along + _hidden(analysis, call, free), free))


def _hidden(analysis: Analysis, call: Call, free) -> list[np.ndarray]:
    """The roots of channels inside of a layer, such as heads, or stacked cells' own."""
    inside = [analysis.roots[gate.labels] for gate in call.gates if gate.name]
    return [roots for roots in inside if free[roots].any()]


def _vector(analysis, channels: Channels, free) -> tuple[int, np.ndarray] | None:
    """The axis of a tensor that can shrink, and the roots along it."""
    roots = analysis.roots[channels.labels]
    if not free[roots].any():
        return None
    for axis in range(roots.ndim):
        lines = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
        if (lines != lines[:1]).any():
            return axis, lines[:, 0]
    return None


def _axes(vectors: list[np.ndarray], free) -> tuple[Axis, ...]:
    distinct: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    for vector in vectors:
        _, first = np.unique(vector, return_index=True)
        roots = vector[np.sort(first)]
        roots = roots[free[roots]]
        distinct.setdefault(np.sort(roots).tobytes(), (vector, roots))
    found = list(distinct.values())
    every = np.concatenate([np.zeros(0, int), *(roots for _, roots in found)])
    if len(found) <= 2 and np.unique(every).size == every.size:
        return tuple(Axis(vector, (roots,)) for vector, roots in found)
    return (Axis(np.concatenate([v for v, _ in found]), tuple(r for _, r in found)),)


def _config(analysis: Analysis, call: Call) -> dict:
    """The config of an operation, its name and sizes left out."""
    binding = analysis.flow.bindings.get(id(call.op))
    sizes = set() if binding is None else set(binding.config)
    try:
        config = call.op.get_config() if is_layer(call.op) else vars(call.op)
    except NotImplementedError:
        config = {"id": id(call.op)}
    constants = keras.tree.map_structure(_describe, (call.node.args, call.node.kwargs))
    kept = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in {"name", "trainable", *sizes}
    }
    held = [_held(binding, part) for part in parts_of(call.op)] if sizes else []
    kept["arguments"] = str(constants)
    return {**kept, "held": held} if held else kept


def _held(binding, part) -> list:
    """What tells a layer that another one holds, its sizes left out."""
    axes = {id(weight_of(binding.layer, name)): a for name, a in binding.axes.items()}
    shapes = [
        [
            size if labels is None else None
            for size, labels in zip(
                weight.shape, axes.get(id(weight), (None,) * len(weight.shape))
            )
        ]
        for weight in part.weights
    ]
    return [type(part).__name__, shapes]


def _describe(value) -> str:
    if isinstance(value, keras.KerasTensor):
        return "tensor"
    shape = getattr(value, "shape", None)
    return f"array {len(shape)}" if shape is not None else repr(value)


def survivors_of(analysis: Analysis, unit: Unit, point: tuple[int, ...]) -> Survivors:
    """Which channels there are where each axis of a unit keeps so many."""
    dead = np.zeros(analysis.flow.table.count, bool)
    for axis, keep in zip(unit.axes, point, strict=True):
        dead[axis.gone(keep)] = True
    return analysis.survivors(dead)


def sizes_of(unit: Unit, survivors: Survivors) -> tuple[int, ...]:
    """How many entries the axes of a unit have left."""
    return tuple(survivors.count(axis.entries) for axis in unit.axes)


def run_unit(
    analysis: Analysis, unit: Unit, survivors: Survivors, batch_size: int
) -> tuple[Callable, Callable]:
    """A function that runs a unit at a size, and one that does all but that."""
    call, resizer = unit.call, Resizer(analysis, survivors)
    op = resizer.make(call.layer)
    rng = np.random.default_rng(0)
    arrays = []
    for channels, tensor in zip(call.inputs, call.node.inputs, strict=True):
        shape = (batch_size, *survivors.shape(channels)[1:])
        array = rng.uniform(0, 1, shape).astype("float32")
        arrays.append(keras.ops.cast(array, tensor.dtype))

    def fill(function, tensors):
        given = {id(t): a for t, a in zip(call.node.inputs, tensors, strict=True)}
        args, kwargs = call.node.fill(given)
        args, kwargs = resizer.arguments(call.layer, args, kwargs)
        kwargs = {k: v for k, v in kwargs.items() if k != "training"}
        if is_layer(op):
            kwargs = without_mask(op, kwargs)
        if takes_training(op):
            kwargs["training"] = False
        return function(*args, **kwargs)

    fill(op, arrays)  # builds it
    return runner(op, fill, arrays), runner(_nothing, fill, arrays)


def _nothing(*args, **kwargs):
    return keras.tree.flatten(args)[:1]


def run_model(model, batch_size: int) -> Callable:
    """A function that runs a model on a batch of so many samples."""
    inputs = generate_inputs(model, batch_size)
    call = functools.partial(_call_model, inputs)
    return runner(model, call, keras.tree.flatten(inputs))


def _call_model(structure, function, tensors):
    return function(keras.tree.pack_sequence_as(structure, tensors), training=False)
