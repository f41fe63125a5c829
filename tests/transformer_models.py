"""Models of sequences as they are written by hand, small: transformers and others."""

import keras
import numpy as np
from keras import layers, ops

WORDS, LENGTH, WIDTH = 20, 8, 12


@keras.saving.register_keras_serializable("tests")
class RelativeBias(layers.Layer):
    """Adds to the scores of each head what it learned for each pair of positions."""

    def build(self, shape):
        self.bias = self.add_weight(shape=(1, *shape[-3:]), name="bias")

    def call(self, scores):
        return scores + self.bias


def feed_forward(x, width=20):
    y = layers.LayerNormalization()(x)
    y = layers.Dense(width, activation="gelu")(y)
    return x + layers.Dense(x.shape[-1])(y)


def swiglu(x, width=20):
    y = layers.RMSNormalization()(x)
    y = layers.Dense(width, activation="silu")(y) * layers.Dense(width)(y)
    return x + layers.Dense(x.shape[-1], use_bias=False)(y)


def attend(x, heads=3, **kwargs):
    y = layers.LayerNormalization()(x)
    return x + layers.MultiHeadAttention(heads, 4)(y, y, **kwargs)


def attend_after(x, heads=3, **kwargs):
    """As BERT does: the norm comes behind the sum."""
    y = layers.MultiHeadAttention(heads, 4, dropout=0.1)(x, x, **kwargs)
    x = layers.LayerNormalization()(x + y)
    y = layers.Dense(x.shape[-1])(layers.Dense(20, activation="gelu")(x))
    return layers.LayerNormalization()(x + y)


def vit():
    """Patches of an image by a convolution, a token of the class, blocks."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(WIDTH, 4, strides=4)(image)
    x = layers.Reshape((4, WIDTH))(x)
    x = ops.pad(x, ((0, 0), (1, 0), (0, 0)))
    place = layers.Embedding(5, WIDTH)
    x = x + place(ops.cumsum(ops.ones_like(x[..., 0], dtype="int32"), axis=1) - 1)
    for _ in range(2):
        x = feed_forward(attend(layers.Dropout(0.1)(x)))
    return keras.Model(image, layers.Dense(5)(layers.LayerNormalization()(x)[:, 0]))


def swin(shift=2, window=4):
    """Attention within windows, by hand, with a bias for each head, then shifted."""
    heads = 3
    image = keras.Input((8, 8, 3))
    x = layers.Dense(WIDTH)(image)
    for by in (0, -shift):
        y = layers.LayerNormalization()(x)
        y = ops.roll(y, (by, by), axis=(1, 2))
        y = ops.reshape(y, (-1, 8 // window, window, 8 // window, window, WIDTH))
        y = ops.transpose(y, (0, 1, 3, 2, 4, 5))
        y = ops.reshape(y, (-1, window * window, WIDTH))
        z = ops.reshape(layers.Dense(3 * WIDTH)(y), (-1, 16, 3, heads, WIDTH // heads))
        query, key, value = ops.unstack(ops.transpose(z, (2, 0, 3, 1, 4)), axis=0)
        scores = ops.matmul(query * 0.5, ops.transpose(key, (0, 1, 3, 2)))
        y = ops.matmul(ops.softmax(RelativeBias()(scores)), value)
        y = ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, 16, WIDTH))
        y = layers.Dense(WIDTH)(y)
        y = ops.reshape(y, (-1, 8 // window, 8 // window, window, window, WIDTH))
        y = ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 8, 8, WIDTH))
        x = feed_forward(x + ops.roll(y, (-by, -by), axis=(1, 2)))
    return keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def bert():
    """Words, segments and places; padding is masked by what Keras hands on."""
    words = keras.Input((LENGTH,), dtype="int32", name="words")
    parts = keras.Input((LENGTH,), dtype="int32", name="parts")
    x = layers.Embedding(WORDS, WIDTH, mask_zero=True)(words)
    x = layers.Add()([x, layers.Embedding(2, WIDTH)(parts)])
    place = layers.Embedding(LENGTH, WIDTH)
    x = layers.Add()([x, place(ops.cumsum(ops.ones_like(words), axis=1) - 1)])
    x = layers.LayerNormalization()(x)
    for _ in range(2):
        x = attend_after(x)
    pooled = layers.Dense(WIDTH, activation="tanh")(x[:, 0])
    return keras.Model(
        [words, parts], [layers.Dense(WORDS)(x), layers.Dense(2)(pooled)]
    )


def bert_with_a_mask():
    """The same with a mask of padding that is handed over."""
    words = keras.Input((LENGTH,), dtype="int32", name="words")
    real = keras.Input((LENGTH,), dtype="bool", name="real")
    x = layers.Embedding(WORDS, WIDTH)(words)
    for _ in range(2):
        x = attend_after(x, attention_mask=real[:, None, :])
    return keras.Model([words, real], layers.Dense(2)(x[:, 0]))


def gpt(length=LENGTH, attention="multi-head", block=feed_forward, heads=3):
    """Causal, padding masked too; the words' embedding scores the next one."""
    words = keras.Input((length,), dtype="int32")
    table = layers.ReversibleEmbedding(WORDS, WIDTH, mask_zero=True)
    x = table(words)
    place = layers.Embedding(LENGTH, WIDTH)
    x = layers.Add()([x, place(ops.cumsum(ops.ones_like(words), axis=1) - 1)])
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        if attention == "grouped":
            z = layers.GroupQueryAttention(4, 2 * heads, heads)(
                y, y, use_causal_mask=True
            )
        else:
            z = layers.MultiHeadAttention(heads, 4)(y, y, use_causal_mask=True)
        x = block(x + z)
    x = layers.LayerNormalization()(x)
    return keras.Model(words, table(x, reverse=True))


