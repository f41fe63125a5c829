"""Inputs to run a model with: numbers, ids and words that it accepts."""

import math
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from filterprune.channels.trace import Graph, is_graph, is_layer, parts_of, trace


def generate_inputs(
    model,
    batch_size: int = 2,
    seed: int = 0,
    size: int | Sequence[int] = 64,
    scales: Sequence[float] = (1.0,),
):
    """Random inputs for a functional or sequential model.

    Args:
        model: a built functional or sequential model.
        batch_size: how many samples.
        seed: seed of the random generator.
        size: what to take where the model leaves a size open; several for its
            axes, one after another.
        scales: by what samples are multiplied, one after another.

    Returns:
        Arrays in the structure of the model's inputs: normal floats, ids that the
        layers that read them know, and words of their vocabularies. Integers that
        no such layer reads are 0 and 1.
    """
    rng = np.random.default_rng(seed)
    graph = trace(model)
    readers = _readers(graph)
    arrays = []
    for tensor in graph.inputs:
        shape = shape_for(tensor, batch_size, size)
        array = _draw(rng, tensor, shape, readers[id(tensor)])
        if "float" in tensor.dtype and array.dtype.kind == "f":
            factors = np.resize(scales, shape[0])
            array = array * factors.reshape(-1, *[1] * (len(shape) - 1))
        arrays.append(_tensor(array, tensor.dtype))
    return keras.tree.pack_sequence_as(graph.input_struct, arrays)


def random_array(shape: tuple, size: int | Sequence[int], readers: Sequence = ()):
    """A random array of a shape, with sizes in place of those left open.

    Args:
        shape: the shape.
        size: see `generate_inputs`.
        readers: the layers that will read it.
    """
    tensor = keras.KerasTensor(shape)
    array = _draw(np.random.default_rng(0), tensor, shape_for(tensor, 2, size), readers)
    return _tensor(array, tensor.dtype)


