"""Criteria against numpy, and how they reach the kernels of real layers."""

import functools

import builders
import keras
import numpy as np
import pytest
from exactness import DOUBLE, assert_close, assert_equal, check_exact, to_numpy
from keras import layers

import filterprune
from filterprune import criteria
from filterprune.selection import Selector
from filterprune.slots import Slots, masked_analysis

NORMS = {
    "l1": lambda rows: np.linalg.norm(rows, ord=1, axis=0),
    "l2": lambda rows: np.linalg.norm(rows, ord=2, axis=0),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(1, 1), (27, 16), (5, 3)])
def test_norms_are_those_of_numpy(name, shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    assert_close(criteria.get(name)(kernel), NORMS[name](kernel))
    assert criteria.get(name)(np.zeros(shape)).tolist() == [0.0] * shape[1]


def test_a_function_is_a_criterion():
    rows = np.random.default_rng(0).normal(size=(4, 3))
    for function in (criteria.l1, lambda w: w.max(axis=0)):
        assert_close(criteria.get(function)(rows), function(rows))
    own = criteria.get("l1")
    assert criteria.get(own) is own


@pytest.mark.parametrize("wrong", ["l3", "L2", "", None, 2])
def test_an_unknown_criterion_is_refused(wrong):
    with pytest.raises(ValueError, match=r"criterion.*l1.*l2.*Received") as info:
        criteria.get(wrong)
    assert repr(wrong) in str(info.value)


# A layer of 5 filters, its input, and its kernel with the filters last.
KERNELS = {
    "Conv1D": (layers.Conv1D(5, 3), (8, 2), lambda w: w[0]),
    "Conv2D": (layers.Conv2D(5, 3), (8, 8, 2), lambda w: w[0]),
    "Conv2DTranspose": (
        layers.Conv2DTranspose(5, 3),
        (8, 8, 2),
        lambda w: np.moveaxis(w[0], -2, -1),
    ),
    "SeparableConv2D": (layers.SeparableConv2D(5, 3), (8, 8, 2), lambda w: w[1]),
    "Dense": (layers.Dense(5), (8, 8, 2), lambda w: w[0]),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("layer", "shape", "pick"), KERNELS.values(), ids=KERNELS)
def test_filters_are_scored_by_their_kernel(layer, shape, pick, norm):
    layer = type(layer).from_config(layer.get_config())
    inputs = keras.Input(shape)
    x = layers.Dense(2, name="head")(layers.Flatten()(layer(inputs)))
    model = builders.randomise(keras.Model(inputs, x))
    kernel = pick(layer.get_weights()).reshape(-1, 5)
    expected = NORMS[norm](kernel) / NORMS[norm](kernel).mean()
    found = Selector(filterprune.wrap_model(model), norm).scores()
    assert_close(found, expected, rtol=1e-6)


def test_a_slot_scores_the_mean_of_its_filters():
    model = builders.build("residual")
    selector = Selector(filterprune.wrap_model(model), "l1")
    (stem,) = [i for i, g in enumerate(selector.groups) if "stem" in g.layers]
    start = sum(group.size for group in selector.groups[:stem])
    scores = []
    for name in ("stem", "outer"):
        rows = to_numpy(model.get_layer(name).kernel).reshape(-1, 8)
        scores.append(NORMS["l1"](rows) / NORMS["l1"](rows).mean())
    found = selector.scores()[start : start + 8]
    assert_close(found, np.mean(scores, axis=0), rtol=1e-6)


def test_a_criterion_of_ones_own_sees_each_kernel_as_a_matrix():
    shapes = []

    def last_is_dearest(kernel):
        shapes.append(kernel.shape)
        return np.arange(kernel.shape[1])

    masked = filterprune.wrap_model(builders.build("plain"))
    filterprune.prune(masked, 0.5, criterion=last_is_dearest, scope="layer")
    assert set(shapes) == {(9, 8), (72, 16), (16, 16)}
    assert builders.closed(masked)["conv1"] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    "bad",
    [
        lambda kernel: np.ones(kernel.shape),
        lambda kernel: np.ones(3),
        lambda kernel: 1.0,
        lambda kernel: np.full(kernel.shape[1], np.nan),
    ],
)
def test_scores_that_are_none_are_refused(bad):
    masked = filterprune.wrap_model(builders.build("plain"))
    with pytest.raises(ValueError, match=r"criterion.*8 finite scores.*conv1"):
        filterprune.prune(masked, 0.5, criterion=bad)
    assert not any(map(any, builders.closed(masked).values()))


