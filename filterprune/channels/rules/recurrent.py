"""Recurrent layers and their cells."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from filterprune.channels.flow import Gate, current, describe
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
    gates = [held.gate for held in (forth, back) if held.gate is not None]
    sizes = {gate.size for gate in gates}
    if len(gates) < 2 or len(sizes) > 1 or _shapes(forth) != _shapes(back):
        return barrier("its two directions have different units")
    # Keras takes the width of the one for that of the other: they go in pairs.
    call.flow.table.tie(gates[0].labels, gates[1].labels)
    config = call.flow.binding(call).config
    config["layer"], config["backward_layer"] = forth.config, back.config
    merged = _merged(layer.merge_mode, forth.channels[0], back.channels[0])
    call.gate = _both(gates[0], gates[1], layer.merge_mode, merged[0].ndim)
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


def _both(gate: Gate, other: Gate, mode, ndim: int) -> Gate:
    """The gates of the layer that reads forth, for that which reads back as well."""
    first = gate.outputs[0]
    heads = [first]
    if mode is None:
        heads.append(dataclasses.replace(first, output=1))
    elif mode == "concat" and first.axis == ndim - 1:
        gates = np.concatenate([first.gates] * 2)
        heads = [dataclasses.replace(first, gates=gates)]
    count = len(gate.outputs) - 1  # of states that are given out

    def moved(places, by):
        return [dataclasses.replace(p, output=p.output + by) for p in places]

    return dataclasses.replace(
        gate,
        weights=gate.weights | other.weights,
        makers=gate.makers | other.makers,
        outputs=(
            *heads,
            *moved(gate.outputs[1:], len(heads) - 1),
            *moved(gate.outputs[1:], len(heads) - 1 + count),
        ),
        states=(*gate.states, *moved(gate.states, len(gate.states))),
    )
