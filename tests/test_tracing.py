"""Layers and models of your own are traced: what their code computes is pruned."""

import keras
import numpy as np
import pytest
from exactness import (
    assert_close,
    assert_untouched,
    check_exact,
    close_at_random,
    randomise,
    state_of,
    to_numpy,
)
from keras import layers, ops

import filterprune


def net_of(*middle, size=(8, 9, 3), width=8, **kwargs):
    """A net with layers between one that makes channels and one that reads them."""
    x = keras.Input(size)
    make = layers.Conv2D if len(size) == 3 else layers.Conv1D
    y = make(width, 3, padding="same", name="before")(x)
    for layer in middle:
        y = layer(y)
    if len(y.shape) > 2:
        y = make(4, 1, name="after")(y)
        y = layers.Flatten()(y)
    return randomise(keras.Model(x, layers.Dense(2, name="head")(y), **kwargs))


def pruned(model, barriers=0):
    """The compact model with half of each group, after all promises were checked."""
    before = state_of(model)
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = check_exact(masked)
    assert_untouched(model, before)
    assert len(filterprune.analyze(masked).barriers) == barriers
    return small


class Project(layers.Layer):
    """A dense layer as it is written by hand."""

    def __init__(self, units=6, how="matmul", **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.how = how

    def build(self, shape):
        size = (3, shape[-1], self.units) if self.how == "conv" else None
        self.kernel = self.add_weight(
            shape=size or (shape[-1], self.units),
            regularizer="l2",
            constraint=keras.constraints.MaxNorm(3.0),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.units,), name="bias")

    def call(self, x):
        if self.how == "matmul":
            y = ops.matmul(x, self.kernel)
        elif self.how == "tensordot":
            y = ops.tensordot(x, self.kernel, axes=[[-1], [0]])
        elif self.how == "einsum":
            y = ops.einsum("...i,io->...o", x, self.kernel)
        elif self.how == "other way round":
            y = ops.einsum("io,...i->...o", self.kernel, x)
        else:
            y = ops.conv(x, self.kernel, padding="same")
        return ops.relu(y + self.bias)


@pytest.mark.parametrize(
    ("how", "cls"),
    [
        ("matmul", layers.Dense),
        ("tensordot", layers.EinsumDense),
        ("einsum", layers.EinsumDense),
        ("other way round", layers.EinsumDense),
        ("conv", layers.Conv1D),
    ],
)
def test_a_product_with_a_weight_becomes_the_layer_of_it(how, cls):
    model = net_of(Project(how=how, name="mine"), size=(9, 3))
    small = pruned(model)
    product = small.get_layer("mine_kernel")
    assert type(product) is cls
    assert product.kernel.shape[-2:] == (4, 3)
    assert product.kernel_regularizer.l2 == pytest.approx(0.01)
    assert product.kernel_constraint.max_value == 3.0
    assert small.count_params() < 0.5 * model.count_params()


class Table(layers.Layer):
    """Weights in collections, of rank 0 to 3; one is frozen."""

    def build(self, shape):
        width = shape[-1]
        frozen = {"shape": (width,), "trainable": False}
        self.tables = [
            self.add_weight(shape=(1, shape[1], width), name="positions"),
            self.add_weight(**frozen, name="scale"),
        ]
        self.more = {"gain": self.add_weight(shape=(), name="gain")}
        self.token = self.add_weight(shape=(1, 1, width), name="token")

    def call(self, x):
        x = (x + self.tables[0]) * self.tables[1] * self.more["gain"]
        token = self.token_of(ops.shape(x)[0], x.shape[-1])
        return ops.concatenate([token, x], axis=1)

    def token_of(self, count, width):
        return ops.broadcast_to(self.token, (count, 1, width))


class Tiled(Table):
    def token_of(self, count, width):
        return ops.tile(self.token, (count, 1, 1))


class Repeated(Table):
    def token_of(self, count, width):
        return ops.repeat(self.token, count, axis=0)


@pytest.mark.parametrize("cls", [Table, Tiled, Repeated], ids=lambda c: c.__name__)
def test_tables_lose_channels_with_what_they_meet(cls):
    model = net_of(cls(name="mine"), size=(9, 3))
    small = pruned(model)
    assert small.get_layer("mine_positions").kernel.shape == (1, 9, 4)
    assert small.get_layer("mine_token").kernel.shape == (1, 1, 4)
    assert not small.get_layer("mine_scale").trainable
    assert small.get_layer("mine_gain").kernel.shape == (1,)


