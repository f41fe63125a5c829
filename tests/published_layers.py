"""Layers as people publish them, in up to three styles.

The plain name stands for built-in layers inside, `...Weights` for `keras.ops` and
weights of their own, `...TF` for TensorFlow's functions in `call`.
"""

import keras
import numpy as np
from keras import layers, ops

try:
    import tensorflow as tf
except ImportError:
    tf = None


class Weighted(layers.Layer):
    """A layer with weights of its own."""

    def weight(self, name, *shape, init="glorot_uniform"):
        weight = self.add_weight(name=name, shape=shape, initializer=init)
        setattr(self, name, weight)

    def vector(self, name, size, init="ones"):
        self.weight(name, size, init=init)


# Attention over channels and positions of an image ------------------------------------


class SqueezeExcite(layers.Layer):
    def build(self, shape):
        channels = shape[-1]
        self.pool = layers.GlobalAveragePooling2D()
        self.squeeze = layers.Dense(channels // 2, activation="relu")
        self.excite = layers.Dense(channels, activation="sigmoid")
        self.spread = layers.Reshape((1, 1, channels))
        self.times = layers.Multiply()

    def call(self, x):
        gates = self.excite(self.squeeze(self.pool(x)))
        return self.times([x, self.spread(gates)])


class SqueezeExciteWeights(Weighted):
    def build(self, shape):
        self.weight("w1", shape[-1], shape[-1] // 2)
        self.vector("b1", shape[-1] // 2, "zeros")
        self.weight("w2", shape[-1] // 2, shape[-1])
        self.vector("b2", shape[-1], "zeros")

    def call(self, x):
        y = ops.mean(x, axis=[1, 2])
        y = ops.relu(ops.matmul(y, self.w1) + self.b1)
        y = ops.sigmoid(ops.matmul(y, self.w2) + self.b2)
        return x * ops.reshape(y, (-1, 1, 1, x.shape[-1]))


class SqueezeExciteTF(SqueezeExcite):
    def call(self, x):
        y = self.excite(self.squeeze(tf.reduce_mean(x, axis=[1, 2])))
        return x * tf.reshape(y, [-1, 1, 1, tf.shape(x)[-1]])


class CBAM(layers.Layer):
    def build(self, shape):
        self.first = layers.Dense(shape[-1] // 2, activation="relu")
        self.second = layers.Dense(shape[-1])
        self.conv = layers.Conv2D(1, 3, padding="same", activation="sigmoid")
        self.join = layers.Concatenate()

    def call(self, x):
        pooled = [ops.mean(x, axis=(1, 2)), ops.max(x, axis=(1, 2))]
        gates = sum(self.second(self.first(one)) for one in pooled)
        x = x * ops.sigmoid(gates)[:, None, None, :]
        maps = [ops.mean(x, -1, keepdims=True), ops.max(x, -1, keepdims=True)]
        return x * self.conv(self.join(maps))


class CBAMWeights(Weighted):
    def build(self, shape):
        self.weight("w1", shape[-1], shape[-1] // 2)
        self.weight("w2", shape[-1] // 2, shape[-1])
        self.weight("kernel", 3, 3, 2, 1)

    def gates(self, x):
        return ops.matmul(ops.relu(ops.matmul(x, self.w1)), self.w2)

    def call(self, x):
        first = self.gates(ops.mean(x, axis=(1, 2), keepdims=True))
        second = self.gates(ops.max(x, axis=(1, 2), keepdims=True))
        x = x * ops.sigmoid(first + second)
        maps = [ops.mean(x, -1, keepdims=True), ops.max(x, -1, keepdims=True)]
        y = ops.conv(ops.concatenate(maps, axis=-1), self.kernel, padding="same")
        return x * ops.sigmoid(y)


class CBAMTF(CBAM):
    def call(self, x):
        first = self.second(self.first(tf.reduce_mean(x, axis=[1, 2], keepdims=True)))
        second = self.second(self.first(tf.reduce_max(x, axis=[1, 2], keepdims=True)))
        x = x * tf.nn.sigmoid(first + second)
        average = tf.reduce_mean(x, axis=-1, keepdims=True)
        largest = tf.reduce_max(x, axis=-1, keepdims=True)
        return x * self.conv(tf.concat([average, largest], axis=-1))


class ECA(layers.Layer):
    """A convolution over the channels: all of them stay."""

    def build(self, shape):
        self.conv = layers.Conv1D(1, 3, padding="same", use_bias=False)

    def call(self, x):
        y = self.conv(ops.mean(x, axis=(1, 2))[..., None])
        return x * ops.sigmoid(ops.squeeze(y, -1))[:, None, None, :]


class ECAWeights(Weighted):
    def build(self, shape):
        self.weight("kernel", 3, 1, 1)

    def call(self, x):
        y = ops.expand_dims(ops.mean(x, axis=(1, 2)), -1)
        y = ops.sigmoid(ops.conv(y, self.kernel, padding="same"))
        return x * ops.reshape(y, (-1, 1, 1, x.shape[-1]))


class ECATF(ECA):
    def call(self, x):
        y = self.conv(tf.expand_dims(tf.reduce_mean(x, axis=[1, 2]), -1))
        y = tf.nn.sigmoid(tf.squeeze(y, axis=-1))
        return x * tf.reshape(y, [-1, 1, 1, x.shape[-1]])


class BAM(layers.Layer):
    def build(self, shape):
        width = shape[-1] // 2
        self.pool = layers.GlobalAveragePooling2D(keepdims=True)
        self.channel = keras.Sequential(
            [
                layers.Dense(width),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Dense(shape[-1]),
            ]
        )
        self.space = keras.Sequential(
            [
                layers.Conv2D(width, 1),
                layers.Conv2D(width, 3, padding="same", dilation_rate=2),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Conv2D(1, 1),
            ]
        )

    def call(self, x, training=None):
        channel = self.channel(self.pool(x), training=training)
        return x + x * ops.sigmoid(channel + self.space(x, training=training))


class SimAM(layers.Layer):
    def call(self, x):
        count = x.shape[1] * x.shape[2] - 1
        square = ops.square(x - ops.mean(x, axis=(1, 2), keepdims=True))
        variance = ops.sum(square, axis=(1, 2), keepdims=True) / count
        return x * ops.sigmoid(square / (4 * (variance + 1e-4)) + 0.5)


class SimAMTF(layers.Layer):
    def call(self, x):
        shape = tf.shape(x)
        count = tf.cast(shape[1] * shape[2] - 1, x.dtype)
        square = tf.square(x - tf.reduce_mean(x, axis=[1, 2], keepdims=True))
        variance = tf.reduce_sum(square, axis=[1, 2], keepdims=True) / count
        return x * tf.nn.sigmoid(square / (4 * (variance + 1e-4)) + 0.5)


class CoordinateAttention(layers.Layer):
    def build(self, shape):
        self.size = shape[1]
        self.squeeze = layers.Conv2D(shape[-1] // 2, 1)
        self.norm = layers.BatchNormalization()
        self.high = layers.Conv2D(shape[-1], 1, activation="sigmoid")
        self.wide = layers.Conv2D(shape[-1], 1, activation="sigmoid")

    def call(self, x, training=None):
        rows = ops.mean(x, axis=2, keepdims=True)
        columns = ops.transpose(ops.mean(x, axis=1, keepdims=True), (0, 2, 1, 3))
        y = self.squeeze(ops.concatenate([rows, columns], axis=1))
        y = keras.activations.hard_swish(self.norm(y, training=training))
        rows, columns = ops.split(y, [self.size], axis=1)
        columns = ops.transpose(columns, (0, 2, 1, 3))
        return x * self.high(rows) * self.wide(columns)


class CoordinateAttentionWeights(Weighted):
    def build(self, shape):
        self.weight("squeeze", shape[-1], shape[-1] // 2)
        self.weight("high", shape[-1] // 2, shape[-1])
        self.weight("wide", shape[-1] // 2, shape[-1])

    def call(self, x):
        size = x.shape[1]
        y = ops.concatenate([ops.mean(x, axis=2), ops.mean(x, axis=1)], axis=1)
        y = ops.relu(y @ self.squeeze)
        rows = ops.sigmoid(y[:, :size] @ self.high)
        columns = ops.sigmoid(y[:, size:] @ self.wide)
        return x * rows[:, :, None, :] * columns[:, None, :, :]


class CoordinateAttentionTF(CoordinateAttention):
    def call(self, x, training=None):
        rows = tf.reduce_mean(x, axis=2, keepdims=True)
        columns = tf.reduce_mean(x, axis=1, keepdims=True)
        y = tf.concat([rows, tf.transpose(columns, [0, 2, 1, 3])], axis=1)
        y = tf.nn.relu6(self.norm(self.squeeze(y), training=training))
        rows, columns = tf.split(y, [x.shape[1], x.shape[2]], axis=1)
        columns = tf.transpose(columns, perm=[0, 2, 1, 3])
        return x * self.high(rows) * self.wide(columns)


class NonLocal(layers.Layer):
    def build(self, shape):
        self.count = shape[1] * shape[2]
        self.inner = shape[-1] // 2
        self.theta, self.phi, self.g = (layers.Conv2D(self.inner, 1) for _ in range(3))
        self.out = layers.Conv2D(shape[-1], 1)

    def call(self, x):
        shape = (-1, self.count, self.inner)
        theta, phi, g = (
            ops.reshape(conv(x), shape) for conv in (self.theta, self.phi, self.g)
        )
        scores = ops.softmax(ops.matmul(theta, ops.transpose(phi, (0, 2, 1))))
        y = ops.reshape(ops.matmul(scores, g), (-1, *x.shape[1:3], self.inner))
        return x + self.out(y)


class NonLocalWeights(Weighted):
    def build(self, shape):
        self.inner = shape[-1] // 2
        for name in ("theta", "phi", "g"):
            self.weight(name, shape[-1], self.inner)
        self.weight("out", self.inner, shape[-1])
        self.weight("gamma", init="ones")

    def call(self, x):
        flat = ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))
        theta, phi = ops.dot(flat, self.theta), ops.dot(flat, self.phi)
        scores = ops.softmax(ops.einsum("bic,bjc->bij", theta, phi), axis=-1)
        y = ops.dot(ops.einsum("bij,bjc->bic", scores, ops.dot(flat, self.g)), self.out)
        return x + self.gamma * ops.reshape(y, ops.shape(x))


class NonLocalTF(NonLocal):
    def call(self, x):
        height, width = x.shape[1:3]
        theta, phi, g = (
            tf.reshape(conv(x), [-1, height * width, self.inner])
            for conv in (self.theta, self.phi, self.g)
        )
        scores = tf.nn.softmax(tf.matmul(theta, phi, transpose_b=True), axis=-1)
        y = tf.reshape(tf.matmul(scores, g), [-1, height, width, self.inner])
        return x + self.out(y)


class GlobalContext(layers.Layer):
    def build(self, shape):
        self.mask = layers.Conv2D(1, 1)
        self.down = layers.Dense(shape[-1] // 2, activation="relu")
        self.up = layers.Dense(shape[-1])

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        scores = ops.softmax(ops.reshape(self.mask(x), (batch, height * width, 1)), 1)
        context = ops.sum(
            ops.reshape(x, (batch, height * width, channels)) * scores, axis=1
        )
        return x + self.up(self.down(context))[:, None, None]


class SpatialAndChannel(layers.Layer):
    """scSE."""

    def build(self, shape):
        self.space = layers.Conv2D(1, 1, activation="sigmoid", use_bias=False)
        self.channel = SqueezeExciteWeights()

    def call(self, x):
        return ops.maximum(x * self.space(x), self.channel(x))


class SelectiveKernel(layers.Layer):
    def build(self, shape):
        width = shape[-1]
        self.convs = [
            layers.Conv2D(width, 3, dilation_rate=rate, padding="same")
            for rate in (1, 2)
        ]
        self.squeeze = layers.Dense(width // 2, activation="relu")
        self.select = [layers.Dense(width) for _ in self.convs]

    def call(self, x):
        branches = ops.stack([conv(x) for conv in self.convs], axis=1)
        z = self.squeeze(ops.mean(ops.sum(branches, axis=1), axis=(1, 2)))
        gates = ops.softmax(ops.stack([d(z) for d in self.select], axis=1), axis=1)
        return ops.sum(branches * gates[:, :, None, None, :], axis=1)


# Attention over a sequence ------------------------------------------------------------


class SelfAttention(layers.Layer):
    """Queries, keys and values by one layer."""

    def __init__(self, heads=4, size=4, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.size = heads, size

    def build(self, shape):
        self.qkv = layers.Dense(3 * self.heads * self.size, use_bias=False)
        self.out = layers.Dense(shape[-1])

    def call(self, x):
        batch, length = ops.shape(x)[0], x.shape[1]
        y = ops.reshape(self.qkv(x), (batch, length, 3, self.heads, self.size))
        q, k, v = ops.unstack(ops.transpose(y, (2, 0, 3, 1, 4)), 3, axis=0)
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * self.size**-0.5
        y = ops.transpose(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))
        return self.out(ops.reshape(y, (batch, length, self.heads * self.size)))


class SelfAttentionTF(SelfAttention):
    def call(self, x):
        batch, length = tf.shape(x)[0], tf.shape(x)[1]
        y = tf.reshape(self.qkv(x), [batch, length, 3, self.heads, self.size])
        y = tf.transpose(y, perm=[2, 0, 3, 1, 4])
        q, k, v = y[0], y[1], y[2]
        scores = tf.matmul(q, k, transpose_b=True) / tf.math.sqrt(float(self.size))
        y = tf.transpose(tf.matmul(tf.nn.softmax(scores, axis=-1), v), [0, 2, 1, 3])
        return self.out(tf.reshape(y, [batch, length, self.heads * self.size]))


class SelfAttentionWeights(Weighted):
    """One head, a matrix for each of queries, keys and values."""

    def build(self, shape):
        for name in ("wq", "wk", "wv"):
            self.weight(name, shape[-1], shape[-1])

    def call(self, x):
        q, k, v = (ops.matmul(x, w) for w in (self.wq, self.wk, self.wv))
        scores = ops.matmul(q, ops.swapaxes(k, 1, 2)) / x.shape[1] ** 0.5
        return ops.matmul(ops.softmax(scores, axis=-1), v)


class SplitHeads(layers.Layer):
    """Queries, keys and values by three layers, heads split by a method."""

    def __init__(self, heads=4, size=4, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.size = heads, size
        self.wq, self.wk, self.wv = (layers.Dense(heads * size) for _ in range(3))

    def build(self, shape):
        self.dense = layers.Dense(shape[-1])

    def split(self, x):
        x = ops.reshape(x, (ops.shape(x)[0], -1, self.heads, self.size))
        return ops.transpose(x, (0, 2, 1, 3))

    def call(self, x):
        q, k, v = (self.split(layer(x)) for layer in (self.wq, self.wk, self.wv))
        scores = ops.matmul(q, ops.swapaxes(k, -1, -2)) / float(self.size) ** 0.5
        y = ops.transpose(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))
        return self.dense(ops.reshape(y, (ops.shape(x)[0], -1, self.heads * self.size)))


class SplitHeadsWeights(Weighted):
    """By einsum."""

    def __init__(self, heads=4, size=4, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.size = heads, size

    def build(self, shape):
        for name in ("wq", "wk", "wv"):
            self.weight(name, shape[-1], self.heads, self.size)
        self.weight("wo", self.heads, self.size, shape[-1])

    def call(self, x):
        q, k, v = (
            ops.einsum("btd,dhk->bthk", x, w) for w in (self.wq, self.wk, self.wv)
        )
        scores = ops.einsum("bqhk,bthk->bhqt", q, k) / np.sqrt(self.size)
        y = ops.einsum("bhqt,bthk->bqhk", ops.softmax(scores, axis=-1), v)
        return ops.einsum("bqhk,hkd->bqd", y, self.wo)


class SplitHeadsTF(SplitHeadsWeights):
    def call(self, x):
        q = tf.einsum("btd,dhk->bthk", x, self.wq)
        k = tf.einsum("btd,dhk->bthk", x, self.wk)
        v = tf.einsum("btd,dhk->bthk", x, self.wv)
        scores = tf.einsum("bqhk,bthk->bhqt", q, k) * self.size**-0.5
        y = tf.einsum("bhqt,bthk->bqhk", tf.nn.softmax(scores, axis=-1), v)
        return tf.einsum("bqhk,hkd->bqd", y, self.wo)


class Bahdanau(layers.Layer):
    """Additive attention of the last step over all of them."""

    def build(self, shape):
        self.w1, self.w2 = layers.Dense(shape[-1]), layers.Dense(shape[-1])
        self.v = layers.Dense(1)

    def call(self, x):
        query = ops.expand_dims(x[:, -1], 1)
        scores = self.v(ops.tanh(self.w1(x) + self.w2(query)))
        return ops.sum(ops.softmax(scores, axis=1) * x, axis=1)


class BahdanauWeights(Weighted):
    def build(self, shape):
        self.weight("w1", shape[-1], shape[-1])
        self.weight("w2", shape[-1], shape[-1])
        self.weight("v", shape[-1], 1)

    def call(self, x):
        hidden = ops.matmul(x, self.w1) + ops.matmul(x[:, -1:, :], self.w2)
        scores = ops.softmax(ops.matmul(ops.tanh(hidden), self.v), axis=1)
        return ops.sum(scores * x, axis=1)


class BahdanauTF(Bahdanau):
    def call(self, x):
        query = tf.expand_dims(x[:, -1, :], 1)
        scores = self.v(tf.nn.tanh(self.w1(x) + self.w2(query)))
        return tf.reduce_sum(tf.nn.softmax(scores, axis=1) * x, axis=1)


class Luong(layers.Layer):
    """A product of the last step with all, and a layer behind."""

    def build(self, shape):
        self.score = layers.Dense(shape[-1], use_bias=False)
        self.dots = [layers.Dot(axes=(2, 1)), layers.Dot(axes=(1, 1))]
        self.softmax = layers.Softmax()
        self.join = layers.Concatenate()
        self.vector = layers.Dense(shape[-1], activation="tanh")

    def call(self, x):
        last = x[:, -1, :]
        weights = self.softmax(self.dots[0]([self.score(x), last]))
        context = self.dots[1]([x, weights])
        return self.vector(self.join([context, last]))


class LuongWeights(Weighted):
    def build(self, shape):
        self.weight("w", shape[-1], shape[-1])
        self.weight("out", 2 * shape[-1], shape[-1])

    def call(self, x):
        last = x[:, -1, :]
        scores = ops.einsum("btd,bd->bt", ops.matmul(x, self.w), last)
        context = ops.einsum("bt,btd->bd", ops.softmax(scores), x)
        both = ops.concatenate([context, last], axis=-1)
        return ops.tanh(ops.matmul(both, self.out))


class LuongTF(LuongWeights):
    def call(self, x):
        last = x[:, -1, :]
        scores = tf.matmul(tf.matmul(x, self.w), tf.expand_dims(last, -1))
        weights = tf.nn.softmax(tf.squeeze(scores, -1), axis=-1)
        context = tf.squeeze(tf.matmul(tf.expand_dims(weights, 1), x), axis=1)
        return tf.tanh(tf.matmul(tf.concat([context, last], axis=-1), self.out))


class AttentionPool(layers.Layer):
    def build(self, shape):
        self.score = layers.Dense(1, activation="tanh")

    def call(self, x):
        return ops.sum(x * ops.softmax(self.score(x), axis=1), axis=1)


class AttentionPoolWeights(Weighted):
    def build(self, shape):
        self.weight("W", shape[-1], 1)
        self.weight("b", shape[1], 1)

    def call(self, x):
        scores = ops.squeeze(ops.tanh(ops.dot(x, self.W) + self.b), axis=-1)
        weights = ops.expand_dims(ops.softmax(scores), axis=-1)
        return ops.sum(x * weights, axis=1)


class AttentionPoolTF(AttentionPoolWeights):
    def call(self, x):
        scores = tf.tanh(tf.tensordot(x, self.W, axes=[[2], [0]]) + self.b)
        return tf.reduce_sum(x * tf.nn.softmax(scores, axis=1), axis=1)


class ContextPool(Weighted):
    """Scores of a hidden layer with a context vector, by exponentials."""

    def build(self, shape):
        self.weight("W", shape[-1], shape[-1])
        self.vector("b", shape[-1], "zeros")
        self.vector("u", shape[-1])

    def call(self, x):
        hidden = ops.tanh(ops.matmul(x, self.W) + self.b)
        scores = ops.exp(ops.sum(hidden * self.u, axis=-1))
        weights = scores / (ops.sum(scores, axis=1, keepdims=True) + 1e-7)
        return ops.sum(x * weights[..., None], axis=1)


# Norms and scales ---------------------------------------------------------------------


class RMSNorm(Weighted):
    def build(self, shape):
        self.vector("scale", shape[-1])

    def call(self, x):
        mean = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(mean + 1e-6) * self.scale


class RMSNormTF(RMSNorm):
    def call(self, x):
        mean = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
        return x * tf.math.rsqrt(mean + 1e-6) * self.scale


class LayerNorm(Weighted):
    def build(self, shape):
        self.vector("gamma", shape[-1])
        self.vector("beta", shape[-1], "zeros")

    def call(self, x):
        mean = ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(x - mean), axis=-1, keepdims=True)
        return self.gamma * (x - mean) / ops.sqrt(variance + 1e-6) + self.beta


class LayerNormTF(LayerNorm):
    def call(self, x):
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-6) * self.gamma + self.beta


class InstanceNorm(Weighted):
    def build(self, shape):
        self.vector("gamma", shape[-1])
        self.vector("beta", shape[-1], "zeros")

    def call(self, x):
        mean, variance = ops.moments(x, axes=(1, 2), keepdims=True)
        return self.gamma * (x - mean) * ops.rsqrt(variance + 1e-5) + self.beta


class InstanceNormTF(InstanceNorm):
    def call(self, x):
        mean, variance = tf.nn.moments(x, axes=[1, 2], keepdims=True)
        return self.gamma * (x - mean) * tf.math.rsqrt(variance + 1e-5) + self.beta


class GroupNorm(Weighted):
    """Groups by a reshape."""

    def __init__(self, groups=4, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups

    def build(self, shape):
        self.vector("gamma", shape[-1])
        self.vector("beta", shape[-1], "zeros")

    def call(self, x):
        groups = self.groups, x.shape[-1] // self.groups
        y = ops.reshape(x, (-1, *x.shape[1:3], *groups))
        mean, variance = ops.moments(y, axes=(1, 2, 4), keepdims=True)
        y = ops.reshape((y - mean) / ops.sqrt(variance + 1e-5), (-1, *x.shape[1:]))
        return y * self.gamma + self.beta


class GRN(Weighted):
    def build(self, shape):
        self.weight("gamma", 1, 1, 1, shape[-1])
        self.weight("beta", 1, 1, 1, shape[-1])

    def call(self, x):
        norm = ops.sqrt(ops.sum(ops.square(x), axis=(1, 2), keepdims=True) + 1e-6)
        norm = norm / (ops.mean(norm, axis=-1, keepdims=True) + 1e-6)
        return self.gamma * (x * norm) + self.beta + x


class GRNTF(GRN):
    def call(self, x):
        norm = tf.norm(x, axis=[1, 2], keepdims=True)
        norm = norm / (tf.reduce_mean(norm, axis=-1, keepdims=True) + 1e-6)
        return self.gamma * (x * norm) + self.beta + x


class L2Norm(layers.Layer):
    def call(self, x):
        return ops.normalize(x, axis=-1)


class L2NormByHand(layers.Layer):
    def call(self, x):
        norm = ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))
        return x / ops.maximum(norm, 1e-6)


class L2NormTF(layers.Layer):
    def call(self, x):
        return tf.math.l2_normalize(x, axis=-1)


class LayerScale(Weighted):
    def build(self, shape):
        self.vector("gamma", shape[-1], keras.initializers.Constant(1e-5))

    def call(self, x):
        return x * self.gamma


class ScaleNorm(Weighted):
    def build(self, shape):
        self.weight("g", init="ones")

    def call(self, x):
        return self.g * x / ops.maximum(ops.norm(x, axis=-1, keepdims=True), 1e-5)


class FiLM(layers.Layer):
    """Scales and shifts by what a condition says."""

    def build(self, shape):
        self.dense = layers.Dense(2 * shape[0][-1])

    def call(self, inputs):
        x, condition = inputs
        scale, shift = ops.split(self.dense(condition)[:, None, None, :], 2, axis=-1)
        return x * (1 + scale) + shift


class FiLMWeights(Weighted):
    """With an instance norm in front: AdaIN."""

    def build(self, shape):
        for name in ("scale", "shift"):
            self.weight(name, shape[1][-1], shape[0][-1])

    def call(self, inputs):
        x, condition = inputs
        mean = ops.mean(x, axis=(1, 2), keepdims=True)
        x = (x - mean) / (ops.std(x, axis=(1, 2), keepdims=True) + 1e-5)
        scale, shift = condition @ self.scale, condition @ self.shift
        return x * scale[:, None, None] + shift[:, None, None]


class FiLMTF(FiLM):
    def call(self, inputs):
        x, condition = inputs
        scale, shift = tf.split(self.dense(condition), 2, axis=-1)
        return x * (1 + scale[:, tf.newaxis, tf.newaxis]) + shift[:, None, None]


class GeM(Weighted):
    def build(self, shape):
        self.weight("p", 1, init="ones")

    def call(self, x):
        x = ops.power(ops.maximum(x, 1e-6), self.p)
        return ops.power(ops.mean(x, axis=(1, 2)), 1.0 / self.p)


class GeMTF(GeM):
    def call(self, x):
        x = tf.pow(tf.maximum(x, 1e-6), self.p)
        return tf.pow(tf.reduce_mean(x, axis=[1, 2]), 1.0 / self.p)


# Blocks -------------------------------------------------------------------------------


class ConvNormReLU(layers.Layer):
    def build(self, shape):
        self.conv = layers.Conv2D(shape[-1], 3, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()
        self.act = layers.ReLU()

    def call(self, x, training=None):
        return self.act(self.norm(self.conv(x), training=training))


class ConvNormReLUWeights(Weighted):
    def build(self, shape):
        self.weight("kernel", 3, 3, shape[-1], shape[-1])
        self.vector("bias", shape[-1], "zeros")
        self.norm = layers.BatchNormalization()

    def call(self, x, training=None):
        y = ops.conv(x, self.kernel, strides=1, padding="same") + self.bias
        return ops.relu(self.norm(y, training=training))


class ConvNormReLUTF(ConvNormReLUWeights):
    def call(self, x, training=None):
        y = tf.nn.conv2d(x, self.kernel, strides=1, padding="SAME")
        return tf.nn.relu(self.norm(tf.nn.bias_add(y, self.bias), training=training))


class Residual(layers.Layer):
    def build(self, shape):
        width = shape[-1]
        self.conv1 = layers.Conv2D(width, 3, padding="same", use_bias=False)
        self.conv2 = layers.Conv2D(width, 3, padding="same", use_bias=False)
        self.norm1, self.norm2 = (layers.BatchNormalization() for _ in range(2))
        self.skip = keras.Sequential([layers.Conv2D(width, 1)])

    def call(self, x, training=None):
        y = keras.activations.relu(self.norm1(self.conv1(x), training=training))
        y = self.norm2(self.conv2(y), training=training)
        return keras.activations.relu(y + self.skip(x))


class ResidualTF(Residual):
    def call(self, x, training=None):
        y = tf.nn.relu(self.norm1(self.conv1(x), training=training))
        y = self.norm2(self.conv2(y), training=training)
        return tf.nn.relu(tf.add(y, self.skip(x)))


class InvertedResidual(layers.Layer):
    def build(self, shape):
        self.steps = [
            layers.Conv2D(2 * shape[-1], 1, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.DepthwiseConv2D(3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.Conv2D(shape[-1], 1, use_bias=False),
            layers.BatchNormalization(),
        ]

    def call(self, x, training=None):
        y = x
        for step in self.steps:
            norm = isinstance(step, layers.BatchNormalization)
            y = step(y, training=training) if norm else step(y)
        return x + y


class InvertedResidualTF(InvertedResidual):
    def call(self, x, training=None):
        y = x
        for number in (0, 3, 6):
            y = self.steps[number + 1](self.steps[number](y), training=training)
            if number < 6:
                y = tf.nn.relu6(y)
        return tf.math.add_n([x, y])


class Ghost(layers.Layer):
    def build(self, shape):
        self.width = shape[-1]
        self.primary = keras.Sequential(
            [
                layers.Conv2D(shape[-1] // 2, 1, use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
            ]
        )
        self.cheap = layers.DepthwiseConv2D(3, padding="same", activation="relu")

    def call(self, x, training=None):
        first = self.primary(x, training=training)
        both = ops.concatenate([first, self.cheap(first)], axis=-1)
        return both[..., : self.width]


class GhostTF(Ghost):
    def call(self, x, training=None):
        first = self.primary(x, training=training)
        return tf.concat([first, self.cheap(first)], -1)[:, :, :, : self.width]


class MLP(layers.Layer):
    def build(self, shape):
        self.dense1 = layers.Dense(2 * shape[-1], activation="gelu")
        self.dense2 = layers.Dense(shape[-1])
        self.dropout = layers.Dropout(0.1)

    def call(self, x, training=None):
        x = self.dropout(self.dense1(x), training=training)
        return self.dropout(self.dense2(x), training=training)


class MLPWeights(Weighted):
    def build(self, shape):
        self.weight("w1", shape[-1], 2 * shape[-1])
        self.vector("b1", 2 * shape[-1], "zeros")
        self.weight("w2", 2 * shape[-1], shape[-1])
        self.vector("b2", shape[-1], "zeros")

    def call(self, x):
        x = ops.gelu(ops.add(ops.matmul(x, self.w1), self.b1))
        return ops.add(ops.matmul(x, self.w2), self.b2)


class MLPTF(MLPWeights):
    def call(self, x):
        x = tf.nn.gelu(tf.matmul(x, self.w1) + self.b1)
        return tf.nn.bias_add(tf.matmul(x, self.w2), self.b2)


class SwiGLU(layers.Layer):
    def build(self, shape):
        self.gate = layers.Dense(2 * shape[-1], use_bias=False)
        self.up = layers.Dense(2 * shape[-1], use_bias=False)
        self.down = layers.Dense(shape[-1], use_bias=False)

    def call(self, x):
        return self.down(keras.activations.silu(self.gate(x)) * self.up(x))


class SwiGLUWeights(Weighted):
    """Gate and values by one matrix."""

    def build(self, shape):
        self.weight("up", shape[-1], 4 * shape[-1])
        self.weight("down", 2 * shape[-1], shape[-1])

    def call(self, x):
        gate, value = ops.split(ops.matmul(x, self.up), 2, axis=-1)
        return ops.matmul(ops.silu(gate) * value, self.down)


class SwiGLUTF(SwiGLUWeights):
    def call(self, x):
        gate, value = tf.split(tf.matmul(x, self.up), 2, axis=-1)
        return tf.matmul(tf.nn.silu(gate) * value, self.down)


class PostNormBlock(layers.Layer):
    def __init__(self, heads=4, size=4, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(heads, size)
        self.norm1 = layers.LayerNormalization(epsilon=1e-6)
        self.norm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout = layers.Dropout(0.1)

    def build(self, shape):
        self.ffn = keras.Sequential(
            [layers.Dense(2 * shape[-1], activation="relu"), layers.Dense(shape[-1])]
        )

    def call(self, x, training=None):
        y = self.dropout(self.attention(x, x), training=training)
        x = self.norm1(x + y)
        return self.norm2(x + self.dropout(self.ffn(x), training=training))


class PreNormBlock(layers.Layer):
    """Of layers that are published layers themselves."""

    def __init__(self, heads=4, size=4, **kwargs):
        super().__init__(**kwargs)
        self.attention = SplitHeads(heads, size)
        self.norms = [RMSNorm(), RMSNorm()]
        self.mlp = SwiGLUWeights()
        self.scale = LayerScale()

    def call(self, x):
        x = x + self.scale(self.attention(self.norms[0](x)))
        return x + self.mlp(self.norms[1](x))


class PreNormBlockTF(layers.Layer):
    def __init__(self, heads=4, size=4, **kwargs):
        super().__init__(**kwargs)
        self.attention = SelfAttentionTF(heads, size)
        self.norm1, self.norm2 = LayerNormTF(), LayerNormTF()
        self.mlp = MLPTF()

    def call(self, x):
        x = tf.add(x, self.attention(self.norm1(x)))
        return tf.add(x, self.mlp(self.norm2(x)))


class ConvNeXtBlock(Weighted):
    def build(self, shape):
        self.depthwise = layers.DepthwiseConv2D(3, padding="same")
        self.norm = layers.LayerNormalization(epsilon=1e-6)
        self.wide = layers.Dense(2 * shape[-1], activation="gelu")
        self.narrow = layers.Dense(shape[-1])
        self.vector("gamma", shape[-1])
        self.drop_path = DropPath(0.1)

    def call(self, x, training=None):
        y = self.narrow(self.wide(self.norm(self.depthwise(x))))
        return x + self.drop_path(self.gamma * y, training=training)


class Fire(layers.Layer):
    def build(self, shape):
        half = shape[-1] // 2
        self.squeeze = layers.Conv2D(half, 1, activation="relu")
        self.left = layers.Conv2D(half, 1, activation="relu")
        self.right = layers.Conv2D(half, 3, padding="same", activation="relu")

    def call(self, x):
        x = self.squeeze(x)
        return layers.concatenate([self.left(x), self.right(x)])


class DepthwiseSeparable(layers.Layer):
    def build(self, shape):
        self.depthwise = layers.DepthwiseConv2D(3, padding="same", use_bias=False)
        self.pointwise = layers.Conv2D(shape[-1], 1, use_bias=False)
        self.norms = [layers.BatchNormalization(), layers.BatchNormalization()]

    def call(self, x, training=None):
        x = ops.relu6(self.norms[0](self.depthwise(x), training=training))
        return ops.relu6(self.norms[1](self.pointwise(x), training=training))


class DepthwiseSeparableWeights(Weighted):
    def build(self, shape):
        self.weight("depthwise", 3, 3, shape[-1], 1)
        self.weight("pointwise", 1, 1, shape[-1], shape[-1])

    def call(self, x):
        x = ops.relu(ops.depthwise_conv(x, self.depthwise, padding="same"))
        return ops.relu(ops.conv(x, self.pointwise))


class SeparableWeights(DepthwiseSeparableWeights):
    def call(self, x):
        kernels = self.depthwise, self.pointwise
        return ops.relu(ops.separable_conv(x, *kernels, padding="same"))


class DepthwiseSeparableTF(DepthwiseSeparableWeights):
    def call(self, x):
        x = tf.nn.depthwise_conv2d(x, self.depthwise, [1, 1, 1, 1], "SAME")
        return tf.nn.relu(tf.nn.conv2d(x, self.pointwise, 1, "VALID"))


class Mixer(layers.Layer):
    def __init__(self, hidden=4, **kwargs):
        super().__init__(**kwargs)
        self.hidden = hidden

    def build(self, shape):
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.tokens = keras.Sequential(
            [layers.Dense(self.hidden, activation="gelu"), layers.Dense(shape[1])]
        )
        self.channels = keras.Sequential(
            [layers.Dense(2 * shape[-1], activation="gelu"), layers.Dense(shape[-1])]
        )

    def call(self, x):
        y = ops.transpose(self.norms[0](x), (0, 2, 1))
        x = x + ops.transpose(self.tokens(y), (0, 2, 1))
        return x + self.channels(self.norms[1](x))


class Highway(layers.Layer):
    def build(self, shape):
        self.transform = layers.Dense(shape[-1], activation="relu")
        bias = keras.initializers.Constant(-1.0)
        self.gate = layers.Dense(shape[-1], activation="sigmoid", bias_initializer=bias)

    def call(self, x):
        gate = self.gate(x)
        return self.transform(x) * gate + x * (1 - gate)


class HighwayWeights(Weighted):
    def build(self, shape):
        self.weight("W", shape[-1], shape[-1])
        self.weight("W_carry", shape[-1], shape[-1])
        self.vector("b", shape[-1], "zeros")
        self.vector("b_carry", shape[-1])

    def call(self, x):
        carry = ops.sigmoid(ops.dot(x, self.W_carry) + self.b_carry)
        return carry * ops.relu(ops.dot(x, self.W) + self.b) + (1 - carry) * x


class Maxout(layers.Layer):
    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units * 3)

    def call(self, x):
        return ops.max(ops.reshape(self.dense(x), (-1, self.units, 3)), axis=-1)


class MaxoutWeights(Weighted):
    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.weight("W", 3, shape[-1], self.units)
        self.weight("b", 3, self.units)

    def call(self, x):
        return ops.max(ops.einsum("bi,kij->bkj", x, self.W) + self.b, axis=1)


class MaxoutTF(Maxout):
    def call(self, x):
        return tf.reduce_max(tf.reshape(self.dense(x), [-1, self.units, 3]), axis=-1)


class DenseBlock(layers.Layer):
    def build(self, shape):
        self.convs = [layers.Conv2D(shape[-1], 3, padding="same") for _ in range(2)]
        self.norms = [layers.BatchNormalization() for _ in range(2)]

    def call(self, x, training=None):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = conv(ops.relu(norm(x, training=training)))
            x = ops.concatenate([x, y], axis=-1)
        return x


# Embeddings and patches ---------------------------------------------------------------


class ClassToken(Weighted):
    def build(self, shape):
        self.weight("token", 1, 1, shape[-1])

    def call(self, x):
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([token, x], axis=1)


class ClassTokenTile(ClassToken):
    def call(self, x):
        token = ops.tile(self.token, (ops.shape(x)[0], 1, 1))
        return ops.concatenate([token, x], axis=1)


class ClassTokenRepeat(ClassToken):
    def call(self, x):
        token = ops.repeat(self.token, ops.shape(x)[0], axis=0)
        return ops.concatenate([token, x], axis=1)


class ClassTokenTF(ClassToken):
    def call(self, x):
        token = tf.broadcast_to(self.token, [tf.shape(x)[0], 1, x.shape[-1]])
        return tf.concat([tf.cast(token, x.dtype), x], 1)


class NormedTokens(layers.Layer):
    def build(self, shape):
        self.token, self.norm = ClassToken(), RMSNorm()
        self.dense = layers.Dense(shape[-1])

    def call(self, x):
        return self.dense(self.norm(self.token(x)))


class PositionTable(Weighted):
    def build(self, shape):
        self.weight("table", 1, *shape[1:])

    def call(self, x):
        return x + self.table


class PositionTableSliced(Weighted):
    """Longer than the sequence."""

    def build(self, shape):
        self.weight("table", 10, shape[-1])

    def call(self, x):
        return x + self.table[: x.shape[1]]


class PositionEmbedding(layers.Layer):
    def build(self, shape):
        self.length = shape[1]
        self.embedding = layers.Embedding(shape[1], shape[-1])

    def call(self, x):
        return x + self.embedding(ops.arange(self.length))


class PositionEmbeddingTF(PositionEmbedding):
    def call(self, x):
        positions = tf.range(start=0, limit=tf.shape(x)[1], delta=1)
        return x + self.embedding(positions)


class TokenAndPosition(layers.Layer):
    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.tokens = layers.Embedding(11, width)
        self.positions = layers.Embedding(6, width)

    def call(self, x):
        positions = ops.arange(0, ops.shape(x)[-1], 1)
        return self.tokens(x) + self.positions(positions)


class TokenAndPositionWeights(Weighted):
    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.weight("tokens", 11, self.width)
        self.weight("positions", shape[1], self.width)

    def call(self, x):
        return ops.take(self.tokens, x, axis=0) + self.positions


def sines(length, width):
    angles = np.arange(length)[:, None] / 10 ** (np.arange(width)[None] / width)
    angles[:, 0::2], angles[:, 1::2] = np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])
    return angles[None].astype("float32")


class SinePositions(layers.Layer):
    def build(self, shape):
        self.table = sines(*shape[1:])

    def call(self, x):
        return x + self.table


class SinePositionsByOps(layers.Layer):
    def call(self, x):
        length, width = x.shape[1:]
        positions = ops.cast(ops.arange(length), x.dtype)[:, None]
        rates = ops.power(10.0, -ops.cast(ops.arange(width // 2), x.dtype) / width)
        angles = positions * rates[None]
        return x + ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


class SinePositionsTF(layers.Layer):
    def build(self, shape):
        self.table = tf.constant(sines(*shape[1:]))

    def call(self, x):
        return x * tf.math.sqrt(tf.cast(x.shape[-1], x.dtype)) + self.table


class Patches(layers.Layer):
    def __init__(self, size=2, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        rows, columns, size = height // self.size, width // self.size, self.size
        x = ops.reshape(x, (batch, rows, size, columns, size, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (batch, rows * columns, size * size * channels))


class PatchesTF(Patches):
    def call(self, x):
        batch = tf.shape(x)[0]
        window = [1, self.size, self.size, 1]
        x = tf.image.extract_patches(
            images=x, sizes=window, strides=window, rates=[1] * 4, padding="VALID"
        )
        return tf.reshape(x, [batch, -1, x.shape[-1]])


class PatchEncoder(Weighted):
    """Patches by a convolution, a class token and positions."""

    def build(self, shape):
        width = shape[-1]
        self.count = (shape[1] // 2) * (shape[2] // 2)
        self.projection = layers.Conv2D(width, 2, strides=2, padding="valid")
        self.flat = layers.Reshape((self.count, width))
        self.weight("token", 1, 1, width)
        self.positions = layers.Embedding(self.count + 1, width)

    def call(self, x):
        x = self.flat(self.projection(x))
        token = ops.repeat(self.token, ops.shape(x)[0], axis=0)
        x = ops.concatenate([token, x], axis=1)
        positions = ops.expand_dims(ops.arange(0, self.count + 1, 1), axis=0)
        return x + self.positions(positions)


class PatchEncoderTF(PatchEncoder):
    def call(self, x):
        x = self.flat(self.projection(x))
        token = tf.broadcast_to(self.token, [tf.shape(x)[0], 1, x.shape[-1]])
        x = tf.concat([token, x], axis=1)
        return x + self.positions(tf.range(start=0, limit=self.count + 1, delta=1))


# Convolutions of another kind, and what has no weights --------------------------------


class StandardisedConv(layers.Conv2D):
    """What the kernel reads is standardised: all channels before it stay."""

    def __init__(self, filters=8, **kwargs):
        super().__init__(filters, 3, padding="same", **kwargs)

    def call(self, x):
        mean = ops.mean(self.kernel, axis=(0, 1, 2), keepdims=True)
        deviation = ops.std(self.kernel, axis=(0, 1, 2), keepdims=True)
        kernel = (self.kernel - mean) / (deviation + 1e-5)
        return ops.conv(x, kernel, padding="same") + self.bias


class StandardisedConvWeights(Weighted):
    def __init__(self, filters=8, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, shape):
        self.weight("kernel", 3, 3, shape[-1], self.filters)

    def call(self, x):
        mean, variance = ops.moments(self.kernel, axes=(0, 1, 2), keepdims=True)
        kernel = (self.kernel - mean) * ops.rsqrt(variance + 1e-5)
        return ops.conv(x, kernel, padding="same")


class StandardisedConvTF(StandardisedConvWeights):
    def call(self, x):
        mean, variance = tf.nn.moments(self.kernel, axes=[0, 1, 2], keepdims=True)
        kernel = (self.kernel - mean) / tf.sqrt(variance + 1e-5)
        return tf.nn.conv2d(x, kernel, strides=[1, 1, 1, 1], padding="SAME")


class EqualisedConv(Weighted):
    def build(self, shape):
        self.weight("kernel", 3, 3, shape[-1], shape[-1], init="random_normal")
        self.vector("bias", shape[-1], "zeros")
        self.scale = (2.0 / (9 * shape[-1])) ** 0.5

    def call(self, x):
        y = ops.conv(x, self.kernel * self.scale, padding="same")
        return ops.leaky_relu(y + self.bias, negative_slope=0.2)


class EqualisedConvTF(EqualisedConv):
    def call(self, x):
        y = tf.nn.conv2d(x, self.scale * self.kernel, strides=1, padding="SAME")
        return tf.nn.leaky_relu(y + self.bias, alpha=0.2)


class EqualisedDense(Weighted):
    """StyleGAN's: a learning rate for the bias too."""

    def build(self, shape):
        self.weight("kernel", shape[-1], shape[-1], init="random_normal")
        self.vector("bias", shape[-1], "zeros")

    def call(self, x):
        return ops.matmul(x, self.kernel * 0.35) + self.bias * 0.1


class CoordConv(layers.Layer):
    def build(self, shape):
        self.conv = layers.Conv2D(shape[-1], 3, padding="same")

    def call(self, x):
        batch, height, width, _ = ops.shape(x)
        rows = ops.linspace(-1.0, 1.0, height)[None, :, None, None]
        columns = ops.linspace(-1.0, 1.0, width)[None, None, :, None]
        shape = (batch, height, width, 1)
        maps = [ops.broadcast_to(one, shape) for one in (rows, columns)]
        return self.conv(ops.concatenate([x, *maps], axis=-1))


class CoordConvTF(CoordConv):
    def call(self, x):
        batch = tf.shape(x)[0]
        rows = tf.linspace(-1.0, 1.0, x.shape[1])
        columns = tf.linspace(-1.0, 1.0, x.shape[2])
        maps = tf.stack(tf.meshgrid(columns, rows), axis=-1)[tf.newaxis]
        return self.conv(tf.concat([x, tf.tile(maps, [batch, 1, 1, 1])], axis=-1))


class PixelShuffle(layers.Layer):
    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        x = ops.reshape(x, (batch, height, width, 2, 2, channels // 4))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (batch, 2 * height, 2 * width, channels // 4))


class PixelShuffleTF(layers.Layer):
    def call(self, x):
        return tf.nn.depth_to_space(x, 2)


class ChannelShuffle(layers.Layer):
    def call(self, x):
        height, width, channels = x.shape[1:]
        x = ops.reshape(x, (-1, height, width, 2, channels // 2))
        x = ops.transpose(x, (0, 1, 2, 4, 3))
        return ops.reshape(x, (-1, height, width, channels))


class ChannelShuffleTF(layers.Layer):
    def call(self, x):
        height, width, channels = x.shape[1:]
        x = tf.reshape(x, [-1, height, width, 2, channels // 2])
        return tf.reshape(
            tf.transpose(x, [0, 1, 2, 4, 3]), [-1, height, width, channels]
        )


class ReflectionPadding(layers.Layer):
    def call(self, x):
        return ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="reflect")


class ReflectionPaddingTF(layers.Layer):
    def call(self, x):
        return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="REFLECT")


class BlurPool(layers.Layer):
    """A fixed kernel, repeated for every channel."""

    def build(self, shape):
        kernel = np.outer([1, 2, 1], [1, 2, 1]).astype("float32")[:, :, None, None] / 16
        self.kernel = np.repeat(kernel, shape[-1], axis=2)

    def call(self, x):
        return ops.depthwise_conv(x, self.kernel, strides=2, padding="same")


class BlurPoolTF(BlurPool):
    def call(self, x):
        return tf.nn.depthwise_conv2d(x, self.kernel, [1, 2, 2, 1], "SAME")


class DropPath(layers.Layer):
    def __init__(self, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        if training:
            keep = 1 - self.rate
            shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
            noise = keras.random.uniform(shape, 0, 1, seed=self.seed)
            return x / keep * ops.floor(keep + noise)
        return x


class DropPathTF(layers.Layer):
    def call(self, x, training=None):
        if not training:
            return x
        shape = (tf.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        return x / 0.9 * tf.floor(0.9 + tf.random.uniform(shape, 0, 1))


class Mish(layers.Layer):
    def call(self, x):
        return x * ops.tanh(ops.softplus(x))


class MishTF(layers.Layer):
    def call(self, x):
        return x * tf.math.tanh(tf.math.softplus(x))


class Swish(Weighted):
    """With a slope that is trained."""

    def build(self, shape):
        self.weight("slope", init="ones")

    def call(self, x):
        return x * keras.activations.sigmoid(self.slope * x)


class MaxPoolByReshape(layers.Layer):
    def call(self, x):
        height, width, channels = x.shape[1:]
        x = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
        return ops.max(x, axis=(2, 4))


class MaxPoolByReshapeTF(layers.Layer):
    def call(self, x):
        height, width, channels = x.shape[1:]
        x = tf.reshape(x, [-1, height // 2, 2, width // 2, 2, channels])
        return tf.reduce_max(x, axis=[2, 4])


class PReLU(Weighted):
    def build(self, shape):
        self.vector("alpha", shape[-1], "zeros")

    def call(self, x):
        return ops.relu(x) + self.alpha * (x - ops.abs(x)) * 0.5


class PReLUMaximum(PReLU):
    def call(self, x):
        return ops.maximum(0.0, x) + self.alpha * ops.minimum(0.0, x)


class MinibatchDeviation(layers.Layer):
    """One more channel: the mean deviation over the batch, of all channels."""

    def call(self, x):
        deviation = ops.sqrt(ops.var(x, axis=0, keepdims=True) + 1e-8)
        mean = ops.mean(deviation, keepdims=True)
        extra = ops.zeros_like(x[..., :1]) + mean
        return ops.concatenate([x, extra], axis=-1)


class Squash(layers.Layer):
    """Of capsules."""

    def call(self, x):
        square = ops.sum(ops.square(x), axis=-1, keepdims=True)
        return x * square / (1 + square) / ops.sqrt(square + 1e-7)
