"""The criterion of what is lost once the layers that are left make up for it."""

import keras
import numpy as np

from filterprune.channels.trace import trace
from filterprune.criteria.base import register_criterion
from filterprune.criteria.data import DataCriterion
from filterprune.criteria.weights import GroupMagnitude
from filterprune.reconstruction.elimination import Elimination, eliminate, read
from filterprune.running import without_gradients
from filterprune.slots import Slots


@register_criterion("reconstruction")
class Reconstruction(DataCriterion):
    """The error that removing the channel leaves after refitting the others.

        score[j] = sum_r tr(W_q' [(H_r^-1)_qq]^-1 W_q) / var_r

    over all weights `W` that read channel `j`, at their inputs `q`, with the second
    moments `H_r` of their inputs and the variance `var_r` of their outputs. Channels of
    a group go one after another, and `W` and `H_r^-1` are brought up to date with each,
    so that two channels that stand in for each other are not both cheap. A channel
    scores what it costs once all cheaper ones of its group are gone.

    It goes with `filterprune.reconstruct`, which finds those weights. Labels are not
    looked at. A group that is also read by what no fit can tell, such as units of a
    recurrent layer, is ranked by `filterprune.criteria.GroupMagnitude`.

    Args:
        data: an array of inputs or a dict of them, `(x, y)`, or batches of these, as in
            `filterprune.criteria.Taylor`; no `y` is needed.
        batches: how many batches to look at for each scoring: the next ones.
            Defaults to `8`.
        batch_size: how many samples a batch has where `data` are arrays.
            Defaults to `32`.
        normalization: what the scores of each group are divided by, as in
            `filterprune.Criterion`. Defaults to `"share"`.

    Raises:
        TypeError: if `data` are neither arrays nor iterable.
        ValueError: if a number is below 1 or arrays differ in length; when it scores,
            if batches end for good.

    Example:

    ```python
    criterion = filterprune.criteria.Reconstruction(x, batches=2)
    filterprune.prune(masked, sparsity=0.5, criterion=criterion)
    filterprune.reconstruct(masked, x, refine=20)
    ```

    References:
        Meng et al., "OSSCAR: One-Shot Structured Pruning in Vision and Language
        Models with Combinatorial Optimization", ICML 2024,
        https://arxiv.org/abs/2403.12983; Hassibi and Stork, "Second order derivatives
        for network pruning: Optimal Brain Surgeon", NIPS 1992, for the formula
    """

    normalization = "share"

    def __init__(
        self,
        data,
        batches: int = 8,
        batch_size: int = 32,
        normalization: str | None = "default",
    ):
        super().__init__(data, batches, batch_size, normalization=normalization)

    def score(self, slots: Slots) -> np.ndarray:
        names = trace(slots.model).input_names
        batches = []
        for x, *_ in self.data.take(self.batches):
            flat = [x[name] for name in names] if isinstance(x, dict) else x
            batches.append(keras.tree.flatten(flat))
        with without_gradients():
            readings = read(slots.analysis, batches, np.random.default_rng(0))
        known = {(reading.path, reading.name) for reading in readings}
        scores, told = np.zeros(slots.count), np.ones(slots.count, bool)
        for part in slots.parts("reader"):
            if (part.path, part.name) not in known:
                groups = np.unique(slots.group_of[part.slots[part.slots >= 0]])
                told[np.isin(slots.group_of, groups)] = False
        for group in slots.slices:
            if told[group].all():
                scores[group] = _of_group(readings, slots, group)
        scores = self.by_group(slots, scores)
        if not told.all():
            magnitudes = GroupMagnitude().score(slots)
            scale = magnitudes[told].mean() if told.any() else 1.0
            mean = scores[told].mean() if told.any() else 1.0
            scores[~told] = magnitudes[~told] * mean / (scale or 1.0)
        return scores


def _of_group(readings, slots: Slots, group: slice) -> np.ndarray:
    def numbers(labels):
        found = slots.of(labels)
        inside = (found >= group.start) & (found < group.stop)
        return np.where(inside, found - group.start, -1)

    count = group.stop - group.start
    parts = []
    for reading in readings:
        inputs = reading.inputs_of(numbers)
        if (inputs >= 0).any():
            parts.append(Elimination(reading, inputs, count))
    return eliminate(parts, count)