def shape_for(tensor, batch_size: int, size: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of a symbolic tensor, with sizes in place of those left open."""
    if not len(tensor.shape):
        return ()
    sizes = [size] if isinstance(size, (int, np.integer)) else list(size)
    first = tensor.shape[0] if tensor.shape[0] is not None else batch_size
    rest = [
        sizes[axis % len(sizes)] if known is None else known
        for axis, known in enumerate(tensor.shape[1:])
    ]
    return (first, *rest)


def _tensor(array: np.ndarray, dtype: str):
    if dtype == "string":
        return keras.ops.convert_to_tensor(array.tolist(), dtype="string")
    return keras.ops.cast(keras.ops.convert_to_tensor(array), dtype)


def _draw(rng, tensor, shape, readers) -> np.ndarray:
    words = next(filter(None, map(_vocabulary, readers)), None)
    if words is not None:
        several = any("split" in getattr(r, "get_config", dict)() for r in readers)
        return _words(rng, shape, words, tensor.dtype, several)
    limits = [limit for reader in readers for limit in _limits(reader, tensor.dtype)]
    if limits:
        return rng.integers(0, max(min(limits), 1), shape)
    if tensor.dtype == "string":
        return _words(rng, shape, list("abcdefgh"), tensor.dtype)
    if "float" in tensor.dtype:
        return rng.standard_normal(shape).astype("float32")
    return rng.integers(0, 256 if tensor.dtype == "uint8" else 2, shape)


def _words(rng, shape, words: list, dtype: str, several=True) -> np.ndarray:
    """Words out of a vocabulary.

    If there may be several, there are in every second sample.
    """
    if dtype != "string":
        return rng.choice(np.asarray(words), shape)
    found = np.empty(shape, object)
    for place in np.ndindex(*shape):
        count = 1 if place[0] % 2 or not several else rng.integers(1, 9)
        found[place] = " ".join(rng.choice(np.asarray(words, object), count))
    return found


def reads_ids(graph: Graph) -> list[bool]:
    """Whether each input of a graph is read as ids, as an embedding reads it."""
    readers = _readers(graph)
    return [
        any(True for one in readers[id(x)] for _ in _limits(one, x.dtype))
        for x in graph.inputs
    ]


def _vocabulary(reader) -> list | None:
    """The words that a lookup knows, or None for another layer."""
    known = getattr(reader, "get_vocabulary", None)
    if known is None or getattr(reader, "invert", False):
        return None
    found = [word for word in known() if word != ""]
    numbers = [word for word in found if isinstance(word, (int, np.integer))]
    return numbers or found


# What layers call the number of ids that they know.
_COUNTS = ("input_dim", "num_tokens", "vocabulary_size")


def _limits(reader, dtype: str) -> Iterator[int]:
    """Below what ids have to be for a layer, or a number of them itself."""
    if isinstance(reader, int):
        yield reader
        return
    ids = "float" not in dtype
    held = getattr(reader, "layer", reader)  # by a masked layer or wrapper
    for part in parts_of(reader) + [reader] if ids else [reader, held]:
        for name in _COUNTS:
            count = getattr(part, name, None)
            count = count() if callable(count) else count
            if isinstance(count, (int, np.integer)) and not isinstance(count, bool):
                yield int(count)


def _readers(graph: Graph) -> dict[int, list]:
    """For each input (by its id) the layers that read it as it is."""
    found: dict[int, list] = {id(tensor): [] for tensor in graph.inputs}
    origins = {key: {key} for key in found}
    for node in graph.nodes:
        coming = [origins.get(id(tensor), set()) for tensor in node.inputs]
        if not any(coming):
            continue
        whole = set().union(*coming)
        op = node.op
        if is_graph(op):
            inner = trace(op)
            readers = _readers(inner)
            for keys, tensor in zip(coming, inner.inputs):
                for key in keys:
                    found[key] += readers[id(tensor)]
        elif is_layer(op):
            for key in whole:
                found[key].append(op)
        elif type(op).__name__ == "Take" and len(coming) == 2 and op.axis is not None:
            for key in coming[1]:
                found[key].append(node.inputs[0].shape[op.axis] or 1)
        read_as_numbers = any("float" in tensor.dtype for tensor in node.inputs)
        if getattr(op, "weights", None) or (is_layer(op) and read_as_numbers):
            continue
        if type(op).__name__ in ("OnesLike", "ZerosLike"):  # it reads the shape alone
            continue
        for tensor in node.outputs:
            origins[id(tensor)] = whole
    return found


# What to take for open sizes, axis by axis: odd and prime ones, and multiples of what
# nets halve several times; small ones where there are few positions, large ones where
# a net has many strides.
_SIZES = (
    (29, 37, 23),
    (32, 64, 32),
    (13, 17, 11),
    (7, 5, 3),
    (16, 16, 16),
    (4, 4, 4),
    (64, 64, 64),
    (2, 2, 2),
    (128, 192, 64),
    (127, 113, 61),
    (257, 269, 67),
    (521, 509),
    (512, 640),
    (1031, 1021),
    (2053, 2069),
    (4099,),
    (8209,),
    (16411,),
    (32771,),
    (65537,),
    (131101,),
)
_MOST = 2**24  # elements of a sample


def sizes_to_try(model) -> list[tuple[int, ...]]:
    """Sizes for what a model leaves open, in the order in which to try them."""
    tensors = trace(model).inputs
    open_axes = max(
        (axis for t in tensors for axis, n in enumerate(t.shape[1:], 1) if n is None),
        default=0,
    )
    if not open_axes:
        return [(1,)]
    return [
        sizes
        for sizes in _SIZES
        if len(sizes) >= min(open_axes, 2)
        and sum(math.prod(shape_for(t, 1, sizes)) for t in tensors) <= _MOST
    ]


def check_inputs(model, inputs):
    """The inputs of a model that are given as `verify`; None for true and false.

    Raises:
        ValueError: if they are no arrays that the model takes.
    """
    if isinstance(inputs, (bool, np.bool_)):
        return None
    expected = [tuple(tensor.shape) for tensor in trace(model).inputs]
    flat = keras.tree.flatten(inputs)
    shapes = [tuple(getattr(array, "shape", ())) for array in flat]
    fits = len(expected) == len(shapes) and (
        isinstance(inputs, dict) or all(map(_matches, expected, shapes))
    )
    samples = {shape[0] if shape else 0 for shape in shapes}
    if not fits or 0 in samples or len(samples) > 1:
        raise ValueError(
            "Expected `verify` to be `True`, `False` or inputs of "
            f"'{model.name}': arrays of the shapes {', '.join(map(str, expected))}, "
            "with as many samples each. Received: "
            f"{', '.join(map(str, shapes)) or repr(inputs)}"
        )
    return inputs


def _matches(expected: tuple, shape: tuple) -> bool:
    return len(expected) == len(shape) and all(
        known in (None, size) for known, size in zip(expected, shape)
    )
