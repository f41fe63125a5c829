"""The base of all masked layers: one gate for every output channel."""

import math
from typing import Any

import keras
import numpy as np

from filterprune.channels.flow import gates_of
from filterprune.channels.registry import known_type, weight_of
from filterprune.channels.trace import call_parameters
from filterprune.sums import peek

# What a batch counts for where its size is open.
USUAL_BATCH = 32

_MASKED: dict[type, type["Masked"]] = {}


def masks(*types: type):
    """Register a masked layer as the one to wrap layers of these types."""

    def register(cls):
        cls.wraps = types
        for wrapped in types:
            _MASKED[wrapped] = cls
        return keras.saving.register_keras_serializable("filterprune")(cls)

    return register


def masks_too(cls: type["Masked"], *types: type) -> None:
    """Let a masked layer wrap further types, such as subclasses of another library."""
    cls.wraps += types
    for wrapped in types:
        _MASKED[wrapped] = cls


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
        self._gate_names: dict[str, str] = {}
        self.supports_masking = layer.supports_masking
        self.autocast = layer.autocast
        self._passes = [
            name for name in ("training", "mask") if name in call_parameters(layer)
        ]

    def build(self, input_shape):
        super().build(input_shape)
        self.input_spec = self.layer.input_spec
        plans = gates_of(self.layer, tuple(input_shape), mask=self)
        if plans[0].call.is_linear and self._has_fewer_outputs(plans[0]):
            plans[0].weights, plans[0].outputs = {}, plans[0].places
        self._add_gates(plans)
        self.built = True

    def _has_fewer_outputs(self, plan) -> bool:
        """Whether a batch of outputs is smaller than the weights to be gated.

        The gates are then multiplied into those, which is the same and cheaper.
        Not in half precision, where a sum may be infinite, and zero times that is
        no zero.
        """
        if self.compute_dtype not in ("float32", "float64"):
            return False
        (shape,) = plan.call.outputs
        sizes = (shape[0] or USUAL_BATCH, *shape[1:])
        gated = sum(math.prod(weight_of(self.layer, n).shape) for n in plan.weights)
        return None not in sizes and math.prod(sizes) < gated

    def _add_gates(self, plans) -> None:
        """One weight of gates for each of the plans, that of the output first."""
        self._plans = plans
        self.gated_axis = plans[0].axis
        for plan in plans:
            name = f"{plan.name}_gate" if plan.name else "gate"
            gate = self.add_weight(
                name=name, shape=(plan.size,), initializer="ones", trainable=False
            )
            setattr(self, name, gate)
            self._gate_names[plan.name] = name

    @property
    def gates(self) -> dict[str, Any]:
        """The weights that hold gates: `""` that of the output's channels."""
        return {name: getattr(self, own) for name, own in self._gate_names.items()}

    def __call__(self, *args, **kwargs):
        first, *rest = call_parameters(self.layer)
        if not args and first in kwargs:  # by whatever name `layer` knows it
            args = (kwargs.pop(first),)
        elif len(args) == 2 and rest[0] in ("mask", "training"):
            kwargs[rest[0]] = args[1]
            args = args[:1]
        return super().__call__(*args, **kwargs)

    @property
    def alive(self) -> int:
        """How many gates of the output's channels are open."""
        return int((~self.closed()).sum())

    def closed(self) -> np.ndarray:
        """Which gates of the output's channels are closed, `(channels,)` bool."""
        return peek(self.gate) == 0

    def call(self, inputs, training=None, mask=None):
        return self._gated_call(inputs, training=training, mask=mask)

    def _gated_call(self, *args, **given):
        """Call the layer with gates on its weights and on its outputs."""
        kwargs = {
            name: value
            for name, value in given.items()
            if name in self._passes or name not in ("training", "mask")
        }
        outputs = self._call_with_gated_weights(*args, **kwargs)
        places = [(plan, place) for plan in self._plans for place in plan.outputs]
        if not places:
            return outputs
        flat = keras.tree.flatten(outputs)
        for plan, place in places:
            flat[place.output] = self._close(flat[place.output], plan, place)
        return keras.tree.pack_sequence_as(outputs, flat)

    def _call_with_gated_weights(self, *args, **kwargs):
        names = dict.fromkeys(name for plan in self._plans for name in plan.weights)
        if not names:
            return self.layer.call(*args, **kwargs)
        gated = {id(weight_of(self.layer, name)): self._closed(name) for name in names}
        # What the layer changes, such as moving statistics and seeds, is its own.
        variables = [*self.layer.variables, *self._states()]
        values = [(v, gated.get(id(v), v)) for v in variables]
        with keras.StatelessScope(values) as scope:
            before = [scope.get_current_value(v) for v in variables]
            outputs = self.layer.call(*args, **kwargs)
        for variable, old in zip(variables, before, strict=True):
            new = scope.get_current_value(variable)
            if new is not old:
                variable.assign(new)
        return outputs

    def _states(self) -> list:
        """Variables that the layer changes and Keras does not list."""
        return []

    def _close(self, tensor, plan, place):
        """A tensor times the gates of its channels."""
        shape = [1] * len(tensor.shape)
        shape[place.axis] = place.gates.size
        gate = self._gates(plan, place.gates, tensor.dtype)
        return tensor * keras.ops.reshape(gate, shape)

    def _closed(self, name):
        """A weight times the gates of its entries."""
        value = weight_of(self.layer, name)
        for plan in self._plans:
            if name in plan.weights:
                numbers = plan.weights[name]
                gate = self._gates(plan, numbers.ravel(), value.dtype)
                if numbers.ndim > 1:
                    gate = keras.ops.reshape(gate, numbers.shape)
                value = value * gate
        return value

    def _gates(self, plan, numbers: np.ndarray, dtype):
        """The gates of these numbers."""
        gate = keras.ops.cast(self.gates[plan.name], dtype)
        if np.array_equal(numbers, np.arange(plan.size)):
            return gate
        return keras.ops.take(gate, numbers, axis=0)

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_spec(self, inputs, training=None, mask=None):
        return self.layer.compute_output_spec(inputs)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}
