"""The one check behind most tests: masked and compact compute the same."""

import itertools

import keras
import numpy as np

import filterprune
from filterprune.channels.trace import trace
from filterprune.rebuilding import states_of
from filterprune.selection import Selector
from filterprune.verification import relative_difference

# Keras 3.15 computes some of float64 in float32 elsewhere: matrix products on
# PyTorch, `tanh` and its like on JAX.
MIXED = 1e-5
DOUBLE = 1e-9 if keras.backend.backend() == "tensorflow" else MIXED
LIMITS = {"float32": 1e-4, "float64": DOUBLE}
# How many times what a change in the last bit of the inputs does is rounding too.
TIMES = 64


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
    model(_inputs(model, 4, (size, size), seed), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        mean, variance = layer.moving_mean, layer.moving_variance
        spread = np.sqrt(keras.ops.convert_to_numpy(variance))
        mean.assign(mean + 0.3 * spread * rng.normal(size=spread.shape))
        variance.assign(variance * rng.uniform(1.0, 2.5, spread.shape) + 1e-3)
    return model


def state_of(model):
    """All that can change in a model: variables, states, the compiled and the counted.

    Returns:
        Arrays by a name; compare two with `assert_untouched`.
    """
    found = {}
    variables = [*model.variables]
    if getattr(model, "optimizer", None) is not None:
        variables += model.optimizer.variables
    for number, layer in enumerate(model._flatten_layers()):
        if getattr(layer, "stateful", False):
            variables += states_of(layer)
        for key, value in vars(layer).items():
            if type(value) in (int, float, bool, str) and not key.startswith("_"):
                found[f"{number} {layer.name}.{key}"] = np.array(value)
    for number, variable in enumerate(variables):
        found[f"{number} {variable.path}"] = to_numpy(variable).copy()
    return found


def assert_untouched(model, before):
    """Nothing in the model changed since `state_of`, to the last bit."""
    after = state_of(model)
    assert after.keys() == before.keys()
    changed = [
        key
        for key, value in before.items()
        if after[key].dtype != value.dtype or after[key].tobytes() != value.tobytes()
    ]
    assert not changed, f"the user's model changed: {changed}"


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


# How bright the images of a batch are: a net may treat large inputs otherwise.
SCALES = (1.0, 0.01, 1000.0, 0.1, 10.0)
# What to take for an open height and width, one pair after another.
SIZES = ((64, 64), (15, 22))


def difference(masked, small, batch_size=3, size=None, seed=3, noise=None):
    """The largest relative difference between two models' outputs, image by image.

    Images differ in brightness: a net that rescales its inputs would otherwise see
    next to nothing of them, and one that clips would hide what it does with more.

    Args:
        masked, small: models that take the same inputs.
        batch_size: how many images, one of each of the first `SCALES`.
        size: what to take for open sizes; by default each of `SIZES`.
        seed: the seed of the inputs.
        noise: a seed, to give `small` inputs that are changed in the last bit.
    """
    leaves_open = any(None in tensor.shape[1:] for tensor in masked.inputs)
    sizes = SIZES[: 1 + leaves_open] if size is None else ((size, size),)
    found = []
    step = np.finfo(np.float64 if is_double(masked) else np.float32).eps
    for number, size in enumerate(sizes):
        try:
            inputs, outputs = _run(masked, batch_size, size, seed)
        except Exception:
            if number == 0:  # a net may not take others
                raise
            continue
        if noise is not None:
            inputs = _with_noise(inputs, step, noise)
        found.append(_difference(outputs, small, inputs))
    return max(found)


def _run(masked, batch_size, size, seed):
    try:
        inputs = _inputs(masked, batch_size, size, seed)
        return inputs, masked(inputs, training=False)
    except Exception:  # a constant in the net may fix the number of images
        inputs = _inputs(masked, 2, size, seed)
        return inputs, masked(inputs, training=False)


def limit_of(model):
    """What rounding alone may come to in the outputs of a model."""
    limit = LIMITS[keras.config.floatx()]
    return limit if is_double(model) else max(limit, MIXED)


def is_double(model):
    """Whether all of a model is computed in float64."""
    if keras.config.floatx() != "float64" or DOUBLE == MIXED:
        return False
    # TensorFlow resizes images of any dtype in float32.
    resize = ("Resize", "Resizing", "UpSampling2D", "CenterCrop", "AffineTransform")
    return not any(type(op).__name__ in resize for op in model.operations)


def _with_noise(inputs, step, seed):
    """Inputs that are changed in the last bit."""
    rng = np.random.default_rng(seed)

    def change(tensor):
        if "float" not in keras.backend.standardize_dtype(tensor.dtype):
            return tensor
        factor = 1 + step * rng.choice([-1.0, 1.0], tensor.shape)
        return keras.ops.cast(to_numpy(tensor) * factor, tensor.dtype)

    return keras.tree.map_structure(change, inputs)


def _difference(outputs, small, inputs):
    pairs = zip(
        keras.tree.flatten(outputs),
        keras.tree.flatten(small(inputs, training=False)),
        strict=True,
    )
    return max(_image_by_image(to_numpy(a), to_numpy(b)) for a, b in pairs)


def _image_by_image(expected, received):
    if expected.shape != received.shape:
        return float("inf")
    if expected.ndim < 2:
        return relative_difference(expected, received)
    return max(map(relative_difference, expected, received), default=0.0)


def _inputs(model, batch_size, size, seed):
    """Random inputs, images of several scales."""
    rng = np.random.default_rng(seed)

    def draw(tensor):
        count = tensor.shape[0] or batch_size
        opened = itertools.cycle(size)
        shape = [next(opened) if n is None else n for n in tensor.shape[1:]]
        if "float" not in tensor.dtype:
            return keras.ops.cast(rng.integers(0, 2, (count, *shape)), tensor.dtype)
        values = rng.normal(size=(count, *shape))
        if len(shape) > 2:  # an image, not a sequence
            scales = np.resize(SCALES, count)
            values *= scales.reshape(-1, *[1] * len(shape))
        return keras.ops.cast(values, tensor.dtype)

    return keras.tree.map_structure(draw, trace(model).input_struct)


def check_exact_but_for_rounding(masked, limit=None, **kwargs):
    """As `check_exact`; whether the graph multiplies rounding beyond the limit.

    The difference must then be within what a change in the last bit of the inputs does
    to the masked model itself, up to a factor.
    """
    limit = limit or limit_of(masked)
    found = difference(masked, compacted(masked), **kwargs)
    if found < limit:
        return False
    moved = [difference(masked, masked, noise=seed, **kwargs) for seed in range(3)]
    allowed = TIMES * max(moved)
    assert found < allowed, (
        f"masked and compact differ by {found:.2g}, where rounding explains "
        f"{allowed:.2g}"
    )
    return True


def compacted(masked, verify=True):
    """Compact a masked model, which stays as it is."""
    before = state_of(masked)
    small = filterprune.compact(masked, verify=verify)
    assert_untouched(masked, before)
    return small


def check_exact(masked, limit=None, verify=True, **kwargs):
    """Compact a masked model, compare, and return the compact model."""
    small = compacted(masked, verify)
    limit = limit or limit_of(masked)
    found = difference(masked, small, **kwargs)
    assert found < limit, f"masked and compact differ by {found:.2g}"
    return small
