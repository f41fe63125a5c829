"""The verb `compound`: a layer that has channels inside, such as attention heads."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from filterprune.channels.binding import (
    bind_weights,
    gates_along,
    note_resizing,
    words_of,
)
from filterprune.channels.calls import Ambiguous, Gate, current
from filterprune.channels.constants import count_positions, spread, values_along
from filterprune.channels.labels import Channels
from filterprune.channels.registry import weight_of
from filterprune.channels.verbs import along


@dataclasses.dataclass(frozen=True)
class Inner:
    """Channels inside of a layer.

    Attributes:
        labels: their labels, `(channels,)`, new ones.
        gates: the weights that a closed gate zeroes, so that the channel adds
            nothing to what the layer makes.
        makers: the weights that their importance is read from.
        kind: what sort of channels they are; by default their name.
        seen: where they can be observed, as in `Gate.seen`.
    """

    labels: np.ndarray
    gates: Sequence[str]
    makers: Sequence[str]
    kind: str | None = None
    seen: Sequence[tuple[str, bool, np.ndarray]] = ()


def compound(
    reads: Mapping[str, Channels],
    *,
    weights: Mapping[str, str],
    gates: Sequence[str],
    inner: Mapping[str, Inner],
    known: Mapping[str, np.ndarray] | None = None,
    made: np.ndarray | None = None,
    products: Sequence[tuple[Any, int]] = (),
    resize: Mapping[str, Any] | None = None,
    scales: Mapping[str, Callable] | None = None,
    kind: str = "channels",
) -> Channels:
    """The layer reads tensors, has channels inside and makes new ones.

    Args:
        reads: the `Channels` read along their last axis, by the words that
            `weights` calls them.
        weights: for each weight the names of its axes: those of `reads`, of
            `inner` and of `known`, `out`, `_` and `...`.
        gates: the weights that a closed gate on the output zeroes.
        inner: the channels inside, by name.
        known: labels of further axes, by name.
        made: the labels of the channels made; new ones by default.
        products: what is multiplied, as in `Call.products`: names of axes, where
            tensors are multiplied.
        resize: config entries that count channels: words, or functions.
        scales: by what weights are multiplied, as in `Binding.scales`.
        kind: what sort of channels the layer makes.

    Returns:
        The `Channels` of the (first) output.
    """
    call = current()
    call.takes = tuple(inspect.signature(call.op.call).parameters)
    shape = call.outputs[0]
    table = call.flow.table
    made = table.new(shape[-1]) if made is None else made
    vectors = {word: along(x, -1) for word, x in reads.items()}
    words: dict[str, np.ndarray] = {**vectors, **(known or {}), "out": made}
    words |= {name: part.labels for name, part in inner.items() if name not in words}
    bind_weights(dict(weights), words)
    note_resizing(resize, words)
    call.flow.binding(call).scales.update(scales or {})
    for what, positions in products:
        if not isinstance(what, str):
            what = tuple(words[word] for word in what)
        elif weight_of(call.op, what) is None:
            continue
        call.products.append((what, positions))
    output = Channels(shape, spread(made, len(shape), -1))
    axis = len(shape) - 1
    mask = call.mask
    if mask is not None and mask.gated_axis not in (None, axis):
        raise Ambiguous("its gates run along another axis than that of channels")
    acts = _numbers(weights, gates, "out", made.size)
    makers = _axes(weights, gates[:1], "out")
    call.gates[:] = [Gate(output.labels, axis, acts, makers, True, True, kind=kind)]
    for name, part in inner.items():
        acts = _numbers(weights, part.gates, name, part.labels.size)
        makers = _axes(weights, part.makers, name)
        kind = part.kind or name
        about: dict[str, Any] = {"name": name, "kind": kind, "seen": part.seen}
        call.gates.append(Gate(part.labels, 0, acts, makers, True, True, **about))

    def worth(valuation, values):
        for value, vector in zip(values, vectors.values(), strict=True):
            constants = values_along(value, -1, vector.size)
            valuation.read(call, vector, constants, fold=False)
        for gate in call.gates[1:]:
            closed = valuation.closed(call, gate)
            constants = np.full(gate.size, np.nan)
            if closed is not None:
                constants = np.where(closed, 0.0, np.nan)
            valuation.read(call, gate.labels, constants, fold=False)
        return [np.full(output.labels.shape, np.nan)]

    call.step(list(reads.values()), [output], worth)
    return output


def positions_of(x: Channels) -> int:
    """At how many positions of a sample a tensor has its last axis."""
    return count_positions(x, x.ndim - 1)


def _words(weights, name) -> list[str] | None:
    weight = weight_of(current().op, name)
    return None if weight is None else words_of(weights[name], len(weight.shape))


def _numbers(weights, names, word, size: int) -> dict[str, np.ndarray]:
    """For each weight the number of the gate along `word` of each of its entries."""
    found = {name: weight_of(current().op, name) for name in names}
    return {
        name: gates_along(weight, weights[name], size, word)[0]
        for name, weight in found.items()
        if weight is not None
    }


def _axes(weights, names, word) -> dict[str, int]:
    """For each weight its axis that runs along `word`."""
    found = ((name, _words(weights, name)) for name in names)
    return {name: words.index(word) for name, words in found if words}
