"""One sweep over a graph: both models side by side, one layer fitted after another."""

from typing import Any

import keras
import numpy as np

from filterprune.channels.calls import Call
from filterprune.channels.groups import Analysis
from filterprune.channels.trace import is_layer
from filterprune.reconstruction.least_squares import fit
from filterprune.reconstruction.program import Program, Step, program_of, run_step
from filterprune.reconstruction.readers import MOST_INPUTS, Reader, readers_of
from filterprune.reconstruction.report import LayerFit
from filterprune.reconstruction.samples import is_held

# At how many positions a fit looks for each input of an output, and at least.
ROWS_PER_INPUT = 8
FEWEST_ROWS = 20_000
# Bytes of activations that are held at once; later layers see more samples.
FRONTIER = 2**29


class Sweep:
    """Runs the original and the pruned model side by side, step by step.

    Only the tensors that a later step reads are held. Where they are large, as at the
    start of a convnet, a few batches have positions enough; the others are run through
    what is fitted by then where there is room for them.

    Args:
        analysis: the analysis of the masked model.
        values: the value of each variable in the original model, by its id.
        batches: what both read: for each batch an array for each input.
        rng: draws the positions.
        progress: is called after each step.
    """

    def __init__(self, analysis: Analysis, values, batches, rng, progress):
        self.analysis = analysis
        self.values = values
        self.batches = batches
        self.rng = rng
        self.progress = progress
        self.program: Program = program_of(analysis.model)
        dead, _, _ = analysis.decide()
        self.survivors = analysis.survivors(dead)
        self.calls: dict[int, Call] = {}
        for call in analysis.flow.calls:
            self.calls.setdefault(id(call.layer), call)
        self.fits: list[LayerFit] = []
        self._pairs: list[dict] = []  # for each batch and key the old and new value
        self._room = 2

    def run(self) -> list[list]:
        """Fit all layers.

        Returns:
            For each batch the pairs of outputs, of the original and of the model now.
        """
        steps = self.program.steps
        fitted: set[int] = set()
        for number, step in enumerate(steps):
            self._make_room(number)
            if id(step.op) not in fitted:
                fitted.add(id(step.op))
                self._fit(step)
            for pairs in self._pairs:
                self._step(number, step, pairs)
            self.progress(number + 1, len(steps))
        self._make_room(len(steps), everything=True)
        return [[pairs[key] for key in self.program.outputs] for pairs in self._pairs]

    def _make_room(self, number: int, everything: bool = False) -> None:
        """Take more batches in, as many as there is room for."""
        if not self._pairs:
            self._take_in(number, min(2, len(self.batches)))
        held = sum(_bytes(pair) for pair in self._pairs[0].values())
        # A step makes about as much as it reads.
        room = max(2, FRONTIER // max(2 * held, 1))
        if everything:
            room = len(self.batches)
        self._take_in(number, min(room, len(self.batches)))

    def _take_in(self, number: int, count: int) -> None:
        for batch in self.batches[len(self._pairs) : count]:
            pairs: dict[Any, tuple] = {}
            for key, array in zip(self.program.inputs, batch, strict=True):
                pairs[key] = (array, array)
            for before, step in enumerate(self.program.steps[:number]):
                self._step(before, step, pairs)
            self._pairs.append(pairs)

    def _step(self, number: int, step: Step, pairs: dict) -> None:
        """Run one call in both models; free what no later call reads."""
        old = {key: pairs[key][0] for key in step.inputs}
        new = {key: pairs[key][1] for key in step.inputs}
        first = run_step(step, old, self.values)
        same = all(pairs[key][0] is pairs[key][1] for key in step.inputs)
        second = first
        if not same or self._differs(step.op):
            second = run_step(step, new, {})
        for key in step.inputs:
            if self.program.last[key] == number:
                pairs.pop(key, None)
        pairs |= dict(zip(step.outputs, zip(first, second, strict=True), strict=True))

    def _differs(self, op) -> bool:
        """Whether a layer has other weights than in the original model."""
        return any(
            id(variable) in self.values
            and not np.array_equal(
                self.values[id(variable)], keras.ops.convert_to_numpy(variable)
            )
            for variable in getattr(op, "weights", ())
        )

    def _fit(self, step: Step) -> None:
        """Fit the layer of a step, if anything of what it reads, or holds, changed."""
        call = self.calls.get(id(step.op))
        if call is None or not is_layer(step.op) or not step.inputs:
            return
        # All calls of a shared layer are fitted to at once.
        uses = [other for other in self.program.steps if other.op is step.op]
        held = self._pairs[0]
        if any(key not in held for use in uses for key in use.inputs):
            return
        changed = any(
            pairs[key][0] is not pairs[key][1]
            for pairs in self._pairs
            for use in uses
            for key in use.inputs
        )
        for reader in readers_of(step, call, self.survivors):
            if reader.inputs and (changed or not reader.alive.all()):
                self._fit_one(step.path, reader, uses)

    def _fit_one(self, path: str, reader: Reader, uses: list[Step]) -> None:
        wanted = max(FEWEST_ROWS, ROWS_PER_INPUT * reader.inputs)
        if reader.inputs > MOST_INPUTS:
            wanted = MOST_INPUTS
        found = []
        for held, share in ((False, len(uses)), (True, 4 * len(uses))):
            numbers = [i for i in range(len(self._pairs)) if is_held(i) is held]
            per = reader.positions(uses[0], self._read(numbers[0], uses[0])[1])
            # Neighbours are alike: positions of several samples tell more.
            count = max(1, -(-4 * wanted // (share * per)))
            rows = -(-wanted // (share * min(count, len(numbers))))
            moments = reader.moments()
            for number in numbers[:count]:
                for use in uses:
                    pair = self._read(number, use)
                    if not reader.add(moments, use, pair, rows, self.rng, self.values):
                        return
            found.append(moments)
        seen, unseen = found
        fitted = fit(seen, unseen, *reader.old(), reader.bias is not None)
        reader.assign(fitted)
        before, after = (
            float(np.mean(errors) ** 0.5) for errors in (fitted.before, fitted.after)
        )
        self.fits.append(LayerFit(path, before, after))

    def _read(self, batch: int, step: Step) -> tuple[list, list]:
        """What a call reads in a batch, in the original model and now."""
        pairs = [self._pairs[batch][key] for key in step.inputs]
        return [old for old, _ in pairs], [new for _, new in pairs]


def _bytes(pair) -> int:
    arrays = pair if pair[0] is not pair[1] else pair[:1]
    return sum(int(np.prod(array.shape)) * 4 for array in arrays)
