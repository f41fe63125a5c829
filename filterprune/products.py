"""Products with a weight, and the Keras layers that compute the same.

A layer of your own may multiply by a weight that it has, as in
`ops.matmul(x, self.kernel)`. Once it is expanded, a `Dense` layer says so.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from filterprune.channels.contraction import tensordot_axes
from filterprune.channels.trace import Node, is_layer

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class Holder:
    """A layer of Keras to make that has one weight.

    Attributes:
        cls: its class.
        about: what to make it with.
        shape: the shape of what it is called on.
    """

    cls: Callable
    about: dict
    shape: tuple

    def make(self, weight, name: str, policy):
        """The layer, with the value of a weight, and all that belongs to that."""
        part = _WEIGHTS.get(self.cls, "kernel")
        layer = self.cls(
            **self.about,
            **{f"{part}_regularizer": weight.regularizer},
            **{f"{part}_constraint": weight.constraint},
            dtype=policy,
            name=name,
        )
        layer.build(self.shape)
        layer.trainable = weight.trainable
        value = keras.ops.convert_to_numpy(weight)
        layer.weights[0].assign(value.reshape(layer.weights[0].shape))
        return layer


_WEIGHTS: dict[Callable, str] = {
    layers.DepthwiseConv1D: "depthwise",
    layers.DepthwiseConv2D: "depthwise",
    layers.Embedding: "embeddings",
}


def holder_of(shape) -> Holder:
    """A layer that makes a weight of a shape out of a one, with an axis in front."""
    axes = _LETTERS[1 : 1 + max(len(shape), 1)]
    sizes = tuple(shape) or (1,)
    about = {"equation": f"a,{axes}->a{axes}", "output_shape": sizes}
    return Holder(layers.EinsumDense, about, (1,))


def layer_instead(node: Node, weight) -> Holder | None:
    """The layer that computes what an operation makes of one tensor and a weight.

    Args:
        node: a call of an operation of `keras.ops`.
        weight: the symbolic tensor among its arguments that is the weight.

    Returns:
        How to make it, to be called on the other tensor; or None.
    """
    others = [tensor for tensor in node.inputs if tensor is not weight]
    find = _PRODUCTS.get(type(node.op).__name__)
    if find is None or is_layer(node.op) or len(others) != 1 or len(node.inputs) != 2:
        return None
    (x,) = others
    if not x.shape or None in weight.shape:
        return None
    found = find(node, x, weight)
    return None if found is None else Holder(found[0], found[1], tuple(x.shape))


def linear_in(tensor, weights: set[int], makers: dict[int, Node]) -> list[Node] | None:
    """The operations that make a sum of multiples of weights, in order.

    A product with that is the sum of the multiples of the products with the weights.

    Args:
        tensor: the symbolic tensor.
        weights: the ids of the tensors that are weights.
        makers: by the id of a tensor the call that makes it.

    Returns:
        The calls, none for a weight; None for a tensor that is no such sum.
    """
    if id(tensor) in weights:
        return []
    node = makers.get(id(tensor))
    if node is None or is_layer(node.op) or type(node.op).__name__ not in _LINEAR:
        return None
    values = [*node.args, *node.kwargs.values()]
    terms = [one for one in values if any(one is x for x in node.inputs)]
    factors = [one for one in values if not any(one is x for x in node.inputs)]
    several = len(values) > 1 and type(node.op).__name__ in _SUMS
    by_scalars = all(np.size(one) == 1 and np.ndim(one) < 2 for one in factors)
    if factors if several else len(terms) != 1 or not by_scalars:
        return None
    if type(node.op).__name__ in _QUOTIENTS and terms[0] is not values[0]:
        return None
    found = []
    for term in terms:
        own = linear_in(term, weights, makers)
        if own is None or term.shape != tensor.shape:
            return None
        found += own
    return [*found, node]


_SUMS = ("Add", "Subtract")
_QUOTIENTS = ("Divide", "TrueDivide")
_LINEAR = (*_SUMS, *_QUOTIENTS, "Multiply", "Negative")


def _dense(node, x, weight):
    if node.inputs[0] is weight or len(weight.shape) != 2 or len(x.shape) < 2:
        return None
    return layers.Dense, {"units": weight.shape[1], "use_bias": False}


def _tensordot(node, x, weight):
    if node.inputs[0] is weight:
        return None
    names, output = tensordot_axes(node.op.axes, len(x.shape), len(weight.shape))
    letters = dict(zip(dict.fromkeys(names[0] + names[1]), _LETTERS))
    read, kernel, made = ([letters[n] for n in own] for own in (*names, output))
    return _einsum_dense(read, kernel, made, x, weight)


def _einsum(node, x, weight):
    text = node.op.subscripts.replace(" ", "")
    if text.count("->") != 1 or text.count(",") != 1:
        return None
    inputs, made = text.split("->")
    read, kernel = inputs.split(",")
    if node.inputs[0] is weight:
        read, kernel = kernel, read
    return _einsum_dense(read, kernel, made, x, weight)


def _einsum_dense(read, kernel, made, x, weight):
    read, kernel, made = map("".join, (read, kernel, made))
    plain = [own.replace("...", ".") for own in (read, kernel)]
    repeated = any(len(set(own)) < len(own) for own in plain)
    batch = read[:1] == made[:1] and read[0] not in kernel
    if repeated or not batch or "." in kernel:
        return None
    sizes = dict(zip(kernel, weight.shape, strict=True))
    if "." not in read:
        sizes = dict(zip(read, x.shape, strict=True)) | sizes
    given = made.replace("...", "")[made[0] != "." :]
    return layers.EinsumDense, {
        "equation": f"{read},{kernel}->{made}",
        "output_shape": tuple(sizes.get(name) for name in given),
    }


def _conv(node, x, weight):
    *kernel_size, read, filters = weight.shape
    kinds = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}
    about = _placed(node.op)
    channels = x.shape[1 if about.get("data_format") == "channels_first" else -1]
    if channels is None or channels % read or len(kernel_size) not in kinds:
        return None
    return kinds[len(kernel_size)], {
        "filters": filters,
        "kernel_size": kernel_size,
        "groups": channels // read,
        "use_bias": False,
        **about,
    }


def _depthwise_conv(node, x, weight):
    *kernel_size, _, multiplier = weight.shape
    kinds = {1: layers.DepthwiseConv1D, 2: layers.DepthwiseConv2D}
    if len(kernel_size) not in kinds:
        return None
    return kinds[len(kernel_size)], {
        "kernel_size": kernel_size,
        "depth_multiplier": multiplier,
        "use_bias": False,
        **_placed(node.op),
    }


def _placed(op) -> dict:
    """How a convolution goes over its input."""
    return {
        "strides": op.strides,
        "padding": op.padding,
        "data_format": op.data_format,
        "dilation_rate": op.dilation_rate,
    }


def _embedding(node, x, weight):
    axis = node.op.axis
    whole = "int" in x.dtype and axis in (0, -len(weight.shape))
    if node.inputs[0] is not weight or len(weight.shape) != 2 or not whole:
        return None
    count, width = weight.shape
    return layers.Embedding, {"input_dim": count, "output_dim": width}


_PRODUCTS: dict[str, Callable] = {
    "Matmul": _dense,
    "Dot": _dense,
    "Tensordot": _tensordot,
    "Einsum": _einsum,
    "Conv": _conv,
    "DepthwiseConv": _depthwise_conv,
    "Take": _embedding,
}
