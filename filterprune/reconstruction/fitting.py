"""Fitting a masked model to the original one, on inputs without labels."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from filterprune.channels.groups import Analysis, study
from filterprune.channels.trace import trace
from filterprune.cost import CostModel
from filterprune.errors import warn
from filterprune.reconstruction.refine import BATCH, STEPS
from filterprune.reconstruction.refine import refine as refine_to
from filterprune.reconstruction.report import ReconstructionReport
from filterprune.reconstruction.samples import Samples, agreement, columns, error
from filterprune.reconstruction.sweep import Sweep
from filterprune.recovery import has_statistics, recalibrate
from filterprune.running import without_gradients
from filterprune.schedules import is_integer
from filterprune.slots import masked_analysis

# Of fewer samples too few are left to tell a good fit from a bad one.
FEWEST_SAMPLES = 5
# So many multiply-accumulates `refine="auto"` may take: a minute or so on two cores.
AUTO_MACS = 2e12


def reconstruct(
    masked,
    data,
    reference=None,
    refine: int | str = "auto",
    seed: int = 0,
    verbose: str | int = "auto",
) -> ReconstructionReport:
    """Fit the layers behind closed gates so that they make up for what is gone.

    It needs no labels and no training: some hundred inputs are enough. Layer by layer,
    in the order of the graph, weights change to those that come nearest to the
    original outputs of the layer in the least-squares sense, from the inputs that are
    left:

    `W = (X'X + a d I)^-1 (X'Y + a d W_old)`

    with X the inputs in the pruned model, Y the outputs in the original one before the
    activation, and d the mean of the diagonal of X'X. The ridge `a` is chosen on a
    fifth of the samples, which are held out. Gates stay as they are, so that
    `filterprune.compact` is as exact as before.

    A layer that is frozen (`trainable=False`) stays as it is, and the layers behind it
    make up for that. A layer is only changed if that lowers its error on the samples
    held out; if the model's outputs for those are not nearer to the original's in the
    end, all weights are put back.

    Then the statistics of batch norms are taken anew, and the model is trained for some
    steps to give what the original gives (`refine`), in inference mode: each is kept
    only if the outputs for the samples held out come nearer.

    Args:
        masked: a masked model with closed gates, as after `filterprune.prune`. Its
            weights are changed in place.
        data: inputs of the kind that the model was trained on: an array of shape
            `(samples, ...)` or a dict of them, a tuple `(x, y)`, of which `y` is not
            used, or batches, `x` or `(x, y)` each, as for `filterprune.recalibrate`.
        reference: a model of the same layers with the weights to come near to.
            Defaults to `None`: `masked` itself with all gates open.
        refine: how many steps of Adam to train for, of 64 samples each; `0` for none.
            Defaults to `"auto"`: 400, or as many as take 2e12 multiply-accumulates.
        seed: seed of what is drawn: the order of samples, and the positions of maps
            that are looked at. Defaults to `0`.
        verbose: `0` for no progress bar, `1` for one. Defaults to `"auto"`: one on a
            terminal.

    Returns:
        A `filterprune.ReconstructionReport` with the errors before and after, which
        `print` shows layer by layer.

    Raises:
        TypeError: if `masked` is no Keras model, or `data` has no batches.
        ValueError: if `masked` has no gates, `reference` has other layers, `refine` is
            negative, or `data` are empty, never end or are not finite. The model is
            then as before.

    Example:

    ```python
    filterprune.prune(masked, sparsity=0.5)
    print(filterprune.reconstruct(masked, x, refine=20))
    ```

    References:

    - [He et al., 2017](https://arxiv.org/abs/1707.06168), channel pruning: least
      squares on the outputs of a layer
    - [Frantar and Alistarh, 2022](https://arxiv.org/abs/2208.11580), optimal brain
      compression: layer by layer, on few inputs
    """
    check_refine(refine)
    analysis = masked_analysis(masked)
    values = reference_values(analysis, reference)
    fitting = Fitting(analysis, values, Samples(masked, data, seed), seed)
    if fitting.fit_layers(progress(masked, verbose)):
        everything = np.ones(len(analysis.roots), bool)
        fitting.refine(masked, fitting.steps(refine, everything))
    return fitting.report


class Fitting:
    """A masked model that is fitted to the original one, on some samples.

    Args:
        analysis: the analysis of the masked model.
        values: the value of each variable in the original model, by its id.
        samples: what both read.
        seed: seed of what is drawn.

    Attributes:
        report: what was done so far.
    """

    def __init__(self, analysis: Analysis, values, samples: Samples, seed: int):
        self.analysis, self.values = analysis, values
        self.samples, self.seed = samples, seed
        self.report = ReconstructionReport((), 0.0, 0.0)
        self._targets: list[list] = []

    def fit_layers(self, show) -> bool:
        """Fit layer by layer, then estimate the statistics of batch norms anew.

        Each is kept only if it brings the outputs nearer.

        Args:
            show: is called with the number of layers done, and of all.

        Returns:
            Whether there were samples enough to try.
        """
        masked, samples = self.analysis.model, self.samples
        if samples.count < FEWEST_SAMPLES or len(samples.batches) < 2:
            warn(
                f"'{masked.name}' stays as it is: {samples.count} samples are too few "
                f"to tell a good fit from a bad one. Pass at least {FEWEST_SAMPLES} "
                "(of a fixed batch size: two batches), better hundreds.",
            )
            return False
        rng = np.random.default_rng(self.seed)
        with weights_kept_if_it_fails(masked), without_gradients():
            before = samples.held(samples.outputs(masked))
            kept = weights_of(masked)
            sweep = Sweep(self.analysis, self.values, samples.batches, rng, show)
            pairs = sweep.run()
        self._targets = [[old for old, _ in batch] for batch in pairs]
        given = [[new for _, new in batch] for batch in pairs]
        wanted = samples.held(self._targets)
        pruned = error(wanted, before)
        self.report = ReconstructionReport(
            tuple(sweep.fits), pruned, pruned, agreement(wanted, before)
        )
        if not self._is_nearer(samples.held(given)):
            put_back(kept)
        if has_statistics(masked):
            self._try(masked, self._recalibrate)
        return True

    def steps(self, refine: int | str, alive: np.ndarray) -> int:
        """How many steps to refine a model with some of the channels for."""
        if refine != "auto":
            return int(refine)
        macs = CostModel(self.analysis).total(alive).macs
        # A size that is left open counts as 1 in that.
        open_sizes = [
            math.prod(n for n, size in zip(x.shape[1:], tensor.shape[1:]) if not size)
            for x, tensor in zip(self.samples.batches[0], self.analysis.model.inputs)
        ]
        # A step costs a pass forward and one of twice the cost back.
        step = 3 * BATCH * max(macs, 1) * max(open_sizes)
        return min(STEPS, int(AUTO_MACS / step))

    def refine(self, model, steps: int) -> None:
        """Train a model to give what the original gives, if that brings it nearer."""
        samples = self.samples
        inputs = columns(samples.seen(samples.batches))
        targets = columns(samples.seen(self._targets))
        if steps and self._try(
            model, lambda: refine_to(model, inputs, targets, steps, self.seed)
        ):
            self.report = dataclasses.replace(self.report, refined=True)

    def _recalibrate(self) -> None:
        samples, model = self.samples, self.analysis.model
        struct = trace(model).input_struct
        batches = samples.seen(samples.batches)
        data = [(keras.tree.pack_sequence_as(struct, batch),) for batch in batches]
        recalibrate(model, data)

    def _try(self, model, change) -> bool:
        """Whether a change of weights brings the outputs nearer; undo it if not."""
        kept = weights_of(model)
        with weights_kept_if_it_fails(model):
            change()
            with without_gradients():
                given = self.samples.held(self.samples.outputs(model))
        nearer = self._is_nearer(given)
        if not nearer:
            put_back(kept)
        return nearer

    def _is_nearer(self, given: list) -> bool:
        """Note outputs for the samples held out, if they are the nearest so far."""
        wanted = self.samples.held(self._targets)
        found = error(wanted, given)
        if not found < self.report.after:
            return False
        share = agreement(wanted, given)
        self.report = dataclasses.replace(self.report, after=found, agreement=share)
        return True


def weights_of(model) -> list[tuple]:
    """The weights of a model, each with the value that it has."""
    return [(v, np.array(keras.ops.convert_to_numpy(v))) for v in model.weights]


def put_back(kept: list[tuple]) -> None:
    """Give weights back the values that they had."""
    for variable, value in kept:
        variable.assign(value)


@contextlib.contextmanager
def weights_kept_if_it_fails(model) -> Iterator[None]:
    """Put the weights of a model back if what is done with it raises."""
    kept = weights_of(model)
    try:
        yield
    except BaseException:
        put_back(kept)
        raise


def check_refine(refine) -> None:
    """Raise an error if `refine` is no number of steps."""
    if refine != "auto" and (not is_integer(refine) or int(refine) < 0):
        raise ValueError(
            'Expected `refine` to be a number of steps, or "auto". '
            f"Received: refine={refine!r}"
        )


def reference_values(analysis: Analysis, reference) -> dict[int, Any]:
    """The value of each variable in the original model, by its id."""
    values = {id(v): keras.ops.convert_to_numpy(v) for v in analysis.model.weights}
    for gate in analysis.masks:
        values[id(gate.variable)] = np.ones(gate.variable.shape, gate.variable.dtype)
    if reference is None:
        return values
    others = {call.path: call.op for call in study(reference).flow.calls}
    for call in analysis.flow.calls:
        own = getattr(call.op, "weights", [])
        found = getattr(others.get(call.path), "weights", [])
        if [tuple(w.shape) for w in own] != [tuple(w.shape) for w in found]:
            raise ValueError(
                f"Expected `reference` to have the layers of '{analysis.model.name}'. "
                f"Received: '{reference.name}', where '{call.path}' is missing or has "
                "weights of other shapes."
            )
        for weight, other in zip(own, found, strict=True):
            values[id(weight)] = keras.ops.convert_to_numpy(other)
    return values


def progress(model, verbose):
    """What shows how far the sweep is."""
    if verbose == "auto":
        verbose = sys.stdout.isatty()
    if not verbose:
        return lambda done, total: None
    bars: list = []

    def show(done, total):
        if not bars:
            print(f"Reconstructing '{model.name}'")
            bars.append(keras.utils.Progbar(total, unit_name="layer"))
        bars[0].update(done)

    return show
