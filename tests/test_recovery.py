"""`recalibrate` on real digits: the right statistics, and nothing else changed."""

import builders
import keras
import numpy as np
import pytest
from builders import assert_same_outputs, build, leaves
from exactness import assert_close, assert_equal, close_at_random, to_numpy
from keras import layers

import filterprune
from filterprune import PruningWarning, recalibrate

X, Y = builders.digits(512)
UNSEEN = [part[512:] for part in builders.digits(1024)]


def conv_bn(momentum=0.99):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(5, 3, name="conv")(inputs)
    x = layers.BatchNormalization(momentum=momentum, name="bn")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return builders.randomise(keras.Model(inputs, layers.Dense(10, name="head")(x)))


def conv(model, x):
    """The convolution of `conv_bn`, in float64."""
    kernel, bias = (
        to_numpy(w).astype("float64") for w in model.get_layer("conv").weights
    )
    windows = np.lib.stride_tricks.sliding_window_view(x[..., 0], (3, 3), axis=(1, 2))
    return (
        np.einsum("nijhw,hwo->nijo", windows.astype("float64"), kernel[:, :, 0]) + bias
    )


def statistics(layer):
    return to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)


def norms(model):
    """The batch normalisations by path, those in masked layers too."""
    found = {path: getattr(v, "layer", v) for path, v in leaves(model).items()}
    return {path: v for path, v in found.items() if hasattr(v, "moving_mean")}


def state(model):
    """All state but moving statistics, bit by bit."""
    own = model.variables + (model.optimizer.variables if model.compiled else [])
    rest = {v.path: v for v in own if "moving_" not in v.path}
    return {path: to_numpy(v).tobytes() for path, v in rest.items()}


def everything(model):
    return {v.path: to_numpy(v).tobytes() for v in model.variables}


def test_statistics_are_the_means_over_the_batches():
    model = conv_bn()
    batches = [X[:32], X[32:96], X[96:100]]
    outputs = [conv(model, batch) for batch in batches]
    assert recalibrate(model, batches) == 3
    mean, variance = statistics(model.get_layer("bn"))
    assert_close(mean, np.mean([o.mean((0, 1, 2)) for o in outputs], 0), 1e-5, 1e-6)
    assert_close(variance, np.mean([o.var((0, 1, 2)) for o in outputs], 0), 1e-4)


def test_a_momentum_averages_exponentially_from_the_old_statistics():
    model = conv_bn()
    expected = statistics(model.get_layer("bn"))
    outputs = [conv(model, batch) for batch in (X[:64], X[64:128])]
    for o in outputs:
        new = o.mean((0, 1, 2)), o.var((0, 1, 2))
        expected = [0.7 * a + 0.3 * b for a, b in zip(expected, new, strict=True)]
    assert recalibrate(model, X[:128], momentum=0.7, batch_size=64) == 2
    for found, wanted in zip(statistics(model.get_layer("bn")), expected, strict=True):
        assert_close(found, wanted, 1e-4, 1e-6)
    assert model.get_layer("bn").momentum == 0.99


def test_accuracy_on_unseen_images_comes_back_after_pruning_at_once():
    x = inputs = keras.Input((8, 8, 1))
    for _ in range(3):
        x = layers.Conv2D(16, 3, padding="same")(x)
        x = layers.BatchNormalization(momentum=0.8)(x)
        x = layers.ReLU()(x)
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))
    builders.compiled(model).optimizer.learning_rate = 0.003
    model.fit(X, Y, batch_size=32, epochs=4, verbose=0)
    masked = filterprune.wrap_model(model)
    gains = []
    for sparsity in (0.3, 0.4, 0.5):
        filterprune.prune(masked, sparsity)
        before = masked.evaluate(*UNSEEN, verbose=0)[1]
        assert recalibrate(masked, X, steps=16) == 16
        gains.append(masked.evaluate(*UNSEEN, verbose=0)[1] - before)
    assert gains[0] > 0
    assert np.mean(gains) > 0.02


def test_nothing_but_statistics_changes():
    masked = builders.compiled(filterprune.wrap_model(build("nested")))
    close_at_random(masked)
    x = builders.sample(masked, batch_size=64)
    masked.optimizer.build(masked.trainable_variables)
    before, kept = state(masked), filterprune.kept_indices(masked)
    old = {path: statistics(layer) for path, layer in norms(masked).items()}
    config = masked.get_config()
    assert recalibrate(masked, x) == 2
    assert state(masked) == before
    assert filterprune.kept_indices(masked) == kept
    assert str(masked.get_config()) == str(config)
    assert old
    for path, layer in norms(masked).items():
        assert layer.momentum == 0.99
        assert "call" not in vars(layer)
        for a, b in zip(statistics(layer), old[path], strict=True):
            assert not np.allclose(a, b), path


