"""Batch statistics for a pruned model, estimated anew."""

import contextlib
import itertools
from collections.abc import Container, Iterable, Iterator

import keras
import numpy as np

from filterprune.channels.trace import parts_of
from filterprune.errors import warn
from filterprune.rebuilding import states_of
from filterprune.running import attributes_kept, without_gradients
from filterprune.schedules import is_integer

# What a batch normalisation keeps of its inputs; the last if it renormalises.
STATISTICS = ("moving_mean", "moving_variance", "moving_stddev")


def recalibrate(
    model,
    data,
    steps: int | None = None,
    momentum: float | None = None,
    batch_size: int = 32,
):
    """Estimate the moving statistics of batch normalisation anew.

    Closing gates changes what the layers behind them read, and the means and
    variances that `BatchNormalization` uses in inference are those of before.
    A few batches put them right without training. Any layer that has
    `moving_mean`, `moving_variance` and `momentum` takes part, in nested
    models and masked layers too. A frozen one (`trainable=False`) stays as it
    is, because Keras runs it in inference mode. All other state of the model
    is left as it was: weights, gates, seeds, the optimizer.

    By default the new statistics are the means, over all batches (of a layer
    that is called several times: over its calls), of the batch's mean and of
    the batch's variance; the old statistics do not count.

    Args:
        model: a built Keras model: plain, masked or compact.
        data: what the model reads, as the training data are prepared: an array
            of shape `(samples, ...)` or a dict of them; a tuple `(x, y)`, of
            which `y` is not used; or batches, `x` or `(x, y)` each: a
            `keras.utils.PyDataset`, a `tf.data.Dataset`, a torch `DataLoader`
            or any iterable.
        steps: how many batches to use. Defaults to `None`: all.
        momentum: `None`, or a number in [0, 1) to average exponentially,
            `momentum * old + (1 - momentum) * new`, starting at the old
            statistics. Defaults to `None`: the mean over the batches.
        batch_size: how many samples a batch has where `data` are arrays.
            Defaults to `32`.

    Returns:
        The number of batches used. It is 0, with a `filterprune.PruningWarning`,
        if the model has no statistics to estimate.

    Raises:
        TypeError: if `model` is no Keras model or `data` has no batches.
        ValueError: if `model` is not built, another argument is out of range,
            `data` is empty or never ends, or a statistic comes out infinite or
            NaN. The model is then as before, as it is if a batch raises.

    Example:

    ```python
    filterprune.prune(masked, sparsity=0.5)
    filterprune.recalibrate(masked, x, steps=20)
    ```

    Reference:

    - [Li et al., 2020](https://arxiv.org/abs/2007.02491), who call it adaptive
      batch normalization
    """
    _check_recalibrate(model, steps, momentum, batch_size)
    batches = _batches(model, data, steps, batch_size)
    norms = _norms(model)
    layers = [layer for layer in norms if layer.trainable]
    if not layers:
        warn(
            f"'{model.name}' has no batch normalisation "
            + ("that is not frozen" if norms else "with moving statistics")
            + ", so there is nothing to recalibrate."
        )
        return 0
    fresh = {id(v) for layer in layers for v in _statistics(layer)}
    count = 0
    with state_kept(model, but=fresh):
        with contextlib.ExitStack() as stack:
            stack.enter_context(without_gradients())
            for layer in layers:
                stack.enter_context(_averaging(layer, momentum))
            for inputs in batches:
                model(inputs, training=True)
                count += 1
        _check_result(layers, count)
    return count


def has_statistics(model) -> bool:
    """Whether there is anything in a model to recalibrate."""
    return any(layer.trainable for layer in _norms(model))


def _norms(model) -> list:
    return [part for part in parts_of(model) if _keeps_statistics(part)]


@contextlib.contextmanager
def state_kept(model, but: Container[int] = ()) -> Iterator[None]:
    """Put all state of a model back, to the last bit, after it was run.

    Args:
        model: the model.
        but: the ids of variables to leave as they come out, if nothing raises.
    """
    layers = [model, *parts_of(model)]
    kept = [*model.variables, *(v for layer in layers for v in states_of(layer))]
    kept += [v for metric in model.metrics for v in metric.variables]
    before = [(v, np.array(keras.ops.convert_to_numpy(v))) for v in kept]
    try:
        with attributes_kept(model):
            yield
    except BaseException:
        but = ()
        raise
    finally:
        for variable, value in before:
            if id(variable) not in but:
                variable.assign(value)


