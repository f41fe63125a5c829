"""Layers as users write them, for the random graphs: some honest, some not.

Those in `OPAQUE` read several channels at once, or cannot be made smaller. The
analysis must keep what they read and say so; all others must be pruned along.
"""

import dataclasses
import threading

import keras
import numpy as np
from keras import layers, ops


class LayerScale(layers.Layer):
    """A layer that no rule is known for: the analysis has to find out."""

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(input_shape[-1],), name="gamma")

    def call(self, x):
        return x * self.gamma


class StochasticDepth(layers.Layer):
    """Another one, which does nothing in inference."""

    def call(self, x, training=None):
        if not training:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        return x * ops.floor(keras.random.uniform(shape, dtype=x.dtype) + 0.8)


@dataclasses.dataclass
class _Settings:
    factor: float


def _times(factor):
    return lambda x: x * factor


class Forgetful(layers.Layer):
    """Its config forgets the factor: a copy made from that multiplies by 1."""

    PLACES = ("number", "closure", "dict", "scalar", "tensor", "object", "set", "own")

    def __init__(self, factor=1.0, place="number", **kwargs):
        super().__init__(**kwargs)
        self.place = place
        if place == "closure":
            self.held = _times(factor)
        elif place == "dict":
            self.held = {"factor": factor}
        elif place == "scalar":
            self.held = np.float32(factor)
        elif place == "tensor":
            self.held = ops.convert_to_tensor(factor)
        elif place == "object":
            self.held = _Settings(factor)
        elif place == "set":
            self.held = set(range(int(factor)))
        elif place == "own":  # a closure over the layer itself
            self.factor = factor
            self.held = lambda x: x * self.factor
        else:
            self.held = factor
        self.lock = threading.Lock()

    def get_config(self):
        return super().get_config()  # an override: Keras infers no arguments

    def call(self, x):
        if callable(self.held):
            return self.held(x)
        if self.place == "set":
            return x * float(len(self.held))
        if self.place == "dict":
            return x * self.held["factor"]
        if self.place == "object":
            return x * self.held.factor
        return x * ops.cast(self.held, x.dtype)


class NegativeShift(layers.Layer):
    """Zero stays zero for weights of one sign alone."""

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.shift = self.add_weight(shape=shape, name="shift", initializer="zeros")

    def call(self, x):
        return x + ops.minimum(self.shift, 0)


class Ramp(layers.Layer):
    """Adds a number to each position, none to the first."""

    def call(self, x):
        ramp = ops.cast(ops.arange(ops.shape(x)[2]), x.dtype) * 0.1
        return x + ops.reshape(ramp, (1, 1, -1, 1))


class ByCount(layers.Layer):
    """Divides by how many channels there are."""

    def build(self, input_shape):
        self.count = float(input_shape[-1])

    def call(self, x):
        return x / self.count**0.5


class SoftClip(layers.Layer):
    """Mixes channels, but only where they are large."""

    def call(self, x):
        size = ops.mean(ops.abs(x), axis=-1, keepdims=True)
        return x / ops.maximum(1.0, size / 30.0)


class LargeBatch(layers.Layer):
    """Mixes channels, but only in batches of more than two."""

    def call(self, x):
        large = ops.cast(ops.shape(x)[0] > 2, x.dtype)
        return x - large * ops.mean(x, axis=-1, keepdims=True)


class Halves(layers.Layer):
    """Treats a channel by its place among all."""

    def call(self, x):
        half = x.shape[-1] // 2
        return ops.concatenate([x[..., :half], ops.tanh(x[..., half:])], axis=-1)


