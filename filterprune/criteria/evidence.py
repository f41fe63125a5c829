"""What data tell about channels: activations, and gradients of the loss.

A channel is absent exactly when every call that reads it reads zero. So a call
that reads channels is where evidence is taken: the tensor read, `a`, and the
gradient of the loss with respect to it, `d`. The sum of `a * d` over all
readers is the derivative of the loss by a gate on the channel.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from filterprune.channels.calls import Call, Loop
from filterprune.channels.labels import squeeze_uniform
from filterprune.channels.trace import is_layer, part_named, parts_of
from filterprune.criteria import recurrence
from filterprune.running import attributes_kept, without_gradients
from filterprune.slots import Slots


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """One tensor that a call reads.

    Attributes:
        call: the call.
        place: which of the call's arguments it is, all of them in a row; None for
            what a part of the layer makes.
        tensor: the symbolic tensor; None inside of a layer.
        slots: the slot of each position, -1 for none; they broadcast to the
            tensor.
        share: what part of its effect counts: of the factors of one product
            each has the effect of all.
        loop: the cell that reads it, of what a layer reads again of its own.
        part: the part of the layer that reads it, or None for the layer itself.
    """

    call: Call
    place: int | None
    tensor: keras.KerasTensor
    slots: np.ndarray
    share: float = 1.0
    loop: Loop | None = None
    part: Any = None

    @property
    def layer(self):
        """What is to be watched."""
        return self.call.layer if self.part is None else self.part


def readers(slots: Slots) -> list[Reading]:
    """Where channels are read: every call that makes others of them."""
    found = []
    for call in slots.analysis.flow.calls:
        made = _made(slots, call)
        given = [
            (place, tensor, np.where(np.isin(seen, made), -1, seen))
            for place, tensor, seen in _given(slots, call)
        ]
        given = [triple for triple in given if (triple[2] >= 0).any()]
        found += [Reading(call, *triple, 1 / len(given)) for triple in given]
        for loop in call.loops:
            seen = slots.of(loop.labels)
            if (seen >= 0).any():
                state = keras.KerasTensor((None, *seen.shape[1:]))
                found.append(Reading(call, -1, state, seen, loop=loop))
        found += _inside(slots, call)
    return found


def _inside(slots: Slots, call: Call) -> list[Reading]:
    """Where channels inside of a layer are seen: in front of a part, or behind."""
    found = []
    for name, behind, labels in [s for gate in call.gates for s in gate.seen]:
        seen = slots.of(labels)
        part = part_named(call.op, name)
        if part is not None and (seen >= 0).any():
            place = None if behind else 0
            found.append(Reading(call, place, None, seen, part=part))
    return found


def maps(slots: Slots) -> list[Reading]:
    """Where channels are whole maps for the last time.

    That is where they are read, or made smaller first: by pooling, by striding
    or by flattening.
    """
    flow = slots.analysis.flow
    found, small = [], set()
    for call in flow.calls:
        made = _made(slots, call)
        given = _given(slots, call)
        outs = [
            (t, squeeze_uniform(slots.of(flow.tensors[id(t)].labels)))
            for t in call.node.outputs
        ]
        out = min((_positions(*pair) for pair in outs), default=0)
        for place, tensor, seen in given:
            read = not np.isin(seen[seen >= 0], made).all()
            whole = id(flow.tensors[id(tensor)]) not in small
            if whole and (read or out < _positions(tensor, seen)):
                found.append(Reading(call, place, tensor, seen))
        found += _inside(slots, call)
        carried = [(t, seen) for _, t, seen in given if np.isin(seen, made).any()]
        if carried and all(
            id(flow.tensors[id(t)]) in small or out < _positions(t, seen)
            for t, seen in carried
        ):
            small |= {id(flow.tensors[id(t)]) for t in call.node.outputs}
    return found


def _given(slots: Slots, call: Call) -> list[tuple]:
    """The tensors with slots that a call gets: their places, they, their slots."""
    leaves = keras.tree.flatten((call.node.args, call.node.kwargs))
    places = [i for i, v in enumerate(leaves) if isinstance(v, keras.KerasTensor)]
    triples = [
        (place, tensor, squeeze_uniform(slots.of(channels.labels)))
        for place, tensor, channels in zip(places, call.node.inputs, call.inputs)
        if all(channels is not carried for carried in call.carried)
    ]
    return [triple for triple in triples if (triple[2] >= 0).any()]


def _made(slots: Slots, call: Call) -> np.ndarray:
    """The slots that a call passes on."""
    if call.makes:
        return np.zeros(0, int)
    tensors = slots.analysis.flow.tensors
    outputs = [slots.of(tensors[id(t)].labels).ravel() for t in call.node.outputs]
    passed = np.unique(np.concatenate([np.zeros(0, int), *outputs]))
    return passed[passed >= 0]


def _positions(tensor, seen: np.ndarray) -> int:
    """At how many places of a sample a tensor has each of its labels."""
    sizes = zip(tensor.shape[1:], seen.shape[1:], strict=True)
    return math.prod(size or 1 for size, labels in sizes if labels == 1)


@contextlib.contextmanager
def tapping(model, readings: list[Reading], tap: Callable) -> Iterator[None]:
    """Within it calls read `tap(reading, tensor)` in place of the tensor.

    No variable is changed by what runs in it.
    """
    turns: dict[int, list[list[Reading]]] = {}
    layers: dict[int, Any] = {}
    wanted: dict[int, list[Reading]] = {}
    for reading in readings:
        wanted.setdefault(id(reading.call), []).append(reading)
        layers[id(reading.layer)] = reading.layer
    for call in readings[0].call.flow.calls if readings else ():
        parts = [call.layer, *parts_of(call.op)] if is_layer(call.op) else [call.layer]
        for layer in parts:
            here = [r for r in wanted.get(id(call), ()) if r.layer is layer]
            turns.setdefault(id(layer), []).append(here)
    before = {key: vars(layer).get("call") for key, layer in layers.items()}
    try:
        for key, layer in layers.items():
            # The calls of a shared layer come in the order of the analysis.
            turn = itertools.cycle(turns[key])
            vars(layer)["call"] = functools.partial(_tapped, layer.call, turn, tap)
        with attributes_kept(model), keras.StatelessScope():
            yield
    finally:
        for key, layer in layers.items():
            del vars(layer)["call"]
            if before[key] is not None:
                vars(layer)["call"] = before[key]


def _tapped(call, turn, tap, *args, **kwargs):
    leaves = keras.tree.flatten((args, kwargs))
    gates, behind = [], []
    for reading in next(turn):
        if reading.loop is not None:
            opened = recurrence.ones_for(reading.loop.labels, leaves[0])
            gates.append((reading.loop, tap(reading, opened)))
        elif reading.place is None:
            behind.append(reading)
        else:
            leaves[reading.place] = tap(reading, leaves[reading.place])
    args, kwargs = keras.tree.pack_sequence_as((args, kwargs), leaves)
    if gates:
        with recurrence.gated_steps(reading.call.op, gates):
            return call(*args, **kwargs)
    outputs = call(*args, **kwargs)
    for reading in behind:
        outputs = tap(reading, outputs)
    return outputs


def activations(slots: Slots, readings, measure: Callable, batches) -> list:
    """For each reading the sums over samples of what `measure` finds.

    Args:
        slots: the prunable channels.
        readings: where to look.
        measure: a function of a reading and a tensor of shape `(samples, ...)`
            that gives a tensor in which each row is a sample.
        batches: the batches to use.

    Returns:
        For each reading its sum in the shape of its slots, divided by how many
        rows there were, float64.
    """
    sums, rows = [0.0] * len(readings), [0] * len(readings)
    numbers = {id(reading): number for number, reading in enumerate(readings)}

    def note(reading, tensor):
        found = _to_numpy(measure(reading, tensor))
        number = numbers[id(reading)]
        sums[number] = sums[number] + found.sum(axis=0, keepdims=True)
        rows[number] += len(found)
        return tensor

    for inputs, _, _ in batches:
        with without_gradients(), tapping(slots.model, readings, note):
            slots.model(inputs, training=False)
    return [total / max(count, 1) for total, count in zip(sums, rows)]


def effects(slots: Slots, readings, loss: Callable, batch: tuple) -> np.ndarray:
    """The derivative of the loss by a gate on each slot, sample by sample.

    Args:
        slots: the prunable channels.
        readings: where they are read.
        loss: a function of `x`, `y`, outputs and sample weights: a mean over
            samples.
        batch: `x`, `y` and sample weights.

    Returns:
        `(samples, slots)`, float64.
    """
    x, y, weights = batch
    samples = int(keras.tree.flatten(x)[0].shape[0])

    def run(tap):
        with tapping(slots.model, readings, tap):
            outputs = slots.model(x, training=False)
            # Each sample's own loss, of which the batch's is the mean.
            return samples * _whole(loss(x, y, outputs, weights))

    result = np.zeros((samples, slots.count))
    for reading, a, d in _gradients(run):
        product = _whole(a) * _whole(d)
        sums = _to_numpy(over_positions(reading, product, keras.ops.sum))
        if len(sums) % samples or reading.slots.shape[0] != 1:
            # Samples do not stand side by side: each has the same part.
            sums, at = np.broadcast_arrays(sums, reading.slots)
            sums, at = np.tile(sums.ravel() / samples, (samples, 1)), at.ravel()
        else:
            sums = sums.reshape(samples, len(sums) // samples, -1).sum(axis=1)
            at = reading.slots.ravel()
        known = at >= 0
        np.add.at(result.T, at[known], reading.share * sums[:, known].T)
    if not np.isfinite(result).all():
        raise ValueError(
            "Expected a finite loss with finite gradients. Received NaN or Inf for "
            f"a batch of {samples} samples in '{slots.model.name}': its channels "
            "cannot be ranked. Restore a checkpoint from before, or check the data."
        )
    return result


def over_positions(reading: Reading, tensor, reduce: Callable):
    """A tensor reduced to one value for each sample and each label."""
    axes = [axis for axis, size in enumerate(reading.slots.shape) if axis and size == 1]
    return reduce(tensor, axis=axes, keepdims=True) if axes else tensor


def _to_numpy(tensor) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(_whole(tensor)), "float64")


def _whole(tensor):
    """A tensor in at least single precision."""
    half = "16" in keras.backend.standardize_dtype(tensor.dtype)
    return keras.ops.cast(tensor, "float32") if half else tensor


def compiled_loss(model) -> Callable:
    """The loss that a model was compiled with, of `x`, `y`, outputs, weights."""
    knows = "training" in inspect.signature(model.compute_loss).parameters
    options = {"training": False} if knows else {}

    def loss(x, y, outputs, weights):
        return model.compute_loss(
            x=x, y=y, y_pred=outputs, sample_weight=weights, **options
        )

    return loss


def own_loss(function) -> Callable:
    """A Keras loss or function of targets and outputs, the mean over all."""

    def loss(x, y, outputs, weights):
        pairs = zip(keras.tree.flatten(y), keras.tree.flatten(outputs), strict=True)
        return sum(keras.ops.mean(function(*pair)) for pair in pairs)

    return loss


def _gradients(run: Callable) -> list[tuple]:
    """What each reading reads, and the loss's gradient by it.

    Args:
        run: a function of a tap (see `tapping`) that gives the loss.

    Returns:
        Triples of a reading, a tensor and its gradient.
    """
    seen: list[tuple] = []
    backend = keras.backend.backend()
    if backend == "tensorflow":
        tf = importlib.import_module("tensorflow")
        with tf.GradientTape() as tape:

            def tap(reading, tensor):
                tensor = tf.identity(tensor)
                tape.watch(tensor)
                seen.append((reading, tensor))
                return tensor

            loss = run(tap)
        grads = tape.gradient(
            loss, [tensor for _, tensor in seen], unconnected_gradients="zero"
        )
    elif backend == "torch":
        torch = importlib.import_module("torch")
        with torch.enable_grad():

            def tap(reading, tensor):
                known = tensor.requires_grad
                tensor = tensor.clone() if known else tensor.detach().requires_grad_()
                seen.append((reading, tensor))
                return tensor

            loss = run(tap)
            tensors = [tensor for _, tensor in seen]
            grads = torch.autograd.grad(loss, tensors, allow_unused=True)
            grads = [
                torch.zeros_like(tensor) if grad is None else grad
                for tensor, grad in zip(tensors, grads)
            ]
    elif backend == "jax":
        jax = importlib.import_module("jax")

        def note(reading, tensor):
            seen.append((reading, tensor))
            return tensor

        def moved(zeros):
            left = iter(zeros)
            return run(lambda reading, tensor: tensor + next(left))

        run(note)
        grads = jax.grad(moved)([jax.numpy.zeros_like(tensor) for _, tensor in seen])
    else:
        raise ValueError(
            "Expected the backend tensorflow, jax or torch, whose gradients are "
            f"needed. Received: {backend!r}"
        )
    return [(*pair, grad) for pair, grad in zip(seen, grads, strict=True)]
