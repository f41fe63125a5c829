"""Pruned without training: the layers behind make up for what is gone."""

import functools
import sys

import keras
import numpy as np
import pytest
from exactness import assert_close, assert_equal, close_at_random, randomise, to_numpy
from keras import layers

import filterprune
from filterprune.gates import is_masked
from filterprune.reconstruction.samples import error

reconstruct = functools.partial(filterprune.reconstruct, refine=0)


def images(count=64, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size, size, channels))


def net(middle, size=8):
    """A layer between two others, one of which makes channels that can go."""
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Activation("relu")(middle(x))
    x = layers.GlobalAveragePooling2D()(x)
    return randomise(keras.Model(inputs, layers.Dense(4, name="head")(x)))


MIDDLE = {
    "conv": lambda: layers.Conv2D(8, 3, activation="tanh"),
    "strides": lambda: layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
    "dilation": lambda: layers.Conv2D(8, 2, dilation_rate=2),
    "groups": lambda: layers.Conv2D(8, 3, groups=2),
    "transpose": lambda: layers.Conv2DTranspose(8, 3, strides=2, padding="same"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    "separable": lambda: layers.SeparableConv2D(8, 3, depth_multiplier=2),
    "dense": lambda: layers.Dense(8, activation="gelu"),
    "grouped depthwise": lambda: layers.Conv2D(12, 3, groups=12),
}


def closed(model, seed=0):
    masked = filterprune.wrap_model(model)
    close_at_random(masked, seed)
    return masked


def distance(model, other, x):
    return error([[model(x)]], [[other(x)]])


@pytest.mark.parametrize("kind", MIDDLE)
def test_every_kind_of_layer_comes_nearer(kind):
    model = net(MIDDLE[kind]())
    masked = closed(model)
    x, others = images(80), images(40, seed=1)
    before = distance(model, masked, others)
    report = reconstruct(masked, x)
    assert len(report.layers) == 2, "both layers behind `first` are fitted"
    assert all(row.after < row.before for row in report.layers)
    assert distance(model, masked, others) < 0.8 * before
    small = filterprune.compact(masked)
    assert_close(small(others), masked(others), 1e-3, 1e-4)


def test_a_dense_layer_gets_what_least_squares_give():
    """Against the formula, written out with NumPy."""
    inputs = keras.Input((6,))
    hidden = layers.Dense(10, activation="relu", name="hidden")(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(hidden)))
    masked = filterprune.wrap_model(model)
    gate = np.arange(10) % 2
    masked.get_layer("hidden").gate.assign(gate)
    x = np.random.default_rng(0).normal(size=(4000, 6)).astype("float32")
    reconstruct(masked, x)
    wanted = to_numpy(model(x))
    left = np.maximum(
        x @ to_numpy(model.get_layer("hidden").kernel)
        + to_numpy(model.get_layer("hidden").bias),
        0,
    )[:, gate == 1]
    left = np.concatenate([left, np.ones((len(x), 1))], axis=1)
    best = left @ np.linalg.lstsq(left, wanted, rcond=None)[0]
    found = np.square(to_numpy(masked(x)) - wanted).sum()
    assert found < 1.02 * np.square(best - wanted).sum()


def test_gates_frozen_layers_and_the_model_itself_stay():
    model = net(layers.Conv2D(8, 3, name="middle"))
    model.get_layer("middle").trainable = False
    before = [to_numpy(weight).copy() for weight in model.weights]
    masked = closed(model)
    kept = filterprune.kept_indices(masked)
    frozen = [to_numpy(w).copy() for w in masked.get_layer("middle").weights]
    report = reconstruct(masked, images())
    assert [row.path for row in report.layers] == ["head"]
    assert filterprune.kept_indices(masked) == kept
    for weight, value in zip(masked.get_layer("middle").weights, frozen, strict=True):
        assert_equal(weight, value)
    for weight, value in zip(model.weights, before, strict=True):
        assert_equal(weight, value)