def few(*cases):
    """All cases, but only the first on JAX, which compiles every operation."""
    return cases[:1] if keras.backend.backend() == "jax" else cases


def slots_of(model):
    return Slots(masked_analysis(filterprune.wrap_model(model)))


def kernel_of(model, name):
    weights = to_numpy(model.get_layer(name).kernel).astype("float64")
    return weights.reshape(-1, weights.shape[-1])


def test_lamp_is_the_share_in_those_as_large():
    rows = np.random.default_rng(0).normal(size=(9, 6))
    norms = (rows**2).sum(axis=0)
    expected = [n / norms[norms >= n].sum() for n in norms]
    assert_close(criteria.LAMP()(rows), expected)
    assert criteria.LAMP()(np.zeros((2, 3))).tolist() == [0, 0, 0]
    assert_close(criteria.LAMP()(np.ones((2, 3))), [1 / 3, 1 / 2, 1])


def test_fpgm_is_the_distance_to_all_other_filters():
    rows = np.random.default_rng(0).normal(size=(9, 6))
    rows[:, 5] = rows[:, 2]
    distances = np.linalg.norm(rows[:, :, None] - rows[:, None], axis=0)
    assert_close(criteria.fpgm(rows), distances.sum(axis=0), rtol=1e-12)
    assert criteria.fpgm(np.ones((4, 3)) / 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("p", [1, 2])
def test_group_takes_the_norm_over_makers_and_readers(p):
    model = builders.build("residual")
    stem, inner, outer, head = (
        to_numpy(model.get_layer(name).kernel) for name in NAMES
    )
    stream = [stem.reshape(-1, 8), outer.reshape(-1, 8), head.T]
    stream.append(np.moveaxis(inner, 2, -1).reshape(-1, 8))
    between = [inner.reshape(-1, 12), np.moveaxis(outer, 2, -1).reshape(-1, 12)]
    expected, slots = {"mean": [], "share": []}, slots_of(model)
    for rows, tied in ((np.concatenate(stream), 2), (np.concatenate(between), 1)):
        norms = np.linalg.norm(rows, ord=p, axis=0)
        expected["mean"].append(tied ** (1 / p) * norms / norms.mean())
        expected["share"].append(tied ** (1 / p) * shared(norms))
    for name, scores in expected.items():
        found = criteria.GroupMagnitude(p, normalization=name).score(slots)
        assert_close(found, np.concatenate(scores), rtol=1e-6)
    assert_equal(
        criteria.get("group").score(slots), criteria.GroupMagnitude(2).score(slots)
    )


def shared(norms):
    """Each over the mean of those that are as large, and nothing for the others."""
    return np.array([n / np.where(norms >= n, norms, 0).mean() for n in norms])


@pytest.mark.parametrize("shift", [0, 5])
def test_shares_rank_as_the_scores_do(shift):
    scores = np.random.default_rng(0).normal(size=9) + shift
    found = filterprune.Criterion(normalization="share").normalize(scores)
    assert_equal(np.argsort(found), np.argsort(scores))
    if scores.min() >= 0:
        assert_close(found, shared(scores))
    assert (
        filterprune.Criterion(normalization="share").normalize(np.zeros(3)).max() == 0
    )


def test_shares_empty_no_group():
    """Equal filters, of which the mean makes all worth less than another's largest."""
    model = builders.mlp(16, 16, 16, 3)
    for name, sizes in (("d0", np.linspace(1, 9, 16)), ("d1", np.ones(16))):
        model.get_layer(name).kernel.assign(np.ones((16, 1)) * sizes)
    model.get_layer("d2").kernel.assign(np.ones((16, 3)))
    left = {}
    for name in ("share", "mean"):
        masked = filterprune.wrap_model(model)
        criterion = criteria.GroupMagnitude(normalization=name)
        filterprune.prune(masked, 0.8, criterion=criterion)
        left[name] = [16 - sum(builders.closed(masked)[d]) for d in ("d0", "d1")]
    assert left["mean"] == [5, 1]
    assert min(left["share"]) >= 2


NAMES = ("stem", "inner", "outer", "head")


def test_flattened_readers_count_at_every_position():
    inputs = keras.Input((3, 3, 2))
    x = layers.Flatten()(layers.Conv2D(4, 2, name="conv")(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    builders.randomise(model)
    head = to_numpy(model.get_layer("head").kernel).reshape(4, 4, 3)
    rows = [kernel_of(model, "conv"), np.moveaxis(head, 1, -1).reshape(-1, 4)]
    norms = np.linalg.norm(np.concatenate(rows), axis=0)
    found = criteria.get("group").score(slots_of(model))
    assert_close(found, shared(norms), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "prod"])
def test_tied_filters_are_reduced_to_one_score(reduction):
    model = builders.build("residual")
    pair = [NORMS["l1"](kernel_of(model, name)) for name in ("stem", "outer")]
    expected = getattr(np, reduction)([n / n.mean() for n in pair], axis=0)

    class Sum(filterprune.Criterion):
        def __call__(self, rows):
            return abs(rows).sum(axis=0)

    found = Sum(reduction=reduction).score(slots_of(model))[:8]
    assert_close(found, expected, rtol=1e-6)


def test_scales_are_those_of_the_normalisations():
    model = builders.build("residual")
    found = criteria.get("bn_scale").score(slots_of(model))
    gammas = [to_numpy(model.get_layer(f"{n}_bn").gamma) for n in NAMES[:3]]
    stem, inner, outer = [abs(g) / abs(g).mean() for g in gammas]
    assert_close(found, np.concatenate([(stem + outer) / 2, inner]), rtol=1e-6)


def test_channels_without_a_scale_get_the_mean_score():
    slots = slots_of(builders.build("plain"))
    found = criteria.get("bn_scale").score(slots)
    assert_close(found[24:], np.ones(16))  # those of `hidden`
    assert found[:24].std() > 0.1
    with pytest.raises(ValueError, match=r"Expected a model with scales.*'mlp'.*l2"):
        filterprune.prune(
            filterprune.wrap_model(builders.mlp(4, 8, 3)), 0.5, criterion="bn_scale"
        )


def test_random_scores_are_drawn_anew_and_reproducible():
    slots = slots_of(builders.build("plain"))
    one, two = criteria.Random(seed=3), criteria.Random(seed=3)
    first, second = one.score(slots), one.score(slots)
    assert (first != second).all()
    assert_equal(two.score(slots), first)
    assert_equal(two.score(slots), second)
    assert (criteria.get("random").score(slots) != first).all()


@pytest.mark.parametrize("name", ["l1", "l2", "group", "lamp", "fpgm"])
def test_equal_filters_close_in_order(name):
    model = builders.mlp(4, 8, 3)
    for layer in model.layers:
        layer.kernel.assign(np.full(layer.kernel.shape, 0.3))
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, criterion=name)
    assert builders.closed(masked)["d0"] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: criteria.GroupMagnitude(p=0), "`p` to be an integer"),
        (lambda: criteria.Random(seed=-1), "`seed` to be a non-negative"),
        (lambda: criteria.LAMP(normalization="l3"), "`normalization` to be one of"),
        (lambda: criteria.get("taylor"), r"pass `filterprune.criteria.Taylor\(data"),
        (lambda: criteria.get(criteria.APoZ), r"criteria.APoZ\(data\)"),
        (lambda: criteria.Taylor((X, Y), batches=0), "`batches` to be an integer"),
        (lambda: criteria.HRank(X, batch_size=1.5), "`batch_size` to be an integer"),
        (lambda: criteria.Taylor((X, Y[:3])), "as many samples each"),
        (lambda: criteria.Taylor((X[:0], Y[:0])), "at least one"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: criteria.Taylor(3), "arrays `\\(x, y\\)` or an iterable"),
        (lambda: criteria.Taylor(((X, Y), (X, Y), 3)), "Pass batches as a list"),
        (lambda: criteria.Fisher((X, Y), loss=3), "`loss` to be a Keras loss"),
    ],
)
def test_wrong_types_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


