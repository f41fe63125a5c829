"""What an activation function does to a channel that is zero."""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np

from filterprune.channels.trace import copy_object, is_layer


@dataclasses.dataclass(frozen=True)
class ActivationFacts:
    """What was found by running the function.

    Attributes:
        name: the function's name, for the report.
        elementwise: whether each element of the output depends on that
            element of the input alone.
        keeps_zero: whether zero is turned into zero.
    """

    name: str
    elementwise: bool
    keeps_zero: bool


LINEAR = ActivationFacts("linear", True, True)


def activation_of(op, name: str = "activation") -> ActivationFacts:
    """The facts on the activation that `op` applies to its own output.

    Args:
        op: a layer or operation.
        name: the attribute that holds the function.
    """
    function = getattr(op, name, None)
    if function is None or function is keras.activations.linear:
        return LINEAR
    try:
        return _cached(function)
    except TypeError:  # not hashable
        return examine(function)


def examine(function) -> ActivationFacts:
    """Run an activation function on a few numbers and see what it does.

    Args:
        function: a callable that keeps shapes, such as `keras.ops.relu`.

    Returns:
        `ActivationFacts`. A function counts as element-wise if changing any
        one of several elements, in each of several random arrays, changes
        that element alone. A layer with weights, such as `PReLU`, does not
        count: nothing says what runs along their axes.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if is_layer(function):  # which calling would build for the shape tried here
        function = copy_object(function)
        if not function.weights:
            function(keras.ops.zeros((1, 4, 6)))
        if function.weights:
            return ActivationFacts(name, False, False)

    def run(array):
        result = function(keras.ops.convert_to_tensor(array.astype("float32")))
        return keras.ops.convert_to_numpy(result)

    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, scale, (1, 4, 6)) for scale in (0.1, 1.0, 10.0)]
    elementwise = True
    for array in arrays:
        base = run(array)
        if base.shape != array.shape:  # such as `glu`, which halves the channels
            return ActivationFacts(name, elementwise=False, keeps_zero=False)
        for row, column in ((0, 0), (1, 3), (3, 5)):
            for shift in (-2.0, 3.0):
                moved = array.copy()
                moved[0, row, column] += shift
                changed = run(moved) != base
                changed[0, row, column] = False
                elementwise &= not changed.any()
    return ActivationFacts(name, elementwise, not run(np.zeros((1, 4, 6))).any())


_cached = functools.lru_cache(maxsize=256)(examine)


def activation_layer(op):
    """The layer with state that `op` has for an activation function, or None."""
    function: Any = getattr(op, "activation", None)
    is_keras = type(op).__module__.split(".", 1)[0] == "keras"
    if is_keras and is_layer(function) and function.variables:
        return function if "activation" in op.get_config() else None
    return None
