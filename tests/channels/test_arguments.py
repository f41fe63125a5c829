"""Arguments of layers that count channels, or differ from channel to channel."""

import inspect

import keras
import numpy as np
import pytest
from exactness import check_exact, close_at_random, randomise
from keras import layers

import filterprune
from filterprune.channels.registry import registered_layers

# What a rule says of them has a case below, or in `test_rules.py`.
ABOUT_CHANNELS = {
    *("filters", "units", "output_dim", "depth_multiplier", "groups"),
    *("num_heads", "key_dim", "value_dim", "head_dim"),
    *("num_query_heads", "num_key_value_heads"),
    *("target_shape", "output_shape", "noise_shape", "equation", "bias_axes"),
    *("axis", "axes", "dims", "shared_axes", "data_format", "attention_axes"),
    *("scale", "offset", "mean", "variance"),
    *("layer", "backward_layer", "cell", "cells", "weights"),
}
# Whether there is a weight, a number for all channels, a size of positions or an
# object that works element by element.
ABOUT_ALL = {
    *("activation", "recurrent_activation", "use_bias", "unit_forget_bias"),
    *("center", "renorm", "renorm_clipping", "renorm_momentum", "synchronized"),
    *("use_scale", "use_gate", "score_mode", "normalize", "invert", "keepdims"),
    *("kernel_size", "strides", "padding", "output_padding", "dilation_rate"),
    *("pool_size", "output_size", "size", "cropping", "height", "width", "n"),
    *("rate", "stddev", "dropout", "recurrent_dropout", "l1", "l2", "momentum"),
    *("alpha", "negative_slope", "max_value", "threshold", "epsilon", "mask_value"),
    *("input_dim", "mask_zero", "tie_weights", "reverse_dtype", "logit_soft_cap"),
    *("merge_mode", "return_sequences", "return_state", "go_backwards", "stateful"),
    *("unroll", "reset_after", "use_cudnn", "zero_output_for_mask"),
    *("sliding_window", "flash_attention", "power_iterations"),
    *("interpolation", "crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias"),
    *("fill_mode", "fill_value", "value_range", "factor", "sigma", "mode"),
    *("x_factor", "y_factor", "height_factor", "width_factor"),
    *("lora_rank", "lora_alpha", "quantization_config", "gptq_unpacked_column_size"),
    *("autocast", "dtype", "name", "trainable", "seed", "kwargs", "self"),
}
_OBJECTS = ("initializer", "regularizer", "constraint")


def test_every_argument_of_a_layer_is_looked_at():
    """A new release of Keras shows up here."""
    found = {
        name
        for cls in registered_layers()
        if cls.__module__.startswith("keras.")
        for name in inspect.signature(cls.__init__).parameters
        if not name.endswith(_OBJECTS)
    }
    assert found - ABOUT_CHANNELS - ABOUT_ALL == set()


def last(*layer):
    """Layers on maps of six by six positions and eight channels."""

    def build(x):
        for one in layer:
            x = one(x)
        return x

    return build


def first(layer, columns=6):
    """A layer on maps whose eight channels come first."""

    def build(x):
        if columns == 8:  # as many as there are channels
            x = layers.ZeroPadding2D(((0, 0), (1, 1)))(x)
        return layers.Permute((2, 3, 1))(layer(layers.Permute((3, 1, 2))(x)))

    return build