# Effects on the loss.

X = np.random.default_rng(1).normal(size=(12, 8, 8, 1)).astype("float32")
Y = np.random.default_rng(2).normal(size=(12, 10)).astype("float32")
GRADIENTS = {
    "Taylor": lambda e: np.abs(e).mean(axis=0),
    "GateGradient": lambda e: np.abs(e.mean(axis=0)),
    "Fisher": lambda e: np.square(e).mean(axis=0) / 2,
}


def small_net():
    """Two 1x1 convolutions and a dense layer: in numpy as easily as in Keras."""
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(5, 1, activation="relu", name="one")(inputs)
    x = layers.Conv2D(6, 1, activation="relu", name="two")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    model.compile("sgd", "mse")
    return builders.randomise(model)


def numpy_effects(model, x, y):
    """For each sample and gate the derivative of the squared error, by hand."""
    pairs = [layer.get_weights() for layer in model.layers if layer.get_weights()]
    (w1, b1), (w2, b2), (w3, b3) = [(w.reshape(w.shape[-2:]), b) for w, b in pairs]
    a1 = np.maximum(x @ w1 + b1, 0)
    a2 = np.maximum(a1 @ w2 + b2, 0)
    pooled = a2.mean(axis=(1, 2))
    d3 = 2 * (pooled @ w3 + b3 - y) / y.shape[1]  # of each sample's own loss
    d_pooled = d3 @ w3.T
    d2 = np.broadcast_to(d_pooled[:, None, None] / 16, a2.shape) * (a2 > 0)
    d_a1 = d2 @ w2.T
    return np.concatenate([(a1 * d_a1).sum((1, 2)), pooled * d_pooled], axis=1)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("loss", few(None, "mse", keras.losses.MeanSquaredError))