def test_weights_keep_their_dtypes_and_are_trained():
    keras.config.set_dtype_policy("mixed_bfloat16")  # which is put back after the test
    model = net_of(Project(name="mine"), size=(9, 3))
    masked = filterprune.wrap_model(model)
    kernel = masked.get_layer("mine_kernel").layer
    assert (kernel.compute_dtype, kernel.kernel.dtype) == ("bfloat16", "float32")
    masked.compile("sgd", "mse")
    before = to_numpy(kernel.kernel).copy()
    x = np.random.default_rng(0).normal(size=(8, 9, 3)).astype("float32")
    masked.fit(x, np.ones((8, 2)), verbose=0)
    assert (to_numpy(kernel.kernel) != before).any()


def test_a_layer_that_is_called_twice_has_its_weights_once():
    model = net_of(*[Project(8, name="mine")] * 2, size=(9, 3))
    masked = filterprune.wrap_model(model)
    assert len(masked.trainable_weights) == len(model.trainable_weights)
    pruned(model)


class OwnNorm(layers.Layer):
    """Layer normalisation by hand: a mean is subtracted from every channel."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")

    def call(self, x):
        x = x - ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(variance + 1e-5) * self.gamma


class Standardised(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, 3, shape[-1], 6), name="kernel")

    def call(self, x):
        centred = self.kernel - ops.mean(self.kernel, axis=(0, 1, 2))
        kernel = centred / ops.sqrt(ops.var(self.kernel, axis=(0, 1, 2)) + 1e-5)
        return ops.conv(x, kernel, padding="same")


class GeneralisedMean(layers.Layer):
    def build(self, shape):
        self.p = self.add_weight(shape=(1,), initializer="ones", name="p")

    def call(self, x):
        p = 2.0 + ops.square(self.p)
        x = ops.power(ops.maximum(x, 1e-6), p)
        return ops.power(ops.mean(x, axis=(1, 2)), 1 / p)


@pytest.mark.parametrize(
    ("make", "before"), [(OwnNorm, 4), (Standardised, 8), (GeneralisedMean, 4)]
)
def test_statistics_by_hand(make, before):
    """A kernel's statistics run over all that it reads, which therefore stays."""
    model = net_of(make(name="mine"))
    small = pruned(model)
    assert small.get_layer("before").filters == before
    assert small.count_params() < model.count_params()


class Twice(layers.Layer):
    def __init__(self, factor=lambda layer, x, training: 1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x, training=False):
        return ops.concatenate([x, x * self.factor(self, x, training)], axis=-1)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 2 * shape[-1])


class Masks(Twice):
    def compute_mask(self, x, mask=None):
        return ops.any(ops.not_equal(x, 0.0), axis=-1)


def _counted(layer, x, training):
    layer.count = getattr(layer, "count", 0) + 1
    return layer.count


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Twice(lambda layer, x, training: 1 + training), "in training"),
        (Twice(lambda layer, x, training: np.ones(8) * (1 + training)), "in training"),
        (Twice(_counted), "cannot be traced"),
        (Twice(lambda layer, x, training: np.float32(ops.max(x))), "symbolic"),
    ],
)
def test_code_that_a_trace_does_not_tell_all_of_is_a_barrier(layer, words):
    layer.name = "mine"
    model = net_of(layer, size=(9, 3))
    before = state_of(model)
    (barrier,) = filterprune.analyze(model).barriers
    assert "`mine`" in barrier and words in barrier
    assert_untouched(model, before)


class ByCount(Tiled):
    """Code that asks for the number of samples."""

    def token_of(self, count, width):
        return super().token_of(count, width) * (2.0 if count > 300 else 1.0)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 1, shape[2])


def test_what_a_batch_size_decides_is_no_constant():
    model = net_of(ByCount(name="mine"), size=(9, 3))
    masked = filterprune.wrap_model(model)
    for count in (2, 301, 600):
        x = np.random.default_rng(0).normal(size=(count, 9, 3)).astype("float32")
        assert_close(masked(x), model(x), 1e-4, 1e-5)


def test_a_layer_that_makes_a_mask_is_kept():
    x = keras.Input((9, 3))
    y = Masks(name="mine")(layers.Conv1D(8, 3, name="before")(x))
    model = randomise(keras.Model(x, layers.Dense(2)(layers.LSTM(4)(y))))
    assert type(filterprune.wrap_model(model).get_layer("mine")) is Masks
    pruned(model, barriers=1)