def _check_recalibrate(model, steps, momentum, batch_size) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected `model` to be a Keras model. Received: model={model!r} "
            f"(of type {type(model).__name__})"
        )
    if not model.built:
        raise ValueError(
            f"Expected `model` to be built. Received: '{model.name}'. Call it on a "
            "batch, or `model.build(input_shape)`."
        )
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if name == "steps" and value is None:
            continue
        if not is_integer(value) or value < 1:
            raise ValueError(
                f"Expected `{name}` to be an integer of at least 1. Received: "
                f"{name}={value!r}"
            )
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(
            "Expected `momentum` to be `None` or a number in [0, 1). Received: "
            f"momentum={momentum!r}"
        )


def _check_result(layers, count: int) -> None:
    if not count:
        raise ValueError("Expected `data` to hold at least one batch. Received: none.")
    for layer in layers:
        for variable in _statistics(layer):
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                raise ValueError(
                    f"Expected finite statistics. Received: `{variable.name}` of "
                    f"'{layer.name}' is infinite or NaN after {count} batches. Look "
                    "for such values in `data`, or in the weights before that "
                    "layer. The old statistics are back."
                )


def _keeps_statistics(layer) -> bool:
    names = ("moving_mean", "moving_variance", "momentum")
    return all(getattr(layer, name, None) is not None for name in names)


def _statistics(layer) -> list:
    found = [getattr(layer, name, None) for name in STATISTICS]
    return [variable for variable in found if variable is not None]


@contextlib.contextmanager
def _averaging(layer, momentum) -> Iterator[None]:
    """Let a layer's statistics be averages over the calls that follow.

    With a momentum of n / (n + 1) at call n = 0, 1, ..., what is kept is the
    plain mean of all calls, as with `momentum=None` in PyTorch.
    """
    old, call, number = layer.momentum, layer.call, itertools.count()

    def counted(*args, **kwargs):
        n = next(number)
        layer.momentum = n / (n + 1)
        if n == 0:  # zero times NaN would be NaN
            for variable in _statistics(layer):
                variable.assign(np.zeros(variable.shape))
        return call(*args, **kwargs)

    try:
        if momentum is None:
            layer.call = counted
        else:
            layer.momentum = momentum
        yield
    finally:
        layer.momentum = old
        vars(layer).pop("call", None)


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "__getitem__")


def _are_arrays(model, data) -> bool:
    """Whether `data` are all samples of what the model reads, and no batches."""
    parts = [data]
    if isinstance(data, dict):
        parts = list(data.values())
    elif isinstance(data, (list, tuple)):
        inputs = getattr(model, "inputs", None) or ()
        parts = list(data) if len(data) == len(inputs) > 1 else []
    return bool(parts) and all(_is_array(part) for part in parts)


def _as_array(value):
    """A tensor of another framework as a NumPy array."""
    if keras.ops.is_tensor(value) or not hasattr(value, "__array__"):
        return value
    return np.asarray(value)


def _batches(model, data, steps, batch_size) -> Iterator:
    """The inputs of at most `steps` batches, in the structure the model takes."""
    if isinstance(data, tuple) and data and not _are_arrays(model, data):
        data = data[0] if _are_arrays(model, data[0]) else data
    if _are_arrays(model, data):
        return itertools.islice(_slices(data, batch_size), steps)
    read = (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in _read(data))
    arrays = (keras.tree.map_structure(_as_array, inputs) for inputs in read)
    if steps is None and _is_endless(data):
        raise ValueError("Expected `steps`, because `data` never end. Received: None")
    return itertools.islice(arrays, steps)


def _slices(data, batch_size: int) -> Iterator:
    data = keras.tree.map_structure(_as_array, data)
    lengths = {int(array.shape[0]) for array in keras.tree.flatten(data)}
    if len(lengths) > 1:
        raise ValueError(
            "Expected arrays of as many samples each. Received: arrays of "
            f"{sorted(lengths)} samples."
        )
    starts = range(0, lengths.pop(), batch_size)
    parts = (slice(start, start + batch_size) for start in starts)
    return (keras.tree.map_structure(lambda a, p=p: a[p], data) for p in parts)


def _read(data) -> Iterator:
    if isinstance(data, keras.utils.PyDataset):
        size = data.num_batches
        numbers = itertools.count() if size is None else range(size)
        return (data[number] for number in numbers)
    if isinstance(data, dict) or not isinstance(data, Iterable):
        raise TypeError(
            "Expected `data` to be arrays or an iterable of batches. Received: "
            f"{type(data).__name__}"
        )
    return iter(data)


def _is_endless(data) -> bool:
    """Whether a `PyDataset` or a `tf.data.Dataset` says that it never ends."""
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    cardinality = getattr(data, "cardinality", None)
    return callable(cardinality) and int(cardinality()) == -1
