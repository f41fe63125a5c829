"""Criteria that look at data: at activations, or at gradients of the loss."""

from typing import Any

import keras
import numpy as np

from filterprune.criteria import evidence
from filterprune.criteria.base import Criterion, register_criterion
from filterprune.criteria.batches import Batches, check_count
from filterprune.slots import Slots


class DataCriterion(Criterion):
    """A criterion with data, of which it takes some batches at each scoring."""

    needs_data = True

    def __init__(self, data, batches, batch_size, **kwargs):
        super().__init__(**kwargs)
        check_count("batches", batches)
        self.batches = int(batches)
        self.data = Batches(data, batch_size)


class _GradientCriterion(DataCriterion):
    """A criterion made of how the loss of each sample depends on each slot."""

    normalization = None

    def __init__(
        self,
        data,
        batches: int = 8,
        loss: Any = None,
        batch_size: int = 32,
        normalization: str | None = "default",
    ):
        super().__init__(data, batches, batch_size, normalization=normalization)
        if isinstance(loss, (str, dict)):
            loss = keras.losses.get(loss)
        if loss is not None and not callable(loss):
            raise TypeError(
                "Expected `loss` to be a Keras loss, its name, a function of targets "
                "and outputs, or `None` for the loss that the model was compiled "
                f"with. Received: loss={loss!r}"
            )
        self.loss = loss

    def combine(self, effects: np.ndarray) -> np.ndarray:
        """From effects `(samples, slots)` the scores `(slots,)`."""
        raise NotImplementedError

    def score(self, slots: Slots) -> np.ndarray:
        model = slots.model
        if self.loss is not None:
            loss = evidence.own_loss(self.loss)
        elif not model.compiled:
            raise ValueError(
                f"Expected a compiled model, whose loss {type(self).__name__} takes. "
                f"Received: '{model.name}', which is not compiled. Compile it, or "
                f"pass `{type(self).__name__}(data, loss=...)`."
            )
        else:
            loss = evidence.compiled_loss(model)
        readings = evidence.readers(slots)
        found = []
        for batch in self.data.take(self.batches):
            if batch[1] is None:
                raise ValueError(
                    f"Expected batches `(x, y)`: {type(self).__name__} needs a loss. "
                    "Received a batch without `y`."
                )
            found.append(evidence.effects(slots, readings, loss, batch))
        return self.by_group(slots, self.combine(np.concatenate(found)))


@register_criterion("taylor")
class Taylor(_GradientCriterion):
    """How much the loss would change without the channel, to first order.

        score[j] = mean_n |e[n, j]|,  e[n, j] = sum_p a[n, p, j] * dL_n / da[n, p, j]

    where `a` is what the readers of channel `j` read for sample `n` at position
    `p`. To first order `L_n` falls by `e[n, j]` if the channel is removed: it is the
    derivative by a gate on it. Tied channels have one gate, and all their
    readers add up.

    Args:
        data: arrays `(x, y)` or `(x, y, sample_weight)`, or batches of these: a
            `keras.utils.PyDataset`, a `tf.data.Dataset`, a torch `DataLoader` or
            another iterable, which is begun again when it ends.
        batches: how many batches to look at for each scoring: the next ones.
            Defaults to `8`.
        loss: a Keras loss, its name or a function of targets and outputs.
            Defaults to `None`: the loss that the model was compiled with.
        batch_size: how many samples a batch has where `data` are arrays.
            Defaults to `32`.
        normalization: what the scores of each group are divided by, as in
            `filterprune.Criterion`. Defaults to `None`, because effects on the
            loss compare as they are.

    Raises:
        TypeError: if `data` are neither arrays nor iterable, or `loss` is no
            loss.
        ValueError: if a number is below 1 or arrays differ in length; when it
            scores, if the model is not compiled and has no `loss`, if batches
            have no `y` or end for good, or if a gradient is not finite.

    Example:

    ```python
    criterion = filterprune.criteria.Taylor((x, y), batches=2)
    filterprune.prune(masked, sparsity=0.5, criterion=criterion)
    ```

    Reference:
        Molchanov et al., "Pruning Convolutional Neural Networks for Resource
        Efficient Inference", ICLR 2017, https://arxiv.org/abs/1611.06440, with
        the gates of Molchanov et al., "Importance Estimation for Neural Network
        Pruning", CVPR 2019, https://arxiv.org/abs/1906.10771 (they square what a
        batch has in common; for squares of samples see `Fisher`).
    """

    def combine(self, effects):
        return np.abs(effects).mean(axis=0)