def test_a_layer_that_can_be_made_smaller_keeps_its_class():
    """It need not be traced: each channel is as it was."""
    small = pruned(net_of(OwnScale(name="mine")))
    assert type(small.get_layer("mine")) is OwnScale
    assert small.get_layer("mine").gamma.shape == (4,)


@keras.saving.register_keras_serializable("tests_tracing")
class OwnScale(layers.Layer):
    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")

    def call(self, x):
        return x * self.gamma


def test_functions_in_lambda_layers_are_pruned(tmp_path):
    model = net_of(
        layers.Lambda(lambda x: x * ops.sigmoid(x)),
        layers.Lambda(lambda x, axes: ops.mean(x, axes), arguments={"axes": (1, 2)}),
    )
    small = pruned(model)
    assert small.get_layer("before").filters == 4
    small.save(tmp_path / "small.keras")  # no code is in it
    keras.models.load_model(tmp_path / "small.keras", safe_mode=True)


class Block(keras.Model):
    def __init__(self, filters):
        super().__init__()
        self.conv = layers.Conv2D(filters, 3, padding="same", name="conv")
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, x, training=False):
        return ops.relu(self.norm(self.conv(x), training=training))


class Net(keras.Model):
    """A model of lists and dicts of models, with a weight, that gives a dict."""

    def __init__(self):
        super().__init__(name="net")
        self.blocks = [Block(8), Block(6)]
        self.last = {"pool": layers.GlobalAveragePooling2D(), "head": layers.Dense(3)}
        self.drop = layers.Dropout(0.5)
        self.scale = self.add_weight(shape=(6,), name="scale")

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x, training=training)
        x = self.drop(self.last["pool"](x) * self.scale, training=training)
        return {"scores": self.last["head"](x)}


class Trains(Net):
    def train_step(self, *args):
        return super().train_step(*args)


def images(count=4):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 3)).astype("float32")


def built(model, data):
    model(data)
    model.compile("sgd", "mse")
    return randomise(model)


@pytest.mark.parametrize("cls", [Net, Trains])
def test_subclassed_models_are_pruned(cls, recwarn):
    model = built(cls(), images())
    before = state_of(model)
    masked = filterprune.wrap_model(model)
    assert_close(masked(images())["scores"], model(images())["scores"], 1e-5, 1e-6)
    assert masked.compiled and masked.name == "net"
    masked.fit(images(), np.ones((4, 3)), verbose=0)
    close_at_random(masked)
    small = check_exact(masked)
    assert small.get_layer("net_scale").kernel.shape == (3,)
    assert small.count_params() < 0.5 * model.count_params()
    assert_untouched(model, before)
    told = [w for w in recwarn if issubclass(w.category, filterprune.PruningWarning)]
    assert [("train_step" in str(w.message)) for w in told] == [True] * (cls is Trains)


def test_inputs_of_subclassed_models():
    """Keras notes their shapes: what is looked up is numbers."""

    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = layers.Embedding(10, 8)
            self.hidden = layers.Dense(6, activation="relu")
            self.head = layers.Dense(3)

        def call(self, inputs):
            mean = ops.mean(self.embedding(inputs["ids"]), axis=1)
            return self.head(self.hidden(ops.concatenate([mean, inputs["x"]], -1)))

    data = {"ids": np.ones((2, 5), "int32"), "x": np.ones((2, 4), "float32")}
    masked = filterprune.wrap_model(built(Two(), data))
    assert {t.name: t.dtype for t in masked.inputs} == {"ids": "int32", "x": "float32"}
    close_at_random(masked)
    check_exact(masked)