def test_weights_that_a_forward_pass_changes_are_put_back():
    inputs = keras.Input((8, 8, 1))
    x = layers.SpectralNormalization(layers.Conv2D(4, 3))(inputs)
    x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    before = state(model)
    assert recalibrate(model, X, steps=2) == 2
    assert state(model) == before


@pytest.mark.parametrize("name", ["residual", "nested"])
def test_masked_and_compact_models_get_the_same_statistics(name):
    masked = filterprune.wrap_model(build(name))
    close_at_random(masked)
    x = builders.sample(masked, batch_size=64)
    small = filterprune.compact(masked)
    assert recalibrate(masked, x) == recalibrate(small, x) == 2
    assert_same_outputs(masked, small, rtol=1e-3, atol=1e-4)
    assert norms(small).keys() == norms(masked).keys()


def test_every_call_of_a_shared_layer_counts():
    left, right = keras.Input((4,)), keras.Input((4,))
    bn = layers.BatchNormalization()
    model = keras.Model([left, right], layers.Add()([bn(left), bn(right)]))
    rng = np.random.default_rng(0)
    x = [rng.normal(i, 1 + i, (96, 4)).astype("float32") for i in range(2)]
    assert recalibrate(model, x) == 3
    parts = [a[i : i + 32] for a in x for i in (0, 32, 64)]
    mean, variance = statistics(bn)
    assert_close(mean, np.mean([p.mean(0) for p in parts], 0), 1e-5, 1e-6)
    assert_close(variance, np.mean([p.var(0) for p in parts], 0), 1e-4)


class Digits(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        part = slice(32 * index, 32 * index + 32)
        return X[part], Y[part]


class Endless(Digits):
    num_batches = None

    def __getitem__(self, index):
        return super().__getitem__(index % 4)


def tf_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((X[:128], Y[:128])).batch(32)


def torch_data():
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.tensor(X[:128]), torch.tensor(Y[:128]))
    return torch.utils.data.DataLoader(pairs, batch_size=32)


PARTS = [slice(i, i + 32) for i in range(0, 128, 32)]
DATA = {
    "array": lambda: X[:128],
    "float64": lambda: X[:128].astype("float64"),
    "tensor": lambda: keras.ops.convert_to_tensor(X[:128]),
    "arrays": lambda: (X[:128], Y[:128]),
    "weighted": lambda: (X[:128], Y[:128], np.ones(128)),
    "batches": lambda: [X[part] for part in PARTS],
    "pairs": lambda: [(X[part], Y[part]) for part in PARTS],
    "generator": lambda: ((X[part], Y[part]) for part in PARTS),
    "PyDataset": Digits,
    "tf.data": tf_data,
    "DataLoader": torch_data,
}


@pytest.mark.parametrize("kind", DATA)
def test_data_of_every_kind(kind):
    expected, model = build("plain"), build("plain")
    recalibrate(expected, [X[part] for part in PARTS])
    assert recalibrate(model, DATA[kind]()) == 4
    for path, layer in norms(expected).items():
        for a, b in zip(statistics(norms(model)[path]), statistics(layer), strict=True):
            assert_close(a, b, 1e-5, 1e-6)


@pytest.mark.parametrize("name", ["multi_io", "shared"])
def test_several_inputs(name):
    def make():
        model = builders.BUILDERS[name]()
        rest = [layers.BatchNormalization()(y) for y in model.outputs]
        return builders.randomise(keras.Model(model.input, rest, name="several"))

    expected, *models = (make() for _ in range(4))
    x = builders.sample(expected, batch_size=64)
    parts = [
        keras.tree.map_structure(lambda a, part=part: a[part], x) for part in PARTS[:2]
    ]
    recalibrate(expected, [(part, 0) for part in parts])
    for model, data in zip(models, (x, (x, Y), iter([(p,) for p in parts]))):
        assert recalibrate(model, data) == 2
        assert_same_outputs(model, expected)


