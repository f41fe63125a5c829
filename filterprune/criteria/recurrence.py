"""What a recurrent layer reads of its own: tapping inside its time steps.

A unit is absent when neither what follows nor the cell itself, in the next time
step, reads it. For the latter a gate for each sample is put on the state that the
cell goes on from; the derivative of the loss by it is the unit's effect there.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from filterprune.channels.registry import weight_of
from filterprune.channels.trace import parts_of


def ones_for(labels, inputs):
    """Open gates for each sample of some inputs, broadcasting to a cell's state."""
    shape = (keras.ops.shape(inputs)[0], *labels.shape[1:])
    return keras.ops.ones(shape, dtype="float32")


@contextlib.contextmanager
def gated_steps(layer, gates: list[tuple[Any, Any]]) -> Iterator[None]:
    """Within it the cells of a layer read their states through gates.

    Args:
        layer: a recurrent layer, or one that holds it.
        gates: pairs of a `filterprune.channels.flow.Loop` and a tensor of gates.
    """
    cells = [(weight_of(layer, loop.path) if loop.path else layer) for loop, _ in gates]
    fused = [x for x in [layer, *parts_of(layer)] if getattr(x, "use_cudnn", None)]
    before = [layer.use_cudnn for layer in fused]
    try:
        for part in fused:  # a kernel of its own calls no cell
            part.use_cudnn = False
        for cell, (loop, gate) in zip(cells, gates, strict=True):
            vars(cell)["call"] = functools.partial(_step, cell, cell.call, loop, gate)
        yield
    finally:
        for cell in cells:
            vars(cell).pop("call", None)
        for part, value in zip(fused, before, strict=True):
            part.use_cudnn = value


def _step(cell, call, loop, gate, inputs, states, *args, **kwargs):
    flat = keras.tree.flatten(states)
    state = flat[0]
    gate = keras.ops.cast(gate, state.dtype)
    flat[0] = state * gate
    output, new = call(
        inputs, keras.tree.pack_sequence_as(states, flat), *args, **kwargs
    )
    if loop.carries is not None:
        # Zero while gates are open, and so is all that goes on beside weights.
        lost = loop.carries(cell, inputs, state) * (state - flat[0])
        output = output + lost
        first, *rest = keras.tree.flatten(new)
        new = keras.tree.pack_sequence_as(new, [first + lost, *rest])
    return (output * gate if loop.passed_on else output), new
