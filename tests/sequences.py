"""Small models of sequences, for every recurrent layer and embedding."""

import keras
import numpy as np
from keras import layers, ops

STEPS = 4
WORDS = 11


def over(layer, steps=STEPS):
    """Dense -> layer -> Dense, over a sequence of vectors."""

    def build():
        x = keras.Input((steps, 5))
        y = layers.Dense(6, activation="relu")(x)
        return keras.Model(x, layers.Dense(3)(layer()(y)))

    return build


def with_states(layer):
    """All that a layer gives that returns its states as well."""

    def build():
        x = keras.Input((STEPS, 5))
        outputs = keras.tree.flatten(layer()(layers.Dense(6)(x)))
        flat = [layers.Flatten()(y) for y in outputs]
        return keras.Model(x, layers.Dense(3)(ops.concatenate(flat, axis=-1)))

    return build


def handed_over(encoder, decoder):
    """A decoder that begins with the states of an encoder."""

    def build():
        x, z = keras.Input((STEPS, 5)), keras.Input((3, 5))
        _, *states = encoder()(layers.Dense(6)(x))
        states = states[0] if len(states) == 1 else states
        y = decoder()(layers.Dense(4)(z), initial_state=states)
        return keras.Model([x, z], layers.Dense(3)(y))

    return build


def begun(layer, *states):
    """A layer that begins with states of other layers, or constant ones."""

    def build():
        x = keras.Input((STEPS, 5))
        given = [state(x) if callable(state) else state for state in states]
        y = layer()(layers.Dense(6)(x), initial_state=given)
        return keras.Model(x, layers.Dense(3)(y))

    return build


def keeping_state(layer):
    """A layer that goes on from batch to batch."""

    def build():
        x = keras.Input(batch_shape=(2, STEPS, 5))
        y = layer()(layers.Dense(6)(x))
        return keras.Model(x, layers.Dense(3)(y))

    return build


def film(layer, rank=2):
    """A convolutional recurrent layer over a few frames."""

    def build():
        x = keras.Input((3,) + (5,) * rank + (2,))
        y = layers.TimeDistributed(getattr(layers, f"Conv{rank}D")(4, 2))(x)
        y = layer()(y)
        return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))

    return build


def words(*inner, mask_zero=False, width=8):
    """An embedding, layers behind it, and scores."""

    def build():
        x = keras.Input((STEPS,), dtype="int32")
        y = layers.Embedding(WORDS, width, mask_zero=mask_zero)(x)
        for layer in inner:
            y = layer()(y)
        return keras.Model(x, layers.Dense(3)(y))

    return build


def placed(x, width):
    """Embeddings of positions, which are counted in the graph."""
    numbers = ops.cumsum(ops.ones_like(x), axis=1) - 1
    return layers.Embedding(STEPS, width)(numbers)


def language_model(tie_weights=True, mask_zero=False, body=layers.LSTM, **kwargs):
    """Words and their places in, a residual layer, scores of words out."""

    def build():
        x = keras.Input((STEPS,), dtype="int32")
        table = layers.ReversibleEmbedding(
            WORDS, 8, tie_weights=tie_weights, mask_zero=mask_zero, **kwargs
        )
        y = table(x) * 8**0.5 + placed(x, 8)
        y = layers.LayerNormalization()(y + body(8, return_sequences=True)(y))
        return keras.Model(x, table(y, reverse=True))

    return build


def clips(frame, then=lambda: layers.LSTM(6), steps=3):
    """A model in every time step."""

    def build():
        x = keras.Input((steps, 6, 6, 2))
        y = then()(layers.TimeDistributed(frame())(x))
        return keras.Model(x, layers.Dense(3)(y))

    return build


def frame_model():
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    y = layers.BatchNormalization()(y)
    z = layers.Conv2D(6, 3, padding="same", activation="relu", name="block")(y)
    y = layers.GlobalAveragePooling2D()(y + z)
    return keras.Model(x, layers.Dense(5, activation="sigmoid")(y), name="frame")


def frame_stack():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(4),
        ],
        name="frame",
    )


def some(cls, units=6, **kwargs):
    return lambda: cls(units, **kwargs)


def both(cls, units=6, merge_mode="concat", **kwargs):
    return lambda: layers.Bidirectional(cls(units, **kwargs), merge_mode=merge_mode)


def stack(*cells, **kwargs):
    return lambda: layers.RNN([cell() for cell in cells], **kwargs)


def one_by_one(layer):
    """A recurrent layer within every step of another sequence."""

    def build():
        x = keras.Input((3, STEPS, 5))
        y = layers.TimeDistributed(layers.Dense(6))(x)
        y = layers.TimeDistributed(layer())(y)
        return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))

    return build


