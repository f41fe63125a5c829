"""The base of all masked layers: one gate for every output channel."""

from typing import Any

import keras
import numpy as np

from filterprune.channels.flow import gate_of
from filterprune.channels.registry import known_type, weight_of
from filterprune.channels.trace import call_parameters
from filterprune.sums import peek

_MASKED: dict[type, type["Masked"]] = {}


def masks(*types: type):
    """Register a masked layer as the one to wrap layers of these types."""

    def register(cls):
        cls.wraps = types
        for wrapped in types:
            _MASKED[wrapped] = cls
        return keras.saving.register_keras_serializable("filterprune")(cls)

    return register


def masked_class(layer_type: type) -> type["Masked"] | None:
    """The masked layer made for a layer type or its parent, or None."""
    return _MASKED.get(known_type(layer_type))


@keras.saving.register_keras_serializable("filterprune")
class Masked(keras.layers.Wrapper):
    """A layer with a gate for every output channel.

    A gate is 1 (open) or 0 (closed). A closed gate means that the channel is
    absent: it is exactly zero in the output, in training and in inference.
    Where the layer turns a zero weight into a zero channel, the gate acts on
    the weights, which costs next to nothing; else on the output.

    `Masked` itself wraps any layer that filterprune has a rule for and that
    works on each channel alone, such as `Rescaling`. For the common layers
    there are subclasses, `MaskedConv2D`, `MaskedDense` and so on.

    Args:
        layer: the layer to mask. It belongs to the masked layer from then on.
        axis: the axis of the output that the gates run along, for layers
            that work on each element alone and do not know an axis of
            channels themselves. Defaults to `-1`.
        **kwargs: base layer arguments; `name`, `dtype` and `trainable` default
            to those of `layer`.

    Attributes:
        gate: non-trainable weight of shape `(channels,)`, float, all ones at
            first.
        gated_axis: the axis of the output that the gates run along, known once
            the layer is built.

    Raises:
        TypeError: if `layer` is of a type that the class does not wrap, or is
            masked already.

    Example:

    ```python
    x = keras.Input((32, 32, 3))
    masked = filterprune.layers.MaskedConv2D(keras.layers.Conv2D(16, 3))
    y = masked(x)
    masked.alive  # 16
    ```
    """

    masks_channels = True
    wraps: tuple[type, ...] = ()

    def __init__(self, layer, axis=-1, **kwargs):
        if isinstance(layer, Masked):
            raise TypeError(
                f"Expected a layer that is not masked yet. Received: '{layer.name}', "
                f"which is a {type(layer).__name__} already."
            )
        if self.wraps and known_type(type(layer)) not in self.wraps:
            names = " or ".join(cls.__name__ for cls in self.wraps)
            raise TypeError(
                f"Expected `layer` to be a {names}. Received: layer={layer!r} "
                f"(of type {type(layer).__name__}). Use `filterprune.wrap(layer)`, "
                "which picks the masked layer that fits."
            )
        kwargs.pop("activity_regularizer", None)  # in a config: that of `layer`
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("dtype", layer.dtype_policy)
        kwargs.setdefault("trainable", layer.trainable)
        super().__init__(
            layer, activity_regularizer=layer.activity_regularizer, **kwargs
        )
        self.axis = axis
        self.gated_axis: Any = None
        self.supports_masking = layer.supports_masking
        self._passes = [
            name for name in ("training", "mask") if name in call_parameters(layer)
        ]

    def build(self, input_shape):
        super().build(input_shape)
        self.input_spec = self.layer.input_spec
        plan = gate_of(self.layer, tuple(input_shape), self)
        self.gated_axis = plan.axis
        self._gated_weights = plan.weights
        self.gate = self.add_weight(
            name="gate", shape=(plan.size,), initializer="ones", trainable=False
        )
        self.built = True

    def __call__(self, *args, **kwargs):
        first = call_parameters(self.layer)[0]  # by whatever name `layer` knows it
        if not args and first in kwargs:
            args = (kwargs.pop(first),)
        return super().__call__(*args, **kwargs)

    @property
    def alive(self) -> int:
        """How many gates are open."""
        return int((~self.closed()).sum())

    def closed(self) -> np.ndarray:
        """Which gates are closed, `(channels,)` bool."""
        return peek(self.gate) == 0

    def call(self, inputs, training=None, mask=None):
        given = {"training": training, "mask": mask}
        kwargs = {name: given[name] for name in self._passes}
        if not self._gated_weights:
            outputs = self.layer.call(inputs, **kwargs)
            shape = [1] * len(outputs.shape)
            shape[self.gated_axis] = self.gate.shape[0]
            gate = keras.ops.cast(self.gate, outputs.dtype)
            return outputs * keras.ops.reshape(gate, shape)
        weights = self.layer.weights
        gated = {
            id(weight_of(self.layer, name)): self._close(name)
            for name in self._gated_weights
        }
        values = [(w, gated.get(id(w), w)) for w in weights]
        with keras.StatelessScope(values) as scope:
            before = [scope.get_current_value(w) for w in weights]
            outputs = self.layer.call(inputs, **kwargs)
        for weight, old in zip(weights, before, strict=True):
            new = scope.get_current_value(weight)
            if new is not old:  # moving statistics
                weight.assign(new)
        return outputs

    def _close(self, name):
        """A weight times the gates, along its axis of output channels."""
        weight = weight_of(self.layer, name)
        gate = keras.ops.cast(self.gate, weight.dtype)
        return weight * keras.ops.reshape(gate, self._gated_weights[name])

    def compute_output_spec(self, inputs, training=None, mask=None):
        return self.layer.compute_output_spec(inputs)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}