def test_a_reference_has_the_weights_to_come_near_to():
    """As after pruning, when the masked model's own weights are of a worse one."""
    model = net(layers.Conv2D(8, 3, activation="relu", name="middle"))
    masked = closed(model)
    kernel = masked.get_layer("middle").layer.kernel
    kernel.assign(to_numpy(kernel) * 0.5)
    x = images(80)
    reconstruct(masked, x, reference=model)
    with_reference = distance(model, masked, x)
    other = closed(model)
    reconstruct(other, x)
    assert with_reference == pytest.approx(distance(model, other, x), rel=0.1)


def test_residual_streams_and_nested_models():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    inner = keras.Input((8, 8, 8))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(inner))
    block = keras.Model(inner, layers.ReLU()(y), name="block")
    x = layers.Add()([x, block(x)])
    x = layers.Concatenate()([x, layers.Conv2D(6, 1, name="side")(x)])
    x = layers.GlobalAveragePooling2D()(x)
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    masked = closed(model)
    x, others = images(80), images(40, seed=1)
    before = distance(model, masked, others)
    report = reconstruct(masked, x)
    assert {row.path.split("/")[0] for row in report.layers} >= {"block", "head"}
    assert distance(model, masked, others) < before


def sequences(count=80, length=7, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, length, width))


def attending(inputs):
    """A block of a transformer, behind a stream of which a part goes."""
    x = layers.Dense(8, name="stream")(inputs)
    y = layers.MultiHeadAttention(4, 3, name="attention")(x, x)
    x = layers.Add()([x, y])
    y = layers.Dense(16, activation="gelu", name="up")(layers.LayerNormalization()(x))
    return layers.Add()([x, layers.Dense(8, name="down")(y)])


SEQUENCES = {
    "attention": (attending, {"attention", "up", "down"}),
    "lstm": (
        lambda x: layers.LSTM(6, name="lstm")(layers.Dense(8, name="stream")(x)),
        {"lstm", "head"},
    ),
    "gru": (
        lambda x: layers.GRU(6, name="gru")(layers.Conv1D(8, 3, name="stream")(x)),
        {"gru", "head"},
    ),
    "bidirectional": (
        lambda x: layers.Bidirectional(layers.LSTM(4), name="both")(
            layers.Dense(8, name="stream")(x)
        ),
        {"both", "head"},
    ),
    "einsum": (
        lambda x: layers.EinsumDense("abc,cd->abd", (None, 5), name="einsum")(
            layers.Dense(8, name="stream")(x)
        ),
        {"einsum", "head"},
    ),
    "cross": (
        lambda x: layers.MultiHeadAttention(2, 4, name="cross")(
            layers.Dense(6, name="asks")(x), layers.Dense(8, name="answers")(x)
        ),
        {"cross", "head"},
    ),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_layers_with_channels_inside_come_nearer(kind):
    build, fitted = SEQUENCES[kind]
    inputs = keras.Input((7, 6))
    y = build(inputs)
    y = layers.GlobalAveragePooling1D()(y) if len(y.shape) == 3 else y
    model = randomise(keras.Model(inputs, layers.Dense(4, name="head")(y)))
    masked = closed(model)
    before = distance(model, masked, sequences(seed=1))
    report = reconstruct(masked, sequences(200))
    assert {row.path for row in report.layers} >= fitted
    assert distance(model, masked, sequences(seed=1)) < before
    small = filterprune.compact(masked)
    x = sequences(5)
    assert_close(small(x), masked(x), 1e-3, 1e-4)


def test_heads_that_go_are_made_up_for_by_those_that_stay():
    """Against least squares, written out with the heads' own outputs."""
    inputs = keras.Input((7, 6))
    attention = layers.MultiHeadAttention(4, 5, name="attention")
    model = randomise(keras.Model(inputs, attention(inputs, inputs)))
    masked = filterprune.wrap_model(model)
    gates = masked.get_layer("attention").gates
    gates["heads"].assign([1, 0, 1, 0])
    x = sequences(300).astype("float32")
    reconstruct(masked, x)

    def heads(part):
        return to_numpy(getattr(attention, f"{part}_dense")(x))

    query, key, value = (heads(f"_{part}") for part in ("query", "key", "value"))
    scores = np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(5)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    left = np.einsum("bhts,bshd->bthd", scores, value)[:, :, [0, 2]].reshape(-1, 10)
    left = np.concatenate([left, np.ones((len(left), 1))], axis=1)
    wanted = to_numpy(model(x)).reshape(-1, 6)
    best = left @ np.linalg.lstsq(left, wanted, rcond=None)[0]
    found = np.square(to_numpy(masked(x)).reshape(-1, 6) - wanted).sum()
    assert found < 1.02 * np.square(best - wanted).sum()


def test_a_shared_layer_is_fitted_to_all_that_it_reads():
    """Two branches of other scales: neither alone says what the layer needs."""
    inputs = [keras.Input((8,), name=name) for name in ("one", "other")]
    stems = [layers.Dense(10, activation="relu", name=f"stem{i}") for i in range(2)]
    stems[1].build((None, 8))
    shared = layers.Dense(10, name="shared")
    tied = layers.Dense(12, activation="relu", name="tied")
    made = [shared(tied(stems[i](x))) for i, x in enumerate(inputs)]
    model = randomise(keras.Model(inputs, layers.Subtract()(made)))
    masked = closed(model)
    rng = np.random.default_rng(0)
    x = {"one": rng.normal(size=(300, 8)), "other": 3 + rng.normal(size=(300, 8))}
    others = [value[:100] for value in x.values()]
    before = error([[model(others)]], [[masked(others)]])
    report = reconstruct(masked, x)
    assert [row.path for row in report.layers] == ["tied", "shared"]
    assert error([[model(others)]], [[masked(others)]]) < 0.7 * before


def test_more_inputs_than_can_be_multiplied_out(monkeypatch):
    """With products of samples instead, the result is about the same."""
    from filterprune.reconstruction import readers, sweep

    model = net(layers.Conv2D(8, 3))
    first = reconstruct(closed(model), images(80))
    monkeypatch.setattr(readers, "MOST_INPUTS", 20)
    monkeypatch.setattr(sweep, "MOST_INPUTS", 2000)
    second = reconstruct(closed(model), images(80))
    assert second.after == pytest.approx(first.after, rel=0.2)


def test_a_layer_that_reads_what_it_gives_is_left_alone():
    inputs = keras.Input((6,))
    loop = layers.Dense(6, activation="tanh", name="loop")
    x = layers.Dense(6, name="stem")(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(3)(loop(loop(x)))))
    masked = closed(model)
    report = reconstruct(masked, np.random.default_rng(0).normal(size=(90, 6)))
    assert "loop" not in {row.path for row in report.layers}


