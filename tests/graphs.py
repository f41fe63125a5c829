"""Random convnets for property-based tests: hypothesis draws every choice."""

import custom_layers
import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers, ops

ACTIVATIONS = ["relu", "sigmoid", "softplus", "tanh", "linear", "gelu", "hard_sigmoid"]
PADDING = ["same", "valid"]


def _cast(x):
    """In the precision that is set: Keras 3.15 loses float64 on its way.

    Behind `ops.normalize` it says float32 of float64, and on PyTorch some operations
    compute float32 and call it float64, which a convolution does not take.
    """
    return ops.cast(x, keras.config.floatx())


class GraphBuilder:
    """Grows a graph call by call.

    Args:
        draw: hypothesis' draw function.
    """

    def __init__(self, draw):
        self.draw = draw
        self.maps = []  # tensors of rank 4
        self.vectors = []  # tensors of rank 2
        self.shared = []  # layers that may be called again
        self.batch_size = None

    def pick(self, options):
        return self.draw(st.sampled_from(options))

    def chance(self):
        return self.draw(st.booleans())

    def filters(self):
        return self.pick([2, 3, 4, 6])

    # Each method below takes a tensor (B, H, W, C) and returns one.

    def conv(self, x):
        size = self.pick([1, 2, 3])
        if min(x.shape[1:3]) < size + 1:
            size = 1
        kind = self.pick(["conv", "conv", "grouped", "transpose", "separable", "again"])
        kwargs = {
            "padding": self.pick(PADDING),
            "use_bias": self.chance(),
            "activation": self.pick(ACTIVATIONS),
        }
        if kind == "grouped" and x.shape[-1] % 2 == 0:
            return layers.Conv2D(4, size, groups=2, **kwargs)(x)
        if kind == "transpose":
            return layers.Conv2DTranspose(self.filters(), size, **kwargs)(x)
        if kind == "separable":
            multiplier = self.pick([1, 2])
            return layers.SeparableConv2D(
                self.filters(), size, depth_multiplier=multiplier, **kwargs
            )(x)
        if kind == "again":
            for layer, channels in self.shared:
                if channels == x.shape[-1] and min(x.shape[1:3]) > 3:
                    return layer(x)
        layer = layers.Conv2D(self.filters(), size, **kwargs)
        self.shared.append((layer, x.shape[-1]))
        return layer(x)

    def depthwise(self, x):
        multiplier, bias = self.pick([1, 2]), self.chance()
        return layers.DepthwiseConv2D(
            min(3, *x.shape[1:3]),
            depth_multiplier=multiplier,
            use_bias=bias,
            padding=self.pick(PADDING),
        )(x)

    def normalise(self, x):
        norm = layers.BatchNormalization(scale=self.chance(), center=self.chance())
        in_training = self.pick([False, False, False, True])
        return norm(x, training=True) if in_training else norm(x)

    def activate(self, x):
        name = self.pick([*ACTIVATIONS, "prelu", "leaky", "ops.sigmoid", "ops.relu"])
        if name == "prelu":
            shared = [[1, 2]] if None in x.shape[1:] else [None, [1, 2]]
            return layers.PReLU(shared_axes=self.pick(shared))(x)
        if name == "leaky":
            return layers.LeakyReLU()(x)
        if name.startswith("ops."):
            return getattr(ops, name[4:])(x)
        return layers.Activation(name)(x)

    def resample(self, x):
        small = min(x.shape[1:3]) < 4
        big = max(x.shape[1:3]) > 12
        kinds = ["pad", "up"] * (not big) + ["pool", "average", "crop"] * (not small)
        kind = self.pick([*kinds, "dropout", "scale", "permute"])
        if kind == "pad":
            return layers.ZeroPadding2D(1)(x)
        if kind == "up":
            return layers.UpSampling2D(2)(x)
        if kind == "pool":
            return layers.MaxPooling2D(2)(x)
        if kind == "average":
            return layers.AveragePooling2D(2, padding=self.pick(PADDING))(x)
        if kind == "crop":
            return layers.Cropping2D(1)(x)
        if kind == "dropout":
            return layers.Dropout(0.3)(x)
        if kind == "scale":
            return layers.Rescaling(2.0, offset=self.pick([0.0, 0.5]))(x)
        return layers.Permute((2, 1, 3))(x)

    def arithmetic(self, x):
        kinds = ["scale", "shift", "divide", "window", "shift positions", "table"]
        kind = self.pick(kinds)
        if kind == "scale":
            return x * 0.5
        if kind == "table":  # a number for each element
            table = np.random.default_rng(1).normal(0, 0.3, x.shape[1:])
            return self.pick([ops.add, ops.maximum, ops.subtract])(x, table[None])
        window = np.hanning(x.shape[1] + 2)[1:-1].reshape(-1, 1, 1)
        if kind == "window":
            return self.pick([x * window, x / (window + 0.5)])
        if kind == "shift positions":  # and channels
            return x + window * np.linspace(-0.2, 0.2, x.shape[-1])
        return x + 0.25 if kind == "shift" else x / 2.0

    def join(self, x):
        alike = [y for y in self.maps if y.shape == x.shape and y is not x]
        if not alike:
            alike = [layers.Conv2D(x.shape[-1], 1)(x)]
        y = self.pick(alike)
        kind = self.pick(
            ["add", "multiply", "subtract", "maximum", "minimum", "average", "+", "*"]
        )
        if kind == "+":
            return x + y
        if kind == "*":
            return x * y
        return getattr(layers, kind.title())()([x, y])

    def concatenate(self, x):
        alike = [y for y in self.maps if y.shape[1:3] == x.shape[1:3]]
        others = [self.pick(alike) for _ in range(self.pick([1, 2]))]
        if self.chance():
            return ops.concatenate([x, *others], axis=-1)
        return layers.Concatenate()([x, *others])

    def excite(self, x):
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Conv2D(2, 1, activation="relu")(gate)
        gate = layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(gate)
        return layers.Multiply()([x, gate])

    def spatial_gate(self, x):
        gate = layers.Conv2D(1, 1, activation="sigmoid")(x)
        return layers.Multiply()([x, gate])

    def reshape_and_back(self, x):
        _, height, width, channels = x.shape
        y = layers.Reshape((height * width, channels))(x)
        if self.chance():
            y = layers.Activation("relu")(y)
        return layers.Reshape((height, width, channels))(y)

    def normalise_across(self, x):
        kind = self.pick(["layer", "group", "rms", "unit", "softmax"])
        if kind == "layer":
            axis = self.pick([-1] if None in x.shape[1:] else [-1, [1, 2, 3]])
            return layers.LayerNormalization(axis, scale=self.chance())(x)
        if kind == "group":
            even = x.shape[-1] % 2 == 0
            return layers.GroupNormalization(self.pick([1, -1, *[2] * even]))(x)
        if kind == "rms":
            return layers.RMSNormalization()(x)
        if kind == "unit":
            return layers.UnitNormalization()(x)
        return layers.Softmax(axis=self.pick([-1, 1]))(x)

    def move(self, x):
        _, height, width, channels = x.shape
        kind = self.pick(["split", "slice", "flip", "roll", "shuffle", "take", "stack"])
        if kind == "split" and channels % 2 == 0:
            first, second = ops.split(x, 2, axis=-1)
            return self.pick(
                [first, first + second, ops.concatenate([second, first], axis=-1)]
            )
        if kind == "slice" and channels > 1:
            return self.pick([x[..., 1:], x[..., : channels // 2], x[:, ::2]])
        if kind == "flip":
            return ops.flip(x, axis=self.pick([-1, 1, (1, 2), (2, 3)]))
        if kind == "roll" and self.chance():
            return ops.roll(x, (-1, 2), axis=self.pick([(1, 2), (3, 1)]))
        if kind == "roll":
            return ops.roll(x, 1, axis=self.pick([-1, 2]))
        if kind == "shuffle" and channels % 2 == 0:
            y = ops.reshape(x, (-1, height, width, 2, channels // 2))
            y = ops.transpose(y, (0, 1, 2, 4, 3))
            return ops.reshape(y, (-1, height, width, channels))
        if kind == "stack":
            return ops.sum(ops.stack([x, ops.square(x)], axis=1), axis=1)
        return ops.take(x, [0, channels - 1], axis=-1)

    def reduce(self, x):
        kind = self.pick(["mean", "max", "sum channels", "mean channels", "pad"])
        if kind == "mean":
            return x - ops.mean(x, axis=(1, 2), keepdims=True)
        if kind == "max":
            return x * ops.max(x, axis=1, keepdims=True)
        if kind == "sum channels":
            return x + ops.sum(x, axis=-1, keepdims=True)
        if kind == "mean channels":
            return x * ops.mean(x, axis=-1, keepdims=True)
        return ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 2)))

    def pixels(self, x):
        _, height, width, channels = x.shape
        if channels % 4 == 0 and max(height, width) < 9:
            return ops.depth_to_space(x, 2)
        if height % 2 == width % 2 == 0 and channels < 7:
            return ops.space_to_depth(x, 2)
        return x

    def over_channels(self, x):
        kind = self.pick(["max", "min", "var", "matmul", "einsum", "gram"])
        if kind == "max":
            return x * ops.sigmoid(ops.max(x, axis=-1, keepdims=True))
        if kind == "min":
            return x + ops.min(x, axis=(1, -1), keepdims=True)
        if kind == "var":
            return x - ops.var(x, axis=-1, keepdims=True)
        if kind == "gram":  # how alike the pixels of a row are
            alike = ops.matmul(x, ops.transpose(x, (0, 1, 3, 2)))
            return ops.matmul(ops.tanh(alike), x)
        matrix = np.random.default_rng(0).normal(0, 0.5, (x.shape[-1], 4))
        # Keras' matmul gives float32 on PyTorch, and its einsum does not mix dtypes.
        if kind == "matmul" or keras.backend.backend() == "torch":
            return ops.matmul(x, matrix)
        return ops.einsum("bhwc,cd->bhwd", x, matrix)

    def share(self, x):
        """Channels divided by what they share."""
        kinds = ["normalize", "divide", "logsumexp", "moments"]
        if keras.backend.backend() != "jax":  # no model with `norm` runs there
            kinds.append("norm")
        kind = self.pick(kinds)
        if kind == "normalize":
            return ops.normalize(x, axis=self.pick([-1, 1, (1, 3)]))
        if kind == "divide":
            square = ops.sum(x * x, axis=-1, keepdims=True)
            return x / ops.sqrt(square + 0.1)
        if kind == "logsumexp":
            axis = self.pick([-1, 1, (2, 3)])
            return ops.tanh(x - ops.logsumexp(x, axis=axis, keepdims=True))
        if kind == "norm":
            return x / (1.0 + ops.norm(x, axis=self.pick([-1, 2]), keepdims=True))
        axes = self.pick([(1, 2), (1, 2, 3), (3,)])
        mean, variance = ops.moments(x, axes=axes, keepdims=True)
        return (x - mean) / ops.sqrt(variance + 0.1)

    def constants(self, x):
        """Operations whose other operand is a constant, or made of a shape."""
        channels = x.shape[-1]
        kind = self.pick(["zeros", "ones", "full", "blur", "batch norm", "glu"])
        if kind == "zeros" and channels < 7:
            return ops.concatenate([x, ops.zeros_like(x)], axis=-1)
        if kind == "ones" and channels < 7:
            like = self.pick([x, x[..., :1]])
            return ops.concatenate([x, ops.ones_like(like)], axis=-1)
        if kind == "full":
            return ops.minimum(x, ops.full_like(x, 0.3))
        if kind == "blur":
            kernel = np.ones((2, 2, channels, 1), keras.config.floatx()) / 4
            return ops.depthwise_conv(_cast(x), kernel, padding="same")
        if kind == "glu" and channels % 2 == 0:
            return ops.glu(x)
        dtype = keras.config.floatx()
        mean, variance = np.linspace(-1, 1, channels), np.linspace(1, 2, channels)
        return ops.batch_normalization(
            _cast(x), mean.astype(dtype), variance.astype(dtype), axis=-1
        )

    def windows(self, x):
        """Each window is a sample of its own, and goes back."""
        _, height, width, channels = x.shape
        if height % 2 or width % 2:
            return x
        y = ops.reshape(x, (-1, 2, height // 2, 2, width // 2, channels))
        y = ops.transpose(y, (0, 1, 3, 2, 4, 5))
        y = ops.reshape(y, (-1, height // 2, width // 2, channels))
        if self.chance():
            y = layers.Conv2D(self.filters(), 2, padding="same")(y)
        y = self.pick([layers.LayerNormalization(), layers.ReLU()])(y)
        channels = y.shape[-1]
        y = ops.reshape(y, (-1, 2, 2, height // 2, width // 2, channels))
        y = ops.transpose(y, (0, 1, 3, 2, 4, 5))
        return ops.reshape(y, (-1, height, width, channels))

    def select(self, x):
        """Selective kernels: a softmax over branches."""
        axis = self.pick([1, 2, -1])
        branches = [x, layers.Conv2D(x.shape[-1], 1)(x)]
        scores = [layers.Conv2D(x.shape[-1], 1)(x) for _ in branches]
        scores = ops.stack(scores, axis=axis)
        layer = self.chance()
        weights = layers.Softmax(axis)(scores) if layer else ops.softmax(scores, axis)
        return ops.sum(weights * ops.stack(branches, axis=axis), axis=axis)

    def choose(self, x):
        kind = self.pick(["where", "greater", "clip"])
        if kind == "where":
            return ops.where(x > 0.1, x, 0.5 * x)
        if kind == "greater":
            return x * ops.cast(ops.greater(x, -0.1), x.dtype)
        return ops.clip(x, -0.5, 1.0)

    def rearrange(self, x):
        _, height, width, channels = x.shape
        kind = self.pick(["moveaxis", "expand", "tile", "repeat", "row", "unstack"])
        if kind == "moveaxis":
            return ops.moveaxis(layers.Activation("relu")(ops.moveaxis(x, -1, 1)), 1, 3)
        if kind == "expand":
            return ops.squeeze(ops.expand_dims(x, 1) * 2.0, 1)
        if kind == "tile" and channels < 7:
            return ops.tile(x, (1, 1, 1, 2))
        if kind == "repeat" and channels < 7:
            return ops.repeat(x, 2, axis=-1)
        if kind == "unstack":
            return ops.stack(ops.unstack(x, axis=1)[::-1], axis=1)
        y = ops.reshape(x, (-1, height * width, channels))
        y = layers.Conv1D(self.filters(), 3, padding="same")(y)
        return ops.reshape(y, (-1, height, width, y.shape[-1]))

    def custom(self, x):
        """A layer as a user writes it, or an activation function."""
        if x.sparse:  # so Keras calls `x * 0.5`, and loses the shape of what follows
            return x
        if self.pick([True, False, False]):
            function = self.pick(custom_layers.ACTIVATIONS)
            return layers.Conv2D(self.filters(), 1, activation=function)(x)
        kinds = [*custom_layers.HONEST, *custom_layers.OPAQUE]
        if keras.backend.backend() == "jax":  # it compares no open sizes
            kinds.remove(custom_layers.LargeBatch)
        cls = self.pick(kinds)
        if cls is custom_layers.Forgetful:
            return cls(2.0, self.pick(cls.PLACES))(x)
        if cls is custom_layers.Program:
            return self.program(x)
        return cls()(x)

    def program(self, x):
        """A layer of random steps."""
        steps = [self.pick(custom_layers.Program.names()) for _ in range(3)]
        if None in x.shape[1:]:
            steps = [step for step in steps if step not in ("table", "token")]
        of_tensorflow = keras.backend.backend() == "tensorflow" and self.chance()
        return custom_layers.Program(steps, of_tensorflow)(x)

    def hold(self, x):
        kind = self.pick(["spectral", "spectral depthwise", "time", "time norm"])
        if kind == "spectral":
            inner = layers.Conv2D(self.filters(), 1, activation=self.pick(ACTIVATIONS))
            return layers.SpectralNormalization(inner)(x)
        if kind == "spectral depthwise":
            inner = layers.DepthwiseConv2D(1, use_bias=self.chance())
            return layers.SpectralNormalization(inner)(x)
        if kind == "time":
            inner = layers.Conv1D(self.filters(), 1, activation=self.pick(ACTIVATIONS))
            return layers.TimeDistributed(inner)(x)
        return layers.TimeDistributed(layers.BatchNormalization())(x)

    def nest(self, x):
        """A model in the model, called once or twice."""
        inputs = keras.Input(x.shape[1:])
        y = layers.Conv2D(x.shape[-1], 1, activation=self.pick(ACTIVATIONS))(inputs)
        y = self.normalise(y)
        outputs = y + inputs if self.chance() else y
        block = keras.Model(inputs, outputs)
        return block(block(x)) if self.chance() else block(x)

    def attend(self, x):
        """One head of attention over the pixels of a row."""
        query, key, value = (layers.Dense(4)(x) for _ in range(3))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
        return ops.matmul(ops.softmax(scores, axis=-1), value)

    def recur(self, x):
        """The rows of a map, or its columns, as the steps of a sequence."""
        _, height, width, channels = x.shape
        kind = self.pick(["rows", "both ways", "stacked", "states", "film", "pixels"])
        units = self.filters()
        rows = ops.reshape(x, (-1, height, width * channels))
        if kind == "film":
            size = self.pick([1, 2])
            return layers.ConvLSTM1D(
                units, size, padding=self.pick(PADDING), return_sequences=True
            )(x)
        if kind == "pixels":
            layer = self.cell_layer(units, return_sequences=True)
            return layers.TimeDistributed(layer)(x)
        if kind == "rows":
            stateful = self.batch_size is not None and self.chance()
            backwards = self.chance()
            layer = self.cell_layer(units, go_backwards=backwards, stateful=stateful)
            return self.weigh(x, layer(layers.Dense(3)(rows)))
        if kind == "stacked":
            cells = [layers.LSTMCell(3), layers.GRUCell(units)]
            return self.weigh(x, layers.RNN(cells, unroll=self.chance())(rows))
        if kind == "states":
            first = layers.LSTM(units, return_state=True)
            _, *states = first(layers.Dense(3)(rows))
            again = layers.LSTM(units)
            return self.weigh(x, again(rows[:, ::2], initial_state=states))
        layer = self.cell_layer(units, return_sequences=True)
        y = layers.Bidirectional(layer, self.pick(["concat", "sum", "mul", "ave"]))(
            layers.Masking()(rows)
        )
        return self.weigh(x, layers.GRU(units)(y))

    def cell_layer(self, units, **kwargs):
        kwargs["use_bias"] = self.chance()
        kind = self.pick(["LSTM", "GRU", "GRU", "SimpleRNN"])
        if kind == "GRU":
            kwargs["reset_after"] = self.chance()
        activation = self.pick(["tanh", "sigmoid", "relu"])
        return getattr(layers, kind)(units, activation=activation, **kwargs)

    def weigh(self, x, vector):
        """Channels times what a sequence says of them."""
        gate = layers.Dense(x.shape[-1], activation="sigmoid")(vector)
        return x * layers.Reshape((1, 1, x.shape[-1]))(gate)

    def transform(self, x):
        """Part of a transformer block over all pixels of a map."""
        _, height, width, channels = x.shape
        y = ops.reshape(x, (-1, height * width, channels))
        kind = self.pick(["multi-head", "grouped", "by hand", "einsum", "layer", "ffn"])
        bias, causal = self.chance(), self.chance()
        if self.chance():
            y = layers.LayerNormalization()(y)
        if kind == "multi-head":
            sizes = [None, 4]
            if keras.backend.backend() == "jax":  # Keras 3.15 has but one size there
                sizes = [None]
            z = layers.MultiHeadAttention(
                self.pick([1, 2, 3]),
                self.pick([2, 3]),
                value_dim=self.pick(sizes),
                use_bias=bias,
                use_gate=self.chance(),
                output_shape=self.pick([None, 5]),
            )(y, y, use_causal_mask=causal)
        elif kind == "grouped":
            groups = self.pick([1, 2])
            z = layers.GroupQueryAttention(3, 2 * groups, groups, use_bias=bias)(
                y, y, use_causal_mask=causal
            )
        elif kind == "by hand":
            z = self.heads_by_hand(y)
        elif kind == "einsum":
            axes = self.pick(["h", "nh"]) if bias else None
            first = layers.EinsumDense("btc,cnh->btnh", (None, 2, 3), bias_axes=axes)
            last = layers.EinsumDense("btnh,nhc->btc", (None, channels), bias_axes="c")
            z = last(layers.Activation(self.pick(ACTIVATIONS))(first(y)))
        elif kind == "layer":
            cls = self.pick([layers.Attention, layers.AdditiveAttention])
            others = [layers.Dense(channels)(y) for _ in range(self.pick([1, 2]))]
            z = cls(use_scale=self.chance())([y, *others], use_causal_mask=causal)
        else:
            z = layers.Dense(6, activation=self.pick(ACTIVATIONS))(y)
            if self.chance():
                z = layers.Multiply()([z, layers.Dense(6)(y)])
            z = layers.Dense(channels)(z)
        if z.shape[-1] == channels and self.chance():
            z = z + y
        return ops.reshape(z, (-1, height, width, z.shape[-1]))

    def heads_by_hand(self, x, heads=2):
        length = x.shape[1]

        def part(x):
            x = layers.Reshape((length, heads, x.shape[-1] // heads))(x)
            return layers.Permute((2, 1, 3))(x)

        if self.chance():
            query, key, value = map(part, ops.split(layers.Dense(12)(x), 3, axis=-1))
        else:
            query, key, value = (part(layers.Dense(4)(x)) for _ in range(3))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
        soft = self.pick([layers.Softmax(), ops.softmax])
        y = layers.Permute((2, 1, 3))(ops.matmul(soft(scores * 0.7), value))
        return layers.Reshape((length, heads * y.shape[-1]))(y)

    def drop(self, x):
        kind = self.pick(["spatial", "noise", "resize", "regularize", "center"])
        if kind == "spatial":
            return layers.SpatialDropout2D(0.2)(x)
        if kind == "noise":
            return layers.GaussianNoise(0.1)(x)
        if kind == "resize":
            return layers.Resizing(self.pick([3, 6]), 5)(x)
        if kind == "center" and min(x.shape[1:3]) > 3:
            return layers.CenterCrop(3, 3)(x)
        return layers.ActivityRegularization(1e-3)(x)

    STEPS = (
        over_channels,
        share,
        constants,
        windows,
        select,
        choose,
        rearrange,
        custom,
        custom,
        hold,
        nest,
        attend,
        recur,
        transform,
        transform,
        drop,
        normalise_across,
        move,
        move,
        reduce,
        pixels,
        conv,
        conv,
        conv,
        depthwise,
        normalise,
        normalise,
        activate,
        resample,
        arithmetic,
        join,
        join,
        concatenate,
        excite,
        spatial_gate,
        reshape_and_back,
    )

    def vector(self, x):
        """From a map to a tensor (B, C)."""
        kind = self.pick(["flatten", "average", "max"])
        if kind == "flatten":
            return layers.Flatten()(x)
        if kind == "average":
            return layers.GlobalAveragePooling2D()(x)
        return layers.GlobalMaxPooling2D()(x)

    def image(self, shape, **kwargs):
        """An input, of an open or a fixed batch size."""
        return keras.Input(shape, batch_size=self.batch_size, **kwargs)

    def build(self):
        self.batch_size = self.pick([None, None, None, 2])
        size = self.pick([(8, 8), (8, 8), (7, 9), (9, 6)])
        inputs = [self.image((*size, 3), name="image")]
        x = layers.Conv2D(4, 3, padding="same")(inputs[0])
        if self.chance():
            inputs.append(self.image((*size, 2), name="other"))
            x = x + layers.Conv2D(4, 1, activation="tanh")(inputs[1])
        if self.pick([False, False, False, True]):
            inputs.append(self.image(size, dtype="int32", name="numbers"))
            x = x + layers.Embedding(5, 4)(inputs[-1])
        return keras.Model(inputs, self.grow(x))

    def grow(self, x):
        """The outputs of a graph that goes on from a map."""
        self.maps.append(x)
        for _ in range(self.draw(st.integers(2, 8))):
            # Mostly go on from the last tensor, sometimes branch off.
            start = self.pick([self.maps[-1], self.maps[-1], *self.maps])
            self.maps.append(self.pick(self.STEPS)(self, start))
        head = self.vector(self.maps[-1])
        if self.chance():
            head = layers.Dense(4, activation=self.pick(ACTIVATIONS))(head)
            if self.chance():
                head = layers.BatchNormalization()(head)
        outputs = [layers.Dense(3, name="head")(head)]
        if self.chance():
            outputs.append(layers.Conv2D(2, 1, name="map")(self.pick(self.maps)))
        return outputs


class OpenGraphBuilder(GraphBuilder):
    """Grows a graph whose maps may be of any size."""

    def __init__(self, draw):
        super().__init__(draw)
        self.halvings = 2

    def conv(self, x):
        kind = self.pick([layers.Conv2D, layers.Conv2D, layers.SeparableConv2D])
        activation = self.pick(ACTIVATIONS)
        return kind(
            self.filters(),
            self.pick([1, 2, 3]),
            padding="same",
            use_bias=self.chance(),
            activation=activation,
        )(x)

    def depthwise(self, x):
        layer = layers.DepthwiseConv2D(3, padding="same", use_bias=self.chance())
        return layer(x)

    def resample(self, x):
        """A map of another size, which joins no map of before."""
        kinds = ["pad", "up", "crop", "patches", "letterbox", "resize"]
        if self.halvings:
            kinds += ["pool", "average", "strides", "depthwise"]
        kind = self.pick(kinds)
        self.maps.clear()
        if kind == "pad":
            return layers.ZeroPadding2D(self.pick([1, ((1, 0), (0, 2))]))(x)
        if kind == "up":
            interpolation = self.pick(["nearest", "bilinear"])
            return layers.UpSampling2D(2, interpolation=interpolation)(x)
        if kind == "crop":
            return layers.Cropping2D(((0, 1), (0, 0)))(x)
        if kind == "patches":
            return ops.image.extract_patches(x, 2, strides=1, padding="same")
        if kind == "letterbox":
            return layers.Resizing(9, 7, pad_to_aspect_ratio=True)(x)
        if kind == "resize":
            way = self.pick(["area", "bicubic"])
            if keras.backend.backend() == "torch":  # which knows no other
                way = "bicubic"
            return layers.Resizing(7, 9, interpolation=way)(x)
        self.halvings -= 1
        padding = self.pick(PADDING)
        if kind == "pool":
            return layers.MaxPooling2D(2, padding=padding)(x)
        if kind == "average":
            return layers.AveragePooling2D(2, padding=padding)(x)
        if kind == "depthwise":
            return layers.DepthwiseConv2D(2, strides=2, padding="same")(x)
        return layers.Conv2D(self.filters(), 3, strides=2, padding="same")(x)

    def shift(self, x):
        """A constant that is added behind whatever makes the channels."""
        kind = self.pick(["number", "vector", "maximum", "offset"])
        if kind == "number":
            return x + 1.0
        if kind == "maximum":
            return ops.maximum(x, 0.2)
        if kind == "offset":
            return layers.Rescaling(1.0, offset=0.5)(x)
        return x + np.linspace(-1, 1, x.shape[-1]).astype(keras.config.floatx())

    def vector(self, x):
        kind = [layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D]
        return self.pick(kind)()(x)

    STEPS = (
        conv,
        conv,
        depthwise,
        resample,
        resample,
        shift,
        shift,
        GraphBuilder.normalise,
        GraphBuilder.activate,
        GraphBuilder.join,
        GraphBuilder.concatenate,
        GraphBuilder.excite,
        GraphBuilder.spatial_gate,
        GraphBuilder.custom,
        GraphBuilder.normalise_across,
        GraphBuilder.reduce,
        GraphBuilder.choose,
    )

    def build(self):
        image = keras.Input((None, None, 3), name="image")
        return keras.Model(image, self.grow(layers.Conv2D(4, 3, padding="same")(image)))


@st.composite
def models(draw):
    """A random small convnet of the layers that filterprune knows, and others."""
    return GraphBuilder(draw).build()


@st.composite
def open_models(draw):
    """A random small convnet that takes images of any size."""
    return OpenGraphBuilder(draw).build()
