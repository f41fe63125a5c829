"""The order in which to remove inputs of layers, refitting the others.

A layer with the weights W and the second moments H of its inputs gives, without some
inputs q and with the best weights for all others, outputs that are off by

    tr(W_q' [(H^-1)_qq]^-1 W_q)

in the mean square. Removing one after another, W and H^-1 are brought up to date by

    W -= (H^-1)_:q [(H^-1)_qq]^-1 W_q
    H^-1 -= (H^-1)_:q [(H^-1)_qq]^-1 (H^-1)_q:
"""

import dataclasses

import numpy as np

from filterprune.channels.calls import Call
from filterprune.channels.groups import Analysis
from filterprune.reconstruction.least_squares import Moments
from filterprune.reconstruction.program import program_of, run_step
from filterprune.reconstruction.readers import MOST_INPUTS, Reader, readers_of
from filterprune.sums import peek

# The ridge, as a fraction of the mean squared input.
RIDGE = 1e-2
# How many rows are looked at for each input, and at least.
ROWS_PER_INPUT, FEWEST_ROWS = 8, 10_000
# Of so many channels that are left one goes at a time.
AT_ONCE = 64


@dataclasses.dataclass(eq=False)
class Reading:
    """What one group of outputs of a layer reads.

    Attributes:
        path: the path of the layer.
        name: the name of the weight.
        reader: the weight and the layer.
        moments: the second moments of what it reads.
    """

    path: str
    name: str
    reader: Reader
    moments: Moments

    def inputs_of(self, numbers) -> np.ndarray:
        """The slot of each input, of those that a function of labels tells, -1 else."""
        layout = self.reader.layout
        found = np.full(layout.in_shape, -1)
        for place, axis in enumerate(layout.in_axes):
            labels = self.reader.axes[axis]
            if labels is not None:
                view = [1] * len(layout.in_axes)
                view[place] = -1
                own = numbers(labels).reshape(view)
                found = np.where(own >= 0, own, found)
        return found.ravel()


def read(analysis: Analysis, batches: list, rng) -> list[Reading]:
    """Run a model, and take the moments of what its layers read.

    Args:
        analysis: the analysis of a masked model.
        batches: for each batch an array for each input.
        rng: draws the positions that are looked at.
    """
    program = program_of(analysis.model)
    everything = analysis.survivors(np.zeros(analysis.flow.table.count, bool))
    calls: dict[int, Call] = {}
    for made in analysis.flow.calls:
        calls.setdefault(id(made.layer), made)
    values = {id(v): peek(v) for v in analysis.model.variables}
    found: dict[tuple, Reading] = {}
    failed: set[tuple] = set()
    for batch in batches:
        known = dict(zip(program.inputs, batch, strict=True))
        for number, step in enumerate(program.steps):
            tensors = [known[key] for key in step.inputs]
            call = calls.get(id(step.op)) if tensors else None
            for reader in readers_of(step, call, everything) if call else ():
                key = id(step.op), reader.name
                if reader.inputs > MOST_INPUTS or key in failed:
                    continue
                reading = found.setdefault(
                    key, Reading(step.path, reader.name, reader, reader.moments())
                )
                wanted = max(FEWEST_ROWS, ROWS_PER_INPUT * reader.inputs)
                rows = -(-wanted // len(batches))
                pair = tensors, tensors
                if not reader.add(reading.moments, step, pair, rows, rng, values):
                    failed.add(key)
            outputs = run_step(step, known, {})
            known |= dict(zip(step.outputs, outputs, strict=True))
            for key in step.inputs:
                if program.last[key] == number:
                    known.pop(key, None)
    return [reading for key, reading in found.items() if key not in failed]


class Elimination:
    """The inputs of one reading, to be removed slot by slot.

    Args:
        reading: what is read.
        numbers: the slot of each input, `(inputs,)`, -1 for those that stay.
        count: how many slots there are.
    """

    def __init__(self, reading: Reading, numbers: np.ndarray, count: int):
        moments, reader = reading.moments, reading.reader
        second = moments.xx / moments.count
        spread = moments.variance().sum()
        if reader.bias is not None:
            mean = moments.x / moments.count
            second = second - mean[:, :, None] * mean[:, None]
        scale = np.trace(second, axis1=1, axis2=2) / second.shape[1]
        shift = np.where(scale > 0, RIDGE * scale, 1.0)[:, None, None]
        self.inverse = np.linalg.inv(second + shift * np.eye(second.shape[1]))
        self.weights = reader.old()[0] / np.sqrt(spread or 1.0)
        self.rows = [np.flatnonzero(numbers == slot) for slot in range(count)]

    def costs(self, slots: np.ndarray) -> np.ndarray:
        """By how much outputs are off without each slot, `(slots,)`.

        In units of the outputs' variance.
        """
        found = np.zeros(slots.size)
        sizes = np.array([self.rows[slot].size for slot in slots])
        for size in np.unique(sizes[sizes > 0]):
            same = np.flatnonzero(sizes == size)
            rows = np.stack([self.rows[slot] for slot in slots[same]])
            blocks = self.inverse[:, rows[:, :, None], rows[:, None, :]]
            weights = self.weights[:, rows]
            found[same] = (weights * np.linalg.solve(blocks, weights)).sum((0, 2, 3))
        return found

    def remove(self, slot: int) -> None:
        """Let all other inputs make up for those of a slot."""
        rows = self.rows[slot]
        if not rows.size:
            return
        block = self.inverse[:, rows][:, :, rows]
        share = np.swapaxes(
            np.linalg.solve(block, self.inverse[:, rows]), 1, 2
        )  # (H^-1)_:q [(H^-1)_qq]^-1
        self.weights -= share @ self.weights[:, rows]
        self.inverse -= share @ self.inverse[:, rows]


def eliminate(eliminations: list[Elimination], count: int) -> np.ndarray:
    """What it costs to remove each slot of a group, once cheaper ones are gone.

    Args:
        eliminations: all that reads the group.
        count: how many slots it has.

    Returns:
        `(slots,)`, in the order in which they go not falling.
    """
    costs, level = np.zeros(count), 0.0
    left = np.arange(count)
    while left.size > 1:
        total = sum((part.costs(left) for part in eliminations), np.zeros(left.size))
        order = np.argsort(total, kind="stable")
        first = order[: max(1, left.size // AT_ONCE)]
        for place in first:
            level = max(level, float(total[place]))
            costs[left[place]] = level
            for part in eliminations:
                part.remove(int(left[place]))
        left = np.delete(left, first)
    costs[left] = sum((part.costs(left) for part in eliminations), np.full(1, level))
    return costs
