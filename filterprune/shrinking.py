"""Shrink as you train: what is pruned in one epoch makes the next one faster."""

from collections.abc import Sequence
from typing import Any

import keras
from keras.callbacks import BackupAndRestore

from filterprune import criteria
from filterprune.callbacks import FilterPruningCallback
from filterprune.channels.groups import study
from filterprune.compaction import compacted
from filterprune.distillation import go_on_learning
from filterprune.origin import Origin
from filterprune.relaying import Relay
from filterprune.resuming import Backup, extras
from filterprune.schedules import check_sparsity, is_integer
from filterprune.slots import masked_analysis
from filterprune.wrapping import wrap_paths


def fit_shrinking(
    masked,
    x=None,
    y=None,
    *,
    epochs: int = 1,
    callbacks: Sequence = (),
    initial_epoch: int = 0,
    shrink_at: float = 0.2,
    verify: bool = True,
    **kwargs,
) -> tuple[Any, Any]:
    """Fit a masked model, and compact it again and again while it trains.

    `masked.fit(...)` computes with closed filters up to the end; here they are
    removed at the end of an epoch as soon as there are enough of them, the model is
    wrapped again and training goes on with a smaller one. It is meant to give what
    `fit` and `compact` do, sooner: weights, moving statistics and the optimizer's
    state are carried over, and schedule, budget, bounds and the reported `sparsity`
    are those of the model as it was at first.

    To callbacks all is one `fit`: epochs and steps are numbered on, they are told
    once that training begins and once that it ends, and `self.model` is the model
    of the day. Files of `ModelCheckpoint` hold that; best weights of
    `EarlyStopping` are restored along with their model. With `BackupAndRestore` a
    run that was killed at any moment is resumed, and ends as it would have: give the
    same arguments, and data in the same order in every epoch.

    Args:
        masked: a compiled masked model. It is trained up to the first compaction,
            and not touched any more after it.
        x, y: the data, as `fit` takes them. A dataset or generator is read anew
            after each compaction, as by another `fit`.
        epochs: the number of the epoch to train up to. Defaults to `1`.
        callbacks: a list as for `fit`, with one `FilterPruningCallback` in it.
        initial_epoch: the number of the epoch to begin with. Defaults to `0`.
        shrink_at: the fraction, in (0, 1), of the filters that there still are,
            which is closed when the model is compacted. Making and compiling a
            model takes seconds: it is better not to do so often. What is closed
            when the schedule ends is removed in any case. Defaults to `0.2`.
        verify: whether the last compaction is verified, as `compact` does it.
            Defaults to `True`.
        **kwargs: whatever else `fit` takes.

    Returns:
        The compact model, compiled, with the optimizer's state; and a
        `keras.callbacks.History` of all epochs.

    Raises:
        TypeError: if `masked` is no Keras model or an argument is of a wrong type.
        ValueError: if `masked` has no gates or is not compiled, `callbacks` does
            not hold one `FilterPruningCallback`, or an argument is out of range;
            and what `fit` raises.

    Example:

    ```python
    masked = filterprune.wrap_model(model)
    masked.compile("adam", "mse")
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5)
    pruning = filterprune.FilterPruningCallback(schedule, frequency=2)
    small, history = filterprune.fit_shrinking(
        masked, x, y, epochs=4, callbacks=[pruning], verbose=0
    )
    ```
    """
    callbacks = keras.tree.flatten(callbacks or [])
    pruning = _check(masked, callbacks, epochs, initial_epoch, shrink_at)
    origin = Origin(masked)
    criterion = criteria.get(pruning.criterion)

    def is_ready() -> bool:
        if not pruning.is_settled():
            return False
        current = origin.current
        closed = current.filters[current.closed()].sum() / current.filters.sum()
        return bool(closed >= shrink_at or (closed > 0 and pruning.is_done()))

    others = [c for c in callbacks if not isinstance(c, BackupAndRestore)]
    backups = [
        Backup(c, others, criterion, is_ready)
        for c in callbacks
        if isinstance(c, BackupAndRestore)
    ]
    relay = Relay([*others, *backups], lambda e: e + 1 < epochs and is_ready())
    model, epoch = masked, initial_epoch
    for backup in [b for b in backups if b.entries][:1]:
        model, last = _resumed(masked, backup, origin, criterion)
        epoch = last["epoch"]
        if last["ready"] and epoch < epochs:  # killed as it was about to be compacted
            model = _shrunk(model, origin, criterion)
            backup.pending = origin
    pruning.origin = origin
    try:
        while True:
            model.fit(
                x, y, epochs=epochs, initial_epoch=epoch, callbacks=[relay], **kwargs
            )
            if relay.epoch is None or relay.epoch >= epochs or relay.stopped:
                break
            epoch = relay.epoch
            model = _shrunk(model, origin, pruning.selector.criterion)
            relay.shrunk(origin, model)
        result = relay.finish()
    finally:
        pruning.origin = None
    small = compacted(result, verify=verify)
    for backup in backups:
        backup.finish()
    small.history = relay.history
    return small, relay.history


def _check(masked, callbacks, epochs, initial_epoch, shrink_at):
    """The callback that prunes, if all arguments make sense."""
    masked_analysis(masked)
    if not masked.compiled:
        raise ValueError(
            f"Expected a compiled model. Received: '{masked.name}', which is not. "
            "Call `compile` on it first."
        )
    found = [c for c in callbacks if isinstance(c, FilterPruningCallback)]
    if len(found) != 1:
        raise ValueError(
            "Expected one `FilterPruningCallback` among `callbacks`. Received: "
            f"{len(found)} of them in {callbacks}"
        )
    for name, value in (("epochs", epochs), ("initial_epoch", initial_epoch)):
        if not is_integer(value) or value < 0:
            raise ValueError(
                f"Expected `{name}` to be an integer of at least 0. "
                f"Received: {name}={value!r}"
            )
    if not check_sparsity("shrink_at", shrink_at):
        raise ValueError("Expected `shrink_at` to be above 0. Received: shrink_at=0")
    return found[0]


def _shrunk(model, origin: Origin, criterion=None):
    """The same model without the channels that are closed, wrapped again."""
    dead, *_ = study(model).decide()
    new = wrap_paths(compacted(model, verify=False), origin.paths, keep_state=True)
    for old, variable in zip(extras(model), extras(new)):
        if old.shape == variable.shape and old.dtype == variable.dtype:
            variable.assign(old)
    go_on_learning(model, new)
    origin.follow(new, dead, criterion)
    return new


def _resumed(masked, backup: Backup, origin: Origin, criterion):
    """The model that a run was killed with, and the entry of its backup.

    It is made as it was then, so that whatever compaction decided by weights comes
    out the same.
    """
    *before, last = backup.entries
    model = masked
    for entry in before:
        backup.load(model, entry)
        model = _shrunk(model, origin, criterion)
    backup.load(model, last)
    return model, last
