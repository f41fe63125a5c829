"""The verb `recur`, and what layers do that run a cell in every time step."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np

from filterprune.channels.activations import activation_of
from filterprune.channels.binding import (
    axis_named,
    bind_constants,
    bind_weights,
    gates_along,
    note_resizing,
    words_of,
)
from filterprune.channels.calls import Ambiguous, Gate, Loop, Place, current, describe
from filterprune.channels.constants import count_positions, spread, values_along
from filterprune.channels.flow import leave_out, put_back
from filterprune.channels.holding import Held, enter, shifted
from filterprune.channels.labels import Channels
from filterprune.channels.registry import weight_of
from filterprune.channels.verbs import along, channel_axis, coupling


def recur(
    x: Channels,
    states: Sequence,
    *,
    resize=None,
    axis: int | None = None,
    carries: Callable | None = None,
    bind: dict[str, str] | None = None,
    **weights: str,
) -> list[Channels]:
    """The cell mixes the channels it reads with its own of the last time step.

    All that it gives, output and states, has the same channels: its units. A
    closed unit is neither read in the next time step nor by what follows.

    Args:
        x: the `Channels` read, those of one time step.
        states: the `Channels` of its states. The first is what the weights with
            an axis `state` are multiplied by.
        resize: the config entry that counts the units, as in `mix`.
        axis: the axis of channels; defaults to what `data_format` says.
        carries: what part of the first state the cell takes over as it is, as a
            function of the cell, its input and that state; `None` for nothing.
            Criteria that look at gradients take only what is read by weights.
        bind: the same as `weights`, as a dict.
        **weights: for each weight the names of its axes: `in` for the channels of
            `x`, `state` for the units of the last time step, `out` for the units.

    Returns:
        The `Channels` of the output and of each state.
    """
    call = current()
    weights = {**(bind or {}), **weights}
    axis = channel_axis(call.op) if axis is None else axis
    read = along(x, axis)
    made = call.flow.table.new(call.outputs[0][axis])
    known = {"in": read, "state": made, "out": made}
    bind_weights(weights, known)
    note_resizing(resize, known)
    for state in keras.tree.flatten(states):
        if isinstance(state, Channels):
            call.flow.table.tie(along(state, axis), made)
        else:
            bind_constants(made, [(state, axis)])
    outputs = [
        Channels(shape, spread(made, len(shape), axis)) for shape in call.outputs
    ]
    call.gates[:] = [_gate_of_units(call, made, axis, weights)]
    positions = count_positions(outputs[0], axis)
    for name, spec in weights.items():
        weight = weight_of(call.op, name)
        if weight is None:
            continue
        words = words_of(spec, len(weight.shape))
        if axis_named(words, "in", "state") is not None:
            call.products.append((name, positions))
        if axis_named(words, "in") is not None:
            call.reads.append((name, words.index("in")))
    call.loops.append(Loop("", outputs[0].labels, carries=carries))
    call.flow.vectors.append(outputs[0])
    for name in ("activation", "recurrent_activation"):
        facts = activation_of(call.op, name, call.outputs[0])
        if not facts.elementwise:
            call.flow.table.pin(made, coupling(call, facts.name))

    def worth(valuation, values):
        constants = values_along(values[0], axis, read.size)
        valuation.read(call, read, constants, fold=False)
        again = valuation.behind(call, made)
        valuation.read(call, made, again, fold=False)
        return [spread(again, x.ndim, axis) for x in outputs]

    call.step([x], outputs, worth)
    if call.holder is None:  # no masked layer is called as a cell is
        call.gates.clear()
        call.flow.table.pin(made, f"made by {describe(call.op)}, a cell on its own")
    return outputs


def _gate_of_units(call, made, axis: int, weights: dict[str, str]) -> Gate:
    numbers, makers = {}, {}
    for name, spec in weights.items():
        weight = weight_of(call.op, name)
        if weight is None:
            continue
        words = words_of(spec, len(weight.shape))
        if axis_named(words, "state") is not None:
            numbers[name], _ = gates_along(weight, spec, made.size, "state")
        out = axis_named(words, "out")
        if out is not None:
            makers[name] = out
    every = np.arange(made.size)
    outputs = tuple(
        Place(number, axis % len(shape), every)
        for number, shape in enumerate(call.outputs)
    )
    kind = "channels" if hasattr(call.op, "filters") else "units"
    return Gate(made, -1, numbers, makers, True, False, outputs, kind=kind)


def chain(x: Channels, states: Sequence, cells: Sequence, name: str) -> list[Channels]:
    """The cell is made of cells, each of which reads the output of the last one.

    Args:
        x: the `Channels` read by the first.
        states: the `Channels` of the states of each, nested.
        cells: the cells.
        name: the attribute, and the config entry, that lists them.

    Returns:
        The `Channels` of the output and of all states.
    """
    call = current()
    if len({id(cell) for cell in cells}) < len(cells):
        raise Ambiguous("one cell stands in it twice")
    helds: list[Held] = []
    carried: list[Channels] = []
    for number, (cell, own) in enumerate(zip(cells, states, strict=True)):
        own = [own] if isinstance(own, Channels) else own  # as Keras calls it
        shapes = [own_state.shape for own_state in keras.tree.flatten(own)]
        last = number == len(cells) - 1
        output = call.outputs[0] if last else _shape_between(x, shapes[0])
        held = enter(cell, (x, own), [output, *shapes], f"{name}.{number}")
        x, *new = held.channels
        carried += new
        helds.append(held)
        if not last:
            call.loops[:] = [dataclasses.replace(y, passed_on=True) for y in call.loops]
    call.flow.binding(call).config[name] = lambda survivors: [
        held.config(survivors) for held in helds
    ]
    call.gates[:] = _chained(helds, call)
    call.reads += helds[0].reads
    return [x, *carried]


def _shape_between(x: Channels, state: tuple) -> tuple:
    """The shape of the output of a cell that is not the last of a stack."""
    return (*x.shape[:1], *state[1:])


def _chained(helds: list[Held], call) -> list[Gate]:
    """The gates of cells that follow each other: those of the last one first.

    The others are of channels inside of the layer, and have the names of the cells.
    """
    if not all(held.gates for held in helds):
        return []
    found: dict[str, Gate] = {}
    state = 1
    for number, held in enumerate(helds):
        last = held is helds[-1]
        for gate in held.gates:
            weights, outputs = dict(gate.weights), []
            for place in gate.outputs:
                if place.output:
                    at = place.output - 1 + state
                    outputs.append(dataclasses.replace(place, output=at))
                elif last:
                    outputs.append(place)
                else:  # it is read by the next cell and by nobody else
                    for weight, axis in helds[number + 1].reads:
                        ndim = len(weight_of(call.op, weight).shape)
                        weights[weight] = spread(place.gates, ndim, axis)
            name = gate.name
            if name or not last:
                name = "_".join(filter(None, (held.layer.name, name)))
            while name in found:  # cells of one name
                name += "_"
            found[name] = dataclasses.replace(
                gate, name=name, weights=weights, outputs=tuple(outputs)
            )
        state += len(held.channels) - 1
    return sorted(found.values(), key=lambda gate: bool(gate.name))


def loop(
    x: Channels,
    initial_state,
    *,
    name: str = "cell",
    rule: Callable | None = None,
    entry: str | None = None,
    states: Sequence | None = None,
) -> list[Channels]:
    """The layer runs a cell in every time step, which the rule of that speaks for.

    Args:
        x: the `Channels` read, time along their second axis.
        initial_state: the `Channels` of the first states, or constant arrays;
            `None` for zeros.
        name: the attribute of the cell.
        rule: the rule of the cell; defaults to the one of its type.
        entry: the config entry of the layer that holds the cell; by default the
            layer has the cell's own entries.
        states: the sizes of the states, nested; -1 for one of the shape of the
            output. Defaults to the `state_size` of the cell.

    Returns:
        The `Channels` of the output and, with `return_state`, of the states.
    """
    call = current()
    layer = call.op
    cell = getattr(layer, name)
    seen = leave_out(x, 1)
    shape = call.outputs[0]
    if layer.return_sequences:
        shape = (shape[0], *shape[2:])
    sizes = cell.state_size if states is None else states
    given = _first_states(initial_state, sizes, shape, channel_axis(cell))
    flat = keras.tree.flatten(given)
    call.carried += [state for state in flat if isinstance(state, Channels)]
    shapes = [tuple(state.shape) for state in flat]
    held = enter(cell, (seen, given), [shape, *shapes], name, rule, x.shape[1] or 1)
    made, *new = held.channels
    for before, after in zip(flat, new, strict=True):
        if isinstance(before, Channels):
            call.flow.table.tie(before.labels, after.labels)
    if held.sizes is not None:
        entries = {entry: held.config} if entry else held.sizes
        call.flow.binding(call).config.update(entries)
    outputs = [made]
    if layer.return_sequences:
        outputs = [put_back(made, 1, call.outputs[0])]
    if layer.return_state:
        outputs += new
    call.gates[:] = [_looped(gate, layer) for gate in held.gates]
    call.takes = ("initial_state",)
    return outputs


def _first_states(initial_state, sizes, shape: tuple, axis: int) -> list:
    """The states that a cell begins with, nested as it has them."""
    flat = keras.tree.flatten(initial_state) if initial_state is not None else []
    left = iter(flat)
    table = current().flow.table

    def take(size):
        if isinstance(size, (list, tuple)):
            return [take(part) for part in size]
        if flat:
            return next(left)
        found = shape if size == -1 else (shape[0], size)
        return Channels(found, spread(table.new(found[axis]), len(found), axis))

    sizes = sizes if isinstance(sizes, (list, tuple)) else [sizes]
    try:
        states = take(sizes)
    except StopIteration:
        states = None
    if states is None or next(left, None) is not None:
        raise Ambiguous(f"{len(flat)} initial states are given")
    return states


def _looped(gate: Gate, layer) -> Gate:
    """The gates of a cell as those of the layer that runs it."""
    outputs, states = [], []
    for place in gate.outputs:
        if place.output:
            states.append(dataclasses.replace(place, output=place.output - 1))
            if layer.return_state:
                outputs.append(place)
        else:
            outputs.append(shifted(place, 1) if layer.return_sequences else place)
    return dataclasses.replace(gate, outputs=tuple(outputs), states=tuple(states))
