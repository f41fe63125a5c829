"""Compaction: from a masked model to a plain one with fewer channels."""

from typing import Any

import keras
import numpy as np

from filterprune.channels.calls import Call, Gate, Place, describe
from filterprune.channels.groups import Analysis
from filterprune.channels.registry import weight_of
from filterprune.channels.survivors import Survivors
from filterprune.compiling import Move, compile_alike
from filterprune.errors import VerificationError, warn
from filterprune.inputs import check_inputs
from filterprune.rebuilding import copy_weights, states_of, warn_of_ties
from filterprune.resizing import Resizer
from filterprune.running import seeds_of
from filterprune.slots import masked_analysis
from filterprune.suggestions import suggests_keywords
from filterprune.verification import verify_same


@suggests_keywords
def compact(masked, verify: Any = True):
    """Remove every channel whose gate is closed: the third of the three moves.

    The result computes the same function as `masked` in inference mode, up to
    float rounding. A closed filter that cannot be removed exactly stays, with
    its gate multiplied into its weights, and a warning says why. Another one says
    so if no gate is closed.

    Args:
        masked: a masked model. It is not touched.
        verify: whether to run both models on generated inputs and compare; or
            inputs to run them on, arrays in the structure that the model takes,
            where generated ones do not fit. Defaults to `True`.

    Returns:
        A plain Keras model of the class of `masked` with the same layer names
        that needs no filterprune to load. It is compiled, with the optimizer's
        state for the surviving weights, if `masked` is.

    Raises:
        TypeError: if `masked` is no Keras model.
        ValueError: if `masked` is subclassed, not built or has no gates, or if
            `verify` are no inputs of it.
        filterprune.VerificationError: if the outputs of both models differ; it
            names the first layer whose output does. Also if the rule of a layer
            leaves a weight of another shape than the layer makes.

    Example:

    ```python
    small = filterprune.compact(masked)
    small.save("small.keras")
    ```
    """
    analysis = masked_analysis(masked)
    if not any(gate.closed().any() for gate in analysis.masks):
        warn(
            f"No gate of '{masked.name}' is closed, so the compact model is as "
            "large. Prune first: `filterprune.prune(masked, sparsity=0.5)`, or "
            "`filterprune.FilterPruningCallback` in `fit`."
        )
    return compacted(masked, verify, analysis)


def compacted(masked, verify: Any = True, analysis: Analysis | None = None):
    """The same as `compact`, for a model of which nothing need be closed."""
    analysis = analysis or masked_analysis(masked)
    inputs = check_inputs(masked, verify)
    dead, valuation, stays = analysis.decide()
    for path, count in valuation.conflicts.items():
        raise ValueError(
            f"{count} gates of '{path}', which takes statistics over its channels, "
            "are closed on channels that stay, and no plain layer leaves those out "
            "of its statistics. Open those gates, or close the channels in every "
            "layer of their group: `filterprune.prune` and the callback do."
        )
    survivors = analysis.survivors(dead)
    _warn_of(stays)
    compactor = _Compactor(analysis, survivors, valuation.folds)
    small = compactor.build()
    moves = compactor.transfer()
    warn_of_ties(compactor.rebuilder.pairs, masked.name)
    if masked.compiled:
        compile_alike(masked, small, moves, survivors)
    if verify is not False:
        # What is folded into biases is what batch norms make of it in inference.
        training = not valuation.folds
        verify_same(masked, small, analysis, survivors, inputs, training)
    return small


def _warn_of(stays: dict[int, str]) -> None:
    if stays:
        reasons = sorted(set(stays.values()))
        more = f" (and {len(reasons) - 3} more reasons)" if len(reasons) > 3 else ""
        warn(
            f"{len(stays)} closed channels stay in the compact model, as zeros, "
            f"because they cannot be removed exactly: {'; '.join(reasons[:3])}{more}. "
            "`print(filterprune.analyze(masked))` tells more."
        )


def _check_shape(call: Call, target, value: np.ndarray) -> None:
    """Complain of a rule that binds a weight otherwise than the layer makes it."""
    if tuple(target.shape) != value.shape:
        raise VerificationError(
            f"The rule of {describe(call.op)} leaves {value.shape} of a weight "
            f"({target.path}) that the layer makes as {tuple(target.shape)} once "
            "channels are gone. Bind every axis of every weight that runs along "
            "channels, and name in `resize` the config entries that count them."
        )