@pytest.mark.parametrize("base", [keras.Model, keras.Sequential])
def test_an_override_of_call_is_traced(base):
    class Rescaled(base):
        def call(self, x, training=None, mask=None):
            return 2.0 * super().call(x / 255.0, training=training, mask=mask)

    steps = [
        keras.Input((8, 8, 3)),
        layers.Conv2D(8, 3, name="conv", activation="sigmoid"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
    ]
    if base is keras.Sequential:
        model = Rescaled(steps)
    else:
        plain = keras.Sequential(steps)
        model = Rescaled(plain.inputs, plain.outputs[0])
    model = randomise(model)
    masked = filterprune.wrap_model(model)
    assert_close(masked(images()), model(images()), 1e-5, 1e-6)
    close_at_random(masked)
    assert check_exact(masked).get_layer("conv").filters == 4


def test_subclassed_models_that_cannot_be_traced_are_refused():
    with pytest.raises(ValueError, match=r"'net'.*Call it once on data"):
        filterprune.analyze(Net())

    class Moody(Net):
        def call(self, x, training=False):
            x = super().call(x, training)["scores"]
            return x if training else 2.0 * x

    with pytest.raises(ValueError, match=r"'net'.*other parts in training"):
        filterprune.wrap_model(built(Moody(), images()))


SIZES = {
    "positions": lambda x, n, m: x + ops.cast(ops.arange(m), x.dtype)[:, None],
    "backwards": lambda x, n, m: x * ops.cast(ops.arange(1 - m, 1), x.dtype)[:, None],
    "from three": lambda x, n, m: x + ops.arange(3, 3 + m, dtype="float32")[:, None],
    "causal": lambda x, n, m: ops.matmul(
        ops.cast(ops.arange(m)[:, None] >= ops.arange(m), x.dtype), x
    ),
    "causal for all": lambda x, n, m: ops.matmul(
        ops.cast(
            ops.broadcast_to(ops.arange(m)[:, None] >= ops.arange(m), (n, m, m)),
            x.dtype,
        ),
        x,
    ),
    "heads": lambda x, n, m: ops.reshape(
        ops.transpose(ops.reshape(x, (n, m, 2, 4)), (0, 1, 3, 2)), (n, m, 8)
    ),
    "merged": lambda x, n, m: ops.reshape(ops.reshape(x, (n * m, 8)) * 2.0, (-1, 8)),
    "ones": lambda x, n, m: x + ops.ones((n, m, 1)) + ops.full((m, 8), 2.0),
    "zeros": lambda x, n, m: ops.concatenate([ops.zeros((n, 1, 8)), x], axis=1),
    "tiled": lambda x, n, m: (
        x + ops.tile(ops.reshape(ops.arange(8.0), (1, 1, 8)), (n, m, 1))
    ),
    "repeated": lambda x, n, m: x + ops.repeat(ops.ones((1, 8)), m, axis=0),
    "a mean": lambda x, n, m: ops.sum(x, axis=1) / ops.cast(m, x.dtype),
    "a band": lambda x, n, m: x * ops.cast(ops.minimum(m, 3), x.dtype),
    "more than there are": lambda x, n, m: (
        x + ops.sum(ops.transpose(x, (0, 2, 1))[:, :m], axis=1)[..., None]
    ),
    "a slice": lambda x, n, m: x + ops.slice(ops.ones((20, 8)), (0, 0), (m, 8)),
}


# Elsewhere Keras itself cannot build a model that takes so many rows as are unknown.
SLICED = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="no slices")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=[SLICED] if n in ("a slice", "more than there are") else []
        )
        for n in SIZES
    ],
)
def test_code_asks_for_sizes_that_are_unknown(name):
    class Own(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(8)

        def call(self, x):
            return SIZES[name](self.dense(x), *ops.shape(x)[:2])

    x = keras.Input((None, 3))
    model = randomise(keras.Model(x, layers.Dense(2)(Own()(x))))
    expanded = filterprune.expand(model, [Own])
    assert not any(isinstance(layer, Own) for layer in expanded.layers)
    for shape in ((2, 5, 3), (8, 3, 3), (3, 8, 3), (4, 4, 3), (2, 12, 3)):
        inputs = np.random.default_rng(0).normal(size=shape).astype("float32")
        assert_close(expanded(inputs), model(inputs), 1e-5, 1e-5)


class PositionsOfSome(layers.Layer):
    """A table that is longer than any sequence, and a causal mask."""

    def build(self, shape):
        self.table = self.add_weight(shape=(1, 16, shape[-1]), name="table")
        self.query, self.value = (layers.Dense(shape[-1]) for _ in range(2))

    def call(self, x):
        length = ops.shape(x)[1]
        x = x + self.table[:, :length]
        scores = ops.matmul(self.query(x), ops.transpose(x, (0, 2, 1)))
        places = ops.arange(length)
        allowed = ops.expand_dims(places, 1) >= places
        scores = ops.where(allowed, scores, -1e9)
        return ops.matmul(ops.softmax(scores), self.value(x))


@SLICED
def test_positions_and_causal_masks_of_any_length_are_pruned():
    x = keras.Input((None, 3))
    y = PositionsOfSome()(layers.Dense(8, name="before")(x))
    y = layers.GlobalAveragePooling1D()(layers.Dense(6, name="after")(y))
    masked = filterprune.wrap_model(randomise(keras.Model(x, layers.Dense(2)(y))))
    assert filterprune.analyze(masked).barriers == ()
    close_at_random(masked)
    small = check_exact(masked, size=7)
    assert small.get_layer("before").units == 4


class Unused(keras.Model):
    """A part that no call uses, and one whose mode has no default."""

    def __init__(self):
        super().__init__()
        self.augment = keras.Sequential([layers.RandomFlip()])
        self.teacher = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
        self.first, self.drop = layers.Dense(8, name="first"), layers.Dropout(0.1)
        self.last = layers.Dense(2)

    def call(self, x, training):
        return self.last(self.drop(self.first(x), training=training))


def test_a_subclassed_model_has_parts_that_it_does_not_call():
    model = Unused()
    model(np.zeros((2, 6), "float32"), training=False)
    small = pruned(randomise(model))
    assert small.get_layer("first").units == 4


class Gathers(keras.Model):
    """Rows of a table, by ids that no embedding reads."""

    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Dense(8, name="first"), layers.Dense(2)

    def call(self, inputs):
        rows, ids = inputs
        return self.last(ops.take(self.first(rows), ids, axis=0))


def test_ids_that_no_embedding_reads_are_found():
    model = Gathers()
    ids = np.array([0, 1, 5], "int32")
    model([np.ones((6, 5), "float32"), ids])
    masked = filterprune.wrap_model(randomise(model))
    assert [x.dtype for x in masked.inputs] == ["float32", "int32"]
    filterprune.prune(masked, 0.5, scope="layer")
    small = filterprune.compact(masked)
    rows = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    assert_close(small([rows, ids]), masked([rows, ids]), 1e-5, 1e-5)
    assert small.get_layer("first").units == 4


class Odd(layers.Layer):
    """Its code takes no symbolic tensors."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(8)

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("only numbers")
        return self.dense(x)


class Around(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.odd = layers.Dense(8), Odd()
        self.middle, self.last = layers.Dense(16, name="middle"), layers.Dense(2)

    def call(self, x):
        return self.last(ops.relu(self.middle(self.odd(self.first(x)))))


def test_one_layer_that_cannot_be_traced_does_not_keep_a_subclassed_model():
    model = Around()
    model(np.zeros((2, 6), "float32"))
    small = pruned(randomise(model), barriers=1)
    assert small.get_layer("middle").units == 8
    (barrier,) = filterprune.analyze(model).barriers
    assert "only numbers" in barrier


class Positions(layers.Layer):
    """Keras may ask it for a mask, and it has none."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = layers.Embedding(20, 8), layers.Embedding(6, 8)

    def call(self, x):
        return self.tokens(x) + self.places(ops.arange(x.shape[1]))

    def compute_mask(self, x, mask=None):
        return None if mask is None else ops.not_equal(x, 0)


def test_a_layer_that_could_make_a_mask_and_does_not_is_traced():
    x = keras.Input((6,), dtype="int32")
    y = layers.GlobalAveragePooling1D()(layers.Dense(6)(Positions()(x)))
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    assert pruned(model).count_params() < 0.6 * model.count_params()


class Relative(layers.Layer):
    """Attention with biases by relative position, as in Swin."""

    def build(self, shape):
        self.query, self.value = (layers.Dense(shape[-1]) for _ in range(2))
        places = np.arange(shape[1])
        index = places[:, None] - places + shape[1] - 1
        self.bias = self.add_weight(shape=(2 * shape[1] - 1, 1), name="bias")
        self.index = self.add_weight(
            shape=index.shape,
            dtype="int64",
            trainable=False,
            initializer=lambda shape, dtype: index,
            name="index",
        )
        self.allowed = self.add_weight(
            shape=(shape[1],), dtype="float64", trainable=False, name="allowed"
        )

    def call(self, x):
        scores = ops.matmul(self.query(x), ops.transpose(x, (0, 2, 1)))
        scores = scores + ops.take(self.bias, self.index, axis=0)[..., 0]
        scores = scores + ops.cast(self.allowed, scores.dtype)
        return ops.matmul(ops.softmax(scores), self.value(x))


def test_tables_of_indices_and_weights_of_other_dtypes_are_held(tmp_path):
    model = net_of(Relative(name="mine"), size=(9, 3))
    small = pruned(model)
    assert small.get_layer("before").filters == 4
    assert small.get_layer("mine_allowed").kernel.dtype == "float64"
    assert not small.get_layer("mine_index").trainable
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    x = np.random.default_rng(0).normal(size=(2, 9, 3))
    assert_close(loaded(x), small(x), 1e-6, 1e-6)
