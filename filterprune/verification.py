"""Checking that two models compute the same function."""

import contextlib
import dataclasses

import keras
import numpy as np

from filterprune.channels.groups import Analysis
from filterprune.channels.survivors import Survivors
from filterprune.channels.trace import Graph, trace
from filterprune.errors import VerificationError, warn

# What float rounding may do, relative to the largest output.
TOLERANCES = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far apart two models are.

    Attributes:
        difference: the largest difference between two outputs, relative to the
            largest value that is expected there; `inf` if they differ in
            number, in shape or in where they are finite.
        tolerance: the difference that float rounding explains.
    """

    difference: float
    tolerance: float

    @property
    def same(self) -> bool:
        """Whether both compute the same, up to rounding."""
        return self.difference <= self.tolerance


def compare(model, other, inputs=None, tolerance=None) -> Comparison:
    """Compare what two models compute in inference.

    Args:
        model: a built functional or sequential model: what is expected.
        other: another one, or a function from inputs to outputs.
        inputs: arrays in the structure that `model` takes. Defaults to
            `generate_inputs(model)`.
        tolerance: the difference to allow. Defaults to that of the least exact
            dtype in which `model` computes.

    Returns:
        A `Comparison`.
    """
    inputs = generate_inputs(model) if inputs is None else inputs
    old = _run(model, inputs)
    if isinstance(other, keras.Model):
        new = _run(other, inputs)
    else:
        new = keras.tree.flatten(other(inputs))
    if tolerance is None:
        tolerance = tolerance_of(model, old[0])
    if [tuple(a.shape) for a in old] != [tuple(b.shape) for b in new]:
        return Comparison(float("inf"), tolerance)
    return Comparison(_largest_difference(old, new), tolerance)


def generate_inputs(model, batch_size=2, seed=0, size=64):
    """Random inputs for a functional or sequential model.

    Args:
        model: a built functional or sequential model.
        batch_size: how many samples.
        seed: seed of the random generator.
        size: what to take where the model leaves a size open.

    Returns:
        Arrays in the structure of the model's inputs: standard normal floats,
        or integers 0 and 1.
    """
    rng = np.random.default_rng(seed)
    graph = trace(model)
    arrays = []
    for tensor in graph.inputs:
        shape = [size if n is None else n for n in tensor.shape]
        shape[0] = tensor.shape[0] or batch_size
        if "float" in tensor.dtype:
            array = rng.standard_normal(shape).astype("float32")
            arrays.append(keras.ops.cast(array, tensor.dtype))
        else:
            array = rng.integers(0, 2, shape)
            arrays.append(keras.ops.cast(array, tensor.dtype))
    return keras.tree.pack_sequence_as(graph.input_struct, arrays)


def relative_difference(expected, received) -> float:
    """The largest difference, relative to the largest expected value.

    Args:
        expected, received: arrays of one shape.

    Returns:
        max |expected - received| / max |expected|; the numerator alone if all
        that is expected is zero; `inf` if one has a NaN where the other has
        none.
    """
    expected = np.asarray(keras.ops.convert_to_numpy(expected), "float64")
    received = np.asarray(keras.ops.convert_to_numpy(received), "float64")
    if not expected.size:
        return 0.0
    if not np.array_equal(np.isfinite(expected), np.isfinite(received)):
        return float("inf")
    expected, received = np.nan_to_num(expected), np.nan_to_num(received)
    scale = np.abs(expected).max()
    return float(np.abs(expected - received).max() / (scale if scale > 0 else 1.0))


def verify_same(masked, small, analysis: Analysis, survivors: Survivors) -> float:
    """Raise unless both models give the same outputs for generated inputs.

    Returns:
        The largest relative difference over all outputs.

    Raises:
        VerificationError: if it is above what rounding explains.
    """
    inputs, old = _run_at_some_size(masked)
    new = _run(small, inputs)
    worst = _largest_difference(old, new)
    tolerance = tolerance_of(masked, old[0])
    if not worst <= tolerance:
        itself = _largest_difference(old, _run(masked, inputs))
        if not itself <= tolerance:
            warn(
                f"'{masked.name}' gives other outputs for the same inputs every time, "
                f"by {itself:.2g} of the largest value: that the compact model does "
                "what it does could not be verified. Draw random numbers from a "
                "`keras.random.SeedGenerator`, which a check can set."
            )
            return worst
        where = _first_difference(masked, small, inputs, analysis, survivors, tolerance)
        raise VerificationError(
            f"The compact model does not compute what '{masked.name}' does: the "
            f"outputs differ by {worst:.2g} of the largest value (allowed: "
            f"{tolerance:.0e}), {where}. This is a bug in filterprune or in a rule "
            "for that layer; please report it. The masked model is unharmed."
        )
    return worst


# What to take for sizes that the model leaves open, one after another: images want
# some, and sequences may have no more than there are positions.
_SIZES = (64, 16, 4)


def _run_at_some_size(model) -> tuple:
    """Inputs of a size that the model takes, and its outputs for them."""
    leaves_open = any(None in tensor.shape[1:] for tensor in model.inputs)
    for size in _SIZES[:-1] if leaves_open else ():
        inputs = generate_inputs(model, size=size)
        with contextlib.suppress(Exception):
            return inputs, _run(model, inputs)
    inputs = generate_inputs(model, size=_SIZES[-1])
    return inputs, _run(model, inputs)


def largest_difference(model, other) -> float:
    """The largest relative difference of two models' outputs for generated inputs."""
    inputs, old = _run_at_some_size(model)
    said = _largest_difference(old, _run(other, inputs))
    results = [keras.tree.flatten(m(inputs)) for m in (model, other)]  # mode not said
    return max(said, _largest_difference(*results))


