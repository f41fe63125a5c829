"""Checking that two models compute the same function.

Both are run on the same inputs and compared channel by channel. An error counts in
relation to what its channel is worth, or where large numbers cancel out, to what
rounding does there: that is measured by running the model again with every weight
and input changed in its last bits.
"""

import contextlib
import dataclasses
import functools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from filterprune.channels.groups import Analysis
from filterprune.channels.registry import is_single_precision
from filterprune.channels.survivors import Survivors
from filterprune.channels.trace import (
    Graph,
    Node,
    copy_object,
    is_graph,
    is_layer,
    parts_of,
    takes_training,
    trace,
)
from filterprune.errors import VerificationError, warn
from filterprune.inputs import (
    generate_inputs,
    random_array,
    shape_for,
    sizes_to_try,
)
from filterprune.running import seeds_of, undisturbed

# What float rounding may do, relative to what a channel is worth.
TOLERANCES = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}
# The distance between two numbers, and how many times what a change of as much in
# every weight and input does to an output is put down to rounding.
_STEPS = {"float64": 2**-52, "float32": 2**-23, "bfloat16": 2**-7, "float16": 2**-10}
_TIMES = {"float64": 64, "float32": 64, "bfloat16": 8, "float16": 8}
# No channel is worth less than that part of the largest.
_LEAST = 1e-5
# By what samples are multiplied; half precision knows no large numbers.
_SCALES = (1.0, 1e3, 1e-2, 30.0, 0.1)
_HALF_SCALES = (1.0, 10.0, 1e-2, 3.0, 0.1)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far apart two models are.

    Attributes:
        difference: the largest difference between two outputs, relative to the
            largest value that is expected in that channel of that sample, or to
            what rounding explains there; `inf` if the outputs differ in number, in
            shape or in where they are finite.
        tolerance: the difference that float rounding explains.
        runs: the runs of the first model.
    """

    difference: float
    tolerance: float
    runs: "list[Run]" = dataclasses.field(default_factory=list, repr=False)

    @property
    def same(self) -> bool:
        """Whether both compute the same, up to rounding."""
        return self.difference <= self.tolerance


class Unverifiable(Exception):
    """Raised where no inputs can be found that a model takes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a model gives for some inputs.

    Attributes:
        inputs: arrays in the structure that the model takes.
        training: whether it was run in training mode.
        outputs: its outputs, as float64 arrays.
    """

    inputs: Any
    training: bool
    outputs: list[np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """How far apart two models are in several runs.

    Attributes:
        worst: the largest difference.
        run: the run that shows it.
        steady: whether the first model gives the same again.
    """

    worst: float
    run: Run
    steady: bool = True


def compare(model, other, inputs=None, tolerance=None) -> Comparison:
    """Compare what two models compute in inference.

    Args:
        model: a built functional or sequential model: what is expected.
        other: another one, or a function from inputs to outputs.
        inputs: arrays in the structure that `model` takes. Defaults to random ones.
        tolerance: the difference to allow, rounding included. Defaults to that of the
            least exact dtype in which `model` computes, and what else changes in the
            last bits of weights and inputs explain.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: if `model` takes none of the inputs that are generated for it.
    """
    try:
        runs = run_expected(model, inputs, training=False)
    except Unverifiable as error:
        raise ValueError(str(error)) from None
    if tolerance is None:
        tolerance = tolerance_of(model)
        worst = _difference(model, other, runs, tolerance).worst
    else:
        outputs = [_outputs(other, run.inputs) for run in runs]
        worst = _excess([run.outputs for run in runs], outputs, None)
    return Comparison(worst, tolerance)


def relative_difference(expected, received) -> float:
    """The largest difference, relative to the largest expected value.

    Args:
        expected, received: arrays of one shape.

    Returns:
        max |expected - received| / max |expected|; the numerator alone if all
        that is expected is zero; `inf` if one has a NaN where the other has
        none.
    """
    expected, received = _array(expected), _array(received)
    if not expected.size:
        return 0.0
    if not np.array_equal(np.isfinite(expected), np.isfinite(received)):
        return float("inf")
    expected, received = np.nan_to_num(expected), np.nan_to_num(received)
    scale = np.abs(expected).max()
    return float(np.abs(expected - received).max() / (scale if scale > 0 else 1.0))


def verify_same(
    masked,
    small,
    analysis: Analysis,
    survivors: Survivors,
    inputs=None,
    training: bool = True,
) -> float | None:
    """Raise unless a compact model computes what the masked one does.

    Args:
        masked, small: the models.
        analysis, survivors: what `small` was made by.
        inputs: arrays to run both on. Defaults to random ones.
        training: whether to compare them in training mode, too: a difference there
            is a warning.

    Returns:
        The largest relative difference over all outputs; `None`, with a warning,
        if there are no inputs that `masked` takes.

    Raises:
        VerificationError: if it is above what rounding explains.
    """

    def kept(tensor, array):
        channels = analysis.flow.tensors[id(tensor)]
        for axis in range(array.ndim):
            mask = survivors.along(channels, axis)
            if mask is not None:
                array = np.compress(mask, array, axis=axis)
        return array

    # Random numbers for fewer channels are other ones.
    training = training and not seeds_of(masked)
    what = f"The compact model does not compute what '{masked.name}' does"
    return _verify(masked, small, inputs, what, kept, training, strict=False)


def verify_wrapped(model, masked, inputs=None, runs=()) -> float | None:
    """Raise unless a masked model, its gates open, computes what the plain one does.

    Args:
        model, masked: the models.
        inputs: arrays to run both on. Defaults to random ones.
        runs: what is known to come out of `model`. Defaults to nothing.

    Returns, Raises: as for `verify_same`.
    """
    known = list(runs[:1]) if inputs is None else None
    _SIZES_OF[masked] = _SIZES_OF.setdefault(model, [])
    what = f"The masked model does not compute what '{model.name}' does"
    # With open gates nothing is computed in another way: one run will do.
    return _verify(
        *(model, masked, inputs, what, lambda tensor, array: array),
        share=0.0,
        runs=known,
    )


def verify_layer(layer, masked) -> None:
    """Raise unless a masked layer, its gates open, computes what the layer does.

    Both are run on small inputs of the shape for which the layer was built, if that
    is known, in inference.
    """
    config = layer.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"input_shape": config.get("input_shape")}
    for size in _LAYER_SIZES:
        try:
            # Keras casts not the inputs of every layer to the dtype it computes in.
            inputs = [
                keras.ops.cast(array, layer.compute_dtype)
                if "float" in keras.backend.standardize_dtype(array.dtype)
                else array
                for array in (
                    random_array(tuple(shape), size, [layer])
                    for shape in shapes.values()
                    if shape is not None
                )
            ]
            names = [name.removesuffix("_shape") for name in shapes]
            given = dict(zip(names, inputs)) if len(inputs) > 1 else {}
            run = functools.partial(_run_layer, args=inputs[:1], kwargs=given)
            expected = run(layer)
        except Exception:  # another size may fit, or none
            continue
        if not masked.built:  # what is built while it runs would be lost with it
            try:
                masked.build_from_config(config)
            except TypeError:  # it reads the first tensor alone
                masked.build(next(iter(shapes.values())))
        received = run(masked)
        worst = max(map(relative_difference, expected, received), default=0.0)
        allowed = TOLERANCES[_least_exact({layer.compute_dtype})]
        if not worst <= allowed and not relative_difference(expected[0], run(layer)[0]):
            raise VerificationError(
                f"The masked layer of '{layer.name}' (of type {type(layer).__name__}) "
                f"computes something else, by {worst:.2g} of the largest value "
                f"(allowed: {allowed:.0e}). This is a bug in filterprune or in a rule "
                "for that layer; please report it. The layer is unharmed."
            )
        return


_LAYER_SIZES = ((5, 7, 3), (16, 16, 16))


def _run_layer(layer, args, kwargs) -> list:
    mode = {"training": False} if takes_training(layer) else {}
    with undisturbed(layer, seed=1):
        outputs = layer(**kwargs, **mode) if kwargs else layer(*args, **mode)
    return [_array(output) for output in keras.tree.flatten(outputs)]


def verify_folded(model, small) -> float | None:
    """Raise unless a model without batch norms computes what it did with them.

    Args, Returns, Raises: as for `verify_same`.
    """
    what = f"'{model.name}' computes something else with its batch norms folded"
    return _verify(model, small, None, what, lambda tensor, array: array, False)


def fitting_inputs(model, samples: int = 2):
    """Random inputs of a size that a model takes.

    Raises:
        ValueError: if it takes none of those that are generated.
    """
    try:
        size = _run_at_some_size(model, samples)[1]
        return generate_inputs(model, samples, size=size)
    except Unverifiable as error:
        raise ValueError(str(error)) from None


def is_same(model, other) -> Comparison | None:
    """Compare two models in both modes; None where no inputs can be found."""
    try:
        runs = run_expected(model)
    except Unverifiable:
        return None
    allowed = tolerance_of(model)
    try:
        found = _difference(model, other, runs, allowed)
    except VerificationError:  # it raises for inputs that the first one takes
        return Comparison(math.inf, allowed, runs)
    # Inference was compared first; what is random in training mode cannot be.
    random = found.run.training and not found.steady
    return Comparison(0.0 if random else found.worst, allowed, runs)


def _verify(
    model, other, inputs, what, kept, training=True, strict=True, share=3.4, runs=None
) -> float | None:
    try:
        runs = runs or run_expected(model, inputs, training, share)
    except Unverifiable as error:
        warn(
            f"'{other.name}' was made, and not verified: {error}",
        )
        return None
    allowed = tolerance_of(model)
    found = _difference(model, other, runs, allowed)
    worst, run = found.worst, found.run
    if worst <= allowed:
        return worst
    if not found.steady:
        if not run.training:
            warn(
                f"'{model.name}' gives other outputs for the same inputs every time: "
                f"that '{other.name}' does what it does could not be verified. Draw "
                "random numbers from a `keras.random.SeedGenerator`, which a check "
                "can set.",
            )
        return worst
    mode = "in training mode " if run.training else ""
    where = _first_difference(model, other, run, kept, allowed)
    if run.training and not strict:
        warn(
            f"{what} in training mode, though it does in inference: the outputs differ "
            f"by {worst:.2g} of the largest value of a channel, {where}. Train it on "
            "with care.",
        )
        return worst
    raise VerificationError(
        f"{what}: {mode}the outputs differ by {worst:.2g} of the largest value of a "
        f"channel (allowed: {allowed:.0e}), {where}. This is a bug in filterprune or "
        f"in a rule for that layer; please report it. '{model.name}' is unharmed."
    )


# The open sizes that a model was found to take.
_SIZES_OF: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def run_expected(
    model, inputs=None, training: bool = True, share: float = 3.4
) -> list[Run]:
    """Run a model on inputs that it takes.

    Args:
        model: a functional or sequential model.
        inputs: arrays to run it on. Defaults to random ones, of several scales,
            sizes and numbers of samples; of fewer if it takes long to run.
        training: whether to run it in training mode as well.
        share: see `_samples`.

    Raises:
        Unverifiable: if it takes none of the inputs that are generated.
    """
    if inputs is not None:
        return [
            Run(inputs, mode, _outputs(model, inputs, mode))
            for mode in ([False, True] if training else [False])
        ]
    many, alone, trained = _samples(model, share)
    if not any(None in tensor.shape[1:] for tensor in model.inputs):
        alone = 0  # there is no other size to try
    if not any(takes_training(node.op) for node in _all_nodes(trace(model))):
        trained = 0  # no layer is told the mode
    first, found = _run_some(model, many)
    runs = [first]
    if alone:
        with contextlib.suppress(Unverifiable):
            runs.append(_run_at_some_size(model, alone, but=found)[0])
    if training and trained:
        with contextlib.suppress(Exception):  # a net may be made for inference only
            inputs = _generate(model, trained, found, scales=(1.0,))
            runs.append(Run(inputs, True, _outputs(model, inputs, True)))
    return runs


def _run_some(model, samples: int) -> tuple[Run, tuple]:
    """Run a model on so many samples, or on fewer: a constant may fix their number."""
    for count in (samples, 2):
        with contextlib.suppress(Unverifiable):
            return _run_at_some_size(model, count)
    return _run_at_some_size(model, 1)


def _run_at_some_size(model, samples: int, but=None) -> tuple[Run, tuple]:
    """Run a model at a size that it takes, if it can be at another one than `but`."""
    known = _SIZES_OF.setdefault(model, [])
    rest = [size for size in sizes_to_try(model) if size not in known]
    first, tried = but is None, 0
    empty = reason = None
    opened = any(None in tensor.shape[1:] for tensor in model.inputs)
    for size in [*known, *rest]:
        if size == but:
            continue
        if not first and size not in known:
            tried += 1
            if tried > _MORE:
                break
        try:
            inputs = _generate(model, samples, size)
            run = Run(inputs, False, _outputs(model, inputs, False))
        except Exception as error:
            reason = error
            continue
        steady = size in known or not opened or _is_steady(model, run)
        if not steady or not all(np.isfinite(y).any() for y in run.outputs):
            empty = empty or (run, size)  # of maps that have no pixels left, perhaps
            continue
        if size not in known:
            known.append(size)
        return run, size
    if first and empty is not None:
        return empty
    text = " ".join(str(reason).split())[:200]
    raise Unverifiable(
        f"'{model.name}' takes none of the inputs that were generated for it (the "
        f"last error: {text}). Pass `verify=inputs`, arrays that it takes, to have it "
        "verified, or `verify=False`."
    )


# How many more sizes to try for a second one.
_MORE = 3


def _is_steady(model, run: Run) -> bool:
    """Whether a model gives the same again: an empty map may give anything."""
    again = _outputs(model, run.inputs)
    return all(
        np.array_equal(*pair, equal_nan=True) for pair in zip(run.outputs, again)
    )


def _generate(model, samples, size, scales=None):
    half = _coarsest(model, model.outputs[0]) in ("float16", "bfloat16")
    scales = scales or (_HALF_SCALES if half else _SCALES)
    return generate_inputs(model, samples, size=size, scales=scales)


def _samples(model, share: float) -> tuple[int, int, int]:
    """How many samples to run at once: at many scales, alone, and in training mode.

    A run takes about a millisecond for each layer, a tenth of what it takes to make
    the model anew, and then what the samples take.

    Args:
        model: the model.
        share: how many milliseconds to take for each layer, if it takes long; 0 for
            one run.
    """
    nodes = list(_all_nodes(trace(model)))
    alone = 1e-3 * max(len(nodes), 1)
    sample = sum(map(_seconds, nodes))
    if not share:
        quick = (n for n in (5, 2) if n * sample <= max(alone, _QUICK))
        return next(quick, 1), 0, 0
    for plan in ((5, 1, 2), (2, 0, 2), (5, 0, 0), (2, 0, 0)):
        seconds = sample * sum(plan) + alone * sum(map(bool, plan))
        if seconds <= max(share * alone, _QUICK):
            return plan
    return 1, 0, 0


_QUICK = 0.1  # seconds
_USUAL = 32  # for sizes that are left open


def _all_nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        if is_graph(node.op):
            yield from _all_nodes(trace(node.op))
        else:
            yield node


def _seconds(node: Node) -> float:
    """About how long a call takes for one sample, the call itself not counted."""
    shapes = [shape_for(tensor, 1, _USUAL) for tensor in node.outputs]
    elements = sum(math.prod(shape) for shape in shapes)
    sizes = [math.prod(weight.shape) for weight in getattr(node.op, "weights", ())]
    products = max(sizes, default=0) * elements / max([1, *shapes[0][-1:]])
    return 3e-9 * elements + 4e-11 * products


def _outputs(
    model, inputs, training=False, noise: int | None = None, again: bool = False
) -> list:
    """A model's outputs, with every generator of random numbers at one state.

    Args:
        model: a model, or a function from inputs to outputs.
        inputs: arrays in the structure that it takes.
        training: whether to run it in training mode.
        noise: a seed, to change all floats that it reads in their last bits.
        again: whether to take the outputs of a second call, for which all generators
            of random numbers, Keras' own too, have moved on.
    """
    if not is_layer(model):
        return [_array(output) for output in keras.tree.flatten(model(inputs))]
    original = model
    unbuilt = [part.built for part in parts_of(model)].count(False)
    if unbuilt and training not in _BUILDS_NOTHING.get(model, ()):
        model = copy_object(model)  # to build them cannot be undone
    values: list[tuple] = []
    if noise is not None:
        rng = np.random.default_rng(noise)
        step = _STEPS[_coarsest(model, model.outputs[0])]

        def shake(array):
            array = keras.ops.convert_to_tensor(array)
            dtype = keras.backend.standardize_dtype(array.dtype)
            if "float" not in dtype:
                return array
            signs = rng.choice([1 - _SHAKE * step, 1 + _SHAKE * step], array.shape)
            exact = keras.ops.convert_to_numpy(array).astype("float64") * signs
            return keras.ops.cast(exact, dtype)

        inputs = keras.tree.map_structure(shake, inputs)
        values = [(v, shake(v)) for v in model.weights if "float" in v.dtype]
    with undisturbed(model, values=values, seed=1):
        for _ in range(1 + again):
            outputs = model(inputs, training=training)
    left = [part.built for part in parts_of(model)].count(False)
    if left and left == unbuilt:
        _BUILDS_NOTHING.setdefault(original, set()).add(training)
    return [_array(output) for output in keras.tree.flatten(outputs)]


# Models with parts that no call builds, since none calls them, and in which modes.
_BUILDS_NOTHING: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_SHAKE = 4
_SEEDS = (1, 2)


def _times(model, allowed: float) -> float:
    """By what the effect of a change in the last bits is multiplied."""
    return _TIMES[_coarsest(model, model.outputs[0])] / (_SHAKE * allowed)


def _array(value) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value), "float64")


def _difference(model, other, runs: list[Run], allowed: float) -> Difference:
    """The largest difference of two models' outputs, and the run that shows it."""
    worst = Difference(0.0, runs[0])
    for mode in (False, True):
        chosen = [run for run in runs if run.training is mode]
        old = [run.outputs for run in chosen]
        new: list = []
        for run in chosen:
            try:
                new.append(_outputs(other, run.inputs, mode))
            except Exception as error:
                if not is_layer(other):
                    raise
                raise VerificationError(
                    f"The new model raises for inputs that '{model.name}' takes: "
                    f"{' '.join(str(error).split())[:300]}. This is a bug in "
                    "filterprune or in a rule for one of its layers; please report it."
                ) from error
        found = _excess(old, new, None)
        if not found <= allowed:
            # In training a layer may draw from a generator that no model lists.
            again = [_outputs(model, r.inputs, mode, again=mode) for r in chosen]
            if not _by_sample(old, again) <= allowed:
                return Difference(found, chosen[0], steady=False)
            shaken = [
                [_outputs(model, run.inputs, mode, noise=seed) for run in chosen]
                for seed in _SEEDS
            ]
            found = _excess(old, new, (shaken, _times(model, allowed)))
        if not found <= worst.worst:
            single = [_excess([a], [b], None) for a, b in zip(old, new)]
            worst = Difference(found, chosen[int(np.argmax(single))])
        if not worst.worst <= allowed:
            break
    return worst


