"""One check for all masked layers: a closed gate means an absent channel."""

import dataclasses
import functools

import builders
import keras
import numpy as np
import pytest
from exactness import assert_close, assert_equal, to_numpy
from keras import layers

import filterprune
from filterprune.channels.registry import weight_of
from filterprune.layers import Gate, Masked, MaskedRNN  # see test_recurrent.py

# Elsewhere Keras normalises in float32, whatever the dtype.
DOUBLE = 1e-12 if keras.backend.backend() == "tensorflow" else 1e-6
POLICIES = {"mixed_float16": 5e-3, "mixed_bfloat16": 5e-2, "float64": DOUBLE}


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer to mask.

    Attributes:
        make: makes the plain layer.
        shape: of its input, without the batch.
        axis: the output's axis of channels.
        weights: for each weight with gates its axis (or axes) of channels.
        couples: whether channels depend on each other, as in a softmax.
        kind: the masked layer, if `filterprune.wrap` does not take it by itself.
        numbers: how many different integers it takes, of one that takes those.
    """

    make: functools.partial
    shape: tuple
    axis: int = -1
    weights: dict = dataclasses.field(
        default_factory=lambda: {"kernel": (-1,), "bias": (-1,)}
    )
    couples: bool = False
    kind: type | None = None
    numbers: int | None = None

    def plain(self, **kwargs):
        layer = self.make(name="plain", **kwargs)
        layer.build((None, *self.shape))
        builders.randomise(layer)
        return layer

    def smaller(self, x, keep):
        """What a plain layer makes of the channels that are kept, all others gone."""
        layer, weights = self.make(), self.plain().get_weights()
        x = np.compress(keep, x, axis=self.axis)
        layer.build(x.shape)
        layer.set_weights([np.compress(keep, weight) for weight in weights])
        return np.moveaxis(numpy(layer(x)), self.axis, 0)

    def masked(self, **kwargs):
        """A masked layer with the weights of `plain`, all gates open."""
        cls = type(filterprune.wrap(self.make()))
        cls = self.kind or (Masked if cls is self.make.func else cls)
        layer = cls(self.make(name="plain", **kwargs), axis=self.axis)
        layer.build((None, *self.shape))
        layer.layer.set_weights(self.plain(**kwargs).get_weights())
        return layer

    def inputs(self, dtype="float32"):
        rng = np.random.default_rng(1)
        if self.numbers is not None:
            return keras.ops.cast(
                rng.integers(0, self.numbers, (3, *self.shape)), "int32"
            )
        return keras.ops.cast(rng.normal(size=(3, *self.shape)), dtype)


case = functools.partial
TRANSPOSED = {"kernel": (-2,), "bias": (-1,)}
DEPTHWISE = {"kernel": (-2, -1), "bias": (-1,)}
SEPARABLE = {"pointwise_kernel": (-1,), "bias": (-1,)}
NORM = {"gamma": (-1,), "beta": (-1,)}
FIRST = {"data_format": "channels_first"}

CASES = {
    "Conv1D": Case(case(layers.Conv1D, 4, 3), (8, 2)),
    "Conv2D": Case(case(layers.Conv2D, 4, 3), (6, 6, 2)),
    "Conv2D relu": Case(case(layers.Conv2D, 4, 3, activation="relu"), (6, 6, 2)),
    "Conv2D no bias": Case(
        case(layers.Conv2D, 4, 3, use_bias=False), (6, 6, 2), -1, {"kernel": (-1,)}
    ),
    "Conv2D sigmoid": Case(
        case(layers.Conv2D, 4, 3, strides=2, activation="sigmoid"), (6, 6, 2)
    ),
    "Conv2D softplus": Case(
        case(layers.Conv2D, 4, 3, padding="same", activation="softplus"), (6, 6, 2)
    ),
    "Conv2D groups": Case(case(layers.Conv2D, 6, 3, groups=2), (6, 6, 4)),
    "Conv2D one group a channel": Case(case(layers.Conv2D, 6, 3, groups=3), (6, 6, 3)),
    "Conv2D channels_first": Case(case(layers.Conv2D, 4, 3, **FIRST), (2, 6, 5), 1),
    "Conv2D sigmoid channels_first": Case(
        case(layers.Conv2D, 4, 3, activation="sigmoid", **FIRST), (2, 6, 5), 1
    ),
    "Conv3D": Case(case(layers.Conv3D, 4, 2), (4, 4, 4, 2)),
    "Conv1DTranspose": Case(case(layers.Conv1DTranspose, 4, 3), (6, 2), -1, TRANSPOSED),
    "Conv2DTranspose": Case(
        case(layers.Conv2DTranspose, 4, 3, 2), (4, 4, 2), -1, TRANSPOSED
    ),
    "Conv3DTranspose": Case(
        case(layers.Conv3DTranspose, 4, 2), (3, 3, 3, 2), -1, TRANSPOSED
    ),
    "DepthwiseConv1D": Case(case(layers.DepthwiseConv1D, 3), (8, 4), -1, DEPTHWISE),
    "DepthwiseConv2D": Case(case(layers.DepthwiseConv2D, 3), (6, 6, 4), -1, DEPTHWISE),
    "DepthwiseConv2D multiplier": Case(
        case(layers.DepthwiseConv2D, 3, depth_multiplier=2), (6, 6, 3), -1, DEPTHWISE
    ),
    "DepthwiseConv2D sigmoid": Case(
        case(layers.DepthwiseConv2D, 3, activation="sigmoid", depth_multiplier=2),
        (6, 6, 3),
        -1,
        DEPTHWISE,
    ),
    "SeparableConv1D": Case(case(layers.SeparableConv1D, 4, 3), (8, 3), -1, SEPARABLE),
    "SeparableConv2D": Case(
        case(layers.SeparableConv2D, 4, 3, depth_multiplier=2),
        (6, 6, 3),
        -1,
        SEPARABLE,
    ),
    "Dense": Case(case(layers.Dense, 4), (5,)),
    "Dense sigmoid": Case(case(layers.Dense, 4, activation="sigmoid"), (5,)),
    "EinsumDense": Case(
        case(layers.EinsumDense, "abc,cd->abd", (6, 4), bias_axes="d"), (6, 5)
    ),
    "Dense softplus on a sequence": Case(
        case(layers.Dense, 4, activation="softplus"), (6, 5)
    ),
    "BatchNormalization": Case(case(layers.BatchNormalization), (6, 6, 4), -1, NORM),
    "BatchNormalization no scale": Case(
        case(layers.BatchNormalization, scale=False), (6, 6, 4), -1, {"beta": (-1,)}
    ),
    "BatchNormalization no center": Case(
        case(layers.BatchNormalization, center=False), (6, 6, 4), -1, {"gamma": (-1,)}
    ),
    "BatchNormalization neither": Case(
        case(layers.BatchNormalization, scale=False, center=False), (4,), -1, {}
    ),
    "BatchNormalization axis=1": Case(
        case(layers.BatchNormalization, axis=1), (4, 6, 5), 1, NORM
    ),
    "LayerNormalization": Case(case(layers.LayerNormalization), (6, 4), -1, NORM, True),
    "LayerNormalization no scale": Case(
        case(layers.LayerNormalization, scale=False), (4,), -1, {"beta": (-1,)}, True
    ),
    "LayerNormalization no center": Case(
        case(layers.LayerNormalization, center=False), (4,), -1, {"gamma": (-1,)}, True
    ),
    "LayerNormalization axis=1": Case(
        case(layers.LayerNormalization, axis=1), (4, 6, 5), 1, NORM, True
    ),
    "LayerNormalization axis=1, as many columns": Case(
        case(layers.LayerNormalization, axis=1), (4, 6, 4), 1, NORM, True
    ),
    "RMSNormalization": Case(
        case(layers.RMSNormalization), (6, 4), -1, {"scale": (-1,)}, True
    ),
    "UnitNormalization": Case(case(layers.UnitNormalization), (6, 4), -1, {}, True),
    "GroupNormalization": Case(
        case(layers.GroupNormalization, 2), (6, 6, 4), -1, NORM, True
    ),
    "GroupNormalization one group": Case(
        case(layers.GroupNormalization, 1), (6, 4), -1, NORM, True
    ),
    "GroupNormalization of vectors": Case(
        case(layers.GroupNormalization, 1), (4,), -1, NORM, True
    ),
    "GroupNormalization axis=1": Case(
        case(layers.GroupNormalization, 2, axis=1, center=False),
        (4, 6, 5),
        1,
        {"gamma": (-1,)},
        True,
    ),
    "GroupNormalization axis=1, as many columns": Case(
        case(layers.GroupNormalization, 2, axis=1), (4, 6, 4), 1, NORM, True
    ),
    "Softmax": Case(case(layers.Softmax), (6, 4), -1, {}, True),
    "Activation softmax": Case(case(layers.Activation, "softmax"), (4,), -1, {}, True),
    "Activation sigmoid": Case(case(layers.Activation, "sigmoid"), (6, 6, 4), -1, {}),
    "Activation softplus": Case(case(layers.Activation, "softplus"), (4,), -1, {}),
    "Embedding": Case(
        case(layers.Embedding, 5, 4), (6,), -1, {"embeddings": (-1,)}, numbers=5
    ),
    "ReversibleEmbedding": Case(
        case(layers.ReversibleEmbedding, 5, 4),
        (6,),
        -1,
        {"embeddings": (-1,)},
        numbers=5,
    ),
    "a gate": Case(case(layers.Identity), (6, 6, 4), -1, {}, False, Gate),
    "Rescaling": Case(case(layers.Rescaling, 2.0, offset=0.5), (6, 6, 4), -1, {}),
}
if keras.backend.backend() == "torch":  # Keras 3.15 takes the last axis there
    del CASES["LayerNormalization axis=1"]
    del CASES["LayerNormalization axis=1, as many columns"]
CLOSED = [1, 2]
NEAR = {"rtol": 1e-5, "atol": 1e-6}
# TensorFlow convolves channels_first on a CPU in float32 alone.
ON_CPU = {name: case for name, case in CASES.items() if "first" not in name}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
with_weights = pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.weights],
    ids=[name for name, case in CASES.items() if case.weights],
)


def numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64")))


def split(case, masked, outputs):
    """The outputs of the closed and of the open channels, channels first."""
    moved = np.moveaxis(numpy(outputs), case.axis, 0)
    return moved[masked.closed()], moved[~masked.closed()]


def is_norm(layer):
    return isinstance(layer, layers.BatchNormalization)


# They have files of tests of their own.
ELSEWHERE = (
    MaskedRNN,
    filterprune.layers.MaskedMultiHeadAttention,
    filterprune.layers.MaskedSpectralNormalization,
)


def test_every_masked_layer_has_a_case():
    tested = {type(case.masked()).__name__ for case in CASES.values()}
    public = {
        name
        for name in filterprune.layers.__all__
        if issubclass(getattr(filterprune.layers, name), Masked)
        and not issubclass(getattr(filterprune.layers, name), ELSEWHERE)
    }
    assert public - tested == set()


@every_case
def test_gate_is_a_weight_that_is_not_trained(case):
    masked = case.masked()
    size = masked.compute_output_shape((None, *case.shape))[case.axis]
    assert masked.gate.shape == (size,)
    assert any(weight is masked.gate for weight in masked.non_trainable_weights)
    assert len(masked.trainable_weights) == len(case.plain().trainable_weights)
    assert masked.alive == size
    builders.close(masked, *CLOSED)
    assert masked.alive == size - 2
    assert np.flatnonzero(masked.closed()).tolist() == CLOSED


@every_case
def test_open_gates_change_nothing_and_closed_ones_leave_zero(case):
    x = case.inputs()
    for training in (False, True):
        plain, masked = case.plain(), case.masked()
        expected = plain(x, training=training) if is_norm(plain) else plain(x)
        assert_close(masked(x, training=training), expected, **NEAR)
        builders.close(masked, *CLOSED)
        zeros, others = split(case, masked, masked(x, training=training))
        assert (zeros == 0).all()
        expected = split(case, masked, expected)[1]
        if case.couples:
            expected = case.smaller(x, ~masked.closed())
        assert_close(others, expected, **NEAR)


@with_weights
def test_closed_filters_get_no_gradient_and_open_ones_get_theirs(case):
    masked, x = case.masked(), case.inputs()
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, masked(inputs))
    builders.close(masked, *CLOSED)
    weights = [weight_of(masked.layer, name) for name in case.weights]
    before = [to_numpy(weight).copy() for weight in weights]
    model.compile(keras.optimizers.SGD(1.0), lambda y, found: y * found)
    model.train_on_batch(x, np.random.default_rng(0).normal(size=model(x).shape))
    for (name, axes), old, weight in zip(
        case.weights.items(), before, weights, strict=True
    ):
        moved = np.moveaxis(old - to_numpy(weight), axes, range(len(axes)))
        rows = moved.reshape(masked.gate.shape[0], -1)
        assert (rows[masked.closed()] == 0).all(), name
        assert (rows[~masked.closed()] != 0).any(axis=1).all(), name


@every_case
def test_config_save_and_load(case, tmp_path):
    masked, x = case.masked(), case.inputs()
    again = type(masked).from_config({**masked.get_config()})
    assert again.get_config() == masked.get_config()

    inputs = keras.Input(case.shape)
    model = keras.Model(inputs, masked(inputs))
    builders.close(masked, *CLOSED)
    for name in ("model.keras", "model.h5", "model.weights.h5"):
        if name == "model.weights.h5":
            model.save_weights(tmp_path / name)
            loaded = keras.models.clone_model(model)
            loaded.load_weights(tmp_path / name)
        else:
            model.save(tmp_path / name)
            loaded = keras.models.load_model(tmp_path / name)
        found = loaded.get_layer("plain")
        assert type(found) is type(masked)
        assert found.closed().tolist() == masked.closed().tolist()
        assert_close(loaded(x), model(x), **NEAR)


@pytest.mark.parametrize("case", ON_CPU.values(), ids=ON_CPU)
def test_dtype_policies(case):
    for policy, limit in POLICIES.items():
        plain, masked = case.plain(dtype=policy), case.masked(dtype=policy)
        x = case.inputs(plain.compute_dtype)
        expected, found = plain(x), masked(x)
        assert found.dtype == expected.dtype
        assert masked.gate.dtype == plain.variable_dtype
        dtypes = [weight.dtype for weight in plain.weights]
        assert [weight.dtype for weight in masked.layer.weights] == dtypes
        assert_close(numpy(found), numpy(expected), limit, limit)
        builders.close(masked, *CLOSED)
        zeros, others = split(case, masked, masked(x, training=True))
        assert (zeros == 0).all()
        assert (others != 0).any()


@every_case
def test_losses_are_those_of_the_plain_layer(case):
    """Weight and activity regularizers count as before, and once."""
    keys = [key for key in case.plain().get_config() if key.endswith("regularizer")]
    kwargs = dict.fromkeys(keys, keras.regularizers.L1(0.01))
    kwargs["activity_regularizer"] = keras.regularizers.L2(0.1)
    plain, masked, x = case.plain(**kwargs), case.masked(**kwargs), case.inputs()
    plain(x), masked(x)
    expected = sorted(float(loss) for loss in plain.losses)
    assert expected
    found = sorted(float(loss) for loss in masked.losses)
    assert_close(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["Conv2D", "Dense sigmoid", "BatchNormalization"])
def test_regularizers_survive_the_config(name):
    case = CASES[name]
    regularizers = {"activity_regularizer": keras.regularizers.L2(0.1)}
    masked = case.masked(**regularizers)
    again = type(masked).from_config({**masked.get_config()})
    again.build((None, *case.shape))
    again.set_weights(masked.get_weights())
    x = case.inputs()
    masked(x), again(x)
    assert len(again.losses) == 1
    assert_close(again.losses, masked.losses, rtol=1e-6)


NORMS = {name: case for name, case in CASES.items() if name.startswith("Batch")}


@pytest.mark.parametrize("case", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("closing", [False, True])
def test_moving_statistics_are_those_of_the_plain_layer(case, closing):
    plain, masked = case.plain(), case.masked()
    if closing:
        builders.close(masked, *CLOSED)
    before = numpy(plain.moving_mean)
    for scale in (1.0, 2.0, 3.0):
        x = scale * case.inputs() + scale
        plain(x, training=True), masked(x, training=True)
    x = case.inputs()
    plain(x, training=False), masked(x, training=False)
    assert (numpy(plain.moving_mean) != before).all()
    for name in ("moving_mean", "moving_variance"):
        assert_close(getattr(masked.layer, name), getattr(plain, name), rtol=1e-6)


def test_moving_statistics_move_in_fit():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    masked = builders.clone(model)
    x = np.random.default_rng(0).normal(2.0, 3.0, (64, 4))
    for each in (model, masked):
        each.compile("sgd", "mse")
        each.fit(x, x, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), masked.layers[0].layer.get_weights()):
        assert_close(a, b, rtol=1e-4)


def test_a_frozen_normalisation_uses_its_statistics_in_training():
    case = CASES["BatchNormalization"]
    plain, masked, x = case.plain(), case.masked(), case.inputs()
    plain.trainable = masked.trainable = False
    assert_close(
        masked(x, training=True), plain(x, training=True), rtol=1e-5, atol=1e-6
    )
    assert_equal(masked.layer.moving_mean, plain.moving_mean)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.couples])
def test_channels_that_are_closed_are_not_felt_by_the_others(name):
    case = CASES[name]
    masked, x = case.masked(), numpy(case.inputs())
    builders.close(masked, *CLOSED)
    expected = masked(x)
    np.moveaxis(x, case.axis, 0)[CLOSED] = 1e3
    assert_equal(masked(x), expected)


@pytest.mark.parametrize("left", [[0], [3], [0, 3]], ids=str)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.couples])
def test_statistics_over_few_channels_round_as_those_of_the_plain_layer(name, left):
    """Large numbers cancel out: what is left is due to the order of operations."""
    case = CASES[name]
    keep = np.isin(np.arange(4), left)
    groups = getattr(case.make(), "groups", 1)
    if groups > len(left):
        pytest.skip("a group would have no channel left")
    masked = case.masked()
    masked.gate.assign(keep)
    for scale in (1e-2, 1.0, 1e3, 1e6):
        x = (scale * numpy(case.inputs())).astype("float32")
        found = split(case, masked, masked(x))[1]
        expected = case.smaller(x, keep)
        ulp = np.finfo("float32").eps * np.abs(expected).max()
        assert_close(found, expected, rtol=0, atol=4 * ulp)


@every_case
def test_a_gate_that_is_open_in_part_multiplies_its_channel_alone(case):
    x = case.inputs()
    factor = np.ones(case.masked().gate.shape)
    factor[1] = 0.3
    for training in (False, True):
        masked = case.masked()
        whole = numpy(masked(x, training=training))
        masked = case.masked()  # as before it was called in training
        masked.gate.assign(factor)
        found = numpy(masked(x, training=training))
        axes = [-1 if i == case.axis % whole.ndim else 1 for i in range(whole.ndim)]
        assert_close(found, whole * factor.reshape(axes), **NEAR)


def test_closed_filters_do_not_move_in_fit():
    masked = builders.clone(builders.randomise(builders.mlp(4, 6, 2)))
    layer = masked.get_layer("d0")
    builders.close(layer, *CLOSED)
    before = numpy(layer.layer.kernel)
    masked.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    masked.fit(rng.normal(size=(32, 4)), rng.normal(size=(32, 2)), verbose=0)
    after = numpy(layer.layer.kernel)
    assert_equal(after[:, CLOSED], before[:, CLOSED])
    assert (after[:, [0, 3]] != before[:, [0, 3]]).any()


def test_summary_shows_the_names_of_the_layers():
    masked = builders.clone(builders.build("plain"))
    lines = []
    masked.summary(print_fn=lambda line, **kwargs: lines.append(line))
    text = "\n".join(lines)
    for name in ("conv1", "conv1_bn", "hidden", "MaskedConv2D", "Non-trainable"):
        assert name in text


@pytest.mark.parametrize(
    ("cls", "layer"),
    [
        (filterprune.layers.MaskedConv2D, layers.Dense(3)),
        (filterprune.layers.MaskedDense, layers.Conv2D(3, 3)),
        (filterprune.layers.MaskedBatchNormalization, layers.ReLU()),
    ],
)
def test_a_layer_of_another_type_is_refused(cls, layer):
    with pytest.raises(TypeError, match=f"{cls.__name__[6:]}.*{layer.name}"):
        cls(layer)


def test_a_masked_layer_is_not_masked_again():
    with pytest.raises(TypeError, match=r"masked already|MaskedDense already"):
        Masked(filterprune.layers.MaskedDense(layers.Dense(3)))


def test_name_dtype_and_trainable_default_to_those_of_the_layer():
    layer = layers.Dense(3, name="mine", dtype="float64", trainable=False)
    masked = filterprune.layers.MaskedDense(layer)
    assert (masked.name, masked.compute_dtype) == ("mine", "float64")
    assert not masked.trainable


def test_inputs_of_another_width_are_refused_as_the_layer_does():
    masked = filterprune.wrap_model(builders.plain())
    for model in (masked.get_layer("conv2").layer, masked.get_layer("conv2")):
        with pytest.raises(ValueError, match="expected axis -1 of input shape"):
            model(np.ones((2, 4, 4, 16)))


def gated_weights(masked):
    return [name for plan in masked._plans for name in plan.weights]


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Conv2D(6, 3, padding="same"), (None, 2, 2, 64)),
        (layers.Conv2DTranspose(6, 3, padding="same"), (None, 2, 2, 64)),
        (layers.Dense(6), (None, 64)),
        (layers.EinsumDense("ab,bc->ac", 6, bias_axes="c"), (None, 64)),
        (layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2), (1, 1, 1, 3)),
        (layers.SeparableConv2D(6, 3, padding="same"), (1, 1, 1, 64)),
    ],
)
def test_gates_on_outputs_and_on_kernels_compute_the_same(layer, shape):
    layer = type(layer).from_config({**layer.get_config(), "dtype": "float64"})
    masked = filterprune.wrap(layer)
    masked.build(shape)
    masked.layer.bias.assign(np.linspace(-1, 1, 6))
    masked.gate.assign([1, 0, 0.3, 1, 0, 1])  # those between 0 and 1 are soft
    x = np.random.default_rng(0).normal(size=(shape[0] or 4, *shape[1:]))
    fewer = to_numpy(masked(x))

    wide = filterprune.wrap(type(layer).from_config(layer.get_config()))
    wide.build((10**6, *shape[1:]))  # more outputs than weights: gates on those
    wide.set_weights(masked.get_weights())
    assert gated_weights(masked) == [] and "bias" in gated_weights(wide)
    assert_close(fewer, to_numpy(wide(x)), 1e-5)
    assert (fewer[..., [1, 4]] == 0).all()


@pytest.mark.parametrize(
    "change", [{"dtype": "float16"}, {"activation": "relu"}, {"activation": "tanh"}]
)
def test_gates_stay_on_kernels_where_outputs_would_not_do(change):
    masked = filterprune.wrap(layers.Dense(6, **change))
    masked.build((None, 64))
    assert "kernel" in gated_weights(masked)