@register_criterion("gate_gradient")
class GateGradient(_GradientCriterion):
    """The derivative of the loss by a gate on the channel.

        score[j] = |mean_n e[n, j]|

    with the effects `e` of `filterprune.criteria.Taylor`: those of different
    samples may cancel, as the gradient itself does near a minimum.

    Args:
        data, batches, loss, batch_size, normalization: as in
            `filterprune.criteria.Taylor`.

    Raises:
        TypeError, ValueError: as `filterprune.criteria.Taylor` does.

    Example:

    ```python
    criterion = filterprune.criteria.GateGradient((x, y), loss="mse")
    filterprune.prune(masked, sparsity=0.5, criterion=criterion)
    ```

    Reference:
        Molchanov et al., "Importance Estimation for Neural Network Pruning",
        CVPR 2019, https://arxiv.org/abs/1906.10771, without the square. Michel
        et al., "Are Sixteen Heads Really Better than One?", NeurIPS 2019,
        https://arxiv.org/abs/1905.10650, do it for heads, sample by sample.
    """

    def combine(self, effects):
        return np.abs(effects.mean(axis=0))


@register_criterion("fisher")
class Fisher(_GradientCriterion):
    """How much the loss would rise without the channel, to second order.

        score[j] = 1 / (2 N) * sum_n e[n, j] ** 2

    with the effects `e` of `filterprune.criteria.Taylor` for `N` samples. The
    diagonal of the Fisher information stands for that of the Hessian, as it may
    where the model is trained and the loss is a log-likelihood.

    Args:
        data, batches, loss, batch_size, normalization: as in
            `filterprune.criteria.Taylor`.

    Raises:
        TypeError, ValueError: as `filterprune.criteria.Taylor` does.

    Example:

    ```python
    criterion = filterprune.criteria.Fisher((x, y), batches=2)
    filterprune.prune(masked, sparsity=0.5, criterion=criterion)
    ```

    Reference:
        Theis et al., "Faster gaze prediction with dense networks and Fisher
        pruning", 2018, https://arxiv.org/abs/1801.05787
    """

    def combine(self, effects):
        return np.square(effects).mean(axis=0) / 2


class _ActivationCriterion(DataCriterion):
    """A criterion made of what a channel's maps look like."""

    def __init__(
        self,
        data,
        batches: int = 8,
        batch_size: int = 32,
        normalization: str | None = "default",
        reduction: str = "default",
    ):
        super().__init__(
            data, batches, batch_size, normalization=normalization, reduction=reduction
        )

    def measure(self, reading: evidence.Reading, tensor):
        """From activations `(samples, ...)` one value a sample and label."""
        raise NotImplementedError

    def readings(self, slots: Slots) -> list[evidence.Reading]:
        return evidence.maps(slots)

    def score(self, slots: Slots) -> np.ndarray:
        readings = self.readings(slots)
        batches = self.data.take(self.batches)
        means = evidence.activations(slots, readings, self.measure, batches)
        scored = []
        for reading, mean in zip(readings, means, strict=True):
            at, found = (
                part.ravel() for part in np.broadcast_arrays(reading.slots, mean)
            )
            if not np.isfinite(found).all():
                raise ValueError(
                    "Expected finite activations. Received NaN or Inf where "
                    f"'{reading.call.path}' reads: its channels cannot be ranked."
                )
            known = at >= 0
            scored.append((at[known], self.normalize(found[known])))
        return self.fill(self.reduce(slots.count, scored), scored)


@register_criterion("activation_mean")
class ActivationMean(_ActivationCriterion):
    """The mean of the absolute activations of each channel.

        score[j] = mean_{n, p} |a[n, p, j]|

    over samples `n` and positions `p`. A channel is looked at where it is read by
    a layer that makes others of it, or before it is pooled: with its
    normalisation and activation, whole.

    Args:
        data: arrays `(x, y)` or `x`, or batches, as in
            `filterprune.criteria.Taylor`; `y` is not used.
        batches: how many batches to look at for each scoring: the next ones.
            Defaults to `8`.
        batch_size: how many samples a batch has where `data` are arrays.
            Defaults to `32`.
        normalization: what the scores of each tensor are divided by, as in
            `filterprune.Criterion`. Defaults to `"mean"`.
        reduction: how scores of a channel that is seen in several places become
            one, as in `filterprune.Criterion`. Defaults to `"mean"`.

    Raises:
        TypeError: if `data` are neither arrays nor iterable.
        ValueError: if another argument is out of range; when it scores, if
            batches end for good or an activation is not finite.

    Example:

    ```python
    criterion = filterprune.criteria.ActivationMean(x, batches=2)
    filterprune.prune(masked, sparsity=0.5, criterion=criterion)
    ```

    Reference:
        Molchanov et al., "Pruning Convolutional Neural Networks for Resource
        Efficient Inference", ICLR 2017, https://arxiv.org/abs/1611.06440
    """

    def measure(self, reading, tensor):
        return evidence.over_positions(reading, keras.ops.abs(tensor), keras.ops.mean)


