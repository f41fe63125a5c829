"""Which rule knows which operation.

A layer is looked up by its exact type: a subclass may override `call`, so it
must opt in with a rule of its own. Operations of `keras.ops` have no public
classes and are looked up by the name of their class.
"""

from collections.abc import Callable

_LAYER_RULES: dict[type, Callable] = {}
_OPERATION_RULES: dict[str, Callable] = {}
_BARRIERS: dict[type, str] = {}
_OPERATION_BARRIERS: dict[str, str] = {}
_UNKNOWN: list[Callable] = []


def rule(*types: type) -> Callable[[Callable], Callable]:
    """Teach filterprune what a layer type does to channels.

    The decorated function takes the layer and the `Channels` of its tensor
    arguments, in the structure in which the layer is called, and returns the
    result of one of the verbs `mix`, `same`, `take`, `join` or `barrier`.

    Args:
        *types: the layer classes the rule is for (exactly these, no
            subclasses).

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
    if not types or not all(isinstance(cls, type) for cls in types):
        raise TypeError(
            "Expected `rule` to be given layer classes, as in "
            f"`@filterprune.rule(MyLayer)`. Received: {types}"
        )

    def register(function):
        for cls in types:
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


def known_barrier(reason: str, *types: type) -> None:
    """State why layers of these types are barriers by nature."""
    for cls in types:
        _BARRIERS[cls] = reason


def operation_barrier(reason: str, *names: str) -> None:
    """State why operations of `keras.ops` are barriers, by class name."""
    _OPERATION_BARRIERS.update(dict.fromkeys(names, reason))


def for_unknown(function: Callable) -> Callable:
    """Register the rule for layers that have none of their own."""
    _UNKNOWN.append(function)
    return function


def unknown_rule() -> Callable:
    """The rule for layers that have none of their own."""
    return _UNKNOWN[-1]


def layer_rule(cls: type) -> Callable | None:
    """The rule for a layer class, or None."""
    return _LAYER_RULES.get(cls)


def operation_rule(cls: type) -> Callable | None:
    """The rule for a class of `keras.ops` operation, or None."""
    return _OPERATION_RULES.get(cls.__name__)


def barrier_reason(cls: type) -> str | None:
    """The stated reason why layers of this class are barriers, or None."""
    return _BARRIERS.get(cls)


def operation_barrier_reason(cls: type) -> str | None:
    """The stated reason why an operation of `keras.ops` is a barrier, or None."""
    return _OPERATION_BARRIERS.get(cls.__name__)


def weight_of(layer, name: str):
    """A weight of a layer by the name of its attribute, or None.

    A name such as `"#2"` means the weight of that number, `layer.weights[2]`;
    one such as `"layer.kernel"` a weight of a layer that the layer holds.
    """
    if name.startswith("#"):
        return layer.weights[int(name[1:])]
    for part in name.split("."):
        layer = getattr(layer, part, None)
    return layer


def registered_layers() -> tuple[type, ...]:
    """Every layer class with a rule."""
    return tuple(_LAYER_RULES)


def registered_operations() -> tuple[str, ...]:
    """The class name of every `keras.ops` operation with a rule."""
    return tuple(_OPERATION_RULES)
