"""Which rule knows which operation.

A layer is looked up by its type. A subclass may override `call`, and then must
opt in with a rule of its own; one that only has a constructor and a config of
its own computes what its parent does, and follows the parent's rule.
Operations of `keras.ops` have no public classes and are looked up by the name
of their class.
"""

import functools
import importlib
import types
import weakref
from collections.abc import Callable

import keras

from filterprune.channels.trace import is_graph, part_named

_LAYER_RULES: dict[type, Callable] = {}
_OPERATION_RULES: dict[str, Callable] = {}
_BARRIERS: dict[type, str] = {}
_OPERATION_BARRIERS: dict[str, str] = {}
_UNKNOWN: list[Callable] = []
_CODE: set[type] = set()
_SINGLE: set[str] = set()
_MODEL_CALLERS: dict[type, int] = {}


def rule(*classes: type) -> Callable[[Callable], Callable]:
    """Teach filterprune what a layer type does to channels.

    The decorated function takes the layer and the `Channels` of its tensor
    arguments, in the structure in which the layer is called, and returns the
    result of one of the verbs `mix`, `same`, `take`, `join` or `barrier`.

    Args:
        *classes: the layer classes the rule is for, and subclasses of them
            that override nothing but `__init__` and `get_config`.

    Returns:
        A decorator that registers the function and returns it.

    Raises:
        TypeError: if no layer class is given.

    Example:

    ```python
    @filterprune.rule(MyChannelScale)
    def my_channel_scale(layer, x):
        return filterprune.channels.same(x, scale="in", gates=("scale",))
    ```
    """
    if not classes or not all(isinstance(cls, type) for cls in classes):
        raise TypeError(
            "Expected `rule` to be given layer classes, as in "
            f"`@filterprune.rule(MyLayer)`. Received: {classes}"
        )

    def register(function):
        for cls in classes:
            _LAYER_RULES[cls] = function
        return function

    return register


def operation(*names: str) -> Callable[[Callable], Callable]:
    """Register a rule for operations of `keras.ops`, by class name."""

    def register(function):
        for name in names:
            _OPERATION_RULES[name] = function
        return function

    return register


def known_barrier(reason: str, *classes: type) -> None:
    """State why layers of these types are barriers by nature."""
    for cls in classes:
        _BARRIERS[cls] = reason


def operation_barrier(reason: str, *names: str) -> None:
    """State why operations of `keras.ops` are barriers, by class name."""
    _OPERATION_BARRIERS.update(dict.fromkeys(names, reason))


def single_precision(*names: str) -> None:
    """State that layers and operations compute float64 in float32, by class name."""
    _SINGLE.update(names)


def is_single_precision(op) -> bool:
    """Whether a layer or operation computes float64 in float32."""
    return type(op).__name__ in _SINGLE


def holds_code(*classes: type) -> None:
    """State that layers of these types of Keras' run a function of the user's."""
    _CODE.update(classes)


def for_unknown(function: Callable) -> Callable:
    """Register the rule for layers that have none of their own."""
    _UNKNOWN.append(function)
    return function


def calls_models(axis: int, *classes: type) -> None:
    """State that layers of these types call the model in their `layer`.

    Args:
        axis: an axis of their input that the model does not see; it is called for
            each position along it.
        *classes: the layer classes.
    """
    _MODEL_CALLERS.update(dict.fromkeys(classes, axis))


def unseen_axis(cls: type) -> int | None:
    """The axis that a model called by a layer of this class does not see, or None."""
    return _MODEL_CALLERS.get(cls)


def unknown_rule() -> Callable:
    """The rule for layers that have none of their own."""
    return _UNKNOWN[-1]


def composite(cls: type, call: Callable | None = None) -> type:
    """Insist that layers of a class are taken apart.

    `filterprune.wrap_model` and `filterprune.analyze` take any such layer apart: what
    it calls takes its place in the model, named after it, as if it had been written
    with the functional API (see `filterprune.expand`). It must call its parts on
    symbolic tensors as it does on others. Where one of a declared class cannot be taken
    apart, a warning says why.

    Args:
        cls: the layer class. Subclasses are not meant.
        call: a function that does what the class's `call` does, of the layer and
            the arguments of a call, where that cannot be called with symbolic
            tensors. Defaults to `None`: the class's own.

    Returns:
        The class, so that this can decorate it.

    Raises:
        TypeError: if `cls` is no class, or `call` cannot be called.

    Example:

    ```python
    @filterprune.composite
    class FeedForward(keras.layers.Layer):
        def build(self, input_shape):
            self.inner = keras.layers.Dense(64, activation="gelu")
            self.outer = keras.layers.Dense(input_shape[-1])

        def call(self, inputs):
            return inputs + self.outer(self.inner(inputs))
    ```
    """
    if not isinstance(cls, type):
        raise TypeError(f"Expected `cls` to be a layer class. Received: cls={cls!r}")
    if call is not None and not callable(call):
        raise TypeError(f"Expected `call` to be a function. Received: call={call!r}")
    _COMPOSITES[cls] = call or own_call
    return cls


