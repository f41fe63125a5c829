"""Probing a layer that no rule is known for: is it channel-wise?

A layer is taken to work on each channel alone only if that is proved by
running it. Channels are changed in groups, two for each bit of their number: if an
output channel depended on another input channel, one of the groups would hold the
one and not the other. Then copies with fewer channels are made, as `compact` makes
them, and must give those of the outputs. A layer that fails, or hides other layers,
is a barrier. Of layers that differ in their sizes alone one is studied so; the others
must show the same in fewer runs, or are studied too.

All of this is done on samples of many scales and signs, with the weights that the
layer has and with others: a gain that is zero when training starts hides what it
will let through. Samples are run together once they are known not to see each other.
A large map is probed at a smaller size, and then once at its own.

What is run is a copy of the layer: a call may change more than variables.
"""

import contextlib
import dataclasses
import random
import weakref
from collections.abc import Callable, Iterator

import keras
import numpy as np

from filterprune.channels.constants import open_shapes
from filterprune.channels.likeness import likeness, likeness_of_arguments
from filterprune.channels.registry import why_whole
from filterprune.channels.remaking import config_of, remake
from filterprune.channels.trace import (
    Node,
    copy_object,
    parts_of,
    takes_training,
    without_mask,
)

_SMALL = 2**13  # elements of a sample: a larger one is probed at another size first
_MOST = 2**24  # elements: a larger tensor is not probed
# For the axes of a map that the model leaves open: odd, prime and not square, as long
# as the layer takes them.
_OPEN_SIZES = ((5, 7, 3), (13, 11, 5), (32, 48, 16), (96, 64, 32))
_SCALES = (1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)
_FEW = [1, 2, 4, 7, 8]  # of the samples of `_samples`, for other weights
_FEWER = [2, 4, 7]  # for layers of which another of their kind was studied
_BATCHES = (2, 5)
_TRIES = 8  # of what is random, and may by chance come out otherwise
_TELLING = 4  # channels, of which a layer tells something of others of its kind


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        reason: why the layer is not channel-wise; `None` if it is.
        weights: for each weight that has an axis of channels (by its number
            in `layer.weights`) that axis.
        config: the names of the config entries that count channels.
        keeps_zero: whether zeros become zeros, whatever the weights.
        whole: whether the layer takes fewer channels as it is, and cannot be made
            from its config.
        chance: whether it is random in training mode, as `_is_random` says.
    """

    reason: str | None = None
    weights: tuple[tuple[int, int], ...] = ()
    config: tuple[str, ...] = ()
    keeps_zero: bool = False
    whole: bool = False
    chance: str | None = None


class _Refused(Exception):
    """Raised where a layer is found not to be channel-wise, with the reason."""


_FOUND: dict[tuple, Finding] = {}
# What was found of layers of which nothing tells that another is alike.
_FOUND_OF: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def probe(layer, node: Node, axis: int, training: bool = False) -> Finding:
    """Find out by running it whether a layer works on each channel alone.

    Args:
        layer: a built layer.
        node: a call of it; all its tensors have the channels of the output
            along `axis`.
        axis: the axis of channels.
        training: whether it is called in training mode whatever the model is.

    Returns:
        A `Finding`. The layer is not changed.
    """
    key, tells_all = _key(layer, node, axis, training)
    known = _FOUND if tells_all else _FOUND_OF.setdefault(layer, {})
    if key not in known:
        kin, _ = _key(layer, node, axis, training, sizes=False)
        states = random.getstate(), np.random.get_state()
        try:
            known[key] = _probe(layer, node, axis, training, known.get(kin))
            if node.inputs[0].shape[axis] >= _TELLING:
                known.setdefault(kin, known[key])
        except _Refused as refused:
            known[key] = Finding(str(refused))
        except Exception as error:
            known[key] = Finding(f"it cannot be run on its own: {error}")
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
    return known[key]


def _key(layer, node, axis, training, sizes=True) -> tuple[tuple, bool]:
    """What layers have in common of which one probe will do, and if that tells all.

    Args:
        layer, node, axis, training: as for `probe`.
        sizes: whether their weights and tensors must have the same sizes.
    """
    alike, tells_all = likeness(layer, sizes)
    arguments, tell_all = likeness_of_arguments(node, sizes)
    weights = tuple(
        (tuple(w.shape) if sizes else len(w.shape), w.dtype) for w in layer.weights
    )
    key = (alike, weights, arguments, axis, training, sizes)
    return key, tells_all and tell_all


def hidden_layers(layer) -> str | None:
    """Why a layer that is made of others is not probed; None for any other."""
    inner = {type(part).__name__ for part in parts_of(layer)}
    if not inner:
        return None
    reason = why_whole(layer)
    return (
        f"it is a composite layer, which hides {', '.join(sorted(inner))}"
        + (f", and cannot be expanded: {reason}" if reason else "")
        + "; write a rule for it, or call those layers in a functional model"
    )


def _probe(layer, node, axis, training, kin: Finding | None) -> Finding:
    hidden = hidden_layers(layer)
    if hidden is not None:
        raise _Refused(hidden)
    subject = _Subject(copy_object(layer), node, axis)

    def look(size) -> Finding:
        if kin is not None:
            with contextlib.suppress(Exception):
                return _confirm(layer, subject, size, kin, is_kin=True)
        return _study(layer, subject, size, training)

    shape = tuple(node.inputs[0].shape)
    sizes = [shape[1:]]
    if None in shape[1:]:
        sizes = subject.accepted(open_shapes(shape, _OPEN_SIZES), most=2)
        if not sizes:
            raise _Refused("it cannot be run on its own: no size fits")
    elif np.prod(shape[1:]) > _SMALL:
        smaller = subject.accepted([_shrunk(shape, axis)], most=1)
        if smaller:
            try:
                return _confirm(layer, subject, sizes[0], look(smaller[0]))
            except _Refused:  # perhaps only because of the size
                pass
    if max(map(np.prod, sizes)) * len(node.inputs) > _MOST:
        raise _Refused("it is too large to be probed")
    first = look(sizes[0])
    for size in sizes[1:]:
        first = _confirm(layer, subject, size, first)
    return first


def _shrunk(shape, axis) -> tuple[int, ...]:
    """The shape of a sample with fewer positions."""
    few = (3, 3, 2)
    return tuple(
        size if i == axis else min(size, few[min(i - 1, 2)])
        for i, size in enumerate(shape)
        if i
    )


class _Subject:
    """A layer that is run on arrays, as it is called in the model.

    Args:
        layer: a copy of the user's layer, or one with fewer channels.
        node: the call.
        axis: the axis of channels.
    """

    def __init__(self, layer, node: Node, axis: int):
        self.layer, self.node, self.axis = layer, node, axis
        self.inputs = len(node.inputs)
        self.batch = node.inputs[0].shape[0]
        self.count = node.inputs[0].shape[axis]
        self.modes = [False, True] if takes_training(layer) else [False]
        self.chance: str | None = None  # whether it is random, as `_is_random` says
        exact = keras.config.floatx() == "float64" or "16" not in layer.compute_dtype
        self.tolerance = 1e-4 if exact else 2e-2

    def arguments(self, points) -> tuple[tuple, dict]:
        """The arguments of the call with arrays in place of its tensors."""
        tensors = {
            id(tensor): keras.ops.cast(array, tensor.dtype)
            for tensor, array in zip(self.node.inputs, points, strict=True)
        }
        args, kwargs = self.node.fill(tensors)
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        return args, without_mask(self.layer, kwargs)

    def run(self, points, weights=None, training=False, again=False) -> np.ndarray:
        """The output for one array, of samples, for each input.

        Args:
            points: the arrays, `(samples, ...)`.
            weights: values to run with instead of those that the layer has.
            training: the mode.
            again: whether generators of random numbers have been used before.
        """
        if self.batch is not None and len(points[0]) != self.batch:
            return self._run_in_batches(points, weights, training, again)
        args, kwargs = self.arguments(points)
        if takes_training(self.layer):
            kwargs["training"] = training
        own = self.layer.weights if weights else []
        with keras.StatelessScope(list(zip(own, weights or [], strict=True))):
            if again:
                self.layer.call(*args, **kwargs)
            output = self.layer.call(*args, **kwargs)
        array = np.asarray(keras.ops.convert_to_numpy(output))
        return array if array.dtype.kind == "f" else array.astype("float64")

    def _run_in_batches(self, points, *how) -> np.ndarray:
        """Run on as many samples as the model takes at once."""
        numbers = np.arange(-(-len(points[0]) // self.batch) * self.batch)
        numbers = numbers.reshape(-1, self.batch) % len(points[0])
        parts = [self.run([p[rows] for p in points], *how) for rows in numbers]
        return np.concatenate(parts)[: len(points[0])]

    def accepted(self, sizes, most: int) -> list[tuple[int, ...]]:
        """The first of some sizes of a sample that the layer can be run on."""
        found: list[tuple[int, ...]] = []
        for size in sizes:
            if len(found) == most or np.prod(size) * self.inputs > _MOST:
                break
            try:
                self.run([np.zeros((1, *size), "float32")] * self.inputs)
            except Exception:
                continue
            found.append(tuple(size))
        return found

    def with_fewer(self, layer, count: int) -> "_Subject":
        """The same for a copy that has fewer channels."""
        other = _Subject(layer, self.node, self.axis)
        other.count = count
        return other


@dataclasses.dataclass(eq=False)
class _Trial:
    """What a layer makes of some samples with some weights in one mode."""

    points: list
    weights: list | None
    training: bool
    output: np.ndarray


def _study(layer, subject, size, training) -> Finding:
    """Probe a layer on samples of one size, in every way."""
    rng = np.random.default_rng(0)
    points = [_samples(rng, size) for _ in range(subject.inputs)]
    chance = subject.chance = _is_random(subject, points)
    if training and chance:
        raise _Refused("it is called in training mode, where it is random")
    few = [array[_FEW] for array in points]
    trials = []
    for mode in subject.modes[: 1 if chance else 2]:
        for weights in (None, *_draws(subject.layer, rng)):
            given = few if weights else points
            trials.append(_check_channels(subject, given, weights, mode, rng))
            if weights is None:
                _check_batches(subject, trials[-1])
    if not np.isfinite(trials[0].output).any():
        raise _Refused("it makes no numbers of any input")
    if chance == "seeded":
        _check_seeded(subject, points, rng)
    elif chance:
        _check_unseeded(subject, points, rng)
    keeps_zero = _keeps_zero(subject, [size], chance)
    found = _with_fewer(layer, subject, trials, rng)
    return dataclasses.replace(found, keeps_zero=keeps_zero, chance=chance)


def _confirm(layer, subject, size, found: Finding, is_kin=False) -> Finding:
    """Probe at another size what was found at one, in a run or two for each mode.

    Args:
        layer, subject: the layer, and how it is run.
        size: the size of a sample.
        found: what was found at another size.
        is_kin: whether of a layer with another number of channels. Then every channel
            is looked at, with other weights too; and then `size` is small.
    """
    rng = np.random.default_rng(1)
    subject.chance = found.chance
    weights: list = [None]
    if is_kin:
        points = [_samples(rng, size)[_FEWER] for _ in range(subject.inputs)]
        weights += list(_draws(subject.layer, rng))[2:3]
    else:
        points = [_tiled(rng, size) for _ in range(subject.inputs)]
    count, number = subject.count, max(subject.count // 2, 1)
    some = np.sort(rng.permutation(count)[:number])
    narrow = [_take(p, some, subject) for p in points]
    small = _made(layer, subject, found, number, narrow)
    if is_kin and _axes(subject.layer, small.layer, count, number) != found.weights:
        raise _Refused(_NO_COPY)
    subsets = [some, *_ends(count, number)] if is_kin else [some]
    bits = None if is_kin else 1
    for mode in subject.modes[: 1 if subject.chance else 2]:
        for values in weights:
            trial = _check_channels(subject, points, values, mode, rng, bits)
            if not all(
                _agrees(subject, small, trial, kept, found.weights)
                for kept in (subsets if values is None else subsets[:1])
            ):
                raise _Refused(_NO_COPY)
    keeps_zero = (is_kin or found.keeps_zero) and _keeps_zero(
        subject, [size], subject.chance
    )
    return dataclasses.replace(found, keeps_zero=keeps_zero)


def _samples(rng, size) -> np.ndarray:
    """Samples of many scales, of both signs, of one and with many zeros."""
    count = len(_SCALES) + 3
    scales = np.array([*_SCALES, 3.0, 3.0, 30.0], "float32")
    x = rng.standard_normal((count, *size), "float32")
    x[-3] = np.abs(x[-3])
    x[-2] = -np.abs(x[-2])
    x[-1] = np.maximum(x[-1], 0)
    return x * scales.reshape(-1, *[1] * len(size))


def _tiled(rng, size) -> np.ndarray:
    """A large sample, of the same numbers over and over."""
    pool = rng.standard_normal(99_991, "float32")  # a prime: rows differ
    return np.resize(pool, (1, *size))


def _draws(layer, rng) -> Iterator[list]:
    """Random weights of every sign and scale; integers, such as indices, stay."""
    if not any("float" in weight.dtype for weight in layer.weights):
        return
    for draw in (
        lambda shape: rng.uniform(0.5, 1.5, shape),
        lambda shape: rng.uniform(-1.5, -0.5, shape),
        lambda shape: rng.normal(0, 1, shape),
        lambda shape: rng.normal(0, 1e-3, shape),
        lambda shape: rng.normal(0, 30, shape),
    ):
        yield [
            draw(tuple(weight.shape))
            if "float" in weight.dtype
            else keras.ops.convert_to_numpy(weight)
            for weight in layer.weights
        ]


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a != b) & ~(np.isnan(a) & np.isnan(b))


def _is_random(subject, points) -> str | None:
    """Whether the layer is random in training mode: `"seeded"`, `"unseeded"`, `None`.

    What starts from a generator's state gives the same from the same state.
    """
    if True not in subject.modes:
        return None
    count = 64 if points[0].size < 2**18 else len(points[0])
    many = [np.resize(p, (count, *p.shape[1:])) for p in points]
    first, second = (subject.run(many, training=True) for _ in range(2))
    if _differ(first, second).any():
        return "unseeded"
    later = subject.run(many, training=True, again=True)
    if not _differ(first, later).any():
        return None
    repeated = (subject.run(many, training=True, again=True) for _ in range(_TRIES))
    rare = any(_differ(later, other).any() for other in repeated)
    return "unseeded" if rare else "seeded"


def _groups(count: int, rng, bits: int | None) -> list[np.ndarray]:
    """Groups of channels, of any two of which one is in a group without the other."""
    numbers = rng.permutation(count)
    most = max(count - 1, 1).bit_length()
    bits = most if bits is None else min(bits, most)
    return [(numbers >> bit) & 1 == v for bit in range(bits) for v in (0, 1)]


def _moved(points, chosen, axis, rng) -> list[np.ndarray]:
    """Other samples, of which some channels are others."""
    found = []
    for array in points:
        if array[0].size > _SMALL:  # whatever is quick to make
            shape = [1] * array.ndim
            shape[axis] = chosen.size
            mask = chosen.astype(array.dtype).reshape(shape)
            found.append(array * (1 - 3 * mask) + mask)
            continue
        moved = np.moveaxis(array.copy(), axis, -1)
        part = moved[..., chosen]
        noise = np.resize(rng.standard_normal(min(part.size, 99_991)), part.shape)
        size = np.abs(part).max(axis=tuple(range(1, part.ndim)), keepdims=True)
        moved[..., chosen] = part + (0.1 + size) * noise
        found.append(np.moveaxis(moved, -1, axis))
    return found


def _check_channels(subject, points, weights, mode, rng, bits=None) -> _Trial:
    """Raise if a channel of the output depends on another one of the input."""
    groups = _groups(subject.count, rng, bits)
    moved = [_moved(points, chosen, subject.axis, rng) for chosen in groups]
    stacked = [np.concatenate(arrays) for arrays in zip(points, *moved, strict=True)]
    base, *results = np.split(
        _checked(subject, stacked, weights, mode), len(groups) + 1
    )
    for chosen, arrays, result in zip(groups, moved, results, strict=True):
        if not _leak(subject, base, result, chosen):
            continue
        # Rounding depends on the place of a sample among others: one by one then.
        for number in range(len(base)):
            one, other = (
                _checked(
                    subject, [a[number : number + 1] for a in given], weights, mode
                )
                for given in (points, arrays)
            )
            if _leak(subject, one, other, chosen) and _leak(
                subject, base[[number]], result[[number]], chosen
            ):
                raise _Refused("it mixes channels")
    return _Trial(points, weights, mode, base)


def _checked(subject, points, weights, mode) -> np.ndarray:
    """An output, which must have the channels of the inputs."""
    output = subject.run(points, weights, mode)
    axis, shape = subject.axis, points[0].shape
    if output.ndim != len(shape) or output.shape[axis] != shape[axis]:
        raise _Refused("it mixes channels")
    if len(output) != len(points[0]):
        raise _Refused("its output for one sample depends on the others")
    return output


def _leak(subject, base, result, chosen) -> bool:
    """Whether channels that are not among those chosen differ."""
    one = np.compress(~chosen, base, subject.axis)
    other = np.compress(~chosen, result, subject.axis)
    return not np.array_equal(one, other) and bool(_differ(one, other).any())


def _check_batches(subject, trial) -> None:
    """Raise if what comes out for a sample depends on the others in its batch."""
    if subject.batch is not None:
        return
    last = len(trial.output)
    batches = [(number, number + 1) for number in range(last)]
    batches += [part for n in _BATCHES for part in ((0, n), (last - n, last))]
    for start, stop in batches:

        def alike(again, part=slice(start, stop)):
            given = [array[part] for array in trial.points]
            result = subject.run(given, trial.weights, trial.training)
            expected = trial.output
            if again:
                expected = subject.run(trial.points, trial.weights, True)
            return _close(result, expected[part], subject)

        if not _in_time(alike, trial.training):
            raise _Refused("its output for one sample depends on the others")


def _in_time(check: Callable[[bool], bool], training: bool) -> bool:
    """Whether a check holds, by chance or always: what is rare may be random.

    Args:
        check: the check; it is told whether to run all of it again.
        training: whether in training mode.
    """
    return any(check(again > 0) for again in range(_TRIES if training else 1))


def _close(received, expected, subject) -> bool:
    """Whether outputs are equal up to rounding, seen channel by channel."""
    if received.shape != expected.shape:
        return False
    places = tuple(axis for axis in range(1, expected.ndim) if axis != subject.axis)
    finite = np.where(np.isfinite(expected), np.abs(expected), 0)
    size = finite.max(axis=places, keepdims=True, initial=0)
    with np.errstate(invalid="ignore"):
        near = np.abs(received - expected) <= subject.tolerance * size
    return bool((near | ~_differ(received, expected)).all())


def _check_seeded(subject, points, rng) -> None:
    """The same in training mode, with the random numbers of two states."""
    for again in (False, True):
        base = subject.run(points, None, True, again)
        for chosen in _groups(subject.count, rng, None):
            moved = _moved(points, chosen, subject.axis, rng)
            if _leak(subject, base, subject.run(moved, None, True, again), chosen):
                raise _Refused("it mixes channels")


def _check_unseeded(subject, points, rng) -> None:
    """The same where random numbers cannot be had twice.

    Of what is random in steps, such as a dropout, some outcome that is not zero must
    come with and without a change of other channels. Where none does, there is no
    telling noise from mixing.
    """
    one = [array[2:3] for array in points]
    for chosen in _groups(subject.count, rng, None):
        moved = _moved(one, chosen, subject.axis, rng)
        base, other = (
            np.stack([subject.run(given, None, True) for _ in range(3 * _TRIES)])
            for given in (one, moved)
        )
        base, other = (
            np.moveaxis(a, subject.axis + 1, -1)[..., ~chosen] for a in (base, other)
        )
        base = base.reshape(len(base), -1, base.shape[-1])
        other = other.reshape(base.shape)
        common = np.zeros(base.shape[1:], bool)
        for outcome in base:
            common |= ((other == outcome) & (outcome != 0)).any(axis=0)
        seen = base.any(axis=0) & other.any(axis=0)
        if ((seen & ~common).sum(axis=0) > seen.sum(axis=0) / 2).any():
            raise _Refused(
                "in training mode it draws random numbers without a seed of Keras, "
                "and it cannot be told from a layer that mixes channels"
            )


def _keeps_zero(subject, sizes, chance) -> bool:
    """Whether zeros become zeros at every position, whatever the weights and mode.

    Raises:
        _Refused: if they become no numbers: no gate could close those.
    """
    shape = tuple(subject.node.inputs[0].shape)
    wide = [
        tuple(
            min(size or 131, 131) if i == axis else size or 2
            for i, size in enumerate(shape)
            if i
        )
        for axis in range(1, len(shape))
        if shape[axis] is None
    ]
    keeps = True
    for size in (*sizes, *subject.accepted(wide, most=len(wide))):
        rng = np.random.default_rng(2)
        large = np.prod(size) > _SMALL
        zeros = np.zeros((1 if large else 4, *size), "float32")
        draws = list(_draws(subject.layer, rng))
        for weights in (None, *(draws[2:3] if large else draws)):
            for mode in subject.modes:
                for _ in range(_TRIES if mode and chance and not large else 1):
                    output = subject.run([zeros] * subject.inputs, weights, mode)
                    if weights is None and not np.isfinite(output).all():
                        raise _Refused("it makes something else than a number of zero")
                    keeps = keeps and not output.any()
            if not keeps and weights is None:
                break
    return keeps


_NO_COPY = "no copy of it with fewer channels could be built from its config"


def _take(array, kept, subject) -> np.ndarray:
    return np.take(array, kept, subject.axis)


def _with_fewer(layer, subject, trials, rng) -> Finding:
    """Make the layer with fewer channels, as `compact` does, and compare."""
    count = subject.count
    numbers = sorted({1, max(count // 2, 1), max(count - 1, 1)}, key=lambda n: -n)
    for found in _routes(layer, subject):
        try:
            bound = None
            for number in numbers:
                some = np.sort(rng.permutation(count)[:number])
                points = [_take(p, some, subject) for p in trials[0].points]
                small = _made(layer, subject, found, number, points)
                axes = _axes(subject.layer, small.layer, count, number)
                if number < count:
                    if bound not in (None, axes):
                        raise _Refused(_NO_COPY)
                    bound = axes
                for kept in (some, *_ends(count, number)):
                    shown = trials if kept is some else trials[:1]
                    if not all(
                        _agrees(subject, small, trial, kept, axes) for trial in shown
                    ):
                        raise _Refused(_NO_COPY)
        except _SeveralAxes:
            raise
        except Exception:
            continue
        return dataclasses.replace(found, weights=bound or ())
    raise _Refused(_NO_COPY)


def _ends(count: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last channels: what a layer does by their place shows there."""
    return np.arange(number), np.arange(count - number, count)


