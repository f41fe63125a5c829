"""The one place where a user's models and layers are run: nothing of them changes."""

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from filterprune.channels.trace import CALLED, is_layer, parts_of


@contextlib.contextmanager
def undisturbed(*ops, values: Iterable[tuple] = (), seed: int | None = None):
    """Within it models, layers and operations can be called, and stay as they are.

    Keras keeps what is assigned to a variable to the scope: weights, moving
    statistics, states of recurrent layers, seeds, metrics. Attributes are put back.

    Args:
        *ops: what will be called.
        values: pairs of a variable and the value to run with.
        seed: the state in which every generator of random numbers starts.
            Defaults to `None`: where it is.
    """
    seeds = [] if seed is None else [v for op in ops for v in seeds_of(op)]
    fixed = [(v, keras.ops.full(v.shape, seed, v.dtype)) for v in seeds]
    scope = keras.StatelessScope([*fixed, *values])
    with attributes_kept(*ops), without_gradients(), scope:
        yield


def seeds_of(op) -> list:
    """The states of the generators of random numbers in a model or layer."""
    weights = {id(weight) for weight in getattr(op, "weights", ())}
    return [
        variable
        for variable in getattr(op, "variables", ())
        if id(variable) not in weights and "int" in variable.dtype
    ]


@contextlib.contextmanager
def attributes_kept(*ops) -> Iterator[None]:
    """Put the attributes of layers back: counters, caches, losses that were added."""
    owners = {
        id(part): vars(part)
        for op in ops
        for part in ([op, *parts_of(op)] if is_layer(op) else [op])
        if hasattr(part, "__dict__")
    }
    before = [(own, dict(own), _contents(own)) for own in owners.values()]
    try:
        yield
    finally:
        for own, values, contents in before:
            for key in own.keys() - values.keys():
                del own[key]
            for key, value in values.items():
                if own.get(key, _MISSING) is not value and key != CALLED:
                    own[key] = value
            for value, content in contents:
                _refill(value, content)


_MISSING: Any = object()


def _contents(own: dict) -> list[tuple]:
    """The lists, dicts and sets among attributes, with what is in them."""
    found = []
    for value in own.values():
        kind = _KINDS.get(type(value).__name__)
        if kind is not None and isinstance(value, kind):
            found.append((value, kind(value)))
    return found


# Not an `OrderedDict`, whose order is not that of its items.
_KINDS: dict[str, type] = {
    "list": list,
    "set": set,
    "dict": dict,
    "TrackedList": list,
    "TrackedSet": set,
    "TrackedDict": dict,
}


def _refill(value, content) -> None:
    """Put the content of a container back, without the notice of Keras' tracker."""
    if isinstance(content, list):
        same = len(value) == len(content) and all(map(_is, value, content))
        if not same:
            list.__setitem__(value, slice(None), content)
    elif isinstance(content, dict):
        keys = value.keys() == content.keys()
        if not keys or not all(value[key] is content[key] for key in content):
            dict.clear(value)
            dict.update(value, content)
    elif value != content:
        set.clear(value)
        set.update(value, content)


def _is(one, other) -> bool:
    return one is other


def without_gradients() -> contextlib.AbstractContextManager:
    """On PyTorch every call notes what a gradient would need; here none will."""
    if keras.backend.backend() == "torch":
        return importlib.import_module("torch").no_grad()
    return contextlib.nullcontext()
