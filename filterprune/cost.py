"""What a model costs: parameters, multiply-accumulates, bytes."""

import dataclasses
import math

import keras
import numpy as np

from filterprune.channels.calls import Call
from filterprune.channels.groups import Analysis
from filterprune.channels.registry import weight_of
from filterprune.channels.survivors import Survivors
from filterprune.channels.trace import is_layer, is_of_keras
from filterprune.counting import Counter


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a layer or a model costs.

    Attributes:
        params: how many weights there are, gates not counted.
        macs: multiply-accumulate operations for one sample, in convolutions,
            dense layers and attention. An input size that is left open counts
            as 1. Those of `uncounted` layers are not in it.
        bytes: what the weights take in memory.
    """

    params: int = 0
    macs: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.params + other.params,
            self.macs + other.macs,
            self.bytes + other.bytes,
        )


class CostModel:
    """The cost of a model as a function of the channels that are left.

    A weight has as many entries as the product of its axes' channels; the axes
    of all weights are counted at once, so that a budget can be searched for.

    Args:
        analysis: the analysis of a model.
    """

    def __init__(self, analysis: Analysis):
        self._analysis = analysis
        self._paths: list[str] = []
        # For each weight: its layer, entries not along channels, up to so many
        # vectors of channels, its cost an entry.
        self._layer: list[int] = []
        self._rest: list[int] = []
        self._vectors: list[list[int]] = []
        self._unit: list[tuple[int, int, int]] = []
        self._counter = Counter()
        self._collect()
        self._layer_of = np.array(self._layer, int)
        width = max((len(v) for v in self._vectors), default=0)
        nothing = self._counter.nothing
        self._index = np.array(
            [v + [nothing] * (width - len(v)) for v in self._vectors], int
        ).reshape(len(self._vectors), width)

    def _collect(self) -> None:
        layers: dict[int, dict[int, int]] = {}
        paths: dict[int, int] = {}
        for call in self._analysis.flow.calls:
            op = call.op
            if not getattr(op, "weights", None) and not call.products:
                continue
            if id(op) not in layers:
                paths[id(op)] = len(self._paths)
                self._paths.append(call.path)
                layers[id(op)] = self._add_weights(call)
            numbers = layers[id(op)]  # of a shared layer only the MACs add up
            for what, positions in call.products:
                if not isinstance(what, str):  # tensors, and no weight
                    roots = [self._analysis.roots[labels] for labels in what]
                    vectors = [self._counter.add(found) for found in roots]
                    self._add(paths[id(op)], 1, vectors, (0, positions * call.times, 0))
                    continue
                number = numbers[id(weight_of(op, what))]
                params, macs, size = self._unit[number]
                self._unit[number] = (params, macs + positions * call.times, size)

    def _add(self, layer: int, rest: int, vectors, unit) -> int:
        self._layer.append(layer)
        self._rest.append(rest)
        self._vectors.append(vectors)
        self._unit.append(unit)
        return len(self._layer) - 1

    def _add_weights(self, call) -> dict[int, int]:
        binding = self._analysis.flow.bindings.get(id(call.op))
        bound = {} if binding is None else binding.axes
        axes = {id(weight_of(call.op, name)): labels for name, labels in bound.items()}
        numbers = {}
        for weight in getattr(call.op, "weights", ()):
            shape, vectors = list(weight.shape), []
            for axis, labels in enumerate(axes.get(id(weight), ())):
                if labels is not None:
                    shape[axis] = 1
                    vectors.append(self._counter.add(self._analysis.roots[labels]))
            unit = (1, 0, _itemsize(weight.dtype))
            path = len(self._paths) - 1
            numbers[id(weight)] = self._add(path, math.prod(shape), vectors, unit)
        return numbers

    def _sizes(self, alive: np.ndarray) -> np.ndarray:
        """How many entries each weight has left, `(weights,)`."""
        counts = self._counter.count(alive)
        return np.array(self._rest) * counts[self._index].prod(axis=1)

    def _units(self) -> np.ndarray:
        return np.array(self._unit, float).reshape(-1, 3)

    def total(self, alive: np.ndarray) -> Cost:
        """The cost of the model, by which labels' roots are alive, `(labels,)`."""
        return Cost(*(int(n) for n in self._sizes(alive) @ self._units()))

    def layers(self, alive: np.ndarray) -> dict[str, Cost]:
        """The cost of every layer that has any, by path, in graph order."""
        weights = self._sizes(alive)[:, None] * self._units()
        sums = np.zeros((len(self._paths), 3))
        np.add.at(sums, self._layer_of, weights)
        return {
            path: Cost(*(int(n) for n in row))
            for path, row in zip(self._paths, sums, strict=True)
        }


def uncounted(analysis: Analysis) -> tuple[str, ...]:
    """The paths of layers whose MACs are not known, in graph order.

    They cannot be looked into, and may multiply: they are not Keras' own, have a
    matrix of weights or read several tensors.
    """
    calls = [c for c in analysis.flow.calls if c.path in analysis.flow.barriers]
    return tuple(
        dict.fromkeys(c.path for c in calls if is_layer(c.op) and _may_multiply(c))
    )


def _may_multiply(call: Call) -> bool:
    if call.products:
        return False
    weights = getattr(call.op, "weights", ())
    has_matrix = any(len(weight.shape) > 1 for weight in weights)
    return not is_of_keras(call.op) or has_matrix or len(call.inputs) > 1


def layer_costs(analysis: Analysis, survivors: Survivors) -> dict[str, Cost]:
    """The cost of every layer that has weights, by its path, in graph order.

    Args:
        analysis: the analysis of a model.
        survivors: which channels to count.
    """
    return CostModel(analysis).layers(survivors.alive)


def total(costs: dict[str, Cost]) -> Cost:
    """The sum of the costs of all layers."""
    return sum(costs.values(), Cost())


def _itemsize(dtype: str) -> int:
    bits = "".join(c for c in keras.backend.standardize_dtype(dtype) if c.isdigit())
    return int(bits) // 8 if bits else 1
