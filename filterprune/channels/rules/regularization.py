"""Layers that act in training only, or not at all."""

from keras import layers

from filterprune.channels.registry import rule
from filterprune.channels.verbs import same


@rule(
    layers.Identity,
    layers.Dropout,
    layers.GaussianDropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.ActivityRegularization,
    layers.RandomElasticTransform,
    layers.RandomFlip,
    layers.RandomGaussianBlur,
    layers.RandomPerspective,
    layers.RandomRotation,
    layers.RandomShear,
    layers.RandomTranslation,
    layers.RandomZoom,
)
def identity(layer, x):
    return same(x, elementwise=True, keeps_zero=True)


@rule(layers.GaussianNoise, layers.AlphaDropout)
def noise(layer, x):
    # Not zero in training, where a closed channel must be absent too.
    return same(x, elementwise=True, keeps_zero=False)
