"""Layers made again from their config: with other sizes, and only if that is proved.

Many a layer's `get_config` forgets an argument, and a layer can be changed after it
was made. So a layer that is not Keras' own is made from its config only if the one
made from the config as it is computes the same: with the same weights, and with
random ones, on random inputs. Any other is copied whole (`trace.copy_object`), and
nothing of it is ever removed.
"""

import contextlib
import inspect
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from filterprune.channels.likeness import likeness, likeness_of_arguments
from filterprune.channels.registry import known_type
from filterprune.channels.trace import (
    Node,
    complete_config,
    copy_object,
    forgotten_config,
    is_layer,
    is_of_keras,
    takes_training,
    without_mask,
)

_SIZES = (6, 16, 64, 4)  # what to take for sizes that are not known
_TOLERANCE = 1e-4
_FORGETS = "its config does not tell all that its `call` uses"
NOT_RUN = "it cannot be run on its own"


def remake(layer, /, **config):
    """A fresh layer with the config of `layer`, some entries changed.

    Args:
        layer: any layer. Its functions and regularizers need not be registered.
        **config: entries that replace those of `layer.get_config()`.

    Returns:
        The new layer. It may be built already.
    """
    given = {**config_of(layer), **forgotten_config(layer)}
    return type(layer).from_config({**given, **_objects(layer, given), **config})


def config_of(layer) -> dict:
    """The config of a layer, also if that of an object in it is not to be had."""
    try:
        return layer.get_config()
    except NotImplementedError:
        shell = object.__new__(type(layer))
        for key, value in vars(layer).items():
            shell.__dict__[key] = None if _is_own(value) else value
        complete_config(shell)
        return shell.get_config()


def _is_own(value) -> bool:
    """Whether an attribute is a function or object of the user's own."""
    return callable(value) and not isinstance(value, type) and not is_of_keras(value)


def _objects(layer, config: dict) -> dict:
    """Functions, and objects of the user's own, among what a config describes.

    A config names them, and the name may be unknown to Keras, as `sin` of
    `keras.ops` is, or be that of one of its own: a function `hard_sigmoid` would
    come back as another one.
    """
    found = {}
    for key in config:
        value = getattr(layer, key, None)
        if _is_own(value) or inspect.isfunction(value):
            found[key] = copy_object(value) if is_layer(value) else value
    return found


def build_alike(layer, new) -> None:
    """Build `new` as `layer` was built and give it the same weights."""
    if not layer.built:
        return
    config = layer.get_build_config() or {}
    shape = config.get("input_shape")
    by_call = type(layer).build is keras.layers.Layer.build and layer.weights
    if by_call and shape is not None:  # its parts are built when it is called
        new(keras.ops.zeros([size or 1 for size in shape]))
    elif not new.built:
        new.build_from_config(config)
    if layer.weights:
        new.set_weights(layer.get_weights())


def why_not_remade(layer, node: Node, sizes) -> str | None:
    """Why a layer cannot be made again with fewer channels, or None.

    Args:
        layer: a layer for whose type, or a parent of it, a rule is known.
        node: a call of it.
        sizes: the entries of its config that count channels.
    """
    if known_type(type(layer)) is not type(layer):
        reason = _why_not_resized(layer, sizes)
        if reason is not None:
            return reason
    return why_not_alike(layer, node)


def why_not_alike(layer, node: Node, remade: Callable | None = None) -> str | None:
    """Why a layer made from the config does not stand for the layer, or None.

    Args:
        layer: the layer.
        node: a call of it.
        remade: from both to that layer, with the same weights. Defaults to one made
            by `remake` and built by itself.
    """
    alike, tells_all = likeness(layer)
    arguments, tell_all = likeness_of_arguments(node)
    weights = tuple((tuple(w.shape), w.dtype) for w in layer.weights)
    key = (remade, alike, weights, arguments)
    known = _FOUND if tells_all and tell_all else _FOUND_OF.setdefault(layer, {})
    if key not in known:
        known[key] = _find_why_not_alike(layer, node, remade or _remade)
    return known[key]


_FOUND: dict[tuple, str | None] = {}
# What was found of layers of which nothing tells that another is alike.
_FOUND_OF: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _why_not_resized(layer, sizes) -> str | None:
    """Why a subclass cannot be made with other sizes as its parent can, or None."""
    parent: Any = known_type(type(layer))
    name = f"{type(layer).__name__} (a {parent.__name__})"
    try:
        config = layer.get_config()
        entries = {key: config[key] for key in sizes}
        if not all(type(value) is int for value in entries.values()):
            return f"no rule is known for {name}"
        for changes in _trials(layer, config, entries):
            expected = {**_unshared(parent.get_config(layer)), **changes}
            new = type(layer).from_config({**config, **changes})
            if _unshared(parent.get_config(new)) != expected:
                raise ValueError("another config")
    except Exception:
        return f"{name} cannot be made from its config with other sizes"
    return None


