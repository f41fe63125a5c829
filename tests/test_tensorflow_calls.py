"""Layers whose `call` uses TensorFlow's functions are traced."""

import operator
import re
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from exactness import (
    assert_untouched,
    check_exact,
    close_at_random,
    randomise,
    state_of,
    to_numpy,
)
from keras import layers

import filterprune
from filterprune import tensorflow_calls
from filterprune.channels.registry import own_call
from filterprune.inlining import Trial
from filterprune.tensorflow_calls import tensorflow_as_keras

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's functions"
)
tf = pytest.importorskip("tensorflow")

# What is called with tensors `x` and `y` of the same shape, without a batch: `x` has
# both signs, `y` is between 0.1 and 0.9. `w` is a constant matrix from 8 to 5.
CASES = {
    (8,): [
        *(f"tf.math.{name}(x)" for name in ("abs", "ceil", "cos", "cosh", "erf")),
        *(f"tf.math.{name}(x)" for name in ("exp", "expm1", "floor", "negative")),
        *(f"tf.math.{name}(x)" for name in ("sigmoid", "sign", "sin", "sinh")),
        *(f"tf.math.{name}(x)" for name in ("softplus", "square", "tan", "tanh")),
        *(f"tf.math.{name}(x)" for name in ("log_sigmoid", "asinh", "atan", "round")),
        *(f"tf.math.{name}(y)" for name in ("log", "log1p", "rsqrt", "sqrt", "acos")),
        *(f"tf.math.{name}(y)" for name in ("asin", "atanh", "erfinv", "reciprocal")),
        "tf.math.acosh(y + 1.0)",
        "tf.round(x * 2.0, name='round')",
        *(f"tf.math.{name}(x, y)" for name in ("add", "divide", "divide_no_nan")),
        *(f"tf.math.{name}(x, y)" for name in ("maximum", "minimum", "multiply")),
        *(f"tf.math.{name}(x, y)" for name in ("squared_difference", "subtract")),
        *(f"tf.math.{name}(x, y)" for name in ("atan2", "floordiv", "floormod")),
        *(f"tf.math.{name}(x, y)" for name in ("equal", "greater", "greater_equal")),
        *(f"tf.math.{name}(x, y)" for name in ("less", "less_equal", "not_equal")),
        "tf.truediv(x, y)",
        "tf.divide(1.0, y)",
        "tf.math.divide_no_nan(x, tf.nn.relu(x))",
        "tf.pow(y, 1.5)",
        "tf.maximum(0.1, x)",
        "tf.add(x=x, y=tf.range(8.0))",
        "tf.add(tf.range(8.0), x)",
        "tf.logical_and(x > 0, y > 0.5)",
        "tf.logical_or(x > 0, y > 0.5)",
        "tf.math.logical_xor(x > 0, y > 0.5)",
        "tf.logical_not(x > 0)",
        "tf.math.is_finite(x / tf.nn.relu(x))",
        "tf.math.is_inf(y / tf.nn.relu(x))",
        "tf.math.is_nan(tf.sqrt(x))",
        "tf.clip_by_value(x, -0.5, clip_value_max=0.5)",
        "tf.where(x > 0, x, y)",
        "tf.where(tf.greater(x, 0.0), x, 0.0)",
        "tf.cast(x > 0, tf.float32)",
        "tf.cast(x * 3, 'int32')",
        "tf.cast(x, x.dtype)",
        "tf.identity(x) + 1.0",
        "tf.convert_to_tensor(x) * 2.0",
        "tf.stop_gradient(x)",
        "tf.ensure_shape(x, [None, 8]) * 2.0",
        "tf.zeros_like(x)",
        "tf.ones_like(x, dtype=tf.int32)",
        "tf.one_hot(tf.argmax(x, axis=1), 8)",
        "tf.one_hot(tf.cast(y * 5, tf.int32), depth=5, axis=1)",
        "tf.add_n([x, y, x])",
        "tf.nn.relu(x)",
        "tf.nn.relu6(x * 9)",
        "tf.nn.elu(x)",
        "tf.nn.selu(x)",
        "tf.nn.gelu(x)",
        "tf.nn.gelu(x, approximate=True)",
        "tf.nn.silu(x)",
        "tf.nn.swish(x, beta=1.7)",
        "tf.nn.leaky_relu(x)",
        "tf.nn.leaky_relu(x, alpha=0.05)",
        "tf.nn.softsign(x)",
        "tf.nn.sigmoid(x)",
        "tf.nn.softmax(x)",
        "tf.matmul(x, w)",
        "tf.linalg.matvec(tf.constant(w.numpy().T), x)",
        "tf.nn.bias_add(x, tf.range(8.0))",
        "tf.nn.embedding_lookup(tf.transpose(w), tf.cast(y * 5, tf.int32))",
        "tf.expand_dims(x, tf.rank(x))",
        "x * tf.cast(tf.shape(x)[1], x.dtype)",
        "tf.reshape(x, [-1, 2, 4])",
        "tf.reshape(x, (tf.shape(x)[0], 2, 4))",
        "tf.reshape(x, [-1] + x.shape[1:].as_list())",
        "tf.reshape(x, [-1, 1, *x.get_shape().as_list()[1:]])",
        "tf.reshape(x, tf.stack([tf.shape(x)[0], 1, 1, 8]))",
        "tf.reshape(x, tf.concat([tf.shape(x)[:1], [2, 4]], axis=0))",
        "tf.reshape(x, tf.concat([tf.shape(x)[:-1], tf.shape(x)[1:] // [2], [2]], 0))",
        "tf.reshape(x, (tf.shape(x)[0] * 2, 4))",
        "tf.reshape(x, [tf.size(x)])",
        "tf.reshape(x, -1)",
        "tf.reshape(x, tf.shape(y))",
        "x[:, :1] * 0.0 + tf.zeros([tf.shape(x)[0], 1, 8])",
        "x + tf.ones([tf.shape(x)[0], 1, 1], x.dtype)",
        "x + tf.cast(tf.range(tf.shape(x)[0]), x.dtype)[:, None, None]",
        "x + tf.cast(tf.range(1 - tf.shape(x)[0], 1), x.dtype)[:, None, None]",
        "x + tf.tile(tf.zeros([1, 1, 8]) + 1.0, [tf.shape(x)[0], 1, 1])",
        "x + tf.broadcast_to(tf.range(8.0), [tf.shape(x)[0], 1, 8])",
    ],
    (6, 8): [
        *(f"tf.reduce_{name}(x)" for name in ("max", "min", "mean", "sum", "prod")),
        *(f"tf.reduce_{name}(x, 1)" for name in ("max", "min", "mean", "sum")),
        "tf.reduce_sum(x, axis=[1, 2], keepdims=True)",
        "tf.reduce_mean(x, axis=(1,), keepdims=True, name='mean')",
        "tf.reduce_mean(x, [-1, -2])",
        "tf.reduce_any(x > 1, axis=-1)",
        "tf.reduce_all(x > -1, axis=-1)",
        "tf.reduce_logsumexp(x, axis=-1)",
        "tf.math.reduce_std(x, axis=1)",
        "tf.math.reduce_variance(x, axis=[1], keepdims=True)",
        "tf.argmax(x)",
        "tf.argmin(x, axis=-1, output_type=tf.int32)",
        "tf.norm(x, axis=-1)",
        "tf.norm(x, axis=[1, 2], keepdims=True)",
        "tf.linalg.norm(x, ord=2, axis=1)",
        "tf.concat(tf.nn.moments(x, axes=[1]), -1)",
        "tf.concat(tf.nn.moments(x, [1, 2], keepdims=True), 1)",
        "tf.cumsum(x, axis=1)",
        "tf.cumsum(x)",
        "tf.math.cumprod(x, axis=-1)",
        "tf.math.l2_normalize(x, axis=-1)",
        "tf.nn.l2_normalize(x, [1, 2], epsilon=3.0)",
        "tf.nn.softmax(x, axis=1)",
        "tf.nn.log_softmax(x)",
        "tf.transpose(x)",
        "tf.transpose(x, perm=[0, 2, 1])",
        "tf.linalg.matrix_transpose(x)",
        "tf.linalg.band_part(x, 1, 0)",
        "tf.linalg.band_part(x > 0, -1, 2)",
        "tf.expand_dims(x, axis=1)",
        "tf.squeeze(x[:, :1], axis=[1])",
        "tf.squeeze(x[:, :1])",
        "x[:, tf.newaxis, ..., 1:]",
        "tf.concat([x, y], -1)",
        "tf.concat((x, y, x), axis=1)",
        "tf.stack([x, y], axis=1)",
        "tf.stack([x, y])",
        "tf.add_n(tf.unstack(x, axis=1))",
        "tf.unstack(x, 6, 1)[2]",
        "tf.split(x, 2, axis=-1)[1]",
        "tf.multiply(*tf.split(x, num_or_size_splits=2, axis=1))",
        "tf.split(x, [2, -1, 3], axis=2)[1]",
        "tf.split(x, [2, 5, 1], 2)[2]",
        "tf.slice(x, [0, 1, 2], [-1, 3, 4])",
        "tf.slice(x, [0, 0, 0], [tf.shape(x)[0], 3, -1])",
        "tf.gather(x, [1, 0, 5], axis=1)",
        "tf.gather(x, tf.constant([[1], [2]]), axis=-1)",
        "tf.tile(x, [1, 2, 1])",
        "tf.tile(x, tf.constant([1, 1, 3]))",
        "tf.repeat(x, 2, axis=1)",
        "tf.repeat(x, repeats=[1, 2, 0, 1, 1, 1], axis=1)",
        "tf.broadcast_to(x[:, :1], [3, 6, 8])",
        "tf.roll(x, shift=1, axis=1)",
        "tf.roll(x, [1, -2], axis=[1, 2])",
        "tf.reverse(x, axis=[1])",
        "tf.reverse(x, [-1, 1])",
        "tf.pad(x, [[0, 0], [1, 2], [0, 0]])",
        "tf.pad(x, [[0, 0], [1, 2], [0, 0]], 'CONSTANT', 1.5)",
        "tf.pad(x, tf.constant([[0, 0], [1, 2], [3, 0]]), mode='REFLECT')",
        "tf.pad(x, [[0, 0], [1, 2], [3, 0]], 'symmetric')",
        "tf.sort(x)",
        "tf.sort(x, axis=1)",
        "tf.matmul(x, y, transpose_b=True)",
        "tf.matmul(x, y, transpose_a=True)",
        "tf.matmul(x, w)",
        "x @ w",
        "tf.tensordot(x, w, axes=1)",
        "tf.tensordot(x, w, axes=[[2], [0]])",
        "tf.einsum('bij,bkj->bik', x, y)",
        "tf.einsum('...j,jk->...k', x, w)",
        "tf.reshape(x, [tf.shape(x)[0], -1, 2, tf.shape(x)[2] // 2])",
        "tf.reshape(x, [tf.shape(x)[0], tf.reduce_prod(tf.shape(x)[1:])])",
        "tf.nn.conv1d(x, kernel(3, 8, 5), 1, 'SAME')",
        "tf.nn.conv1d(x, kernel(3, 8, 5), stride=2, padding='VALID', dilations=1)",
        "tf.nn.avg_pool1d(x, 2, 2, 'SAME')",
        "tf.nn.max_pool1d(x, ksize=3, strides=1, padding='VALID')",
        "tf.nn.avg_pool(x, 3, 2, 'VALID')",
    ],
    (6, 4, 8): [
        "tf.nn.conv2d(x, kernel(3, 3, 8, 5), 1, 'SAME')",
        "tf.nn.conv2d(x, kernel(3, 2, 8, 5), strides=[1, 2, 1, 1], padding='VALID')",
        "tf.nn.conv2d(x, kernel(3, 2, 8, 5), [2], 'SAME', data_format='NHWC')",
        "tf.nn.conv2d(x, kernel(2, 2, 8, 5), 1, 'SAME', dilations=[2, 1])",
        "tf.nn.depthwise_conv2d(x, kernel(3, 3, 8, 2), [1, 1, 1, 1], 'SAME')",
        "tf.nn.depthwise_conv2d(x, kernel(3, 2, 8, 1), [1, 2, 2, 1], 'VALID')",
        "tf.nn.separable_conv2d(x, kernel(3, 3, 8, 1), kernel(1, 1, 8, 5), "
        "strides=[1, 1, 1, 1], padding='SAME')",
        "tf.nn.avg_pool2d(x, 2, 2, 'VALID')",
        "tf.nn.avg_pool2d(x, [1, 3, 2, 1], [1, 2, 1, 1], 'SAME')",
        "tf.nn.max_pool2d(x, ksize=[3, 3], strides=2, padding='SAME')",
        "tf.nn.max_pool(x, 2, 2, 'VALID')",
        "tf.nn.bias_add(x, tf.range(6.0), data_format='NCHW')",
        "tf.nn.bias_add(x, tf.range(8.0), 'NHWC')",
        "tf.nn.depth_to_space(x, 2)",
        "tf.nn.space_to_depth(x, block_size=2)",
        "tf.image.resize(x, [9, 7])",
        "tf.image.resize(x, (3, 2), method='nearest')",
        "tf.image.resize(x, tf.shape(x)[1:3] * 2, tf.image.ResizeMethod.BICUBIC)",
        "tf.image.resize(x, [3, 3], antialias=True)",
        "tf.image.resize(x, (5, 5), 'lanczos3')",
        "tf.image.resize(tf.cast(x, tf.float16), (5, 5))",
        "tf.image.flip_left_right(x)",
        "tf.image.flip_up_down(x)",
        "tf.image.extract_patches(x, [1, 2, 2, 1], [1, 2, 2, 1], [1] * 4, 'VALID')",
        "tf.image.extract_patches(images=x, sizes=[1, 3, 2, 1], strides=[1, 1, 1, 1], "
        "rates=[1, 2, 2, 1], padding='SAME')",
        "tf.nn.batch_normalization(x, *tf.nn.moments(x, [1, 2], keepdims=True), "
        "offset=tf.range(8.0), scale=tf.range(8.0) + 1.0, variance_epsilon=1e-3)",
        "tf.nn.batch_normalization(x, tf.range(8.0), y, None, None, 0.1)",
        "tf.reduce_max(x, axis=[1, 2])",
        "tf.reshape(x, [-1] + [n for n in tf.unstack(tf.shape(x))[2:]])",
    ],
    (4, 4, 4, 2): [
        "tf.nn.conv3d(x, kernel(3, 3, 3, 2, 5), [1, 1, 2, 1, 1], 'SAME')",
        "tf.nn.avg_pool3d(x, 2, 2, 'VALID')",
        "tf.nn.max_pool3d(x, [1, 2, 2, 2, 1], 1, 'SAME')",
    ],
}