def _excess(old: list[list], new: list[list], noise) -> float:
    """The largest difference, relative to what a channel of a sample is worth.

    Args:
        old, new: for each run the outputs of both models.
        noise: pairs of outputs of the first model for each run, with what it reads
            changed in the last bits, and by how much what that does is multiplied;
            `None` to leave rounding out of account.
    """
    found = 0.0
    for run, pair in enumerate(zip(old, new)):
        if [a.shape for a in pair[0]] != [b.shape for b in pair[1]]:
            return float("inf")
        for number, (expected, received) in enumerate(zip(*pair)):
            moved = [shaken[run][number] for shaken in noise[0]] if noise else []
            differs = np.isfinite(expected) != np.isfinite(received)
            for other in moved:
                differs &= np.isfinite(expected) == np.isfinite(other)
            if differs.any():
                return float("inf")
    for number in range(len(old[0]) if old else 0):
        axes = {-1, 1} if old[0][number].ndim > 2 else {-1}
        for axis in axes:
            expected, received = (
                [_by_channel(outputs[number], axis) for outputs in one]
                for one in (old, new)
            )
            shaken = [
                [_by_channel(outputs[number], axis) for outputs in one]
                for one in (noise[0] if noise else ())
            ]
            found = max(
                found,
                _worst(expected, received, shaken, noise[1] if noise else 0.0),
            )
    return found