HARD = {
    "equal": lambda: np.ones((20, 8, 8, 3)),
    "zeros": lambda: np.zeros((20, 8, 8, 3)),
    "few": lambda: images(5),
    "large": lambda: 1e3 * images(20),
    "noise": lambda: np.random.default_rng(0).uniform(0, 1, (20, 8, 8, 3)),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("seed", range(3))
def test_it_never_makes_it_worse(kind, seed):
    model = net(layers.Conv2D(8, 3, activation="relu"))
    masked = closed(model, seed)
    report = reconstruct(masked, HARD[kind](), seed=seed)
    assert report.after <= report.before
    assert all(row.after <= row.before for row in report.layers)
    assert all(np.isfinite(to_numpy(weight)).all() for weight in masked.weights)


def test_a_single_sample_changes_nothing():
    masked = closed(net(layers.Conv2D(8, 3)))
    before = [to_numpy(weight).copy() for weight in masked.weights]
    with pytest.warns(filterprune.PruningWarning, match="too few"):
        reconstruct(masked, images(1))
    for weight, value in zip(masked.weights, before, strict=True):
        assert_equal(weight, value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: np.full((9, 8, 8, 3), np.nan), "finite inputs"),
        (lambda: images(0), "at least one sample"),
        (list, "at least one sample"),
    ],
)
def test_bad_data_is_refused_and_nothing_changes(data, said):
    masked = closed(net(layers.Conv2D(8, 3)))
    before = [to_numpy(weight).copy() for weight in masked.weights]
    with pytest.raises(ValueError, match=said):
        reconstruct(masked, data())
    for weight, value in zip(masked.weights, before, strict=True):
        assert_equal(weight, value)


