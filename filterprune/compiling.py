"""Carrying what `compile` and `fit` made over to the compact model."""

import dataclasses
from typing import Any

import keras
import numpy as np

from filterprune.channels.survivors import Survivors
from filterprune.channels.trace import adafactor_factors, metric_functions
from filterprune.errors import one_line, warn

# How Keras names the moving average of a weight (`use_ema`), behind its path.
AVERAGE = "_average"


@dataclasses.dataclass(frozen=True, eq=False)
class Move:
    """One weight of the masked model, its place in the compact one.

    Attributes:
        old, new: the variables.
        axes: the labels along each axis of `old`, `None` where none is removed;
            empty if nothing is.
    """

    old: Any
    new: Any
    axes: tuple


def recompile(model, new) -> bool:
    """Compile `new` as `model` is, with fresh state.

    Losses, metrics and optimizers of the user's own need not be registered.

    Returns:
        Whether that was possible. If not, a warning says why.
    """
    own = [model.optimizer, *keras.tree.flatten(model.loss), *model.metrics]
    known = {}
    for value in own:
        for part in (value, type(value)):
            known[getattr(part, "__name__", "")] = part
    for function in metric_functions(model):
        known[function.__name__] = function
    try:
        with keras.saving.custom_object_scope(known):
            new.compile_from_config(model.get_compile_config())
            _scale_loss_alike(model, new)
    except Exception as error:
        warn(
            f"'{new.name}' is not compiled, because what '{model.name}' is compiled "
            f"with cannot be copied: {one_line(error)} Call `compile` on it."
        )
        return False
    return True


def _scale_loss_alike(model, new) -> None:
    """Scale the loss as `model` does; by itself Keras looks at the global policy."""
    # A task of keras-hub that says it is compiled may have no optimizer yet.
    scales = hasattr(getattr(model, "optimizer", None), "inner_optimizer")
    if scales and not hasattr(new.optimizer, "inner_optimizer"):
        new.optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    elif not scales and hasattr(getattr(new, "optimizer", None), "inner_optimizer"):
        new.optimizer = new.optimizer.inner_optimizer


def compile_alike(masked, small, moves: list[Move], survivors: Survivors) -> None:
    """Compile `small` as `masked` is, with the optimizer's state sliced."""
    if not recompile(masked, small):
        return
    old, new = masked.optimizer, getattr(small, "optimizer", None)
    if old is None or new is None or not old.built:
        return
    if not new.built:  # some, as `LossScaleOptimizer`, add their variables again
        new.build(small.trainable_variables)
    by_old = {id(move.old): move for move in moves}
    by_new = {id(variable): i for i, variable in enumerate(small.trainable_variables)}
    pairs = []
    for index, variable in enumerate(masked.trainable_variables):
        move = by_old.get(id(variable))
        if move is not None and id(move.new) in by_new:
            pairs.append((index, by_new[id(move.new)], move))
    if old.use_ema:
        _start_averages(new, small.trainable_variables)
    _carry(old, new, pairs, masked.trainable_variables, survivors)


def _start_averages(optimizer, weights: list) -> None:
    """Let the moving averages begin at the weights: a new bias has no past."""
    values = {f"{w.path.replace('/', '_')}{AVERAGE}": w for w in weights}
    for variable in optimizer.variables:
        if variable.name in values:
            variable.assign(values[variable.name])


def _carry(old, new, pairs, weights: list, survivors: Survivors) -> None:
    own = {id(weight) for weight in weights}
    slots: set[int] = set()
    for name, old_list in vars(old).items():
        new_list = getattr(new, name, None)
        if not _is_slots(old_list, len(weights)) or new_list is None:
            continue
        slots.update(id(variable) for variable in old_list)
        slots.update(id(variable) for variable in new_list)
        for old_index, new_index, move in pairs:
            source, target = old_list[old_index], new_list[new_index]
            # An optimizer lists the weights themselves too, and those are done.
            if not isinstance(source, keras.Variable) or id(source) in own:
                continue
            value = keras.ops.convert_to_numpy(source)
            if value.shape == tuple(move.old.shape):
                value = survivors.slice(value, move.axes)
                if old.use_ema and source.name.endswith(AVERAGE):
                    value = value + _folded(move, survivors)
            if value.shape == tuple(target.shape):
                target.assign(value)
    _carry_factors(old, new, pairs, survivors)
    inner = getattr(old, "inner_optimizer", None)
    if inner is not None:
        _carry(inner, new.inner_optimizer, pairs, weights, survivors)
        slots.update(id(v) for v in (*inner.variables, *new.inner_optimizer.variables))
    for source, target in zip(
        [v for v in old.variables if id(v) not in slots],
        [v for v in new.variables if id(v) not in slots],
    ):
        if source.shape == target.shape:
            target.assign(np.asarray(keras.ops.convert_to_numpy(source)))


def _carry_factors(old, new, pairs, survivors: Survivors) -> None:
    """Slice Adafactor's second moments, which it keeps as row and column means.

    What it makes of them, `outer(r, c) / mean(r)`, stays as it is for every
    weight that stays (Shazeer and Stern, 2018, https://arxiv.org/abs/1804.04235).
    """
    if not isinstance(old, keras.optimizers.Adafactor):
        return
    for old_index, new_index, move in pairs:
        if len(move.axes) < 2:
            continue
        rows, columns = (
            keras.ops.convert_to_numpy(factor[old_index])
            for factor in adafactor_factors(old)
        )
        new_rows, new_columns = (f[new_index] for f in adafactor_factors(new))
        kept = survivors.slice(rows, move.axes[:-1])
        before, after = rows.mean(-1, keepdims=True), kept.mean(-1, keepdims=True)
        share = np.divide(after, before, out=np.ones_like(after), where=before > 0)
        sliced = survivors.slice(columns, (*move.axes[:-2], move.axes[-1]))
        new_rows.assign(kept * (move.old.shape[-1] / move.new.shape[-1]))
        new_columns.assign(sliced * share)


def _folded(move: Move, survivors: Survivors) -> np.ndarray:
    """What compaction added to a weight: its moving average needs the same."""
    old = survivors.slice(keras.ops.convert_to_numpy(move.old), move.axes)
    return keras.ops.convert_to_numpy(move.new) - old


def _is_slots(value, count: int) -> bool:
    """Whether an optimizer's attribute holds one variable for each weight."""
    return (
        isinstance(value, list)
        and len(value) == count
        and any(isinstance(item, keras.Variable) for item in value)
    )