def kernel(*shape):
    return tf.constant(np.random.default_rng(2).normal(size=shape), "float32")


def compute(text, x, y):
    names = {"tf": tf, "x": x, "y": y, "kernel": kernel, "w": kernel(8, 5)}
    return eval(text, names)


class Calls(layers.Layer):
    """Computes what a text says, from two tensors."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def call(self, x, y):
        return compute(self.text, x, y)


@pytest.mark.parametrize(
    "shape, text", [(shape, text) for shape, texts in CASES.items() for text in texts]
)
def test_the_traced_call_computes_the_same(shape, text):
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(3, *shape)), rng.uniform(0.1, 0.9, (3, *shape))]
    tensors = [tf.constant(array, "float32") for array in arrays]
    wanted = compute(text, *tensors)
    symbolic = [keras.Input(shape) for _ in range(2)]
    trial = Trial(Calls(text), lambda layer: own_call, symbolic, {})
    given = [keras.Input(shape) for _ in range(2)]
    output = trial.play(given, {}, twin=lambda op: op)
    found = keras.Model(given, output)(tensors)
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(to_numpy(found), to_numpy(wanted), 1e-5, 1e-6)


def test_every_function_has_a_case():
    texts = " ".join(text for texts in CASES.values() for text in texts)
    found = re.findall(r"tf\.([\w.]+)\(", texts)
    tried = {operator.attrgetter(name)(tf) for name in found}
    for name in tensorflow_calls._OF_TENSORS:
        assert operator.attrgetter(name)(tf) in tried, name


@pytest.mark.parametrize(
    "text, reason",
    [
        ("tf.image.sobel_edges(x)", "`tf.image.sobel_edges`"),
        ("tf.random.normal(tf.shape(x))", "`tf.random.normal`: it needs a size"),
        ("tf.eye(tf.shape(x)[0])", "`tf.eye`"),
        (
            "tf.tile(x, [1, tf.shape(x)[0]])",
            "`tf.tile`: it needs a size|it needs a size",
        ),
        ("x / tf.shape(x)[0]", "it needs a size"),
        ("x if tf.shape(x)[0] == 1 else y", "it needs a size"),
        ("tf.shape(x) * 2", "it needs a size"),
        ("tf.cumsum(x, axis=1, reverse=True)", r"`tf.cumsum\(reverse=True\)`"),
        ("tf.sort(x, direction='DESCENDING')", r"`tf.sort\(direction='DESCENDING'\)`"),
        ("tf.matmul(x, y, adjoint_b=True)", r"`tf.matmul\(adjoint_b=True\)`"),
        ("tf.gather(x, [0], axis=1, batch_dims=1)", r"`tf.gather\(batch_dims=1\)`"),
        ("tf.norm(x, ord=1)", r"`tf.norm\(ord=1\)`"),
        ("tf.reduce_mean(tf.cast(x, tf.int32))", "`tf.reduce_mean` of integers"),
        ("tf.where(x > 0)", "`tf.where` with a condition alone"),
        ("tf.nn.conv1d(x, kernel(1, 1, 1), 1, [[0, 0]] * 3)", "a padding for each"),
        ("tf.einsum('bi,bi->b', x, y, optimize='optimal')", r"`tf.einsum\(kwargs="),
    ],
)
def test_what_has_no_counterpart_is_named(text, reason):
    x = keras.Input((8,))
    with tensorflow_as_keras(), pytest.raises(NotImplementedError, match=reason):
        compute(text, x, x)


def test_only_a_thread_that_traces_is_answered():
    x = keras.Input((3,))
    with tensorflow_as_keras():
        with tensorflow_as_keras():
            assert isinstance(tf.nn.relu(x), keras.KerasTensor)
        assert isinstance(tf.nn.relu(x), keras.KerasTensor)
        assert tf.nn.relu(tf.constant([-1.0, 1.0])).numpy().tolist() == [0.0, 1.0]
        assert tf.concat([[1], tf.constant([2])], 0).numpy().tolist() == [1, 2]
        with ThreadPoolExecutor(1) as pool:
            error = pool.submit(tf.nn.relu, x).exception()
        assert "A KerasTensor cannot be used as input" in str(error)
    for function in (tf.nn.relu, tf.shape, lambda x: tf.concat([x, x], 1)):
        with pytest.raises(ValueError, match="A KerasTensor cannot be used as input"):
            function(x)


@keras.saving.register_keras_serializable("tests")
class Squeeze(layers.Layer):
    """Squeeze and excitation, in TensorFlow's words."""

    def build(self, shape):
        self.inner = layers.Dense(shape[-1] // 2)
        self.outer = layers.Dense(shape[-1])
        self.inner.build((None, shape[-1]))
        self.outer.build((None, shape[-1] // 2))

    def call(self, x):
        s = tf.reduce_mean(x, axis=[1, 2])
        s = tf.nn.sigmoid(self.outer(tf.nn.relu(self.inner(s))))
        return x * tf.reshape(s, [-1, 1, 1, tf.shape(x)[-1]])


@keras.saving.register_keras_serializable("tests")
class Residual(layers.Layer):
    """Two convolutions and a way around them."""

    def build(self, shape):
        self.convs = [layers.Conv2D(shape[-1], 3, padding="same") for _ in range(2)]
        self.norms = [layers.BatchNormalization() for _ in range(2)]
        for part in (*self.convs, *self.norms):
            part.build(shape)

    def call(self, x, training=None):
        y = tf.nn.relu(self.norms[0](self.convs[0](x), training=training))
        y = self.norms[1](self.convs[1](y), training=training)
        return tf.nn.relu(tf.add(x, y))


@keras.saving.register_keras_serializable("tests")
class Pyramid(layers.Layer):
    """Joins maps of two sizes."""

    def build(self, shape):
        self.down = layers.Conv2D(6, 3, strides=2, padding="same")
        self.down.build(shape)
        self.mix = layers.Conv2D(4, 1)
        self.mix.build((*shape[:-1], shape[-1] + 6))

    def call(self, x):
        y = tf.nn.leaky_relu(self.down(x), alpha=0.1)
        y = tf.image.resize(y, tf.shape(x)[1:3])
        return self.mix(tf.concat([x, y], axis=-1))


@keras.saving.register_keras_serializable("tests")
class Attention(layers.Layer):
    """Of two heads, by hand."""

    def build(self, shape):
        self.parts = [layers.Dense(shape[-1]) for _ in range(4)]
        for part in self.parts:
            part.build(shape)

    def _heads(self, x):
        x = tf.reshape(x, (tf.shape(x)[0], -1, 2, x.shape[-1] // 2))
        return tf.transpose(x, perm=[0, 2, 1, 3])

    def call(self, x):
        q, k, v = (self._heads(part(x)) for part in self.parts[:3])
        scores = tf.matmul(q, k, transpose_b=True)
        scores = scores / tf.math.sqrt(tf.cast(tf.shape(k)[-1], tf.float32))
        y = tf.matmul(tf.nn.softmax(scores, axis=-1), v)
        y = tf.transpose(y, perm=[0, 2, 1, 3])
        return self.parts[3](tf.reshape(y, (tf.shape(x)[0], -1, x.shape[-1])))


def net_of(block):
    image = keras.Input((8, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    if isinstance(block, Attention):
        x = layers.Reshape((48, 8))(x)
    x = block(x)
    rank = len(x.shape) - 2
    pool = layers.GlobalAveragePooling1D if rank == 1 else layers.GlobalAveragePooling2D
    return keras.Model(image, layers.Dense(2)(pool()(x)))


@pytest.mark.parametrize("cls", [Squeeze, Residual, Pyramid, Attention])
def test_a_composite_in_tensorflows_words_is_pruned(cls):
    model = net_of(cls(name="block"))
    randomise(model)
    before = state_of(model)
    masked = filterprune.wrap_model(model)
    assert not any(isinstance(layer, cls) for layer in masked.layers)
    close_at_random(masked)
    small = check_exact(masked)
    assert small.count_params() < 0.7 * model.count_params()
    assert_untouched(model, before)


@keras.saving.register_keras_serializable("tests")
class Edges(layers.Layer):
    def build(self, shape):
        self.conv = layers.Conv2D(4, 1)
        self.conv.build(shape)

    def call(self, x):
        return tf.image.sobel_edges(self.conv(x))[..., 0]


def test_the_report_names_a_function_without_counterpart():
    report = filterprune.analyze(net_of(Edges(name="block")))
    assert "`tf.image.sobel_edges`" in str(report)