def test_another_model_is_no_reference():
    masked = closed(net(layers.Conv2D(8, 3)))
    with pytest.raises(ValueError, match="to have the layers of"):
        reconstruct(masked, images(), reference=net(layers.Conv2D(9, 3)))


def test_any_kind_of_data():
    model = net(layers.Conv2D(8, 3))
    x = images(40).astype("float32")
    found = []
    for data in (x, (x, np.zeros(40)), [x[:20], x[20:]], [(x[:20], 0), (x[20:], 0)]):
        masked = closed(model)
        found.append(reconstruct(masked, data).after)
    assert found == [found[0]] * 4


def test_many_samples_are_taken_in_as_there_is_room(monkeypatch):
    """What is held is bounded, and more samples are seen where maps are small."""
    from filterprune.reconstruction import sweep

    model = net(layers.Conv2D(8, 3, strides=2))
    x = images(400)
    whole = closed(model)
    first = reconstruct(whole, x)
    most = []
    take_in = sweep.Sweep._take_in

    def counted(self, number, count):
        most.append(count)
        return take_in(self, number, count)

    monkeypatch.setattr(sweep.Sweep, "_take_in", counted)
    monkeypatch.setattr(sweep, "FRONTIER", 10 * 32 * 8 * 8 * 12 * 4)
    little = closed(model)
    second = reconstruct(little, x)
    assert min(most) < max(most) == 13
    assert second.after == pytest.approx(first.after, rel=0.1)


@pytest.mark.parametrize("refine", [0, 30])
def test_compress(refine):
    model = net(layers.Conv2D(8, 3, activation="relu"))
    model.compile("sgd", "mse")
    x, others = images(80), images(40, seed=1)
    small = filterprune.compress(model, x, 0.5, refine=refine, target="macs")
    report = small.filterprune_report
    assert (
        filterprune.analyze(small).before.macs
        < 0.6 * filterprune.analyze(model).before.macs
    )
    assert report.after < report.before and 0 <= report.agreement <= 1
    assert distance(model, small, others) < report.before
    assert not is_masked(small)
    assert small.compiled and small.loss == "mse"
    assert "outputs" in str(report)


def test_compress_refuses_before_any_work():
    model = net(layers.Conv2D(8, 3))
    with pytest.raises(TypeError, match="amount"):
        filterprune.compress(model, images(), amount=0.5)
    with pytest.raises(ValueError, match="refine"):
        filterprune.compress(model, images(), 0.5, refine=-1)


def test_refinement_is_kept_only_if_it_helps(monkeypatch):
    module = sys.modules["filterprune.reconstruction.fitting"]

    def harm(model, *args):
        for weight in model.trainable_weights:
            weight.assign(to_numpy(weight) * 3)

    monkeypatch.setattr(module, "refine_to", harm)
    model, x = net(layers.Conv2D(8, 3)), images(40)
    small = filterprune.compress(model, x, 0.5, refine=5)
    assert not small.filterprune_report.refined
    plain = filterprune.compress(model, x, 0.5, refine=0)
    assert_equal(small(x), plain(x))


@functools.cache
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    x = (data.images / 16).astype("float32")[..., None]
    return x[order], data.target[order]


def test_a_trained_net_keeps_what_it_knows_without_labels():
    """Half of the MACs gone: pruned alone it forgets most of what it knew."""
    x, y = digits()
    inputs = keras.Input((8, 8, 1))
    z = inputs
    for filters in (16, 32):
        z = layers.Conv2D(filters, 3, padding="same", use_bias=False)(z)
        z = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(z))
    z = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(z))
    model = keras.Model(inputs, layers.Dense(10)(z))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    model.fit(x[:1200], y[:1200], epochs=12, verbose=0)

    def accuracy(net):
        return float((to_numpy(net(x[1200:])).argmax(-1) == y[1200:]).mean())

    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, target="macs")
    pruned = accuracy(masked)
    reconstruct(masked, x[:256])
    fitted = accuracy(masked)
    assert accuracy(model) > 0.93
    assert fitted > pruned + 0.1 and fitted > accuracy(model) - 0.06
    report = reconstruct(masked, x[:256], reference=model, refine=200)
    assert report.refined and accuracy(masked) > accuracy(model) - 0.03
