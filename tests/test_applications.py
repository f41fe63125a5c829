"""The nets of `keras.applications`: exact, without a barrier, really smaller."""

import inspect

import keras
import numpy as np
import pytest
from builders import WITHOUT_XLA
from exactness import calibrate, check_exact, close_at_random, randomise

import filterprune

TORCH = keras.backend.backend() == "torch"
SIZES = {
    "ResNet50": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "DenseNet121": 32,
    "InceptionV3": 75,
    "EfficientNetB0": 32,
    "Xception": 71,
    "VGG16": 32,
    "NASNetMobile": 32,
}
if TORCH:  # Keras does not offer it there
    del SIZES["NASNetMobile"]


def build(name, **kwargs):
    size = SIZES[name]
    constructor = getattr(keras.applications, name)
    kwargs = {"weights": None, "input_shape": (size, size, 3), **kwargs}
    # Without softmax: 1,000 near-equal probabilities would hide differences.
    return calibrate(randomise(constructor(classifier_activation=None, **kwargs)))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        # Every other net here takes a few seconds, this one half a minute.
        pytest.param(name, "float64", marks=[pytest.mark.slow] * ("NASNet" in name))
        for name in SIZES
    ]
    + [
        pytest.param("ResNet50", "float32", marks=pytest.mark.slow),
        pytest.param("MobileNetV2", "float32", marks=pytest.mark.slow),
        ("EfficientNetB0", "float32"),
    ],
)
def test_random_gates_compact_exactly(name, dtype):
    keras.config.set_floatx(dtype)
    model = build(name)
    report = filterprune.analyze(model)
    assert report.barriers == ()
    reasons = {group.reason for group in report.fixed}
    assert reasons == {"reaches the output `predictions`"}
    masked = filterprune.wrap_model(model)
    sparsity = close_at_random(masked)
    assert 0.45 < sparsity < 0.55
    small = check_exact(masked, verify=False)
    assert small.count_params() < 0.5 * model.count_params()


CONSTRUCTORS = {
    name: constructor
    for name, constructor in vars(keras.applications).items()
    if callable(constructor) and name[0].isupper()
}


def test_there_are_forty_constructors():
    assert len(CONSTRUCTORS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONSTRUCTORS))
def test_as_a_backbone_for_images_of_any_size(name):
    """All of them, as transfer learning takes them, in float64."""
    keras.config.set_floatx("float64")
    constructor = CONSTRUCTORS[name]
    options = {"weights": None, "include_top": False}
    if "include_preprocessing" in inspect.signature(constructor).parameters:
        options["include_preprocessing"] = False
    size = 64 if name.startswith(("NASNet", "ConvNeXt")) else 96
    if "NASNet" in name:  # its reductions need a known size
        options["input_shape"] = (size, size, 3)
    backbone = calibrate(randomise(constructor(**options)), size=size)
    x = keras.Input((size, size, 3))
    y = keras.layers.GlobalAveragePooling2D()(backbone(x))
    model = keras.Model(x, keras.layers.Dense(3)(y))
    masked = filterprune.wrap_model(model)
    assert filterprune.analyze(masked).barriers == ()
    close_at_random(masked)
    small = check_exact(masked, verify=False)
    assert small.count_params() < 0.5 * model.count_params()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ResNet50", marks=pytest.mark.slow),
        pytest.param("MobileNetV2", marks=pytest.mark.slow),
        "MobileNetV3Small",
    ],
)
def test_trained_with_the_callback_compact_exactly(name):
    size = SIZES[name]
    constructor = getattr(keras.applications, name)
    model = constructor(weights=None, input_shape=(size, size, 3), classes=4)
    masked = filterprune.wrap_model(model)
    masked.compile("adam", "sparse_categorical_crossentropy", **WITHOUT_XLA)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, size, size, 3)), rng.integers(0, 4, 32)
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5, end_step=6)
    callback = filterprune.FilterPruningCallback(schedule, frequency=2)
    history = masked.fit(x, y, batch_size=4, callbacks=[callback], verbose=0)
    assert history.history["sparsity"][-1] == pytest.approx(0.5, abs=0.01)
    small = check_exact(masked)
    assert small.count_params() < 0.7 * model.count_params()


@pytest.mark.parametrize(
    ("name", "least"), [("ResNet50", 3.8), ("DenseNet121", 3.7), ("MobileNetV2", 3.4)]
)
def test_uniform_half_removes_three_quarters_of_the_macs(name, least):
    model = getattr(keras.applications, name)(weights=None)
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, sparsity=0.5, scope="layer")
    report = filterprune.analyze(masked)
    assert report.before.macs / report.after.macs >= least
    small = filterprune.compact(masked, verify=False)
    assert filterprune.analyze(small).before == report.after
