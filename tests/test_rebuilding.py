"""What a copy of a model keeps: functions, arguments, classes, and files of it."""

import builders
import keras
import numpy as np
import pytest
from exactness import check_exact, close_at_random, difference, randomise
from keras import layers, ops

import filterprune


def convnet(*middle, **kwargs):
    """Three convolutions, one with arguments, and layers behind it."""
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, **kwargs)(layers.Conv2D(4, 1)(x))
    for layer in middle:
        y = layer(y)
    return randomise(keras.Model(x, layers.Conv2D(2, 3)(y)))


def hard_sigmoid(x):
    """That of Keras 2: Keras 3 has another one of this name."""
    return ops.clip(0.2 * x + 0.5, 0, 1)


class Clip(keras.constraints.Constraint):
    def __call__(self, w):
        return ops.clip(w, -1.0, 1.0)


class Penalty(keras.regularizers.Regularizer):
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, w):
        return self.factor * ops.sum(w * w)


class Draw(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, dtype=dtype)


OF_ONES_OWN = {
    "function of a name that Keras has": {"activation": hard_sigmoid},
    "lambda": {"activation": lambda x: x * ops.sigmoid(1.702 * x)},
    "constraint": {"kernel_constraint": Clip()},
    "regularizer": {"kernel_regularizer": Penalty(1e-3)},
    "initializer": {"kernel_initializer": Draw()},
    "initializer function": {
        "kernel_initializer": lambda shape, dtype=None: ops.zeros(shape, dtype)
    },
}


@pytest.mark.parametrize("name", OF_ONES_OWN)
@pytest.mark.parametrize("middle", [(), (layers.Activation(hard_sigmoid),)])
def test_functions_and_objects_of_ones_own_are_kept(name, middle):
    model = convnet(*middle, **OF_ONES_OWN[name])
    masked = filterprune.wrap_model(model)
    assert difference(model, masked) < 1e-6
    close_at_random(masked)
    small = check_exact(masked)
    assert small.layers[2].filters == 4
    for key, value in OF_ONES_OWN[name].items():
        assert getattr(small.layers[2], key) is value


class Forgets(layers.Layer):
    """Its config does not tell its arguments."""

    def __init__(self, factor=1.0, powers=(1,), **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.powers = powers

    def call(self, x):
        return self.factor * sum(x**power for power in self.powers)

    def get_config(self):
        return super().get_config()


class Nameless(layers.Layer):
    """Its config does not even tell its name."""

    def call(self, x):
        return 2 * x

    def get_config(self):
        return {}


def test_names_that_a_config_forgets_are_kept():
    model = convnet(Nameless(name="doubled"))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = check_exact(masked)
    assert masked.get_layer("doubled") and small.get_layer("doubled")


@keras.saving.register_keras_serializable("tests")
class OwnConv(layers.Conv2D):
    def __init__(self, filters, **kwargs):
        kwargs.setdefault("kernel_size", 3)
        super().__init__(filters, **kwargs)


def test_a_masked_subclass_comes_back_from_a_file(tmp_path):
    model = convnet(OwnConv(6, activation="relu"))
    masked = filterprune.wrap_model(model)
    assert isinstance(masked.layers[3], filterprune.layers.MaskedConv2D)
    close_at_random(masked)
    masked.save(tmp_path / "masked.keras")
    again = keras.models.load_model(tmp_path / "masked.keras")
    assert difference(masked, again) == 0
    assert check_exact(again).layers[3].filters == 3


def test_arguments_that_a_config_forgets_are_kept():
    model = convnet(Forgets(3.0), Forgets(powers=(1, 2)))
    masked = filterprune.wrap_model(model)
    assert difference(model, masked) < 1e-6
    close_at_random(masked)
    small = check_exact(masked)
    assert small.get_layer("forgets").factor == 3.0
    assert small.layers[2].filters == 4


OPERATIONS = {
    "roll": lambda x: ops.roll(x, 3, axis=-1),
    "reshape": lambda x: ops.reshape(
        ops.transpose(ops.reshape(x, (-1, 6, 6, 2, 4)), (0, 1, 2, 4, 3)), (-1, 6, 6, 8)
    ),
    "pad": lambda x: ops.pad(x, [[0, 0], [0, 0], [0, 0], [2, 2]]),
    "split": lambda x: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], -1),
    "slice": lambda x: x[..., 1:] * 0.5,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_file_of_a_compact_model_holds_the_new_arguments(name, tmp_path):
    x = keras.Input((8, 8, 3))
    y = OPERATIONS[name](layers.Conv2D(8, 3)(x))
    masked = filterprune.wrap_model(randomise(keras.Model(x, layers.Conv2D(2, 1)(y))))
    close_at_random(masked)
    small = check_exact(masked)
    small.save(tmp_path / "small.keras")
    assert difference(small, keras.models.load_model(tmp_path / "small.keras")) == 0


