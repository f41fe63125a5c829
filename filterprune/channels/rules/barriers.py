"""Layers and operations that are barriers by nature, and why."""

from keras import layers

from filterprune.channels.registry import (
    holds_code,
    known_barrier,
    operation_barrier,
)

holds_code(layers.Lambda)
known_barrier(
    "it wraps a model of another library",
    layers.FlaxLayer,
    layers.JaxLayer,
    layers.TFSMLayer,
    layers.TorchModuleWrapper,
)
known_barrier(
    "it wraps another layer and is not supported yet",
    layers.Pipeline,
)
known_barrier(
    "it prepares inputs, whose channels are fixed",
    layers.AugMix,
    layers.AutoContrast,
    layers.CategoryEncoding,
    layers.ContrastLimitedAdaptiveHistogramEqualization,
    layers.CutMix,
    layers.Discretization,
    layers.Equalization,
    layers.HashedCrossing,
    layers.Hashing,
    layers.IntegerLookup,
    layers.MaxNumBoundingBoxes,
    layers.MelSpectrogram,
    layers.MixUp,
    layers.RandAugment,
    layers.RandomBrightness,
    layers.RandomColorDegeneration,
    layers.RandomColorJitter,
    layers.RandomContrast,
    layers.RandomCrop,
    layers.RandomErasing,
    layers.RandomGrayscale,
    layers.RandomHue,
    layers.RandomInvert,
    layers.RandomPosterization,
    layers.RandomSaturation,
    layers.RandomSharpness,
    layers.STFTSpectrogram,
    layers.Solarization,
    layers.StringLookup,
    layers.TextVectorization,
)

for _name in ("LayerNorm", "RMSNorm"):
    operation_barrier(
        "absent channels count in its statistics, for no gate reaches inside it; "
        f"use `layers.{_name}alization`",
        _name,
    )
operation_barrier(
    "it runs a Python function that nothing is known of",
    "AssociativeScan",
    "Cond",
    "ForiLoop",
    "Map",
    "Scan",
    "Switch",
    "VectorizedMap",
    "WhileLoop",
)
operation_barrier(
    "operations on places and orders of elements are not supported yet",
    "Argmax",
    "Argmin",
    "Argpartition",
    "Argsort",
    "Scatter",
    "ScatterUpdate",
    "Slice",
    "SliceUpdate",
    "TakeAlongAxis",
    "TopK",
)
operation_barrier(
    "transforms between positions and frequencies are not supported yet",
    "FFT",
    "FFT2",
    "IFFT2",
    "IRFFT",
    "ISTFT",
    "RFFT",
    "STFT",
)
