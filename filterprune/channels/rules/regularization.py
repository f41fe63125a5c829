"""Layers that act in training only, or not at all."""

from keras import layers

from filterprune.channels.moves import where_equal
from filterprune.channels.registry import rule
from filterprune.channels.verbs import same, take


@rule(
    layers.Identity,
    layers.Dropout,
    layers.GaussianDropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.ActivityRegularization,
    layers.RandomFlip,
)
def identity(layer, x):
    return same(x, elementwise=True, keeps_zero=True)


@rule(
    layers.RandomElasticTransform,
    layers.RandomGaussianBlur,
    layers.RandomPerspective,
    layers.RandomRotation,
    layers.RandomShear,
    layers.RandomTranslation,
    layers.RandomZoom,
)
def augmentation(layer, x):
    # In training, what lies outside of the map comes in: the `fill_value`.
    outside = getattr(layer, "fill_value", 0) or 0
    x = take(x, lambda values: where_equal(values, outside))
    return same(x, elementwise=True, keeps_zero=outside == 0)


@rule(layers.GaussianNoise, layers.AlphaDropout)
def noise(layer, x):
    # Not zero in training, where a closed channel must be absent too.
    return same(x, elementwise=True, keeps_zero=False)
