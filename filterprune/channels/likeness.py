"""What tells one layer's behaviour from another's, apart from its weights.

A config does not: many a layer's `get_config` forgets an argument. So all that
the layer remembers is looked at, attribute by attribute.
"""

import contextlib
import dataclasses
import functools
import sys
import types
from collections.abc import Hashable

import keras
import numpy as np

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, types.ModuleType)
# What a layer has to make or to train its weights, which are not called with.
_SILENT = (
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
)
_MOST = 2**16  # elements of an array


def likeness(layer, sizes: bool = True) -> tuple[Hashable, bool]:
    """What layers have in common that work alike, whatever their weights.

    Args:
        layer: any layer.
        sizes: whether their weights must have the same shapes, or ranks alone.

    Returns:
        A hashable value, equal for two layers only if they work alike; and
        whether it tells all. If not, it is good for this one layer only.
    """
    describer = _Describer(sizes)
    return describer.layer(layer), not describer.opaque


def likeness_of_arguments(node, sizes: bool = True) -> tuple[Hashable, bool]:
    """The same of the arguments of a call, whatever is in its tensors.

    Without `sizes` it is told of these only which are left open.
    """
    tensors = {}
    for place, tensor in enumerate(node.inputs):
        shape = tuple(size if sizes or size is None else 0 for size in tensor.shape)
        what = ("a tensor", place, shape, str(tensor.dtype))
        tensors[id(tensor)] = str(what)
    describer = _Describer(sizes)
    return describer(node.fill(tensors)), not describer.opaque


def likeness_of_operation(op) -> tuple[Hashable, bool]:
    """The same of a bare operation of `keras.ops`, whatever its name."""
    describer = _Describer()
    own = {k: v for k, v in vars(op).items() if k[0] != "_" and k != "name"}
    return (type(op), describer(own)), not describer.opaque


@functools.cache
def of_any_layer() -> frozenset[str]:
    """The attributes that Keras and its backend give to every layer."""
    layer = keras.layers.Layer()
    layer.weight = layer.add_weight(shape=(1,))
    layer.parts = [1]
    layer.build((None, 1))
    return frozenset(vars(layer)) - {"weight", "parts"}


class _Describer:
    """From values to what they have in common with others that are alike.

    Args:
        sizes: whether weights must have the same shapes, or ranks alone.

    Attributes:
        opaque: whether something was met of which only what it is itself is known.
    """

    def __init__(self, sizes: bool = True):
        self.opaque = False
        self._sizes = sizes
        self._layers: dict[int, int] = {}

    def layer(self, layer) -> Hashable:
        """What a layer is and remembers, the layers in it included."""
        if id(layer) in self._layers:
            return "a layer again", self._layers[id(layer)]
        self._layers[id(layer)] = len(self._layers)
        own = {k: v for k, v in vars(layer).items() if k not in of_any_layer()}
        return type(layer), layer.compute_dtype, layer.autocast, self(own)

    def __call__(self, value) -> Hashable:
        if isinstance(value, _PLAIN):
            return type(value), value
        if isinstance(value, _SILENT):
            return None
        if isinstance(value, keras.Variable):
            if "float" in value.dtype:
                shape = tuple(value.shape)
                return shape if self._sizes else len(shape), value.dtype
            value = keras.ops.convert_to_numpy(value)  # indices are as good as code
        if isinstance(value, keras.random.SeedGenerator):
            return "a seed"
        if isinstance(value, keras.layers.Layer):
            return self.layer(value)
        if isinstance(value, (slice, type(...))):
            return repr(value)
        if isinstance(value, (list, tuple)):
            return type(value), tuple(map(self, value))
        if isinstance(value, dict):
            return "dict", tuple((repr(k), self(v)) for k, v in value.items())
        if dataclasses.is_dataclass(value):
            return type(value), self(vars(value))
        if isinstance(value, types.FunctionType) and _is_global(value):
            return value
        if not isinstance(value, keras.KerasTensor) and keras.ops.is_tensor(value):
            with contextlib.suppress(Exception):  # one of a graph has no value
                value = keras.ops.convert_to_numpy(value)
        is_array = isinstance(value, (np.ndarray, np.generic))
        if is_array and value.size <= _MOST and not value.dtype.hasobject:
            return value.shape, str(value.dtype), value.tobytes()
        self.opaque = True
        return id(value)


def _is_global(function) -> bool:
    """Whether a function is the one of its name in its module: no closure."""
    module = sys.modules.get(function.__module__)
    return getattr(module, function.__qualname__, None) is function
