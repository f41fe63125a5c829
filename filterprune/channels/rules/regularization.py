"""Layers that act in training only, or not at all."""

from keras import layers

from filterprune.channels.calls import Ambiguous
from filterprune.channels.moves import where_equal
from filterprune.channels.registry import rule
from filterprune.channels.verbs import channel_axis, same, take


@rule(
    layers.Identity,
    layers.GaussianDropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.ActivityRegularization,
)
def identity(layer, x):
    return same(x, elementwise=True, keeps_zero=True)


@rule(layers.Dropout)
def dropout(layer, x):
    return same(x, elementwise=True, keeps_zero=True, resize=_noise_shape(layer, x))


@rule(layers.GaussianNoise, layers.AlphaDropout)
def noise(layer, x):
    # Not zero in training, where a closed channel must be absent too.
    return same(x, elementwise=True, keeps_zero=False, resize=_noise_shape(layer, x))


def _noise_shape(layer, x) -> dict:
    """Count the channels again in the shape of a dropout's noise."""
    given = getattr(layer, "noise_shape", None)
    if given is None:
        return {}
    if len(given) != x.ndim:
        raise Ambiguous(f"its `noise_shape` {given} has another rank than its input")

    def noise_shape(survivors):
        return tuple(
            size if size in (1, None) else survivors.size(x, axis) or size
            for axis, size in enumerate(given)
        )

    return {"noise_shape": noise_shape}


@rule(
    layers.RandomElasticTransform,
    layers.RandomFlip,
    layers.RandomGaussianBlur,
    layers.RandomPerspective,
    layers.RandomRotation,
    layers.RandomShear,
    layers.RandomTranslation,
    layers.RandomZoom,
)
def augmentation(layer, x):
    # In training, maps are moved about, and what lies outside of them comes in: the
    # `fill_value`.
    outside = getattr(layer, "fill_value", 0) or 0
    x = take(x, lambda values: where_equal(values, outside))
    return same(x, axis=channel_axis(layer), keeps_zero=outside == 0)