def test_gradient_criteria_are_their_formulas(name, loss):
    keras.config.set_floatx("float64")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 4, 4, 2)), rng.normal(size=(10, 3))
    model = small_net()
    masked = filterprune.wrap_model(model)
    if loss is None:
        masked.compile("sgd", "mse")
    loss = loss() if callable(loss) else loss  # of the float type of the test
    criterion = getattr(criteria, name)((x, y), loss=loss, batch_size=4)
    found = criterion.score(Slots(masked_analysis(masked)))
    expected = GRADIENTS[name](numpy_effects(model, x, y))
    assert_close(found, expected, rtol=DOUBLE * 10, atol=DOUBLE)


def smooth(masked, x, y):
    """A loss of each sample, `(samples,)`: half the squared error."""
    outputs = keras.tree.flatten(masked(x, training=False))
    errors = [to_numpy(o) - t for o, t in zip(outputs, keras.tree.flatten(y))]
    return sum((e**2).reshape(len(e), -1).mean(axis=1) for e in errors)


def without_norms(name):
    """A net whose gates, turned down a bit, scale what all readers read."""
    image = keras.Input((8, 8, 2))
    conv = functools.partial(layers.Conv2D, padding="same", activation="relu")
    if name == "residual":
        stem = conv(6, 3)(image)
        x = layers.Conv2D(6, 3, padding="same")(conv(5, 3)(stem))
        x = layers.MaxPooling2D()(layers.ReLU()(layers.Add()([stem, x])))
        x = layers.Flatten()(x)
    elif name == "concat":
        x = layers.Concatenate()([conv(3, 3)(image), conv(4, 1)(image)])
        x = layers.Flatten()(conv(5, 3)(layers.AveragePooling2D(2)(x)))
    elif name == "operations":
        x = conv(4, 3)(image)
        x = keras.ops.mean(x, axis=-1) + keras.ops.sum(conv(3, 3)(image), axis=-1)
        x = layers.Flatten()(x)
    elif name == "nested":
        inner = keras.Input((8, 8, 2))
        block = keras.Model(inner, conv(4, 3)(conv(3, 3)(inner)), name="block")
        a, b = block(image), block(layers.ZeroPadding2D(1)(image)[:, 1:-1, 1:-1] * 0.5)
        x = layers.GlobalAveragePooling2D()(layers.Subtract()([a, b]))
    else:
        raise ValueError(name)
    outputs = layers.Dense(3, name="head")(x)
    return builders.randomise(keras.Model(image, outputs))


@pytest.mark.parametrize(
    "name", few("nested", "residual", "concat", "operations", "shared")
)
def test_effects_are_derivatives_by_gates(name):
    """Gates of all layers of a slot turned down and up by a little."""
    keras.config.set_floatx("float64")
    model = builders.build(name) if name == "shared" else without_norms(name)
    masked = filterprune.wrap_model(model)
    masked.compile("sgd", "mse")
    x = keras.tree.map_structure(
        lambda a: a.astype("float64"), builders.sample(model, 3)
    )
    y = np.random.default_rng(0).normal(size=(3, 3))
    slots = Slots(masked_analysis(masked))
    step = 1e-6 if DOUBLE < 1e-6 else 1e-3
    expected = []
    for slot in range(slots.count):
        here = np.arange(slots.count) == slot
        sides = []
        for value in (1 + step, 1 - step):
            slots.set_gates(here, value)
            sides.append(smooth(masked, x, y))
        expected.append((sides[0] - sides[1]) / (2 * step))
    slots.set_gates(np.zeros(slots.count, bool))
    found = criteria.Taylor((x, y)).score(slots)
    limit = 1e-6 if DOUBLE < 1e-6 else 2e-3
    assert_close(found, np.abs(expected).mean(axis=1), rtol=limit, atol=limit)
    assert found.max() > 10 * limit