def _unshared(config):
    """A config without the numbers of shared objects, which Keras adds in a file."""
    if isinstance(config, dict):
        return {k: _unshared(v) for k, v in config.items() if k != "shared_object_id"}
    return config


def _trials(layer, config, entries):
    """Changes to a config that compact might come to make."""
    yield {}
    if config.get("use_bias") is False:
        yield {"use_bias": True}
    if len(entries) == 1:
        ((key, size),) = entries.items()
        step = getattr(layer, "groups", 1)
        numbers = {step, size - step, (size // step + 1) // 2 * step}
        yield from ({key: number} for number in sorted(numbers) if number > 0)
    elif entries:  # filters and groups of a depthwise convolution
        least = min(entries.values())
        yield {key: size // least for key, size in entries.items()}


def _remade(layer, node: Node):
    new = remake(layer)
    build_alike(layer, new)
    return new


def _find_why_not_alike(layer, node: Node, remade: Callable) -> str | None:
    try:
        new = remade(layer, node)
        if [tuple(w.shape) for w in new.weights] != [
            tuple(w.shape) for w in layer.weights
        ]:
            return _FORGETS
    except Exception as error:
        return f"it cannot be made from its config ({error})"
    old = copy_object(layer)  # a call may change more than variables
    for size in _SIZES:
        rng = np.random.default_rng(0)
        arguments = _arguments(layer, node, size, rng)
        try:
            _run(old, arguments)
        except Exception as error:
            reason = f"{NOT_RUN}: {error}"
            continue
        own = [keras.ops.convert_to_numpy(weight) for weight in layer.weights]
        drawn = [
            rng.uniform(0.5, 1.5, value.shape) if "float" in weight.dtype else value
            for weight, value in zip(layer.weights, own, strict=True)
        ]
        for weights, training in itertools.product(
            [own, drawn] if own else [own], [False, True]
        ):
            if not _are_alike(old, new, arguments, weights, training):
                return _FORGETS
        return None
    return reason


def _arguments(layer, node: Node, size: int, rng) -> tuple:
    tensors = {}
    for tensor in node.inputs:
        shape = [size if n is None else n for n in tensor.shape]
        shape[0] = tensor.shape[0] or 2
        is_float = "float" in tensor.dtype
        array = rng.normal(size=shape) if is_float else rng.integers(0, 2, shape)
        tensors[id(tensor)] = keras.ops.cast(array, tensor.dtype)
    args, kwargs = node.fill(tensors)
    kwargs.pop("training", None)
    return args, without_mask(layer, kwargs)


def _run(layer, arguments, weights=None, training=False) -> list[np.ndarray]:
    """The outputs of a layer, with every generator of random numbers at one state."""
    args, kwargs = arguments
    if takes_training(layer):
        kwargs = {**kwargs, "training": training}
    ids = {id(weight) for weight in layer.weights}
    rest = [v for v in layer.variables if id(v) not in ids and "int" in v.dtype]
    values = [(v, keras.ops.ones(v.shape, v.dtype)) for v in rest]
    if weights is not None:
        values += list(zip(layer.weights, weights, strict=True))
    with keras.StatelessScope(values):
        outputs = keras.tree.flatten(layer.call(*args, **kwargs))
    return [np.asarray(keras.ops.convert_to_numpy(y), "float64") for y in outputs]


def _are_alike(old, new, arguments, weights, training) -> bool:
    """Whether two layers give the same outputs, as far as the first one does."""
    expected = None
    with contextlib.suppress(Exception):  # weights may be none that it can have
        expected = _run(old, arguments, weights, training)
    if expected is None:
        return True
    again = _run(old, arguments, weights, training)
    if not _are_close(expected, again):  # it draws from elsewhere
        return True
    try:
        return _are_close(expected, _run(new, arguments, weights, training))
    except Exception:
        return False


def _are_close(expected: list, received: list) -> bool:
    return len(expected) == len(received) and all(
        a.shape == b.shape
        and np.allclose(
            a, b, _TOLERANCE, _TOLERANCE * np.abs(a).max(initial=0), equal_nan=True
        )
        for a, b in zip(expected, received)
    )