def _by_sample(old: list[list], new: list[list]) -> float:
    """The largest difference, relative to the largest value of a sample."""
    return max(
        (
            relative_difference(*pair)
            for run in zip(old, new)
            for outputs in zip(*run)
            for pair in zip(*map(np.atleast_1d, outputs))
        ),
        default=0.0,
    )


def _by_channel(array: np.ndarray, axis: int) -> np.ndarray:
    """An array as `(samples, positions, channels)`."""
    array = np.where(np.isfinite(array), array, 0.0)  # what overflows tells nothing
    if array.ndim < 2:
        return array.reshape(-1, 1, 1)
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(moved.shape[0], -1, moved.shape[-1])


def _worst(old, new, shaken, times: float) -> float:
    """See `_excess`: of one output of all runs, `(samples, positions, channels)`."""
    errors = [_peaks(a - b) for a, b in zip(old, new)]
    worth = [_peaks(a) for a in old]
    whole = [np.max(w, axis=1, keepdims=True, initial=0.0) for w in worth]
    allowed = [_spread(worth, whole)]
    for moved in shaken:
        rounding = [times * _peaks(a - b) for a, b in zip(old, moved)]
        allowed.append(_spread(rounding, whole))
    worst = 0.0
    for error, size, *limits in zip(errors, whole, *allowed):
        limit = np.maximum(np.max(limits, axis=0), _LEAST * size)
        limit = np.where(limit > 0, limit, 1.0)
        worst = max(worst, float(np.max(error / limit, initial=0.0)))
    return worst


