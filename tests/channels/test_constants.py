"""Constants that absent channels leave behind, by brute force at many sizes.

`conv -> + 1.5 -> operation -> dense`: what is left of a closed channel goes into the
bias of the dense layer only if it is the same at every position, whatever the size.
"""

import warnings

import keras
import numpy as np
import pytest
from exactness import LIMITS, close_at_random, randomise, to_numpy
from keras import layers, ops

import filterprune
from filterprune.channels.registry import (
    layer_rule,
    operation_rule,
    registered_layers,
    registered_operations,
)
from filterprune.verification import relative_difference

CONV = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}
SIZES = [(1, 1), (2, 3), (3, 2), (5, 8), (7, 7), (9, 4), (13, 11), (12, 17), (17, 15)]
FIXED = (9, 6)
PRUNED, STAYS, NEVER_OPEN = "pruned", "stays", "its sizes must be known"


def ranked(name, *args, ranks=(1, 2, 3), open_sizes=PRUNED, **kwargs):
    """Cases of a layer with a version for each rank."""
    return {
        getattr(layers, f"{name}{rank}D"): (
            rank,
            [(lambda y, c=f"{name}{rank}D": make(c, *args, **kwargs)(y), open_sizes)],
        )
        for rank in ranks
    }


def make(name, *args, **kwargs):
    return getattr(layers, name)(*args, **kwargs)


def two(*cases, rank=2):
    return rank, list(cases)


KERNEL = np.random.default_rng(1).normal(size=(3, 3, 8, 1)).astype("float32")


def convolution(rank):
    conv = CONV[rank]
    return rank, [
        (lambda y: conv(6, 2)(y), PRUNED),
        (lambda y: conv(6, 1, strides=2, padding="same")(y), PRUNED),
        (lambda y: conv(6, 3, padding="same")(y), STAYS),
        (lambda y: conv(6, 2, strides=2, padding="same")(y), STAYS),
        (lambda y: conv(6, 2, dilation_rate=2, padding="same")(y), STAYS),
        (lambda y: conv(8, 2, groups=8, use_bias=False)(y), PRUNED),
        (lambda y: conv(8, 2, groups=8, padding="same", use_bias=False)(y), STAYS),
    ]


def transposed(rank):
    conv = getattr(layers, f"Conv{rank}DTranspose")
    return rank, [
        (lambda y: conv(6, 1)(y), PRUNED),
        (lambda y: conv(6, 3)(y), STAYS),
        (lambda y: conv(6, 1, strides=2)(y), STAYS),
    ]


def depthwise(rank):
    conv = getattr(layers, f"DepthwiseConv{rank}D")
    return rank, [
        (lambda y: conv(2, use_bias=False)(y), PRUNED),
        (lambda y: conv(1, strides=2, padding="same", use_bias=False)(y), PRUNED),
        (lambda y: conv(2, strides=2, padding="same", use_bias=False)(y), STAYS),
        (lambda y: conv(3, padding="same")(y), PRUNED),  # gated
        (lambda y: conv(2, depth_multiplier=2, use_bias=False)(y), PRUNED),
    ]


LAYERS = {
    **{CONV[rank]: convolution(rank) for rank in CONV},
    **{
        getattr(layers, f"Conv{rank}DTranspose"): transposed(rank) for rank in (1, 2, 3)
    },
    **{getattr(layers, f"DepthwiseConv{rank}D"): depthwise(rank) for rank in (1, 2)},
    **ranked("SeparableConv", 6, 2, ranks=(1, 2), open_sizes=STAYS),
    **ranked("AveragePooling", 2, strides=1, padding="same"),
    **ranked("MaxPooling", 3, strides=2, padding="same"),
    **ranked("UpSampling", 2),
    **ranked("Cropping", 1),
    **ranked("ZeroPadding", 1, open_sizes=STAYS),
    **ranked("AdaptiveAveragePooling", 3),
    **ranked("AdaptiveMaxPooling", 3),
    **ranked("GlobalAveragePooling"),
    **ranked("GlobalMaxPooling"),
    layers.CenterCrop: two((lambda y: layers.CenterCrop(4, 5)(y), PRUNED)),
    layers.Resizing: two(
        (lambda y: layers.Resizing(5, 7, interpolation="bicubic")(y), PRUNED),
        (lambda y: layers.Resizing(5, 7, crop_to_aspect_ratio=True)(y), PRUNED),
        (lambda y: layers.Resizing(8, 8, pad_to_aspect_ratio=True)(y), STAYS),
    ),
    layers.Flatten: two((lambda y: layers.Flatten()(y), NEVER_OPEN)),
    layers.Reshape: two((lambda y: layers.Reshape((-1, 8))(y), PRUNED)),
    layers.Permute: two((lambda y: layers.Permute((2, 1, 3))(y), PRUNED)),
    layers.RepeatVector: two(
        (lambda y: layers.RepeatVector(3)(layers.GlobalMaxPooling2D()(y)), PRUNED)
    ),
}