def _routes(layer, subject) -> Iterator[Finding]:
    """The ways to make a copy with fewer channels."""
    try:
        config = config_of(layer)
        remake(layer)
        made = True
    except Exception:
        made = False
    if made:
        yield Finding()
        same_number = tuple(
            key
            for key, value in config.items()
            if type(value) is int and value == subject.count and subject.count > 1
        )
        if same_number:
            yield Finding(config=same_number)
    # A layer that remembers what it was built for would be another one once loaded.
    if not made or type(layer).build is keras.layers.Layer.build:
        yield Finding(whole=True)


def _made(layer, subject, found: Finding, count: int, points) -> "_Subject":
    """A copy that has so many channels, built."""
    if found.whole:
        small = copy_object(layer)
    else:
        small = remake(layer, **dict.fromkeys(found.config, count))
    other = subject.with_fewer(small, count)
    args, kwargs = other.arguments([p[:2] for p in points])
    small(*args, **kwargs)  # builds it
    return other


class _SeveralAxes(_Refused):
    """Raised if a weight shrinks along more than one axis."""


def _axes(layer, small, count: int, number: int) -> tuple[tuple[int, int], ...]:
    """For each weight that has an axis of channels that axis, seen from a copy."""
    found = []
    for place, (old, new) in enumerate(zip(layer.weights, small.weights, strict=True)):
        pairs = enumerate(zip(old.shape, new.shape, strict=True))
        axes = [axis for axis, (a, b) in pairs if a != b]
        if len(axes) > 1:
            raise _SeveralAxes("a weight of it has several axes of that many channels")
        if axes and (old.shape[axes[0]], new.shape[axes[0]]) != (count, number):
            raise _Refused(_NO_COPY)
        found += [(place, axes[0])] if axes else []
    return tuple(found)


def _agrees(subject, small, trial, kept, axes) -> bool:
    """Whether a copy with fewer channels gives those of the outputs."""
    values = trial.weights or [
        keras.ops.convert_to_numpy(weight) for weight in subject.layer.weights
    ]
    values = list(values)
    for number, axis in axes:
        values[number] = np.take(values[number], kept, axis)
    narrow = [_take(array, kept, subject) for array in trial.points]

    def alike(again):
        expected = trial.output
        if again:
            expected = subject.run(trial.points, trial.weights, True)
        received = small.run(narrow, values, trial.training)
        return _close(received, _take(expected, kept, subject), subject)

    return _in_time(alike, trial.training)
