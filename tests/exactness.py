"""The one check behind most tests: masked and compact compute the same."""

import keras
import numpy as np

import filterprune
from filterprune.selection import Selector
from filterprune.verification import generate_inputs, relative_difference

# Keras 3.15 computes some of float64 in float32 elsewhere: matrix products on
# PyTorch, `tanh` and its like on JAX.
DOUBLE = 1e-9 if keras.backend.backend() == "tensorflow" else 1e-5
LIMITS = {"float32": 1e-4, "float64": DOUBLE}


def to_numpy(tensor):
    """A tensor or variable of any backend as an array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def assert_close(found, expected, *limits, **kwargs):
    """`np.testing.assert_allclose`, on any backend."""
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), *limits, **kwargs)


def assert_equal(found, expected):
    """`np.testing.assert_array_equal`, on any backend."""
    np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


def randomise(model, seed=0):
    """Give every weight of a model a random value, so that no leak can hide."""
    rng = np.random.default_rng(seed)
    seen = set()
    for weight in model.weights:
        if id(weight) in seen or "seed" in weight.path:
            continue
        seen.add(id(weight))
        shape = tuple(weight.shape)
        if "variance" in weight.path or "gamma" in weight.path:
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            depthwise = len(shape) == 4 and shape[-1] == 1
            fan_in = max(int(np.prod(shape[: -2 if depthwise else -1])), 1)
            value = rng.normal(0, np.sqrt(1.5 / fan_in), shape)
        elif weight.dtype.startswith("int"):
            continue
        else:
            value = rng.normal(0, 0.3, shape)
        weight.assign(value)
    for layer in model._flatten_layers():
        getattr(layer, "finalize_state", int)()  # its constants are those weights
    return model


def calibrate(model, seed=0, size=64):
    """Give batch norms roughly the statistics of their inputs.

    So that a signal gets through a deep net of random weights: else its output
    hardly depends on the image, and some differences would not show.
    """
    rng = np.random.default_rng(seed)
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built
    ]
    if not norms:
        return model
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    inputs = generate_inputs(model, batch_size=4, size=size, seed=seed)
    model(keras.tree.map_structure(_brighten, inputs), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        mean, variance = layer.moving_mean, layer.moving_variance
        spread = np.sqrt(keras.ops.convert_to_numpy(variance))
        mean.assign(mean + 0.3 * spread * rng.normal(size=spread.shape))
        variance.assign(variance * rng.uniform(1.0, 2.5, spread.shape) + 1e-3)
    return model


def close_at_random(masked, seed=0, fraction=0.5):
    """Close a fraction of the slots of every group; how sparse that is."""
    selector = Selector(masked)
    rng = np.random.default_rng(seed)
    closed = np.zeros(sum(group.size for group in selector.groups), bool)
    start = 0
    for group in selector.groups:
        count = min(int(fraction * group.size + 0.5), group.size - 1)
        closed[start + rng.permutation(group.size)[:count]] = True
        start += group.size
    selector.set_gates(closed)
    return selector.sparsity()


def difference(masked, small, batch_size=2, size=64, seed=3):
    """The largest relative difference between two models' outputs.

    The last image is as bright as pixels are: a net that rescales its inputs
    would otherwise see next to nothing of them.
    """
    inputs = generate_inputs(masked, batch_size=batch_size, size=size, seed=seed)
    inputs = keras.tree.map_structure(_brighten, inputs)
    pairs = zip(
        keras.tree.flatten(masked(inputs, training=False)),
        keras.tree.flatten(small(inputs, training=False)),
        strict=True,
    )
    return max(relative_difference(a, b) for a, b in pairs)


def _brighten(image):
    if len(image.shape) < 4 or "float" not in keras.backend.standardize_dtype(
        image.dtype
    ):
        return image
    scale = np.ones((image.shape[0],) + (1,) * (len(image.shape) - 1))
    scale[-1] = 100
    return image * keras.ops.cast(scale, image.dtype)


def check_exact(masked, limit=None, verify=True):
    """Compact a masked model, compare, and return the compact model."""
    small = filterprune.compact(masked, verify=verify)
    limit = limit or LIMITS[keras.config.floatx()]
    found = difference(masked, small)
    assert found < limit, f"masked and compact differ by {found:.2g}"
    return small