def _peaks(array: np.ndarray) -> np.ndarray:
    """The largest absolute value of each channel, `(samples, channels)`."""
    return np.max(np.abs(array), axis=1, initial=0.0)


def _spread(values: list[np.ndarray], whole: list[np.ndarray]) -> list[np.ndarray]:
    """The largest share that a channel has of any sample, for all of them.

    A number that is small by chance, in one sample, is no channel of little worth.
    """
    shares = [np.divide(v, w, out=v * 0.0, where=w > 0) for v, w in zip(values, whole)]
    found = []
    for own, size in zip(shares, whole):
        same = [share for share in shares if share.shape[1] == own.shape[1]]
        found.append(size * np.max(np.concatenate(same), axis=0, initial=0.0))
    return found


def tolerance_of(model, output=None) -> float:
    """What rounding may do to a model's outputs, relative to the largest."""
    return TOLERANCES[_coarsest(model, model.outputs[0] if output is None else output)]


def _coarsest(model, output) -> str:
    """The least exact dtype that the model computes in."""
    found = {layer.compute_dtype for layer in model.layers}
    if any(is_single_precision(node.op) for node in _all_nodes(trace(model))):
        found.add("float32")
    return _least_exact({*found, keras.backend.standardize_dtype(output.dtype)})


def _least_exact(dtypes: set[str]) -> str:
    """The least exact dtype of some that layers compute in."""
    if keras.backend.backend() != "tensorflow":
        # Keras 3.15 computes some of float64 in float32 there: matrix products on
        # PyTorch, `tanh` and its like on JAX.
        dtypes = {*dtypes, "float32"}
    order = ("float16", "bfloat16", "float32", "float64")
    return next((dtype for dtype in order if dtype in dtypes), "float32")


