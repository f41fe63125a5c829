"""Masked layers that take statistics over channels: over open gates only."""

import keras
import numpy as np
from keras import layers, ops

from filterprune.layers.base import Masked, masks


class _OverOpenGates(Masked):
    """Base of the masked layers that normalise over channels.

    A subclass normalises in `_normalised`; weights, gates and dtypes are handled
    here. A gate that is neither 0 nor 1 counts as open in statistics, and multiplies
    the output alone: a plain layer can do that too.

    Operations follow each other as in Keras' layers, so that both round alike: a norm
    of the one channel that is left subtracts large numbers that cancel out.
    """

    scale_name = "gamma"
    shift_name = "beta"

    def call(self, inputs, training=None, mask=None):
        dtype = "float32" if self.compute_dtype in _HALF else self.compute_dtype
        gate = _along(ops.cast(self.gate, dtype), self.gated_axis, len(inputs.shape))
        opened = _opened(gate)
        weights = [
            self._spread(getattr(self.layer, name, None), inputs.shape, dtype)
            for name in (self.scale_name, self.shift_name)
        ]
        x = ops.cast(inputs, dtype) * opened
        outputs = self._normalised(x, opened, *weights)
        return ops.cast(outputs * gate, self.compute_dtype)

    def _spread(self, weight, shape, dtype):
        """A weight with an axis for each of the inputs'; None stays None.

        TensorFlow takes a vector along any axis for a bias of the last one, or of the
        second, if there are as many channels.
        """
        if weight is None:
            return None
        axes = self._weight_axes(len(shape))
        sizes = [n if i in axes else 1 for i, n in enumerate(shape)]
        return ops.reshape(ops.cast(weight, dtype), sizes)

    def _weight_axes(self, ndim):
        axis = self.layer.axis
        axes = axis if isinstance(axis, (list, tuple)) else [axis]
        return sorted(a % ndim for a in axes)

    def _normalised(self, x, gate, scale, shift):
        """Normalise, scale and shift `x`, which is zero where `gate` is."""
        raise NotImplementedError

    def _moments(self, x, gate, axes, by_squares=False):
        """Mean and variance over `axes`, closed channels left out."""
        mean = self._mean(x, gate, axes)
        if by_squares:
            return mean, self._mean(ops.square(x), gate, axes) - ops.square(mean)
        return mean, self._mean(ops.square((x - mean) * gate), gate, axes)

    def _mean(self, values, gate, axes):
        """The mean over `axes`, closed channels left out."""
        total = ops.sum(values, axis=axes, keepdims=True)
        opened = ops.broadcast_to(gate, ops.shape(values))
        count = ops.sum(opened, axis=axes, keepdims=True)
        return total / ops.maximum(count, 1)  # a group may be closed altogether


_HALF = ("float16", "bfloat16")


def _standardised(x, mean, inverse, scale, shift):
    """Subtract the mean, multiply by the inverse of the deviation, scale and shift."""
    if scale is not None:
        inverse = inverse * scale
    offset = -mean * inverse
    return x * inverse + (offset if shift is None else offset + shift)


def _along(gate, axis, ndim):
    """Gates along one axis of a tensor of so many axes."""
    return ops.reshape(gate, [-1 if i == axis else 1 for i in range(ndim)])


def _opened(gate):
    """1 where a gate is open, be it in part, else 0."""
    return ops.cast(ops.not_equal(gate, 0), gate.dtype)


@masks(layers.LayerNormalization)
class MaskedLayerNormalization(_OverOpenGates):
    """A `LayerNormalization` whose mean and variance run over open gates only."""

    def _normalised(self, x, gate, scale, shift):
        mean, variance = self._moments(x, gate, self._weight_axes(len(x.shape)))
        inverse = ops.rsqrt(variance + self.layer.epsilon)
        if keras.backend.backend() == "torch":  # whose kernel subtracts first
            x, mean = x - mean, ops.zeros_like(mean)
        return _standardised(x, mean, inverse, scale, shift)


@masks(layers.RMSNormalization)
class MaskedRMSNormalization(_OverOpenGates):
    """An `RMSNormalization` whose mean square runs over open gates only."""

    scale_name = "scale"

    def _normalised(self, x, gate, scale, shift):
        axes = self._weight_axes(len(x.shape))
        square = self._mean(ops.square(x), gate, axes)
        return x * ops.rsqrt(square + self.layer.epsilon) * scale


@masks(layers.UnitNormalization)
class MaskedUnitNormalization(_OverOpenGates):
    """A `UnitNormalization` of the open channels."""

    def _normalised(self, x, gate, scale, shift):
        axes = self._weight_axes(len(x.shape))
        return ops.normalize(x, axis=axes, order=2, epsilon=1e-12)