@register_criterion("apoz")
class APoZ(_ActivationCriterion):
    """How often each channel is not zero, from the average percentage of zeros.

        score[j] = 1 - mean_{n, p} [a[n, p, j] == 0]

    over samples `n` and positions `p`, where `filterprune.criteria.ActivationMean`
    looks. It tells ReLU channels apart; other activations are hardly ever zero.

    Args:
        data, batches, batch_size, reduction: as in
            `filterprune.criteria.ActivationMean`.
        normalization: as there. Defaults to `None`, because fractions compare as
            they are.

    Raises:
        TypeError, ValueError: as `filterprune.criteria.ActivationMean` does.

    Example:

    ```python
    criterion = filterprune.criteria.APoZ(x, batches=2)
    filterprune.prune(masked, sparsity=0.5, criterion=criterion)
    ```

    Reference:
        Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach
        towards Efficient Deep Architectures", 2016,
        https://arxiv.org/abs/1607.03250
    """

    normalization = None

    def measure(self, reading, tensor):
        alive = keras.ops.cast(keras.ops.not_equal(tensor, 0), "float32")
        return evidence.over_positions(reading, alive, keras.ops.mean)


@register_criterion("hrank")
class HRank(_ActivationCriterion):
    """The mean rank of each channel's feature maps.

        score[j] = mean_n rank(a[n, :, :, j])

    where `filterprune.criteria.ActivationMean` looks. Channels that are nowhere a
    map of two axes get the mean score of the others.

    A rank takes a singular value decomposition of every map of every sample, on
    the CPU: `batches` and `batch_size` say how long it takes.

    Args:
        data, batch_size, normalization, reduction: as in
            `filterprune.criteria.ActivationMean`.
        batches: how many batches to look at for each scoring. Defaults to `1`.

    Raises:
        TypeError: as `filterprune.criteria.ActivationMean` does.
        ValueError: as well, and when it scores, if the model has no channels with
            maps of two axes.

    Example:

    ```python
    criterion = filterprune.criteria.HRank(x, batch_size=8)
    filterprune.prune(masked, sparsity=0.5, criterion=criterion)
    ```

    Reference:
        Lin et al., "HRank: Filter Pruning using High-Rank Feature Map", CVPR
        2020, https://arxiv.org/abs/2002.10179
    """

    def __init__(self, data, batches: int = 1, **kwargs):
        super().__init__(data, batches, **kwargs)

    def readings(self, slots):
        found = [r for r in super().readings(slots) if _is_map(r)]
        if not found:
            raise ValueError(
                "Expected channels that are maps of two axes. Received: "
                f"'{slots.model.name}', which has none that can be pruned. Use "
                "another criterion, such as `filterprune.criteria.ActivationMean`."
            )
        return found

    def measure(self, reading, tensor):
        maps = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")))
        (axis,) = _free(reading)
        maps = np.moveaxis(maps, axis, 1)
        ranks = np.linalg.matrix_rank(maps)
        shape = [1] * maps.ndim
        shape[0], shape[axis] = ranks.shape
        return keras.ops.convert_to_tensor(ranks.reshape(shape).astype("float32"))


def _free(reading: evidence.Reading) -> list[int]:
    """The axes that a tensor's labels run along."""
    return [axis for axis, size in enumerate(reading.slots.shape) if size > 1]


def _is_map(reading: evidence.Reading) -> bool:
    """Whether a tensor has two axes beside those of samples and of channels."""
    free = _free(reading)
    if reading.tensor is None:  # inside of a layer, which has no maps
        return False
    shape = reading.tensor.shape
    return (
        len(shape) == 4
        and len(free) == 1
        and free[0] > 0
        and all(
            size != 1 for axis, size in enumerate(shape) if axis and axis != free[0]
        )
    )
