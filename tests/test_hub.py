"""Image backbones and tasks of keras-hub: exact, or a named barrier.

Run where keras-hub is installed: `pip install keras-hub`.
"""

import keras
import pytest
from exactness import check_exact, close_at_random, randomise

import filterprune

pytest.importorskip("keras_hub", reason="keras-hub is not installed")
from hub_models import COMPOSITE, WHOLE


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backbone_is_exact(name, dtype):
    keras.config.set_floatx(dtype)
    model = randomise(WHOLE[name]())
    report = filterprune.analyze(model)
    assert report.barriers == ()
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    assert check_exact(masked).count_params() < 0.7 * model.count_params()


# Composite layers and nothing else that could be pruned.
NOTHING_ELSE = {
    "EfficientNetV2 fused",
    "EfficientNetV2 unfused",
    "HGNetV2",
    "MiT",
    "MobileNet",
    "ViT",
}


@pytest.mark.parametrize("name", COMPOSITE)
def test_composite_layers_are_barriers_and_all_else_is_pruned(name):
    model = randomise(COMPOSITE[name]())
    report = filterprune.analyze(model)
    assert report.barriers and all("composite" in b for b in report.barriers)
    assert bool(report.prunable) == (name not in NOTHING_ELSE)
    if report.prunable:
        masked = filterprune.wrap_model(model)
        close_at_random(masked)
        check_exact(masked)
