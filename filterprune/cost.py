"""What a model costs: parameters, multiply-accumulates, bytes."""

import dataclasses
import math

import keras

from filterprune.channels.groups import Analysis
from filterprune.channels.registry import weight_of
from filterprune.channels.survivors import Survivors


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


def layer_costs(analysis: Analysis, survivors: Survivors) -> dict[str, Cost]:
    """The cost of every layer that has weights, by its path, in graph order.

    Args:
        analysis: the analysis of a model.
        survivors: which channels to count.
    """
    costs: dict[str, Cost] = {}
    counted: dict[int, str] = {}
    for call in analysis.flow.calls:
        if not isinstance(call.op, keras.layers.Layer) or not call.op.weights:
            continue
        sizes = _weight_sizes(analysis, call.op, survivors)
        by_name = {
            name: sizes[id(weight_of(call.op, name))] for name, _ in call.products
        }
        macs = sum(by_name[name] * positions for name, positions in call.products)
        if id(call.op) in counted:  # a shared layer: its weights count once
            path = counted[id(call.op)]
            costs[path] += Cost(macs=macs)
            continue
        counted[id(call.op)] = call.path
        bytes_ = sum(sizes[id(w)] * _itemsize(w.dtype) for w in call.op.weights)
        costs[call.path] = Cost(sum(sizes.values()), macs, bytes_)
    return costs


def total(costs: dict[str, Cost]) -> Cost:
    """The sum of the costs of all layers."""
    return sum(costs.values(), Cost())


def _weight_sizes(analysis, op, survivors) -> dict[int, int]:
    binding = analysis.flow.bindings.get(id(op))
    axes = {}
    if binding is not None:
        axes = {
            id(weight_of(op, name)): labels for name, labels in binding.axes.items()
        }
    sizes = {}
    for weight in op.weights:
        shape = list(weight.shape)
        for axis, labels in enumerate(axes.get(id(weight), ())):
            if labels is not None:
                shape[axis] = survivors.count(labels)
        sizes[id(weight)] = math.prod(shape)
    return sizes


def _itemsize(dtype: str) -> int:
    bits = "".join(c for c in keras.backend.standardize_dtype(dtype) if c.isdigit())
    return int(bits) // 8 if bits else 1