class _Compactor(Resizer):
    """One compaction: new operations, sliced weights."""

    def __init__(self, analysis: Analysis, survivors: Survivors, folds):
        super().__init__(analysis, survivors)
        self.folds = folds
        self.needs_bias = {
            id(call.op)
            for call in analysis.flow.calls
            if id(call.op) in folds and not call.op.use_bias
        }

    def _changes(self, call: Call) -> dict:
        return {"use_bias": True} if id(call.op) in self.needs_bias else {}

    def _after(self, op):
        """What multiplies in the gates that cannot be put in weights."""
        call, binding = self.calls.get(id(op)), self._binding(op)
        if binding is not None and binding.after is not None:
            return super()._after(op)
        if call is None or call.mask is None:
            return None
        layers = {}
        for gate in call.gates:
            values, kept = self._surviving_gates(gate)
            for place in gate.outputs:
                left = values[place.gates][kept[place.gates]]
                if (left != 1).any():
                    layers[place.output] = self._factor(op, call, place, left)
        if not layers:
            return None

        def multiply(outputs):
            flat = keras.tree.flatten(outputs)
            new = [layers[i](x) if i in layers else x for i, x in enumerate(flat)]
            return keras.tree.pack_sequence_as(outputs, new)

        return layers[0] if len(call.outputs) == 1 else multiply

    def _factor(self, op, call: Call, place: Place, gate: np.ndarray):
        """A layer that multiplies an output by gates that are neither 0 nor 1."""
        name = op.name
        if not getattr(op, "is_added", False):
            name = self.analysis.flow.gate_path(call).rsplit("/", 1)[-1]
        if place.output:
            name += f"_{place.output}"
        axis = place.axis
        layer = keras.layers.BatchNormalization(
            axis=axis, epsilon=0.0, trainable=False, name=name
        )
        shape = tuple(gate.size if i == axis else None for i in range(axis + 1))
        rest = (None,) * (len(call.outputs[place.output]) - axis - 1)
        layer.build(shape + rest)
        zeros, ones = np.zeros(gate.size), np.ones(gate.size)
        layer.set_weights([gate, zeros, zeros, ones])
        return layer

    def _surviving_gates(self, gate: Gate) -> tuple[np.ndarray, np.ndarray]:
        """The values of gates, and which are on channels that survive."""
        values = keras.ops.convert_to_numpy(gate.variable)
        labels = np.moveaxis(gate.labels, gate.axis, -1)
        kept = self.survivors.mask(labels.reshape(-1, gate.size))
        return values, np.any(kept, axis=0)

    def transfer(self) -> list[Move]:
        """Give the new layers the surviving weights of the old ones."""
        moves = []
        for old, new in self.rebuilder.pairs:
            call = self.calls[id(old)]
            self._carry_states(call, new)
            binding = self.analysis.flow.bindings.get(id(call.op))
            axes = {} if binding is None else binding.axes
            if not new.weights:  # turned into constants of the config
                continue
            if not axes and call.mask is None:
                copy_weights(call.op, new)
                moves += [
                    Move(a, b, ())
                    for a, b in zip(call.op.weights, new.weights, strict=True)
                ]
            else:
                moves += self._transfer_layer(call, new, axes)
        return moves

    def _transfer_layer(self, call: Call, new, axes) -> list[Move]:
        targets = list(new.weights)
        moves = []
        shift = self._fold(call)
        if shift is not None and id(call.op) in self.needs_bias:
            targets = [target for target in targets if target is not new.bias]
            new.bias.assign(self.survivors.slice(shift, [call.gates[0].labels.ravel()]))
        names = {id(weight_of(call.op, name)): name for name in axes}
        binding = self.analysis.flow.bindings.get(id(call.op))
        scales = {} if binding is None else binding.scales
        for weight, target in zip(call.op.weights, targets, strict=True):
            name = names.get(id(weight), "")
            value = self._gated(call, name, weight)
            if name == "bias" and shift is not None:
                value = value + shift.astype(value.dtype)
            if name in scales:
                value = value * np.asarray(scales[name](self.survivors), value.dtype)
            value = self.survivors.slice(value, axes.get(name, ()))
            _check_shape(call, target, value)
            target.assign(value)
            moves.append(Move(weight, target, axes.get(name, ())))
        return moves

    def _carry_states(self, call: Call, new) -> None:
        """Let a layer go on from where the old one is: states and random numbers."""
        axes = {
            place.output: (gate, place) for gate in call.gates for place in gate.states
        }
        pairs = zip(states_of(call.op), states_of(new))
        for number, (old, state) in enumerate(pairs):
            value = keras.ops.convert_to_numpy(old)
            if number in axes:
                gate, place = axes[number]
                kept = self.survivors.mask(gate.labels[place.gates])
                value = np.compress(kept, value, axis=place.axis)
            state.assign(value)
        for old, seed in zip(seeds_of(call.op), seeds_of(new)):
            seed.assign(keras.ops.convert_to_numpy(old))  # JAX shares buffers if not

    def _gated(self, call: Call, name: str, weight) -> np.ndarray:
        """A weight with the gates that act on it multiplied in."""
        value = keras.ops.convert_to_numpy(weight)
        for gate in call.gates if call.mask is not None else ():
            if name in gate.weights:
                factor = keras.ops.convert_to_numpy(gate.variable)
                value = value * factor[gate.weights[name]].astype(value.dtype)
        return value

    def _fold(self, call: Call) -> np.ndarray | None:
        """What removed constant channels add to the bias, `(outputs,)`."""
        constants, gate = self.folds.get(id(call.op)), call.gate
        if constants is None or gate is None or gate.factor is None:
            return None
        name, out = gate.factor
        axes = self.analysis.flow.bindings[id(call.op)].axes[name]
        (read,) = [
            axis
            for axis, labels in enumerate(axes)
            if labels is not None and axis != out
        ]
        kernel = self._gated(call, name, weight_of(call.op, name)).astype("float64")
        kernel = np.moveaxis(kernel, (read, out), (-2, -1))
        kernel = kernel.sum(axis=tuple(range(kernel.ndim - 2)))
        groups = constants.size // kernel.shape[0]
        kernel = kernel.reshape(kernel.shape[0], groups, -1)
        rows = constants.reshape(groups, -1)
        return np.einsum("gi,igo->go", rows, kernel).ravel()
