"""What a model costs: parameters, multiply-accumulates, bytes."""

import dataclasses
import math

import keras
import numpy as np

from filterprune.channels.groups import Analysis
from filterprune.channels.registry import weight_of
from filterprune.channels.survivors import Survivors
from filterprune.counting import Counter


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a layer or a model costs.

    Attributes:
        params: how many weights there are, gates not counted.
        macs: multiply-accumulate operations for one sample, in convolutions
            and dense layers. An input size that is left open counts as 1.
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
        for call in self._analysis.flow.calls:
            op = call.op
            if not isinstance(op, keras.layers.Layer) or not op.weights:
                continue
            if id(op) not in layers:
                layers[id(op)] = self._add_layer(call)
            numbers = layers[id(op)]  # of a shared layer only the MACs add up
            for name, positions in call.products:
                number = numbers[id(weight_of(op, name))]
                params, macs, size = self._unit[number]
                self._unit[number] = (params, macs + positions * call.times, size)

    def _add_layer(self, call) -> dict[int, int]:
        binding = self._analysis.flow.bindings.get(id(call.op))
        bound = {} if binding is None else binding.axes
        axes = {id(weight_of(call.op, name)): labels for name, labels in bound.items()}
        self._paths.append(call.path)
        numbers = {}
        for weight in call.op.weights:
            shape, vectors = list(weight.shape), []
            for axis, labels in enumerate(axes.get(id(weight), ())):
                if labels is not None:
                    shape[axis] = 1
                    vectors.append(self._counter.add(self._analysis.roots[labels]))
            numbers[id(weight)] = len(self._layer)
            self._layer.append(len(self._paths) - 1)
            self._rest.append(math.prod(shape))
            self._vectors.append(vectors)
            self._unit.append((1, 0, _itemsize(weight.dtype)))
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
        """The cost of every layer that has weights, by path, in graph order."""
        weights = self._sizes(alive)[:, None] * self._units()
        sums = np.zeros((len(self._paths), 3))
        np.add.at(sums, self._layer_of, weights)
        return {
            path: Cost(*(int(n) for n in row))
            for path, row in zip(self._paths, sums, strict=True)
        }


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