class Sampling(layers.Layer):
    """Draws also in inference, as in a variational autoencoder."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, spread = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * spread) * noise


class Uncontrolled(layers.Layer):
    """Draws from a generator that Keras knows nothing of."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = np.random.default_rng()

    def call(self, x):
        return (
            x + self.generator.normal() if not isinstance(x, keras.KerasTensor) else x
        )


def autoencoder():
    x = keras.Input((8, 8, 1))
    y = layers.Flatten()(layers.Conv2D(8, 3, activation="relu")(x))
    z = Sampling()([layers.Dense(4)(y), layers.Dense(4)(y)])
    y = layers.Dense(16, activation="relu")(z)
    return randomise(keras.Model(x, layers.Dense(64)(y)))


def test_a_model_that_draws_in_inference_is_verified():
    """Both models draw the same while they are compared, and none is moved on."""
    model = autoencoder()
    model.predict(np.zeros((1, 8, 8, 1)), verbose=0)
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    before = [keras.ops.convert_to_numpy(v).copy() for v in masked.variables]
    small = filterprune.compact(masked)
    assert small.count_params() < 0.7 * model.count_params()
    for variable, value in zip(masked.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
    kernel = small.layers[1].kernel
    kernel.assign(kernel + 0.1)  # and a difference would be seen
    assert filterprune.verification.compare(masked, small).difference > 1e-2


def test_what_draws_beyond_control_is_told():
    with pytest.warns(filterprune.PruningWarning, match="could not be verified"):
        masked = filterprune.wrap_model(convnet(Uncontrolled()))
    close_at_random(masked)
    with pytest.warns(filterprune.PruningWarning, match="could not be verified"):
        filterprune.compact(masked)


class WithExtra(keras.Model):
    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


class BuildsItself(keras.Model):
    def __init__(self, filters=8, **kwargs):
        x = keras.Input((8, 8, 3))
        y = layers.Flatten()(layers.Conv2D(filters, 3)(x))
        super().__init__(x, layers.Dense(2)(y), **kwargs)

    def train_step(self, *args):
        return super().train_step(*args)


def test_the_class_of_a_model_and_its_arguments_are_kept():
    plain = convnet()
    model = WithExtra(plain.inputs, plain.outputs, extra=3)
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = check_exact(masked)
    assert type(masked) is type(small) is WithExtra
    assert masked.extra == small.extra == 3


def test_a_lost_train_step_is_told():
    with pytest.warns(filterprune.PruningWarning, match="without the `train_step`"):
        masked = filterprune.wrap_model(BuildsItself())
    close_at_random(masked)
    check_exact(masked)


def test_no_gate_that_was_added_is_left():
    x = keras.Input((8, 8, 3))
    y = ops.sigmoid(layers.Conv2D(8, 3)(x))
    model = randomise(keras.Model(x, layers.Conv2D(2, 3)(y)))
    masked = filterprune.wrap_model(model)
    assert any(isinstance(layer, filterprune.layers.Gate) for layer in masked.layers)
    close_at_random(masked)
    small = check_exact(masked)
    assert [layer.name for layer in small.layers] == [
        layer.name for layer in model.layers
    ]


def test_constants_are_as_exact_as_the_model():
    """Keras says float32 of what `ops.normalize` makes of float64."""
    keras.config.set_floatx("float64")
    x = keras.Input((8, 8, 3))
    y = ops.normalize(layers.Conv2D(4, 3)(x))
    y = ops.tanh(y - ops.logsumexp(y, axis=1, keepdims=True))
    model = randomise(keras.Model(x, layers.Dense(3)(layers.Flatten()(y))))
    masked = builders.clone(model)
    builders.close(masked.get_layer(model.layers[1].name), 0, 2)
    assert check_exact(masked).layers[1].filters == 2


@pytest.mark.filterwarnings("ignore::filterprune.PruningWarning")
def test_a_layer_of_channels_that_none_makes_keeps_one():
    """Those of a product with a matrix are one to the analysis: all or none."""
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3)(x)
    y = layers.BatchNormalization(name="bn")(ops.matmul(y, np.eye(4, dtype="float32")))
    model = randomise(keras.Model(x, layers.Dense(3)(layers.Flatten()(y))))
    for gates in ([0, 0, 0, 0], [0, 0, 1, 1]):
        masked = builders.clone(model)
        masked.get_layer("bn").gate.assign(gates)
        check_exact(masked)
