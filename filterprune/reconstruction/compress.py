"""A trained model, some inputs without labels, and a smaller model that still works."""

import inspect
from typing import Any

from filterprune.compaction import compact
from filterprune.reconstruction.fitting import (
    Fitting,
    check_refine,
    progress,
    reference_values,
)
from filterprune.reconstruction.samples import Samples
from filterprune.selection import prune
from filterprune.slots import masked_analysis
from filterprune.wrapping import wrap_model


def compress(
    model,
    data,
    sparsity: float | None = None,
    exclude: Any = (),
    refine: int | str = "auto",
    seed: int = 0,
    verbose: str | int = "auto",
    **how: Any,
) -> Any:
    """Prune a trained model without training: inputs without labels are enough.

    Wraps the model, closes gates at once (`filterprune.prune`), fits the layers that
    are left to the outputs they had (`filterprune.reconstruct`), removes what is closed
    (`filterprune.compact`, verified), and trains the result for a few hundred steps to
    give what the original gives. That last step is kept only if it comes nearer on a
    fifth of the inputs, which nothing is fitted to.

    Args:
        model: a trained functional or sequential Keras model. It is not touched.
        data: inputs of the kind that it was trained on, some hundreds: as for
            `filterprune.reconstruct`.
        sparsity: the fraction of the target to remove, in [0, 1), as for
            `filterprune.prune`.
        exclude: layers to leave as they are, as for `filterprune.wrap_model`.
        refine: how many steps of Adam to train for, of 64 samples each; `0` for none.
            Defaults to `"auto"`: 400, or as many as take 2e12 multiply-accumulates.
        seed: seed of all that is drawn. Defaults to `0`.
        verbose: `0` for no progress bar, `1` for one. Defaults to `"auto"`: one on a
            terminal.
        **how: what else `filterprune.prune` takes: `target`, `budget`, `criterion`,
            `scope` and so on.

    Returns:
        A plain Keras model. Its attribute `filterprune_report`, which is not saved, is
        a `filterprune.ReconstructionReport`: how far its outputs are from the
        original's on the inputs that nothing was fitted to, before and after, and the
        same layer by layer.

    Raises:
        TypeError: if an argument is of the wrong type or unknown.
        ValueError: if nothing can be pruned, or an argument is out of range.

    Example:

    ```python
    small = filterprune.compress(model, x, 0.5, target="macs", refine=20)
    print(small.filterprune_report)
    ```
    """
    inspect.signature(prune).bind(model, sparsity, **how)
    check_refine(refine)
    masked = wrap_model(model, exclude)
    samples = Samples(masked, data, seed)
    prune(masked, sparsity, **how)
    analysis = masked_analysis(masked)
    fitting = Fitting(analysis, reference_values(analysis, None), samples, seed)
    enough = fitting.fit_layers(progress(masked, verbose))
    small = compact(masked)
    if enough:
        dead, *_ = analysis.decide()
        fitting.refine(small, fitting.steps(refine, analysis.survivors(dead).alive))
    small.filterprune_report = fitting.report
    return small
