"""Moving data about, on arrays of labels or values that broadcast."""

import math

import keras
import numpy as np

from filterprune.channels.calls import Ambiguous, current


def concatenate(xs, axis):
    """A function that concatenates arrays that broadcast to the tensors `xs`."""
    shapes = [x.shape for x in xs]
    axis %= len(shapes[0])
    sizes = [x.size(axis) for x in xs]
    if any(shape[axis] is None for shape in shapes):
        # Positions cannot be told apart along an axis of unknown size.
        table = current().flow.table
        for x in xs:
            table.tie(np.take(xs[0].labels, [0], axis), x.labels)
        return lambda *arrays: _in_common(np.broadcast_arrays(*arrays))

    def move(*arrays):
        others = np.broadcast_shapes(
            *[a.shape[:axis] + (1,) + a.shape[axis + 1 :] for a in arrays]
        )
        return np.concatenate(
            [
                np.broadcast_to(a, others[:axis] + (size,) + others[axis + 1 :])
                for a, size in zip(arrays, sizes)
            ],
            axis=axis,
        )

    return move


def _in_common(arrays) -> np.ndarray:
    """Labels that are tied; values that are equal, unknown where they are not."""
    first = np.asarray(arrays[0])
    if first.dtype.kind != "f":
        return first
    return np.where(np.all([a == first for a in arrays], axis=0), first, np.nan)


def where_equal(array: np.ndarray, fill: float) -> np.ndarray:
    """What is left of values beside others that are `fill`; labels as they are."""
    if array.dtype.kind != "f":
        return array
    return np.where(array == fill, array, np.nan)


def full_shape(shape) -> tuple[int, ...]:
    """A static shape with one sample in the batch; all else must be known."""
    if any(size is None for size in shape[1:]):
        raise Ambiguous(f"it reorders a tensor of unknown size {tuple(shape)}")
    return (1, *shape[1:])


# What stands for a size that is not known before the model runs.
_OPEN = 8

# More labels than these are not looked at one by one.
_MOST = 3 * 10**7


def run_on_arrays(xs, batch: int = 2):
    """A function that runs the current call on arrays of labels or values.

    Args:
        xs: the `Channels` of the call's tensors, in order.
        batch: how many samples to run it on, of a tensor that takes any
            number. Not 1 by default: `squeeze` would take that axis away.

    Returns:
        A function from as many arrays as there are `xs` to the list of the
        outputs' arrays. It raises `Ambiguous` if something differs along an
        axis of unknown size.
    """
    call = current()
    wide = [_sized(x, batch) for x in xs]

    def move(*arrays):
        given = [np.broadcast_to(a, shape) for a, shape in zip(arrays, wide)]
        try:
            results = _run(call, given)
        except Exception as error:
            raise Ambiguous(f"it cannot be run on labels: {error}") from None
        return [
            _closed(keras.ops.convert_to_numpy(result), shape)
            for result, shape in zip(results, call.outputs, strict=True)
        ]

    return move


def _run(call, arrays) -> list:
    """The outputs for arrays, or for tensors where Keras wants those."""
    try:
        return keras.tree.flatten(call.move(*arrays))
    except Exception:
        tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
        return keras.tree.flatten(call.move(*tensors))


def _sized(x, batch: int) -> tuple[int, ...]:
    """A shape for the arrays of `x`: so many samples, other open sizes filled in."""
    sizes = [_OPEN if size is None else size for size in x.shape]
    if None in x.shape:
        sizes[x.shape.index(None)] = batch
    return tuple(sizes)


def whole_batch(x, shape) -> int:
    """The samples after which a reshape into `shape` repeats itself.

    A reshape may cut samples into several, such as the windows of an image, or
    put them together again. With so many samples it shows all that it ever
    does: what then is the same along the axis of unknown size is so for any
    number of them.
    """
    sample = math.prod(_sized(x, 1))
    sizes = [1 if size is None else size for size in shape]
    if None not in shape:
        return max(math.prod(sizes) // sample, 1)
    inner = math.prod(sizes[shape.index(None) + 1 :])
    batch = math.prod(sizes) // math.gcd(sample, inner)
    if batch > 2 and batch * sample > _MOST:
        raise Ambiguous("the shapes before and after it have too little in common")
    return batch


def _closed(array: np.ndarray, shape) -> np.ndarray:
    """An array whose axes of unknown size are reduced to 1."""
    if array.ndim != len(shape):
        raise Ambiguous(f"it gives rank {array.ndim} where {len(shape)} is expected")
    for axis, size in enumerate(shape):
        if size is None and array.shape[axis] != 1:
            first = np.take(array, [0], axis)
            if array.dtype.kind == "f":  # values, and not labels
                alike = (array == first).all(axis, keepdims=True)
                first = np.where(alike, first, np.nan)
            elif (array != first).any():
                raise Ambiguous("channels differ along an axis of unknown size")
            array = first
    return array


def varied_axes(x) -> list[int]:
    """The axes of channels: those along which the labels of `x` differ.

    Of several only those with other labels at every place, if there are such: along
    an axis of positions there are few, as of tokens and of what follows them.
    """
    varied = [axis for axis, size in enumerate(x.labels.shape) if size > 1]
    return _distinct(x.labels, varied)


def longest_axis(labels: np.ndarray, varied: list[int]) -> int:
    """Of the axes along which labels differ the one to lose channels along."""
    return max(_distinct(labels, varied), key=lambda axis: (labels.shape[axis], axis))


def _distinct(labels: np.ndarray, axes: list[int]) -> list[int]:
    """Those of some axes along which no two places have the same labels, or all."""
    if len(axes) < 2:
        return axes

    def distinct(axis):
        rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        return len(np.unique(rows, axis=0)) == len(rows)

    return [axis for axis in axes if distinct(axis)] or axes