@masks(layers.GroupNormalization)
class MaskedGroupNormalization(_OverOpenGates):
    """A `GroupNormalization` whose statistics run over open gates only."""

    def _normalised(self, x, gate, scale, shift):
        axis = self.gated_axis
        groups, size = self.layer.groups, self.gate.shape[0]
        shape = [-1 if i == 0 else ops.shape(x)[i] for i in range(len(x.shape))]
        ones = [1] * len(shape)

        def split(array, shape):
            within = [groups, shape[axis] // groups]
            return ops.reshape(array, shape[:axis] + within + shape[axis + 1 :])

        def spread(statistic):
            whole = ops.repeat(statistic, size // groups, axis=axis + 1)
            return ops.reshape(whole, [-1, *ones[1:axis], size, *ones[axis + 1 :]])

        axes = [i for i in range(1, len(shape) + 1) if i != axis]
        opened = split(gate, [*ones[:axis], size, *ones[axis + 1 :]])
        by_squares = keras.backend.backend() == "torch"  # as its `ops.moments` does
        mean, variance = self._moments(split(x, shape), opened, axes, by_squares)
        inverse = ops.rsqrt(variance + self.layer.epsilon)
        return _standardised(x, spread(mean), spread(inverse), scale, shift)


@masks(layers.SpectralNormalization)
class MaskedSpectralNormalization(Masked):
    """A `SpectralNormalization` whose norm runs over open gates only.

    A channel that is read through a closed gate adds nothing to the norm.

    Attributes:
        gates: a dict of non-trainable weights: `""` for the output, `(channels,)`,
            and `"read"` for the channels that the kernel reads.
    """

    def call(self, inputs, training=None, mask=None):
        if training:
            self._divide_by_norm()
        return self._gated_call(inputs, training=False, mask=mask)

    def _divide_by_norm(self):
        """Divide the kernel by an estimate of its spectral norm, as Keras does."""
        kernel, vector_u = self.layer.kernel, self.layer.vector_u
        opened = ops.cast(kernel, kernel.dtype)
        for number, plan in enumerate(self._plans):
            opened = opened * self._opened_along(plan, number, opened)
        rows = ops.reshape(opened, (-1, kernel.shape[-1]))
        u = ops.cast(vector_u, kernel.dtype)
        for _ in range(self.layer.power_iterations):
            v = ops.normalize(ops.matmul(u, ops.transpose(rows)), axis=None)
            u = ops.normalize(ops.matmul(v, rows), axis=None)
        u, v = ops.stop_gradient(u), ops.stop_gradient(v)
        norm = ops.matmul(ops.matmul(v, rows), ops.transpose(u))
        zero = ops.all(ops.equal(opened, 0))
        vector_u.assign(ops.where(zero, vector_u, u))
        norm = ops.reshape(ops.where(zero, ops.ones_like(norm), norm), ())
        kernel.assign(ops.cast(kernel, kernel.dtype) / norm)

    def _opened_along(self, plan, number, kernel):
        """1 where the kernel has open gates, else 0, along the axis of those gates."""
        name = "kernel" if hasattr(self.layer.layer, "kernel") else "embeddings"
        name = f"layer.{name}"
        if number:
            axis = plan.weights[name].shape.index(plan.size)
        else:
            axis = plan.makers[name]
        size = kernel.shape[axis]
        places = np.arange(size) * (plan.size // size)  # of a depthwise multiplier
        gate = self._gates(plan, places, kernel.dtype)
        return _along(_opened(gate), axis, len(kernel.shape))


def _over_open_gates(layer, inputs, gate, axis, **kwargs):
    """Run a softmax so that closed channels get no share of it."""
    gate = _along(ops.cast(gate, inputs.dtype), axis, len(inputs.shape))
    opened = _opened(gate)
    low = -3e4 if "16" in str(inputs.dtype) else -1e9  # whose exponential is zero
    return layer.call(inputs * opened + (1 - opened) * low, **kwargs) * gate


@masks(layers.Softmax)
class MaskedSoftmax(Masked):
    """A `Softmax` over open gates only: closed channels get no share."""

    def call(self, inputs, training=None, mask=None):
        axis = self.gated_axis
        return _over_open_gates(self.layer, inputs, self.gate, axis, mask=mask)


@masks(layers.Activation)
class MaskedActivation(Masked):
    """An `Activation` whose function does not turn zero into zero.

    Softmax is taken over open gates only. See `filterprune.layers.Masked`.
    """

    def call(self, inputs, training=None, mask=None):
        if self.layer.activation is not keras.activations.softmax:
            return super().call(inputs, training=training, mask=mask)
        return _over_open_gates(self.layer, inputs, self.gate, self.gated_axis)