class Counting(layers.Layer):
    """Remembers how often it ran, in an attribute that is no variable."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = 0

    def call(self, x):
        self.calls += 1
        return x * 2.0


class Penalty(layers.Layer):
    """Adds a loss."""

    def __init__(self, rate=0.01, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, x):
        self.add_loss(self.rate * ops.mean(ops.square(x)))
        return x


class TwoModes(layers.Layer):
    """Differs in training, though nothing in it is random."""

    def call(self, x, training=None):
        return x * 0.5 if training else x


class Mixing(layers.Layer):
    """A convolution by hand: a matrix of its own over the channels."""

    def build(self, input_shape):
        count = input_shape[-1]
        self.matrix = self.add_weight(shape=(count, count), name="matrix")

    def call(self, x):
        return ops.tanh(ops.matmul(x, ops.cast(self.matrix, x.dtype)))


class Residual(layers.Layer):
    """Made of layers, and nobody has declared it."""

    def build(self, input_shape):
        width = input_shape[-1]
        self.parts = {"conv": layers.Conv2D(2 * width, 3, padding="same")}
        self.norm = layers.BatchNormalization()
        self.last = [layers.Dropout(0.2), layers.Conv2D(width, 1)]
        self.parts["conv"].build(input_shape)
        self.norm.build((*input_shape[:-1], 2 * width))
        self.last[1].build((*input_shape[:-1], 2 * width))

    def call(self, x, training=None):
        y = self.norm(self.parts["conv"](x), training=training)
        y = keras.activations.relu(y)
        for layer in self.last:
            y = layer(y)
        return x + 0.5 * y


class Excite(layers.Layer):
    """Squeeze-and-excite; its second part is a composite too."""

    def build(self, input_shape):
        self.inner = keras.Sequential([layers.Dense(3), layers.ReLU()])
        self.outer = Head(input_shape[-1])
        self.inner.build((None, input_shape[-1]))
        self.outer.build((None, 3))

    def call(self, x):
        weight = self.outer(self.inner(ops.mean(x, axis=(1, 2))))
        return x * weight[:, None, None, :]


class Head(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(units)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return ops.sigmoid(self.dense(x))


class Beside(Residual):
    """A weight of its own beside its parts."""

    def build(self, input_shape):
        super().build(input_shape)
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")

    def call(self, x, training=None):
        return super().call(x, training) * self.scale


class Borrowing(Residual):
    """It uses the weights of a part without calling it."""

    def call(self, x, training=None):
        y = super().call(x, training)
        return y + ops.conv(self.norm(self.parts["conv"](x)), self.last[1].kernel)


class Moody(Residual):
    """It calls other parts in training."""

    def call(self, x, training=None):
        return x if training else super().call(x)


class Program(layers.Layer):
    """Any steps one after another, with weights of its own and with parts.

    Args:
        steps: the names of its methods from `scale` on.
        of_tensorflow: whether it calls the functions of TensorFlow where it can.
    """

    def __init__(self, steps, of_tensorflow=False, **kwargs):
        super().__init__(**kwargs)
        self.steps = list(steps)
        self.api = _of_tensorflow() if of_tensorflow else ops
        self.held = {}

    def build(self, input_shape):
        # Weights and parts are made when the steps are first taken.
        self.making, api, self.api = True, self.api, ops
        self.call(keras.KerasTensor(input_shape, self.compute_dtype))
        self.making, self.api = False, api

    def call(self, x):
        for number, step in enumerate(self.steps):
            self.prefix = f"{step}{number}".replace(" ", "_")
            x = getattr(self, step)(x)
        return x

    def own(self, name, *shape):
        name = f"{self.prefix}_{name}"
        if self.making:
            self.held[name] = self.add_weight(shape=shape, name=name)
            return keras.KerasTensor(shape, self.compute_dtype)
        return self.held[name]

    def part(self, make, x):
        if self.making:
            self.held[self.prefix] = make()
            self.held[self.prefix].build(x.shape)
        return self.held[self.prefix](x)

    def scale(self, x):
        return x * self.own("gamma", x.shape[-1])

    def shift(self, x):
        return x + self.own("beta", 1, 1, 1, x.shape[-1])

    def table(self, x):
        return x + self.own("table", *x.shape[1:])

    def token(self, x):
        """A row in front, the same for every sample."""
        shape = (1, x.shape[2], x.shape[3])
        row = ops.broadcast_to(self.own("row", 1, *shape), (ops.shape(x)[0], *shape))
        return ops.concatenate([row, x], axis=1)

    def gain(self, x):
        return x * self.own("gain")

    def product(self, x):
        return self.api.matmul(x, self.own("matrix", x.shape[-1], 5))

    def einsum(self, x):
        return self.api.einsum("bhwc,cd->bhwd", x, self.own("matrix", x.shape[-1], 4))

    def filter(self, x):
        kernel = self.own("kernel", 3, 3, x.shape[-1], 4)
        return ops.conv(x, kernel, padding="same")

    def standardised(self, x):
        kernel = self.own("kernel", 1, 1, x.shape[-1], 4)
        return ops.conv(x, kernel - ops.mean(kernel, axis=(0, 1, 2)))

    def twice(self, x):
        """One weight, read two times."""
        matrix = self.own("matrix", x.shape[-1], x.shape[-1])
        return self.api.matmul(self.api.matmul(x, matrix), ops.transpose(matrix))

    def norm(self, x):
        square = self.mean(ops.square(x), axis=-1)
        return x / ops.sqrt(square + 0.1) * self.own("scale", x.shape[-1])

    def centre(self, x):
        return x - self.mean(x, axis=-1)

    def excite(self, x):
        y = self.mean(x, axis=(1, 2))
        y = self.relu(ops.matmul(y, self.own("inner", x.shape[-1], 3)))
        return x * ops.sigmoid(ops.matmul(y, self.own("outer", 3, x.shape[-1])))

    def halves(self, x):
        first, second = x[..., ::2], x[..., 1::2]
        return self.concatenate([first, ops.tanh(second)])

    def doubled(self, x):
        return self.concatenate([x, self.relu(-x)])

    def flipped(self, x):
        return ops.flip(x, axis=1) + x

    def rows(self, x):
        """A value for each row, of which there may be any number."""
        places = ops.cast(ops.arange(self.count(x)), x.dtype)
        return x + ops.reshape(places, (-1, 1, 1)) * self.own("slope")

    def above(self, x):
        """The sum of the rows above."""
        places = ops.arange(self.count(x))
        allowed = ops.cast(ops.expand_dims(places, 1) >= places, x.dtype)
        return ops.einsum("ij,bjwc->biwc", allowed, x) * self.own("share")

    def edge(self, x):
        """Rows that are made of the sizes alone."""
        if self.making:
            return ops.concatenate([x[:, :1], x], axis=1)
        samples, _, width, channels = ops.shape(x)
        row = ops.ones((samples, 1, width, channels), x.dtype)
        return ops.concatenate([row, x], axis=1)

    def count(self, x):
        return x.shape[1] or 4 if self.making else ops.shape(x)[1]

    def tanh(self, x):
        return self.api.tanh(x)

    def convolve(self, x):
        return self.part(lambda: layers.Conv2D(4, 3, padding="same"), x)

    def normalise(self, x):
        return self.part(layers.BatchNormalization, x)

    def mean(self, x, axis):
        if self.api is ops:
            return ops.mean(x, axis=axis, keepdims=True)
        return self.api.reduce_mean(x, axis=axis, keepdims=True)

    def relu(self, x):
        return ops.relu(x) if self.api is ops else self.api.nn.relu(x)

    def concatenate(self, xs):
        if self.api is ops:
            return ops.concatenate(xs, axis=-1)
        return self.api.concat(xs, -1)

    @classmethod
    def names(cls):
        """The names of all steps."""
        names = list(vars(cls))
        first, last = names.index("scale"), names.index("normalise")
        return [name for name in names[first : last + 1] if name != "count"]


def _of_tensorflow():
    import tensorflow

    return tensorflow


HONEST = (
    LayerScale,
    StochasticDepth,
    TwoModes,
    Counting,
    Penalty,
    Residual,
    Excite,
    Beside,
    Ramp,
    ByCount,
    SoftClip,
    Halves,
    Mixing,
    Program,
)
OPAQUE = (Borrowing, Moody, Forgetful, NegativeShift, LargeBatch)


def keep_zero_here_too(x):
    return x * ops.cast(ops.arange(x.shape[-1]) % 2, x.dtype)


def half_tanh(x):
    half = x.shape[-1] // 2
    return ops.concatenate([x[..., :half], ops.tanh(x[..., half:])], axis=-1)


def soft_clip(x):
    size = ops.mean(ops.abs(x), axis=-1, keepdims=True)
    return x / ops.maximum(1.0, size / 30.0)


def wave(x):
    return ops.sin(x) * 0.5


# Activation functions of a user's: the first three do not work on each channel alone.
ACTIVATIONS = (keep_zero_here_too, half_tanh, soft_clip, wave, ops.sin, ops.square)
