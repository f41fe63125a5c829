"""Recurrent layers and their cells."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from filterprune.channels.calls import Gate, Place, current, describe
from filterprune.channels.holding import Held, enter
from filterprune.channels.labels import Channels, squeeze_uniform
from filterprune.channels.moves import concatenate
from filterprune.channels.recurring import chain, loop, recur
from filterprune.channels.registry import rule
from filterprune.channels.verbs import barrier


def _cell(blocks: int, carries: Callable | None = None):
    """The rule of a cell whose kernels have that many blocks of units."""

    def cell(layer, x, states):
        return recur(
            x,
            states,
            kernel=f"... in ({blocks} out)",
            recurrent_kernel=f"... state ({blocks} out)",
            bias=f"... ({blocks} out)",
            resize="filters" if hasattr(layer, "filters") else "units",
            carries=carries,
        )

    return cell


def _update_gate(cell, x, state):
    """What a GRU keeps of each unit."""
    total = keras.ops.matmul(x, cell.kernel)
    total += keras.ops.matmul(state, cell.recurrent_kernel)
    if cell.use_bias:
        total += keras.ops.sum(keras.ops.reshape(cell.bias, (-1, 3 * cell.units)), 0)
    return cell.recurrent_activation(total[:, : cell.units])


rule(layers.SimpleRNNCell)(_cell(1))
rule(layers.GRUCell)(_cell(3, carries=_update_gate))
rule(layers.LSTMCell)(_cell(4))


@rule(layers.StackedRNNCells)
def stacked_cells(layer, x, states):
    if current().holder is None:
        return barrier("it is a cell on its own; put it in an `RNN` layer")
    return chain(x, states, layer.cells, "cells")


@rule(layers.RNN)
def rnn(layer, x, initial_state=None, mask=None):
    if not isinstance(layer.cell, layers.Layer):
        return barrier("its cell is no layer")
    return loop(x, initial_state, entry="cell")


@rule(layers.LSTM, layers.GRU, layers.SimpleRNN)
def recurrent(layer, x, initial_state=None, mask=None):
    return loop(x, initial_state)


@rule(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def conv_lstm(layer, x, initial_state=None, mask=None):
    return loop(x, initial_state, rule=_cell(4), states=(-1, -1))


@rule(layers.Bidirectional)
def bidirectional(layer, x, initial_state=None, mask=None):
    call = current()
    given = keras.tree.flatten(initial_state) if initial_state is not None else []
    call.carried += [state for state in given if isinstance(state, Channels)]
    half = len(given) // 2
    forth, back = (
        _held(name, x, states)
        for name, states in (
            ("forward_layer", given[:half]),
            ("backward_layer", given[half:]),
        )
    )
    sizes = [[gate.size for gate in held.gates] for held in (forth, back)]
    if not sizes[0] or sizes[0] != sizes[1] or _shapes(forth) != _shapes(back):
        return barrier("its two directions have different units")
    pairs = list(zip(forth.gates, back.gates, strict=True))
    for gate, other in pairs:
        # Keras takes the width of the one for that of the other: they go in pairs.
        call.flow.table.tie(gate.labels, other.labels)
    config = call.flow.binding(call).config
    config["layer"], config["backward_layer"] = forth.config, back.config
    merged = _merged(layer.merge_mode, forth.channels[0], back.channels[0])
    heads = _heads(forth.gates[0].outputs[0], layer.merge_mode, merged[0].ndim)
    given, kept = len(forth.channels) - 1, sum(len(g.states) for g in forth.gates)
    call.gates[:] = [_both(*pair, heads, given, kept) for pair in pairs]
    call.takes = ("initial_state",)
    return [*merged, *forth.channels[1:], *back.channels[1:]]


def _held(name: str, x, states) -> Held:
    """One of the two layers, and what it does."""
    layer = getattr(current().op, name)
    if not isinstance(layer, layers.RNN):
        barrier(f"it holds {describe(layer)}, which is no recurrent layer")
    given = layer.compute_output_spec(keras.KerasTensor(x.shape))
    shapes = [tuple(y.shape) for y in keras.tree.flatten(given)]
    return enter(layer, (x, states) if states else (x,), shapes, name)


def _shapes(held: Held) -> list[tuple]:
    return [channels.shape for channels in held.channels]


def _merged(mode, forth, back) -> list[Channels]:
    """What comes out for a sequence read forth and back."""
    call = current()
    if mode is None:
        return [forth, back]
    labels = forth.labels
    join = _JOINS.get(mode)
    if join is None:
        join = concatenate([forth, back], -1)
        labels = squeeze_uniform(join(forth.labels, back.labels))
    merged = Channels(call.outputs[0], labels)
    call.step([forth, back], [merged], lambda _, values: [join(*values)])
    return [merged]


def _product(a, b):
    return np.where((a == 0) | (b == 0), 0.0, a * b)


_JOINS: dict[str, Callable] = {
    "sum": np.add,
    "ave": lambda a, b: (a + b) / 2,
    "mul": _product,
}


def _heads(first: Place, mode, ndim: int) -> list[Place]:
    """Where units are in what both directions give, from where they are in one."""
    if mode is None:
        return [first, dataclasses.replace(first, output=1)]
    if mode == "concat" and first.axis == ndim - 1:
        return [dataclasses.replace(first, gates=np.concatenate([first.gates] * 2))]
    return [first]


def _both(gate: Gate, other: Gate, heads: list[Place], given: int, kept: int) -> Gate:
    """The gates of the layer that reads forth, for that which reads back as well.

    Args:
        gate: those gates.
        other: those of the layer that reads back.
        heads: where they are in what both give together.
        given: how many states each gives out.
        kept: how many states each keeps.
    """

    def moved(places, by):
        return [dataclasses.replace(p, output=p.output + by) for p in places]

    first = len(heads) - 1
    states = [place for place in gate.outputs if place.output]
    return dataclasses.replace(
        gate,
        weights=gate.weights | other.weights,
        makers=gate.makers | other.makers,
        outputs=(
            *(() if gate.name else heads),
            *moved(states, first),
            *moved(states, first + given),
        ),
        states=(*gate.states, *moved(gate.states, kept)),
    )
