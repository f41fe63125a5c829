"""A model's operations at other sizes: what compaction and timing both make."""

import keras
import numpy as np

from filterprune.channels.calls import Binding, Call
from filterprune.channels.groups import Analysis
from filterprune.channels.remaking import config_of, remake
from filterprune.channels.survivors import Survivors
from filterprune.channels.trace import copy_object, copy_operation, is_layer
from filterprune.rebuilding import Rebuilder


class Resizer:
    """A model's operations with fewer channels, their weights as initialised.

    Args:
        analysis: the analysis of a model, masked or plain.
        survivors: which channels there are to be.
    """

    def __init__(self, analysis: Analysis, survivors: Survivors):
        self.analysis = analysis
        self.survivors = survivors
        # Of several calls of a layer the first, of those with gates if there are.
        calls = sorted(analysis.flow.calls, key=lambda call: not call.gates)
        self.calls = {id(call.layer): call for call in reversed(calls)}
        self.rebuilder = Rebuilder(self.make, self._shape, self.arguments, self._after)

    def build(self):
        """The whole model."""
        return self.rebuilder.rebuild(self.analysis.model)

    def _shape(self, tensor):
        found = self.survivors.shape(self.analysis.flow.tensors[id(tensor)])
        # A nested model may know sizes that its caller leaves open, and the other way.
        pairs = zip(tensor.shape, found, strict=True)
        return tuple(own if None in (own, size) else size for own, size in pairs)

    def _binding(self, op) -> Binding | None:
        call = self.calls.get(id(op))
        return None if call is None else self.analysis.flow.bindings.get(id(call.op))

    def make(self, op):
        """The operation that takes the place of `op`: unmasked, resized."""
        call = self.calls[id(op)]
        binding = self._binding(op)
        changes = {}
        if binding is not None:
            changes = {key: fn(self.survivors) for key, fn in binding.config.items()}
        if not is_layer(op):
            return copy_operation(op, **changes)
        if getattr(op, "is_added", False):
            return None
        changes.update(self._changes(call))
        if self._stays(call, binding, changes):
            return self._copied(op, call)
        changes.update(self._initializers(call, binding))
        try:
            return remake(call.op, **changes, name=op.name)
        except Exception:
            if changes or call.op.weights:
                raise
            return self._copied(op, call)  # its own config is none that it takes

    @staticmethod
    def _copied(op, call: Call):
        new = copy_object(call.op)
        new.name = op.name
        return new

    def _stays(self, call: Call, binding: Binding | None, changes: dict) -> bool:
        """Whether nothing of a layer goes: what need not change is not made anew."""
        if binding is not None and binding.whole:
            return True
        if changes:
            config = config_of(call.op)
            if any(config.get(key) != value for key, value in changes.items()):
                return False
        nodes = (call.node.inputs, call.node.outputs)
        tensors = self.analysis.flow.tensors
        labels = [tensors[id(t)].labels for part in nodes for t in part]
        for axes in binding.axes.values() if binding is not None else ():
            labels += [along for along in axes if along is not None]
        return all(self.survivors.mask(part).all() for part in labels)

    def _initializers(self, call: Call, binding: Binding | None) -> dict:
        """Constant initializers with a value per channel, cut to the channels left."""
        found = {}
        for name, axes in binding.axes.items() if binding is not None else ():
            initializer = getattr(call.op, f"{name}_initializer", None)
            array = np.asarray(getattr(initializer, "value", 0.0))
            if isinstance(initializer, keras.initializers.Constant) and array.ndim:
                pairs = zip(axes[len(axes) - array.ndim :], array.shape, strict=True)
                along = [None if size == 1 else labels for labels, size in pairs]
                sliced = self.survivors.slice(array, along)
                found[f"{name}_initializer"] = keras.initializers.Constant(sliced)
        return found

    def _changes(self, call: Call) -> dict:
        """What else is to change in the config of a layer."""
        return {}

    def arguments(self, op, args, kwargs):
        """The arguments of a call, constant arrays sliced."""
        binding = self._binding(op)
        if binding is not None and binding.rewrite is not None:
            args, kwargs = binding.rewrite(self.survivors, args, kwargs)
        if binding is None or not binding.arguments:
            return args, kwargs

        def switch(value):
            channels = binding.arguments.get(id(value))
            if channels is None:
                return value
            array = keras.ops.convert_to_numpy(value)
            for axis in range(-array.ndim, 0):
                kept = self.survivors.along(channels, axis)
                if kept is not None and array.shape[axis] > 1:
                    array = np.compress(kept, array, axis=axis)
            return array

        return keras.tree.map_structure(switch, (args, kwargs))

    def _after(self, op):
        """What to apply to the output of `op`, or None."""
        binding = self._binding(op)
        if binding is not None and binding.after is not None:
            return binding.after(self.survivors)
        return None