@pytest.mark.parametrize(
    "name", few("plain", "squeeze_excite", "depthwise", "multi_io")
)
def test_the_dearest_filters_matter_most(name):
    """Taylor's estimate against closing each channel in turn."""
    model = builders.build(name)
    masked = filterprune.wrap_model(model)
    masked.compile("sgd", "mse")
    x = builders.sample(model, 16)
    rng = np.random.default_rng(0)
    y = keras.tree.map_structure(
        lambda t: rng.normal(size=t.shape).astype("float32"), masked(x)
    )
    slots = Slots(masked_analysis(masked))
    found = criteria.Taylor((x, y)).score(slots)
    base, changes = smooth(masked, x, y), []
    for slot in range(slots.count):
        slots.set_gates(np.arange(slots.count) == slot)
        changes.append(np.abs(smooth(masked, x, y) - base).mean())
    ranks = [np.argsort(np.argsort(values)) for values in (found, changes)]
    assert np.corrcoef(*ranks)[0, 1] > 0.7


# Activations.


def maps_of(model, x, *names):
    tensors = [model.get_layer(name).output for name in names]
    return [to_numpy(out) for out in keras.Model(model.input, tensors)(x)]


def test_activations_are_looked_at_before_pooling():
    model = builders.build("plain")
    slots = slots_of(model)
    looked = maps_of(model, X, "conv1_relu", "conv2_sigmoid", "hidden")
    means = [np.abs(a).mean(axis=tuple(range(a.ndim - 1))) for a in looked]
    alive = [(a != 0).mean(axis=tuple(range(a.ndim - 1))) for a in looked]
    found = criteria.ActivationMean(X, batch_size=5).score(slots)
    expected = np.concatenate([m / m.mean() for m in means])
    # A batch of five, five and two: every sample counts the same.
    assert_close(found, expected, rtol=1e-5)
    found = criteria.APoZ((X, Y), batch_size=5).score(slots)
    assert_close(found, np.concatenate(alive), rtol=1e-5)
    ranks = [
        np.linalg.matrix_rank(np.moveaxis(a, -1, 1)).mean(axis=0) for a in looked[:2]
    ]
    expected = np.concatenate([r / r.mean() for r in ranks] + [np.ones(16)])
    found = criteria.HRank([X]).score(slots)
    assert_close(found, expected, rtol=0.02)  # SVD of rounded numbers


def test_a_dead_relu_channel_is_worth_nothing():
    model = builders.build("plain")
    model.get_layer("conv1_bn").beta.assign([-100.0, *[0.1] * 7])
    slots = slots_of(model)
    for criterion in (criteria.APoZ(X), criteria.ActivationMean(X), criteria.HRank(X)):
        found = criterion.score(slots)
        assert found[0] == 0
        assert (found[1:8] > 0).all()


def test_a_net_without_maps_has_no_ranks():
    slots = slots_of(builders.mlp(4, 8, 3))
    with pytest.raises(ValueError, match=r"maps of two axes.*'mlp'.*ActivationMean"):
        criteria.HRank(np.ones((4, 4))).score(slots)


# Data of every kind, and what scoring leaves alone.


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(4 * index, 4 * index + 4)
        return X[part], Y[part]


def batch_list():
    return [Sequence()[index] for index in range(3)]


KINDS = {
    "arrays": lambda: (X, Y),
    "batches": batch_list,
    "lists": lambda: [list(batch) for batch in batch_list()],
    "dataset": Sequence,
    "generator": lambda: (batch for batch in batch_list()),
    "weights": lambda: (X, Y, np.ones(12, "float32")),
}


def compiled_plain():
    masked = filterprune.wrap_model(builders.build("plain"))
    masked.compile("sgd", "mse")
    return masked


