"""Layers as people publish them are pruned through, and nobody declares them."""

import functools
import importlib.util

import keras
import published_layers as published
import pytest
from exactness import assert_untouched, check_exact, randomise, state_of
from keras import layers

import filterprune

WITH_TENSORFLOW = (
    keras.backend.backend() == "tensorflow"
    and importlib.util.find_spec("filterprune.tensorflow_calls") is not None
)


KINDS = {
    "image": """
        SqueezeExcite SqueezeExciteWeights SqueezeExciteTF CBAM CBAMWeights CBAMTF
        ECA ECAWeights ECATF BAM SimAM SimAMTF
        CoordinateAttention CoordinateAttentionWeights CoordinateAttentionTF
        NonLocal NonLocalWeights NonLocalTF GlobalContext SpatialAndChannel
        SelectiveKernel InstanceNorm InstanceNormTF GroupNorm GRN GRNTF
        LayerScale LayerScaleTF FiLM FiLMWeights FiLMTF GeM GeMTF
        ConvNormReLU ConvNormReLUWeights ConvNormReLUTF Residual ResidualTF
        InvertedResidual InvertedResidualTF Ghost GhostTF ConvNeXtBlock Fire FireTF
        DepthwiseSeparable DepthwiseSeparableWeights DepthwiseSeparableTF
        SeparableWeights DenseBlock Patches PatchesTF PatchEncoder PatchEncoderTF
        StandardisedConv StandardisedConvWeights StandardisedConvTF
        EqualisedConv EqualisedConvTF CoordConv CoordConvTF
        PixelShuffle PixelShuffleTF ChannelShuffle ChannelShuffleTF
        ReflectionPadding ReflectionPaddingTF BlurPool BlurPoolTF DropPath DropPathTF
        Mish MishTF Swish SwishTF MaxPoolByReshape MaxPoolByReshapeTF
        PReLU PReLUMaximum PReLUTF MinibatchDeviation
    """,
    "sequence": """
        SelfAttention SelfAttentionTF SelfAttentionWeights SelfAttentionWeightsTF
        SplitHeads SplitHeadsWeights SplitHeadsTF Bahdanau BahdanauWeights BahdanauTF
        Luong LuongWeights LuongTF AttentionPool AttentionPoolWeights AttentionPoolTF
        ContextPool RMSNorm RMSNormTF LayerNorm LayerNormVar LayerNormTF
        L2Norm L2NormByHand L2NormTF ScaleNorm ScaleNormTF MLP MLPWeights MLPTF
        SwiGLU SwiGLUWeights SwiGLUTF PostNormBlock PreNormBlock PreNormBlockTF
        Mixer MixerTF ClassToken ClassTokenTile ClassTokenRepeat ClassTokenTF
        ClassTokenTileTF PositionTable PositionTableSliced PositionTableTF
        PositionEmbedding PositionEmbeddingTF SinePositions SinePositionsByOps
        SinePositionsTF Squash
    """,
    "vector": "Highway HighwayWeights Maxout MaxoutWeights MaxoutTF EqualisedDense",
    "tokens": "TokenAndPosition TokenAndPositionWeights TokenAndPositionTF",
}


def net(name, before=8, after=8, **kwargs):
    """A layer between two others.

    Args:
        name: of the class.
        before: how many channels the layer reads.
        after: how many channels the layer behind it makes.
        **kwargs: the layer's.
    """
    cls = getattr(published, name)
    kind = next(key for key, names in KINDS.items() if name in names.split())
    if kind == "tokens":
        inputs = keras.Input((6,), dtype="int32")
        x = cls(width=before, name="layer")(inputs)
    elif kind == "image":
        inputs = keras.Input((6, 6, 3))
        x = layers.Conv2D(before, 3, padding="same", name="before")(inputs)
        if "FiLM" in name:
            inputs = [inputs, keras.Input((5,))]
            x = [x, inputs[1]]
        x = cls(name="layer", **kwargs)(x)
    else:
        inputs = keras.Input((5,) if kind == "vector" else (6, 5))
        x = layers.Dense(before, name="before")(inputs)
        x = cls(name="layer", **kwargs)(x)
    if len(x.shape) == 4:
        x = layers.Conv2D(after, 1, name="after")(x)
        x = layers.GlobalAveragePooling2D()(x)
    else:
        x = layers.Dense(after, name="after")(x)
    if len(x.shape) == 3:
        x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


# An expert who halves all that can go has the net of half the width. But for these:
HEADS = {"heads": 2}  # of which each stays as large
ALL_READ = {"before": 8}  # a convolution over channels, or statistics of a kernel
EXPERT = {
    "ECA": ALL_READ,
    "StandardisedConv": {**ALL_READ, "filters": 4},
    "SelfAttention": HEADS,
    "SelfAttentionWeights": {},
    "SplitHeads": HEADS,
    "PostNormBlock": {"heads": 2, "size": 2},
    "PreNormBlock": HEADS,
    "Mixer": {"hidden": 2},
    "Maxout": {"units": 4},
}

GAPS = {
    "CBAMWeights": "a product by hand with a matrix that is used twice",
    "CoordinateAttention": "keras.activations.hard_swish takes no symbolic tensor",
    "GroupNorm": "no rule for moments over groups of channels",
    "ConvNeXtBlock": "a part with a seed generator keeps the whole block",
    "SeparableWeights": "no rule for ops.separable_conv",
    "EqualisedConv": "a computed kernel keeps what it reads",
    "EqualisedConvTF": "a computed kernel keeps what it reads",
    "EqualisedDense": "a computed kernel keeps what it reads",
    "CoordConv": "maps that are repeated for a batch of unknown size",
    "CoordConvTF": "maps that are repeated for a batch of unknown size",
    "Mixer": "a functional mixer ties all channels too",
    "MixerTF": "a functional mixer ties all channels too",
    "MaxoutWeights": "of two axes of an EinsumDense one is pruned",
    "LayerNormTF": "no rule for moments over channels",
    "PreNormBlockTF": "no rule for moments over channels",
}


def expert(name):
    """How many parameters an expert leaves."""
    base = name.removesuffix("TF")
    about = EXPERT.get(base, EXPERT.get(base.removesuffix("Weights"), {}))
    return net(name, **{"before": 4, "after": 4, **about}).count_params()


@functools.cache
def pruned(name):
    """How many parameters half the channels leave, once the rest is proved."""
    model = randomise(net(name))
    before = state_of(model)
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, scope="layer")
    small = check_exact(masked, verify=False)  # it compares them itself
    assert_untouched(model, before)
    return small.count_params()


def cases(gaps=()):
    for name in " ".join(KINDS.values()).split():
        marks = []
        if name.endswith("TF"):
            reason = "TensorFlow's functions"
            marks.append(pytest.mark.skipif(not WITH_TENSORFLOW, reason=reason))
        if name in gaps:
            marks.append(pytest.mark.xfail(strict=True, reason=gaps[name]))
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", cases())
def test_masked_and_compact_compute_the_same(name):
    pruned(name)


@pytest.mark.parametrize("name", cases(GAPS))
def test_half_of_the_channels_go_as_an_expert_would_have_it(name):
    assert pruned(name) == expert(name)