def reduced(function, open_sizes=PRUNED):
    return two(
        (lambda y: function(y, axis=1), open_sizes),
        (lambda y: function(y, axis=(1, 2), keepdims=True), open_sizes),
    )


def both(function, open_sizes=PRUNED):
    """Cases of two tensors, which are alike or not where channels are absent."""
    return two(
        (lambda y: function([y, y * 1.0]), open_sizes),
        (
            lambda y: function([y, y + 1.0]),
            STAYS if open_sizes == PRUNED else open_sizes,
        ),
    )


OPERATIONS = {
    "Concatenate": two(
        (lambda y: ops.concatenate([y, ops.relu(y)], axis=1), PRUNED),
        (lambda y: ops.concatenate([y, y + 1.0], axis=1), STAYS),
    ),
    "Hstack": both(ops.hstack, NEVER_OPEN),
    "Dstack": both(
        lambda ys: ops.reshape(ops.dstack(ys), (-1, *FIXED, 16)), NEVER_OPEN
    ),
    "Stack": both(lambda ys: ops.stack(ys, axis=1)),
    "ExpandDims": two((lambda y: ops.expand_dims(y, 1), PRUNED)),
    "Squeeze": two((lambda y: ops.squeeze(ops.expand_dims(y, 1), 1), PRUNED)),
    "Flip": two((lambda y: ops.flip(y, (1, 2)), PRUNED)),
    "Fliplr": two((lambda y: ops.fliplr(y), PRUNED)),
    "Rot90": two((lambda y: ops.rot90(y, 1, (1, 2)), NEVER_OPEN)),
    "Moveaxis": two((lambda y: ops.moveaxis(y, 1, 2), PRUNED)),
    "Swapaxes": two((lambda y: ops.swapaxes(y, 1, 2), PRUNED)),
    "Transpose": two((lambda y: ops.transpose(y, (0, 2, 1, 3)), PRUNED)),
    "Repeat": two((lambda y: ops.repeat(y, 2, 1), PRUNED)),
    "Tile": two((lambda y: ops.tile(y, (1, 2, 1, 1)), PRUNED)),
    "DepthToSpace": two((lambda y: ops.depth_to_space(y, 2), NEVER_OPEN)),
    "SpaceToDepth": two(
        (lambda y: ops.space_to_depth(ops.repeat(y, 2, 1), (2)), NEVER_OPEN)
    ),
    "Reshape": two((lambda y: ops.reshape(y, (-1, 54, 8)), NEVER_OPEN)),
    "BroadcastTo": two(
        (lambda y: ops.broadcast_to(y[:, :1], (2, *FIXED, 8)), NEVER_OPEN)
    ),
    "ArraySplit": two((lambda y: ops.array_split(y, 2, axis=1)[1], NEVER_OPEN)),
    "Split": two((lambda y: ops.split(y, 3, axis=1)[1], NEVER_OPEN)),
    "Unstack": two((lambda y: ops.unstack(y, axis=1)[1], NEVER_OPEN)),
    "Roll": two((lambda y: ops.roll(y, (1, -1), (1, 2)), PRUNED)),
    "Take": two((lambda y: ops.take(y, np.array([0, 0]), axis=1), PRUNED)),
    "GetItem": two((lambda y: y[:, :1], PRUNED)),
    "Pad": two(
        (lambda y: ops.pad(y, ((0, 0), (1, 0), (0, 2), (0, 0))), STAYS),
        (lambda y: ops.pad(y, ((0, 0), (1, 0), (0, 0), (0, 0)), "symmetric"), PRUNED),
        (
            lambda y: ops.pad(y, ((0, 0), (1, 1), (1, 1), (1, 2)), constant_values=2.0),
            PRUNED,  # gated
        ),
        (
            lambda y: ops.pad(y, ((0, 0), (0, 0), (0, 0), (1, 2)), constant_values=2.0),
            PRUNED,
        ),
    ),
    **{
        name: reduced(function)
        for name, function in {
            "Mean": ops.mean,
            "Max": ops.max,
            "Min": ops.min,
            "Amax": ops.amax,
            "Amin": ops.amin,
            "Var": ops.var,
            "Std": ops.std,
            "Median": ops.median,
            "Ptp": ops.ptp,
            "Logsumexp": ops.logsumexp,  # gated
        }.items()
    },
    **{
        name: reduced(function, STAYS)
        for name, function in {"Sum": ops.sum, "Norm": ops.norm}.items()
    },
    "Prod": two((lambda y: ops.prod(y, axis=1), STAYS)),
    "Any": two((lambda y: ops.cast(ops.any(y, axis=1), "float32"), PRUNED)),
    "All": two((lambda y: ops.cast(ops.all(y, axis=1), "float32"), PRUNED)),
    "Moments": two(
        (lambda y: ops.moments(y, (1, 2), keepdims=True)[0], PRUNED),
        (lambda y: ops.moments(y, (1, 2), keepdims=True)[1], PRUNED),
    ),
    "Cumsum": two((lambda y: ops.cumsum(y, axis=1), STAYS)),
    "Cumprod": two((lambda y: ops.cumprod(y, axis=2), STAYS)),
    "Diff": two((lambda y: ops.diff(y, axis=1), PRUNED)),
    "Sort": two((lambda y: ops.sort(y, axis=1), PRUNED)),
    "Normalize": two((lambda y: ops.normalize(y, axis=1), STAYS)),
    "Resize": two(
        (lambda y: ops.image.resize(y, (4, 9)), PRUNED),
        (lambda y: ops.image.resize(y, (8, 8), pad_to_aspect_ratio=True), STAYS),
    ),
    "AveragePool": two(
        (lambda y: ops.average_pool(y, 3, strides=2, padding="same"), PRUNED)
    ),
    "MaxPool": two((lambda y: ops.max_pool(y - 9.0, 2, padding="same"), PRUNED)),
    "CropImages": two((lambda y: ops.image.crop_images(y, 1, 0, 0, 2), NEVER_OPEN)),
    "PadImages": two((lambda y: ops.image.pad_images(y, 1, 1, 0, 2), NEVER_OPEN)),
    "GaussianBlur": two((lambda y: ops.image.gaussian_blur(y), STAYS)),
    "ExtractPatches": two(
        (lambda y: ops.image.extract_patches(y, 2, 1), PRUNED),
        (lambda y: ops.image.extract_patches(y, 3, 2, padding="same"), STAYS),
    ),
    "DepthwiseConv": two(
        (lambda y: ops.depthwise_conv(y, KERNEL), PRUNED),
        (lambda y: ops.depthwise_conv(y, KERNEL[:1, :1], 2, "same"), PRUNED),
        (lambda y: ops.depthwise_conv(y, KERNEL, 2, "same"), STAYS),
    ),
    "Conv": two((lambda y: ops.conv(y, KERNEL @ np.ones((1, 3), "float32")), STAYS)),
}
OPERATIONS["Max"][1].append((lambda y: ops.max(y - 9.0, 1, initial=1.0), PRUNED))
OPERATIONS["Min"][1].append((lambda y: ops.min(y, 1, initial=-1.0), PRUNED))