LSTM, GRU, SIMPLE = layers.LSTM, layers.GRU, layers.SimpleRNN
CELLS = (
    some(layers.LSTMCell, 7),
    some(layers.GRUCell, 5, activation="sigmoid"),
    some(layers.SimpleRNNCell),
)
CONSTANT = np.linspace(-1, 1, 12).reshape(2, 6).astype("float32")
SEQUENCE = {"return_sequences": True}

CASES = {
    LSTM: [
        over(some(LSTM)),
        over(some(LSTM, go_backwards=True, **SEQUENCE)),
        over(some(LSTM, activation="sigmoid", recurrent_activation="hard_sigmoid")),
        over(some(LSTM, use_bias=False, unroll=True)),
        over(some(LSTM, dropout=0.2, recurrent_dropout=0.2)),
        over(some(LSTM), steps=None),
        with_states(some(LSTM, return_state=True, **SEQUENCE)),
        handed_over(some(LSTM, return_state=True), some(LSTM)),
        keeping_state(some(LSTM, stateful=True)),
    ],
    GRU: [
        over(some(GRU)),
        over(some(GRU, reset_after=False, **SEQUENCE)),
        over(some(GRU, activation="softplus", use_bias=False)),
        over(some(GRU, reset_after=False, recurrent_dropout=0.2)),
        handed_over(some(GRU, return_state=True), some(GRU, **SEQUENCE)),
        begun(some(GRU), lambda x: layers.Dense(6)(x[:, 0])),
        begun(some(GRU), CONSTANT),
    ],
    SIMPLE: [
        over(some(SIMPLE)),
        over(some(SIMPLE, activation="sigmoid", dropout=0.2)),
        with_states(some(SIMPLE, return_state=True)),
    ],
    layers.RNN: [
        over(lambda: layers.RNN(CELLS[0](), **SEQUENCE)),
        with_states(stack(*CELLS, return_state=True)),
        keeping_state(stack(*CELLS, stateful=True)),
    ],
    layers.LSTMCell: [over(stack(CELLS[0]))],
    layers.GRUCell: [over(stack(CELLS[1]))],
    layers.SimpleRNNCell: [over(stack(CELLS[2]))],
    layers.StackedRNNCells: [
        over(stack(*CELLS)),
        over(stack(CELLS[0], CELLS[0], CELLS[1], **SEQUENCE)),
        over(stack(some(layers.LSTMCell, recurrent_dropout=0.2), *CELLS[1:])),
        over(lambda: layers.Bidirectional(stack(*CELLS)())),
    ],
    layers.Bidirectional: [
        over(both(LSTM, **SEQUENCE)),
        over(both(GRU, merge_mode="sum")),
        over(both(LSTM, merge_mode="mul", activation="sigmoid")),
        over(both(SIMPLE, merge_mode="ave", **SEQUENCE)),
        with_states(both(GRU, merge_mode=None, return_state=True, **SEQUENCE)),
        with_states(both(LSTM, return_state=True)),
        handed_over(both(LSTM, return_state=True), both(LSTM)),
        keeping_state(both(GRU, stateful=True)),
        film(both(layers.ConvLSTM2D, 4, kernel_size=2)),
    ],
    layers.ConvLSTM1D: [film(some(layers.ConvLSTM1D, kernel_size=2), rank=1)],
    layers.ConvLSTM2D: [
        film(some(layers.ConvLSTM2D, kernel_size=3, padding="same", **SEQUENCE)),
        film(some(layers.ConvLSTM2D, kernel_size=2, strides=2, use_bias=False)),
        film(some(layers.ConvLSTM2D, kernel_size=2, activation="sigmoid")),
    ],
    layers.ConvLSTM3D: [film(some(layers.ConvLSTM3D, kernel_size=2), rank=3)],
    layers.Embedding: [
        words(some(LSTM)),
        words(both(LSTM, **SEQUENCE), both(GRU), mask_zero=True),
        words(layers.GlobalAveragePooling1D, mask_zero=True),
        words(some(layers.Dense, activation="sigmoid"), layers.Flatten),
    ],
    layers.ReversibleEmbedding: [
        language_model(),
        language_model(tie_weights=False, logit_soft_cap=5.0),
        language_model(mask_zero=True, body=GRU),
    ],
    layers.TimeDistributed: [
        clips(frame_model),
        clips(frame_stack, steps=None),
        one_by_one(some(LSTM)),
        one_by_one(both(GRU, **SEQUENCE)),
    ],
}