def translator():
    """An encoder, and a decoder that looks at what it gives."""
    source = keras.Input((LENGTH,), dtype="int32", name="source")
    target = keras.Input((5,), dtype="int32", name="target")
    table = layers.Embedding(WORDS, WIDTH, mask_zero=True)
    x = feed_forward(attend(table(source)))
    y = attend(table(target), use_causal_mask=True)
    z = layers.LayerNormalization()(y)
    y = feed_forward(y + layers.MultiHeadAttention(3, 4)(z, x))
    return keras.Model([source, target], layers.Dense(WORDS)(y))


def recurrent(cls):
    """Two layers that read both ways, and leave out what is padded."""
    x = keras.Input((LENGTH, 5))
    y = layers.Masking()(x)
    for _ in range(2):
        y = layers.Bidirectional(cls(6, return_sequences=True))(y)
    return keras.Model(x, layers.Dense(3)(y))


def films():
    """Two layers of convolutional memory."""
    x = keras.Input((4, 8, 8, 2))
    y = layers.ConvLSTM2D(5, 3, padding="same", return_sequences=True)(x)
    y = layers.BatchNormalization()(y)
    y = layers.ConvLSTM2D(4, 3, strides=2)(y)
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))


def recurrent_language_model():
    words = keras.Input((LENGTH,), dtype="int32")
    table = layers.ReversibleEmbedding(WORDS, WIDTH)
    y = layers.Dense(WIDTH)(layers.LSTM(9, return_sequences=True)(table(words)))
    return keras.Model(words, table(y, reverse=True))


# Each with the kinds that are to be found prunable in it.
MODELS = {
    "ViT": (vit, {"heads", "key_dim", "value_dim", "ffn", "width"}),
    "Swin": (swin, {"heads", "ffn", "width"}),
    "BERT": (bert, {"heads", "key_dim", "value_dim", "ffn", "width", "units"}),
    "BERT, mask given": (bert_with_a_mask, {"heads", "ffn", "width"}),
    "GPT": (gpt, {"heads", "key_dim", "value_dim", "ffn", "width"}),
    "GPT of any length": (lambda: gpt(None), {"heads", "ffn", "width"}),
    "Llama": (
        lambda: gpt(attention="grouped", block=swiglu, heads=2),
        {"heads", "head_dim", "ffn", "width"},
    ),
    "translator": (translator, {"heads", "ffn", "width"}),
    "LSTM": (lambda: recurrent(layers.LSTM), {"units"}),
    "GRU": (lambda: recurrent(layers.GRU), {"units"}),
    "ConvLSTM2D": (films, {"channels"}),
    "LSTM language model": (recurrent_language_model, {"units", "width"}),
}


def inputs_for(model, batch=3, seed=0):
    """Inputs with padding at their ends, and some of them all alike."""
    rng = np.random.default_rng(seed)
    given = []
    for tensor in model.inputs:
        shape = (batch, *(size or 6 for size in tensor.shape[1:]))
        if "int" in tensor.dtype:
            top = 2 if tensor.name == "parts" else WORDS
            value = rng.integers(0 if top == 2 else 1, top, shape)
        elif tensor.dtype == "bool":
            value = np.ones(shape, bool)
        else:
            value = rng.normal(size=shape).astype(tensor.dtype)
        if len(shape) < 4 and tensor.name != "parts":
            value[0, -3:] = 0
        given.append(value)
    return given if len(given) > 1 else given[0]