# What Keras 3.15 cannot run on a backend, or not at open sizes.
SKIPPED = {"jax": ("MaxPool", "AveragePool"), "torch": (), "tensorflow": ()}

CASES = [
    pytest.param(name, rank, op, expected, id=f"{name}-{number}")
    for table in (LAYERS, OPERATIONS)
    for key, (rank, cases) in table.items()
    for number, (op, expected) in enumerate(cases)
    for name in [getattr(key, "__name__", key)]
]


def model_of(op, rank, sizes):
    x = keras.Input((*sizes, 3))
    y = op(CONV[rank](8, 1, name="first")(x) + 1.5)
    return randomise(keras.Model(x, layers.Dense(4)(y)))


def group_of(model):
    return next(g for g in filterprune.analyze(model).groups if "first" in g.layers)


def shifts_of(model):
    """The names of the operations that add the constant.

    Without a gate behind them the constant is left, to go into biases if it can.
    """
    names = [op.name for op in model.operations]
    return [name for name in names if name.startswith(("add", "subtract"))]


def wrapped(model, exclude):
    """The masked model, and whether channels of the first layer can go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)  # none can
        masked = filterprune.wrap_model(model, exclude=exclude)
    return masked, hasattr(masked.get_layer("first"), "gate")


def differences(masked, small, shapes):
    """The relative difference for images of each size that the model takes."""
    rng = np.random.default_rng(0)
    for shape in shapes:
        image = rng.normal(size=shape).astype("float32")
        try:
            expected = masked(image, training=False)
        except Exception:
            continue
        if 0 not in expected.shape and np.isfinite(to_numpy(expected)).all():
            yield relative_difference(expected, small(image, training=False))


def check(masked, shapes, at_least):
    close_at_random(masked)
    small = filterprune.compact(masked, verify=False)
    found = list(differences(masked, small, shapes))
    assert len(found) >= at_least
    assert max(found) < LIMITS[keras.config.floatx()]
    assert small.get_layer("first").filters < 8


@pytest.mark.parametrize(("name", "rank", "op", "expected"), CASES)
def test_a_constant_at_open_sizes(name, rank, op, expected):
    if expected == NEVER_OPEN or name in SKIPPED[keras.backend.backend()]:
        pytest.skip("Keras does not run it")
    model = model_of(op, rank, (None,) * rank)
    masked, can_go = wrapped(model, exclude=shifts_of(model))
    assert can_go == (expected == PRUNED)
    if not can_go:
        masked, can_go = wrapped(model, exclude=())
        assert can_go, "gates behind the shift make zeros of the constant"
    shapes = [(2, *(*size, 5)[:rank], 3) for size in SIZES[_least(name) :]]
    check(masked, shapes, at_least=2)


def _least(name) -> int:
    """The first of `SIZES` that is large enough for TensorFlow not to crash."""
    return 3 if name.startswith(("Adaptive", "Depthwise", "Separable")) else 0


@pytest.mark.parametrize(
    ("name", "rank", "op", "expected"),
    [case for case in CASES if case.values[-1] != PRUNED],
)
def test_a_constant_at_a_size_that_is_known(name, rank, op, expected):
    if name in SKIPPED[keras.backend.backend()]:
        pytest.skip("Keras does not run it")
    sizes = (*FIXED, 4)[:rank]
    model = model_of(op, rank, sizes)
    for exclude in (shifts_of(model), ()):
        masked, can_go = wrapped(model, exclude)
        if can_go:
            check(masked, [(2, *sizes, 3)], at_least=1)
    assert can_go


FAMILIES = ("conv", "pooling", "moving", "movement", "reduction")


def family(rule):
    return rule.__module__.rsplit(".", 1)[-1]


def test_every_layer_and_operation_that_reads_positions_has_a_case():
    ours = {cls for cls in registered_layers() if family(layer_rule(cls)) in FAMILIES}
    assert ours == set(LAYERS)
    names = {
        name
        for name in registered_operations()
        if family(operation_rule(type(name, (), {}))) in FAMILIES
    }
    assert names == set(OPERATIONS)


def test_a_mask_is_made_of_all_channels_that_are_not_zero():
    x = keras.Input((12, 3))
    y = layers.Dense(8, name="first")(x)
    y = layers.Dense(6)(layers.Masking()(y + 1.0))
    model = keras.Model(x, layers.Dense(2)(layers.LSTM(4)(y)))
    assert not wrapped(model, exclude=shifts_of(model))[1]
    assert group_of(model).reason is None


def test_what_augmentation_brings_in_from_outside():
    """Only a constant that is the `fill_value` stays one, and zero may not."""
    for fill, shift, expected in (
        (0.0, 1.0, False),
        (1.0, 1.0, True),
        (0.0, 0.0, True),
    ):

        def op(y, fill=fill, shift=shift):
            y = y - 1.5 + shift
            return layers.RandomTranslation(
                0.3, 0.3, fill_mode="constant", fill_value=fill
            )(y)

        model = model_of(op, 2, (6, 6))
        assert wrapped(model, exclude=shifts_of(model))[1] == expected


def test_batches_are_no_constant():
    """A sum over the batch depends on how many samples there are."""
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 1, name="first")(x) + 1.5
    model = keras.Model(x, layers.Dense(4)(ops.sum(y, axis=0)))
    assert not wrapped(model, exclude=shifts_of(model))[1]


def test_no_gate_behind_a_constant_that_a_bias_can_take():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 1, name="first")(x) * 0.5 + 1.5
    masked = filterprune.wrap_model(keras.Model(x, layers.Dense(4)(y)))
    assert [layer.name for layer in masked.layers if hasattr(layer, "gate")] == [
        "first"
    ]


def test_only_the_last_of_several_constants_has_a_gate():
    """A gate before the square root would stand at its infinite gradient."""
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 1, name="first")(x)
    y = ops.sqrt(y * y + 1e-3) - 0.5
    y = layers.Conv2D(4, 3, padding="same", name="last")(y)
    masked = filterprune.wrap_model(keras.Model(x, y))
    gated = [layer.name for layer in masked.layers if hasattr(layer, "gate")]
    assert len(gated) == 2
    assert gated[1].startswith("subtract")


def test_gradients_are_finite_where_a_square_root_reads_a_closed_channel():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 1, name="first")(x)
    y = layers.Conv2D(4, 3, padding="same", name="last")(ops.sqrt(y * y + 1e-3))
    masked = filterprune.wrap_model(keras.Model(x, y))
    close_at_random(masked)
    masked.compile("sgd", "mse")
    image = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    masked.fit(image, np.zeros((2, 6, 6, 4)), verbose=0)
    for weight in masked.weights:
        assert np.isfinite(to_numpy(weight)).all(), weight.path
    small = filterprune.compact(masked)
    assert small.get_layer("first").filters == 4