EIGHT = [float(number) for number in range(1, 9)]
CASES = {
    "Dropout, a channel": last(layers.Dropout(0.5, noise_shape=(None, 1, 1, 8))),
    "Dropout, a position": last(layers.Dropout(0.5, noise_shape=(None, 6, 6, 1))),
    "Dropout, all": last(layers.Dropout(0.5, noise_shape=(None, 6, None, 8))),
    "Dropout, none": last(layers.Dropout(0.5, noise_shape=(None, None, 1, None))),
    "Dropout, first": first(layers.Dropout(0.5, noise_shape=(None, 8, 1, 1))),
    "Dropout, square": first(layers.Dropout(0.5, noise_shape=(None, 8, 1, 8)), 8),
    "AlphaDropout": last(layers.AlphaDropout(0.5, noise_shape=(None, 1, 1, 8))),
    "AlphaDropout, first": first(layers.AlphaDropout(0.5, noise_shape=(None, 8, 1, 6))),
    "GaussianDropout": last(layers.GaussianDropout(0.5)),
    "SpatialDropout2D": last(layers.SpatialDropout2D(0.5)),
    "SpatialDropout2D, first": first(
        layers.SpatialDropout2D(0.5, data_format="channels_first")
    ),
    "PReLU": last(layers.PReLU("ones", shared_axes=[1, 2])),
    "PReLU, one": last(layers.PReLU("ones", shared_axes=[1, 2, 3])),
    "PReLU, positions": last(layers.PReLU("ones", shared_axes=[3])),
    "PReLU, first": first(layers.PReLU("ones", shared_axes=[2, 3])),
    "PReLU, square": first(layers.PReLU("ones"), 8),
    "PReLU, square, columns": first(layers.PReLU("ones", shared_axes=[1, 2]), 8),
    "Rescaling": last(layers.Rescaling(EIGHT, offset=EIGHT)),
    "Rescaling, arrays": last(layers.Rescaling(np.array(EIGHT), np.array(EIGHT))),
    "Rescaling, columns": first(layers.Rescaling(EIGHT[:6])),
    "Rescaling, square": first(layers.Rescaling(EIGHT), 8),
    "Normalization": last(layers.Normalization(-1, mean=EIGHT, variance=EIGHT)),
    "Normalization, list": last(layers.Normalization([-1], mean=EIGHT, variance=EIGHT)),
    "Normalization, inverted": last(
        layers.Normalization(mean=EIGHT, variance=EIGHT, invert=True)
    ),
    "Normalization, first": first(layers.Normalization(1, mean=EIGHT, variance=EIGHT)),
    "GroupNormalization": last(layers.GroupNormalization(2)),
    "GroupNormalization, each": last(layers.GroupNormalization(8)),
    "GroupNormalization, first": first(layers.GroupNormalization(8, axis=1), 8),
    "LayerNormalization": last(layers.LayerNormalization([1, 2, 3])),
    "UnitNormalization of each": last(layers.UnitNormalization([1, 2])),
    "Reshape": last(layers.Reshape((36, 8)), layers.Reshape((6, -1, 8))),
    "Softmax": last(layers.Softmax([1, 2])),
    "Softmax, first": first(layers.Softmax(1)),
    "BatchNormalization, first": first(layers.BatchNormalization(1), 8),
}


def model_with(build):
    x = keras.Input((6, 6, 3))
    y = build(layers.Conv2D(8, 3, padding="same", activation="relu", name="made")(x))
    return keras.Model(x, layers.Conv2D(2, 3)(y))


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_the_compact_model_is_exact_and_can_be_trained(build):
    keras.utils.set_random_seed(0)
    masked = filterprune.wrap_model(_anew(randomise(model_with(build))))
    assert filterprune.analyze(masked).barriers == ()
    close_at_random(masked)
    masked.compile("sgd", "mse")
    small = check_exact(masked, limit=1e-5)
    assert small.get_layer("made").filters == 4
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    small.fit(x, np.zeros((4, *small.output_shape[1:])), verbose=0)


def _anew(model):
    """A copy, so that a layer of the table does not serve two models."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


@pytest.mark.parametrize("fill", [0.0, 2.0])
def test_what_an_augmentation_fills_maps_with_is_closed_in_training(fill):
    shift = layers.RandomTranslation(
        (0.5, 0.5), (0.5, 0.5), fill_mode="constant", fill_value=fill, name="shift"
    )
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 3, activation="relu", name="made")(x)
    model = keras.Model(x, layers.Conv2D(2, 3)(shift(y)))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    closed = masked.get_layer("made").closed()
    seen = keras.Model(masked.inputs, masked.get_layer("shift").output)
    made = keras.ops.convert_to_numpy(seen(np.ones((4, 6, 6, 3)), training=True))
    assert (made[..., closed] == 0).all()