def _named_tensors(graph: Graph) -> dict:
    """The first output of every call, by the name and number of the call."""
    found: dict = {}
    for node in graph.nodes:
        number = sum(key[0] == node.op.name for key in found)
        found[(node.op.name, number)] = node.outputs[0]
    return found


def _first_difference(model, other, run: Run, kept: Callable, allowed: float) -> str:
    old_graph, new_graph = trace(model), trace(other)
    old, new = _named_tensors(old_graph), _named_tensors(new_graph)
    keys = [key for key in old if key in new]
    if not keys:
        return "in no layer that both have"
    places = [(f"{name}_gate", number) for name, number in keys]
    fresh = [new.get(place, new[key]) for key, place in zip(keys, places)]
    before = keras.Model(old_graph.inputs, [old[key] for key in keys])
    after = keras.Model(new_graph.inputs, fresh)
    flat = keras.tree.flatten(run.inputs)
    found = [_outputs(each, flat, run.training) for each in (before, after)]
    found += [_outputs(before, flat, run.training, noise=seed) for seed in _SEEDS]
    for key, expected, received, *shaken in zip(keys, *found, strict=True):
        expected, *shaken = (kept(old[key], each) for each in (expected, *shaken))
        if expected.shape != received.shape:
            return f"first in the layer '{key[0]}', whose shape is not as planned"
        noise = ([[[each]] for each in shaken], _times(model, allowed))
        difference = _excess([[expected]], [[received]], noise)
        if difference > allowed:
            return f"first in the layer '{key[0]}' (by {difference:.2g})"
    return "though the outputs of all layers agree"