def test_steps_are_a_limit():
    model = build("plain")
    assert recalibrate(model, X, steps=3) == 3
    assert recalibrate(model, Endless(), steps=5) == 5
    assert recalibrate(model, Digits(), steps=9) == 4
    assert recalibrate(model, iter([X[:8]] * 9), steps=2) == 2


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_a_batch_that_raises_leaves_the_model_as_it_was(momentum):
    masked = filterprune.wrap_model(build("plain"))
    before = everything(masked)

    def broken():
        yield X[:32]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        recalibrate(masked, broken(), momentum=momentum)
    with pytest.raises(ValueError, match="shape"):
        recalibrate(masked, [X[:32], X[:32, 0, 0]], momentum=momentum)
    with pytest.raises(
        ValueError, match=r"`moving_mean` of 'conv1_bn' is infinite or NaN"
    ):
        recalibrate(masked, [X[:32], X[:32] * np.nan], momentum=momentum)
    assert everything(masked) == before
    assert all(layer.momentum == 0.99 for layer in norms(masked).values())


def test_broken_statistics_are_mended():
    model = conv_bn()
    expected = conv_bn()
    model.get_layer("bn").moving_mean.assign(np.full(5, np.nan))
    model.get_layer("bn").moving_variance.assign(np.full(5, np.inf))
    recalibrate(model, X)
    recalibrate(expected, X)
    assert_same_outputs(model, expected)


def test_frozen_layers_stay_as_they_are():
    model = build("plain")
    frozen = model.get_layer("conv1_bn")
    frozen.trainable = False
    other = statistics(model.get_layer("conv2_bn"))
    before = statistics(frozen)
    recalibrate(model, X, steps=2)
    assert_equal(statistics(frozen), before)
    assert not np.allclose(statistics(model.get_layer("conv2_bn")), other)
    model.trainable = False
    with pytest.warns(PruningWarning, match="no batch normalisation that is not froz"):
        assert recalibrate(model, X) == 0


def test_a_model_without_statistics():
    with pytest.warns(PruningWarning, match="'mlp' has no batch normalisation with"):
        assert recalibrate(builders.mlp(4, 3), np.ones((8, 4))) == 0


def test_layers_of_other_libraries_take_part():
    @keras.saving.register_keras_serializable("tests")
    class Centre(layers.Layer):
        momentum = 0.9

        def build(self, shape):
            args = {"shape": (shape[-1],), "trainable": False}
            self.moving_mean = self.add_weight(name="moving_mean", **args)
            self.moving_variance = self.add_weight(name="moving_variance", **args)

        def call(self, x, training=False):
            if training:
                for old, new in (
                    (self.moving_mean, keras.ops.mean(x, axis=0)),
                    (self.moving_variance, keras.ops.var(x, axis=0)),
                ):
                    old.assign(old * self.momentum + new * (1 - self.momentum))
            return x - self.moving_mean

    model = keras.Sequential([keras.Input((64,)), Centre(name="centre")])
    recalibrate(model, X[:64].reshape(64, 64), batch_size=16)
    assert_close(
        model.layers[0].moving_mean, X[:64].reshape(64, 64).mean(0), 1e-5, 1e-6
    )
    assert model.layers[0].momentum == 0.9


BN = {"data": X[:8]}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "resnet"}, TypeError, "`model` to be a Keras model"),
        ({"model": keras.Sequential([layers.ReLU()])}, ValueError, "to be built"),
        ({"steps": 0}, ValueError, "`steps` to be an integer of at least 1"),
        ({"steps": 2.5}, ValueError, "`steps`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"momentum": 1.0}, ValueError, r"in \[0, 1\). Received: momentum=1.0"),
        ({"momentum": -0.1}, ValueError, "momentum"),
        ({"data": []}, ValueError, "at least one batch"),
        ({"data": ()}, ValueError, "at least one batch"),
        ({"data": X[:0]}, ValueError, "at least one batch"),
        ({"data": 3}, TypeError, "iterable of batches. Received: int"),
        ({"data": {}}, TypeError, "iterable of batches. Received: dict"),
        ({"data": Endless()}, ValueError, "never end"),
        ({"data": {"a": X[:8], "b": X[:4]}}, ValueError, r"\[4, 8\] samples"),
    ],
)
def test_what_is_wrong_is_refused(arguments, error, words):
    model = build("plain")
    before = everything(model)
    with pytest.raises(error, match=words):
        recalibrate(**({"model": model} | BN | arguments))
    assert everything(model) == before