def _largest_difference(old: list, new: list) -> float:
    return max(map(relative_difference, old, new), default=0.0)


def _run(model, inputs) -> list:
    """A model's outputs, with every generator of random numbers at one state.

    No variable is changed by it.
    """
    weights = {id(weight) for weight in model.weights}
    seeds = [v for v in model.variables if id(v) not in weights and "int" in v.dtype]
    fixed = [(v, keras.ops.ones(v.shape, v.dtype)) for v in seeds]
    with keras.StatelessScope(fixed):
        return keras.tree.flatten(model(inputs, training=False))


def tolerance_of(model, output=None) -> float:
    """What rounding may do to a model's outputs, relative to the largest."""
    return TOLERANCES[_coarsest(model, model.outputs[0] if output is None else output)]


def _coarsest(model, output) -> str:
    """The least exact dtype that the model computes in."""
    found = {layer.compute_dtype for layer in model.layers}
    found.add(keras.backend.standardize_dtype(output.dtype))
    if keras.backend.backend() != "tensorflow":
        # Keras 3.15 computes some of float64 in float32 there: matrix products on
        # PyTorch, `tanh` and its like on JAX.
        found.add("float32")
    order = ("float16", "bfloat16", "float32", "float64")
    return next((dtype for dtype in order if dtype in found), "float32")


def _named_tensors(graph: Graph) -> dict:
    """The first output of every call, by the name and number of the call."""
    found: dict = {}
    for node in graph.nodes:
        number = sum(key[0] == node.op.name for key in found)
        found[(node.op.name, number)] = node.outputs[0]
    return found


def _first_difference(masked, small, inputs, analysis, survivors, tolerance) -> str:
    old_graph, new_graph = trace(masked), trace(small)
    old, new = _named_tensors(old_graph), _named_tensors(new_graph)
    keys = [key for key in old if key in new]
    places = [(f"{name}_gate", number) for name, number in keys]
    fresh = [new.get(place, new[key]) for key, place in zip(keys, places)]
    before = keras.Model(old_graph.inputs, [old[key] for key in keys])
    after = keras.Model(new_graph.inputs, fresh)
    flat = keras.tree.flatten(inputs)
    outputs = (_run(before, flat), _run(after, flat))
    for key, expected, received in zip(keys, *outputs, strict=True):
        channels = analysis.flow.tensors[id(old[key])]
        array = keras.ops.convert_to_numpy(expected)
        for axis in range(array.ndim):
            kept = survivors.along(channels, axis)
            if kept is not None:
                array = np.compress(kept, array, axis=axis)
        if array.shape != tuple(received.shape):
            return f"first in the layer '{key[0]}', whose shape is not as planned"
        difference = relative_difference(array, received)
        if difference > tolerance:
            return f"first in the layer '{key[0]}' (by {difference:.2g})"
    return "though the outputs of all layers agree"