def composite_call(cls: type) -> Callable | None:
    """How a layer class calls its parts, if it is declared as a composite."""
    _load_rules_for(cls)
    if cls.__module__.split(".", 1)[0] in _COMPOSITE_LIBRARIES:
        return _COMPOSITES.get(cls, own_call)
    return _COMPOSITES.get(cls)


def is_traced(layer) -> bool:
    """Whether a layer of a class that is not declared may be expanded, if proved.

    Not where a class does more than its `call`, or a rule or a barrier is stated.
    """
    cls = type(layer)
    return (
        (
            cls in _CODE
            or cls.__module__.split(".", 1)[0] not in ("keras", "filterprune")
        )
        and not is_graph(layer)
        and cls.__call__ is keras.layers.Layer.__call__
        and (cls not in _CODE or not makes_masks(layer))
        and layer.activity_regularizer is None
        and layer_rule(cls) is None
        and barrier_reason(cls) is None
    )


def makes_masks(layer) -> bool:
    """Whether Keras asks a layer, and not what it calls, for the mask of its output."""
    if type(layer) in _CODE:
        return layer.mask is not None
    return type(layer).compute_mask is not keras.layers.Layer.compute_mask


def keep_whole(layer, reason: str) -> None:
    """Note why a composite layer cannot be expanded, for the report."""
    _WHOLE[layer] = reason


def why_whole(layer) -> str | None:
    """Why a composite layer could not be expanded, if that was tried."""
    return _WHOLE.get(layer)


_WHOLE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def composites_of(library: str) -> None:
    """Declare that all layers of a library that hold others are composites."""
    _COMPOSITE_LIBRARIES.add(library)


def own_call(layer, *args, **kwargs):
    """Take a layer apart by its own `call`."""
    return layer.call(*args, **kwargs)


def _load_rules_for(cls: type) -> None:
    """Load the rules for layers of another library with the first of them."""
    for base in cls.__mro__:
        module = _OPTIONAL.pop(base.__module__.split(".", 1)[0], None)
        if module is not None:
            importlib.import_module(module)


_COMPOSITES: dict[type, Callable] = {}
_COMPOSITE_LIBRARIES: set[str] = set()
# Modules with rules for the layers of other libraries, which import those.
_OPTIONAL = {"keras_hub": "filterprune.channels.rules.hub"}


def known_type(cls: type) -> type:
    """The class whose rule a layer class follows: itself, or a parent.

    A parent is followed if all that the subclass changes is how it is made.
    """
    _load_rules_for(cls)
    if cls in _LAYER_RULES or cls in _BARRIERS:
        return cls
    for base in cls.__mro__[1:]:
        if base in _LAYER_RULES or base in _BARRIERS:
            return base if _computes_the_same(cls, base) else cls
    return cls


# What a class may have of its own without computing anything else.
_OWN = {
    "__init__",
    "get_config",
    "from_config",
    "__module__",
    "__doc__",
    "__annotations__",
    "__dict__",
    "__weakref__",
    "__abstractmethods__",
}


@functools.cache
def _computes_the_same(cls: type, base: type) -> bool:
    """Whether a subclass overrides nothing that its parent computes with."""
    added = {
        name: value
        for part in cls.__mro__
        if part not in base.__mro__
        for name, value in vars(part).items()
        if name not in _OWN
    }
    # What the parent does not know it does not call; a property may still stand
    # before an attribute that it reads.
    return not any(
        hasattr(base, name)
        or not isinstance(value, (types.FunctionType, staticmethod, classmethod))
        for name, value in added.items()
        if not (name.startswith("__") and not hasattr(base, name))
    )


def layer_rule(cls: type) -> Callable | None:
    """The rule for a layer class, or None."""
    return _LAYER_RULES.get(known_type(cls))


def operation_rule(cls: type) -> Callable | None:
    """The rule for a class of `keras.ops` operation, or None."""
    return _OPERATION_RULES.get(cls.__name__)


def barrier_reason(cls: type) -> str | None:
    """The stated reason why layers of this class are barriers, or None."""
    return _BARRIERS.get(known_type(cls))


def operation_barrier_reason(cls: type) -> str | None:
    """The stated reason why an operation of `keras.ops` is a barrier, or None."""
    return _OPERATION_BARRIERS.get(cls.__name__)


def weight_of(layer, name: str):
    """A weight of a layer by the name of its attribute, or None.

    A name such as `"#2"` means the weight of that number, `layer.weights[2]`;
    one such as `"layer.kernel"` a weight of a layer that the layer holds, by the
    attribute that holds it or by its own name, and `"cells.0.kernel"` of the first
    in a list of those.
    """
    if name.startswith("#"):
        return layer.weights[int(name[1:])]
    for part in name.split("."):
        found = layer[int(part)] if part.isdigit() else getattr(layer, part, None)
        layer = part_named(layer, part) if found is None else found
    return layer


def registered_layers() -> tuple[type, ...]:
    """Every layer class with a rule."""
    return tuple(_LAYER_RULES)


def registered_operations() -> tuple[str, ...]:
    """The class name of every `keras.ops` operation with a rule."""
    return tuple(_OPERATION_RULES)