@pytest.mark.parametrize("kind", KINDS)
def test_data_come_in_every_kind(kind):
    slots = Slots(masked_analysis(compiled_plain()))
    make = functools.partial(criteria.Taylor, batches=3, batch_size=4)
    expected = make((X, Y)).score(slots)
    assert_close(make(KINDS[kind]()).score(slots), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="needs PyTorch")
def test_data_come_from_a_data_loader():
    import torch

    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    slots = Slots(masked_analysis(compiled_plain()))
    expected = criteria.Fisher((X, Y)).score(slots)
    assert_close(criteria.Fisher(loader, batches=3).score(slots), expected, rtol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs TensorFlow")
def test_data_come_from_tf_data():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    slots = Slots(masked_analysis(compiled_plain()))
    expected = criteria.Fisher((X, Y)).score(slots)
    assert_close(criteria.Fisher(data, batches=3).score(slots), expected, rtol=1e-4)


def test_scoring_goes_on_where_it_stopped_and_begins_again():
    slots = Slots(masked_analysis(compiled_plain()))
    single = [
        criteria.Taylor([batch], batches=1).score(slots) for batch in batch_list()
    ]
    criterion = criteria.Taylor(batch_list(), batches=1)
    for number in (0, 1, 2, 0, 1):
        assert_close(criterion.score(slots), single[number], rtol=1e-5, atol=1e-8)


def test_data_that_end_for_good_are_named():
    slots = Slots(masked_analysis(compiled_plain()))
    criterion = criteria.Taylor(iter(batch_list()), batches=3)
    criterion.score(slots)
    for _ in range(2):
        with pytest.raises(ValueError, match="read again and again"):
            criterion.score(slots)


def test_what_a_loss_needs_is_asked_for():
    masked = filterprune.wrap_model(builders.build("plain"))
    with pytest.raises(ValueError, match=r"Expected a compiled model.*loss="):
        filterprune.prune(masked, 0.5, criterion=criteria.Taylor((X, Y)))
    masked.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"batches `\(x, y\)`.*without `y`"):
        filterprune.prune(masked, 0.5, criterion=criteria.Taylor(X))
    with pytest.raises(ValueError, match="finite loss with finite gradients"):
        filterprune.prune(masked, 0.5, criterion=criteria.Taylor((X * np.nan, Y)))
    assert not any(map(any, builders.closed(masked).values()))


DATA = (
    "Taylor",
    "GateGradient",
    "Fisher",
    "ActivationMean",
    "APoZ",
    "HRank",
    "Reconstruction",
)


@pytest.mark.parametrize("name", few(*DATA))
def test_scoring_changes_nothing(name):
    masked = filterprune.wrap_model(builders.build("sequential"))
    masked.compile("adam", "mse", metrics=["mae"])
    masked.fit(X, Y, verbose=0)
    before = builders.snapshot(masked)
    filters = Selector(masked, getattr(criteria, name)((X, Y)))
    first = filters.scores()
    assert builders.snapshot(masked) == before
    assert all("call" not in vars(layer) for layer in masked.layers)
    assert_equal(Selector(masked, getattr(criteria, name)((X, Y))).scores(), first)


@pytest.mark.parametrize("name", few(*DATA))
def test_models_are_pruned_in_training_by_data(name):
    images, labels = builders.digits(128)
    masked = builders.compiled(filterprune.wrap_model(builders.build("plain")))
    criterion = getattr(criteria, name)((images, labels), batches=2)
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5, end_step=4)
    callback = filterprune.FilterPruningCallback(schedule, 2, criterion)
    history = masked.fit(images, labels, callbacks=[callback], epochs=2, verbose=0)
    assert history.history["sparsity"][-1] == 0.5
    assert np.isfinite(history.history["loss"]).all()
    check_exact(masked)


@pytest.mark.parametrize("policy", few("mixed_float16", "mixed_bfloat16"))
def test_half_precision_is_scored_in_single(policy):
    model = builders.build("plain")
    keras.config.set_dtype_policy(policy)
    try:
        half = builders.build("plain")
    finally:
        keras.config.set_dtype_policy("float32")
    found = []
    for net in (model, half):
        masked = filterprune.wrap_model(net)
        masked.compile("sgd", "mse")
        found.append(criteria.Taylor((X, Y)).score(Slots(masked_analysis(masked))))
    assert np.corrcoef(*found)[0, 1] > 0.99
