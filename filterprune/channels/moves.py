"""Moving data about, on arrays of labels or values that broadcast."""

import numpy as np

from filterprune.channels.flow import Ambiguous, current


def concatenate(xs, axis):
    """A function that concatenates arrays that broadcast to the tensors `xs`."""
    shapes = [x.shape for x in xs]
    axis %= len(shapes[0])
    sizes = [x.size(axis) for x in xs]
    if any(shape[axis] is None for shape in shapes):
        # Positions cannot be told apart along an axis of unknown size.
        table = current().flow.table
        for x in xs:
            table.tie_along(x.labels, axis)  # only to see that it is uniform
            table.tie(xs[0].labels, x.labels)
        return lambda *arrays: np.broadcast_arrays(*arrays)[0]

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


def full_shape(shape) -> tuple[int, ...]:
    """A static shape with one sample in the batch; all else must be known."""
    if any(size is None for size in shape[1:]):
        raise Ambiguous(f"it reorders a tensor of unknown size {tuple(shape)}")
    return (1, *shape[1:])
