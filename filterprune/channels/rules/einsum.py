"""EinsumDense: dense layers over any axes, by their letters."""

import dataclasses
import math

from keras import layers

from filterprune.channels.binding import bind_weights
from filterprune.channels.calls import current
from filterprune.channels.joining import gather
from filterprune.channels.labels import Channels
from filterprune.channels.moves import varied_axes
from filterprune.channels.registry import rule
from filterprune.channels.verbs import along, barrier, mix, same


@dataclasses.dataclass(frozen=True)
class _Equation:
    """The axes of an `EinsumDense` by name; those of `...` are numbered.

    Attributes:
        read, kernel, made, bias: the names of the axes of what is read, of the
            kernel, of what is made and of the bias (none without one).
        sizes: the entries of the config's `output_shape`, by name.
    """

    read: list[str]
    kernel: list[str]
    made: list[str]
    bias: list[str]
    sizes: dict[str, int | None]

    @property
    def new(self) -> list[str]:
        """The axes that only the kernel and the output have, in order."""
        return [n for n in self.made if n in self.kernel and n not in self.read]


def _parse(layer, x) -> _Equation:
    read, rest = layer.equation.split(",")
    kernel, made = rest.split("->")
    dots = [str(i) for i in range(x.ndim - len(read.replace("...", "")))]

    def names(text):
        before, found, after = text.partition("...")
        return [*before, *(dots if found else ()), *after]

    named = names(made)
    given = layer.partial_output_shape
    left = [n for n in named if n not in dots]
    sizes = dict(zip(left[len(left) - len(given) :], given, strict=True))
    ndim = 0 if layer.bias is None else len(layer.bias.shape)
    bias = named[len(named) - ndim :]
    bias = [n if n in (layer.bias_axes or "") else "_" for n in bias]
    return _Equation(names(read), list(kernel), named, bias, sizes)


@rule(layers.EinsumDense)
def einsum_dense(layer, x):
    """It makes channels along its first new axis; other new axes are kept whole.

    Channels along an axis that it reads and makes pass through.
    """
    equation = _parse(layer, x)
    if equation.bias and equation.bias[-1] == "_" and len(set(equation.bias)) == 2:
        # On TensorFlow it is added along the last axis if that has as many places.
        return barrier("of a bias along one axis that is not the last Keras is unsure")
    if equation.new == equation.kernel and not varied_axes(x):
        return _hold(layer, x, equation)
    varied = max(varied_axes(x), key=lambda a: (x.labels.shape[a], a), default=None)
    name = None if varied is None else equation.read[varied]
    mask = current().mask
    if name is None and mask is not None:  # by itself: what is it to be masked along?
        asked = equation.made[mask.axis % len(equation.made)]
        name = asked if asked in equation.read else None
    if name in equation.made:
        return _pass_on(layer, x, equation, name)
    if name is None:
        summed = [n for n in equation.kernel if n not in equation.made]
        name = summed[0] if summed else None
    if not equation.new or name not in equation.kernel:
        return _read_only(x, equation, name)
    new = equation.new[0]
    output = mix(
        x,
        axis=equation.read.index(name),
        to=equation.made.index(new),
        kernel=_spec(equation.kernel, {name: "in", new: "out"}),
        bias=_spec(equation.bias, {new: "out"}),
        positions=_positions(x, equation),
        kind="dense",
    )
    call = current()
    if equation.bias and new not in equation.bias:
        for gate in call.gates:  # what is closed would be the bias: gate the output
            gate.weights, gate.outputs = {}, gate.places
    _note_shape(equation, new, output)
    return output


def _hold(layer, x, equation):
    """All that it makes is in its kernel, such as a table of positions.

    The channels of that are along its last axis that has several.
    """
    sizes = dict(zip(equation.kernel, layer.kernel.shape, strict=True))
    several = [n for n in equation.kernel if sizes[n] > 1]
    name = (several or equation.kernel)[-1]
    output = mix(
        x,
        axis=0,
        to=equation.made.index(name),
        kernel=_spec(equation.kernel, {name: "out"}),
        bias=_spec(equation.bias, {name: "out"}),
        positions=None,
        kind="",
    )
    _note_shape(equation, name, output)
    return output


def _pass_on(layer, x, equation, name):
    """Channels along an axis of the output pass through, each by itself."""
    gated = name in equation.kernel and (layer.bias is None or name in equation.bias)
    output = same(
        x,
        axis=equation.read.index(name),
        to=equation.made.index(name),
        even=True,  # it sums along axes of the kernel, whose sizes are known
        keeps_zero=layer.bias is None,
        gates=("kernel", "bias") if gated else (),
        kernel=_spec(equation.kernel, {name: "in"}),
        bias=_spec(equation.bias, {name: "in"}),
    )
    _note_shape(equation, name, output)
    current().products.append(("kernel", _positions(x, equation)))
    return output


def _read_only(x, equation, name) -> Channels:
    """It makes nothing that channels can be told apart along."""
    call = current()
    call.products.append(("kernel", _positions(x, equation)))
    shape = call.outputs[0]
    if name is None:
        return Channels(shape, call.flow.table.new(*(1,) * len(shape)))
    axis = equation.read.index(name)
    read = along(x, axis)
    bind_weights({"kernel": _spec(equation.kernel, {name: "in"})}, {"in": read})
    return gather([x], read, [axis])


def _spec(names, words) -> str:
    return " ".join(words.get(name, "_") for name in names)


def _positions(x, equation) -> int:
    """How often the kernel is multiplied: at all places along other axes."""
    sizes = zip(equation.read[1:], x.shape[1:], strict=True)
    return math.prod(size or 1 for name, size in sizes if name not in equation.kernel)


def _note_shape(equation, name, output) -> None:
    """Let the size along an axis be that of the channels left, where it is given."""
    axis = equation.made.index(name)

    def output_shape(survivors):
        return tuple(
            survivors.size(output, axis) if own == name and size is not None else size
            for own, size in equation.sizes.items()
        )

    current().flow.binding(current()).config["output_shape"] = output_shape
