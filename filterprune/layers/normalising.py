"""Masked layers that take statistics over channels: over open gates only."""

import keras
from keras import layers, ops

from filterprune.layers.base import Masked, masks


class _OverOpenGates(Masked):
    """Base of the masked layers that normalise over channels.

    A subclass computes the normalised inputs in `_normalised`; weights, gates
    and dtypes are handled here.
    """

    scale_name = "gamma"
    shift_name = "beta"

    def call(self, inputs, training=None, mask=None):
        dtype = "float32" if self.compute_dtype in _HALF else self.compute_dtype
        shape = [1] * len(inputs.shape)
        shape[self.gated_axis] = self.gate.shape[0]
        gate = ops.reshape(ops.cast(self.gate, dtype), shape)
        x = ops.cast(inputs, dtype) * gate
        outputs = self._normalised(x, gate)
        axes = self._weight_axes(len(shape))
        for name, combine in (
            (self.scale_name, ops.multiply),
            (self.shift_name, ops.add),
        ):
            weight = getattr(self.layer, name, None)
            if weight is not None:
                sizes = [n if i in axes else 1 for i, n in enumerate(inputs.shape)]
                outputs = combine(outputs, ops.reshape(ops.cast(weight, dtype), sizes))
        return ops.cast(outputs * gate, self.compute_dtype)

    def _weight_axes(self, ndim):
        axis = self.layer.axis
        axes = axis if isinstance(axis, (list, tuple)) else [axis]
        return sorted(a % ndim for a in axes)

    def _normalised(self, x, gate):
        """Normalise `x`, which is zero where `gate` is, over open gates."""
        raise NotImplementedError

    def _mean(self, values, gate, axes):
        """The mean over `axes`, closed channels left out."""
        total = ops.sum(values, axis=axes, keepdims=True)
        opened = ops.broadcast_to(gate, ops.shape(values))
        count = ops.sum(opened, axis=axes, keepdims=True)
        return total / ops.maximum(count, 1)  # a group may be closed altogether


_HALF = ("float16", "bfloat16")


@masks(layers.LayerNormalization)
class MaskedLayerNormalization(_OverOpenGates):
    """A `LayerNormalization` whose mean and variance run over open gates only."""

    def _normalised(self, x, gate):
        axes = self._weight_axes(len(x.shape))
        centred = (x - self._mean(x, gate, axes)) * gate
        variance = self._mean(ops.square(centred), gate, axes)
        return centred * ops.rsqrt(variance + self.layer.epsilon)


@masks(layers.RMSNormalization)
class MaskedRMSNormalization(_OverOpenGates):
    """An `RMSNormalization` whose mean square runs over open gates only."""

    scale_name = "scale"

    def _normalised(self, x, gate):
        axes = self._weight_axes(len(x.shape))
        square = self._mean(ops.square(x), gate, axes)
        return x * ops.rsqrt(square + self.layer.epsilon)


@masks(layers.UnitNormalization)
class MaskedUnitNormalization(_OverOpenGates):
    """A `UnitNormalization` of the open channels."""

    def _normalised(self, x, gate):
        axes = self._weight_axes(len(x.shape))
        return ops.normalize(x, axis=axes, order=2, epsilon=1e-12)


@masks(layers.GroupNormalization)
class MaskedGroupNormalization(_OverOpenGates):
    """A `GroupNormalization` whose statistics run over open gates only."""

    def _normalised(self, x, gate):
        axis = self.gated_axis
        groups, size = self.layer.groups, self.gate.shape[0]
        shape = [-1 if i == 0 else ops.shape(x)[i] for i in range(len(x.shape))]
        split = shape[:axis] + [groups, size // groups] + shape[axis + 1 :]
        ones = [1] * len(split)
        ones[axis : axis + 2] = [groups, size // groups]
        y, gate = ops.reshape(x, split), ops.reshape(gate, ones)
        axes = [i for i in range(1, len(split)) if i != axis]
        centred = (y - self._mean(y, gate, axes)) * gate
        variance = self._mean(ops.square(centred), gate, axes)
        return ops.reshape(centred * ops.rsqrt(variance + self.layer.epsilon), shape)


def _over_open_gates(layer, inputs, gate, axis, **kwargs):
    """Run a softmax so that closed channels get no share of it."""
    shape = [1] * len(inputs.shape)
    shape[axis] = gate.shape[0]
    gate = ops.reshape(ops.cast(gate, inputs.dtype), shape)
    low = -3e4 if "16" in str(inputs.dtype) else -1e9  # whose exponential is zero
    closed = ops.cast(ops.equal(gate, 0), inputs.dtype)
    return layer.call(inputs * gate + closed * low, **kwargs) * gate


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
