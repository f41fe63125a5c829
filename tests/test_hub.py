"""Backbones and tasks of keras-hub: exact, or a named barrier.

Run where keras-hub is installed: `pip install keras-hub`.
"""

import subprocess
import sys

import keras
import numpy as np
import pytest
from exactness import (
    LIMITS,
    assert_close,
    check_exact,
    close_at_random,
    difference,
    randomise,
    to_numpy,
)

import filterprune

pytest.importorskip("keras_hub", reason="keras-hub is not installed")
from hub_models import (
    CLOSED_BOXES,
    COMPOSITE,
    DECODERS,
    KEPT,
    LANGUAGE_MODELS,
    SAVED,
    TRANSFORMERS,
    WHOLE,
)


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


@pytest.mark.parametrize("name", COMPOSITE)
def test_composite_layers_are_taken_apart_and_pruned(name):
    model = randomise(COMPOSITE[name]())
    masked = filterprune.wrap_model(model)
    assert difference(model, masked) < 1e-5
    assert filterprune.analyze(masked).barriers == ()
    close_at_random(masked)
    assert check_exact(masked).count_params() < 0.7 * model.count_params()


@pytest.mark.parametrize("name", KEPT)
def test_composite_layers_that_are_kept_are_named_and_all_else_is_pruned(name):
    model = randomise(KEPT[name]())
    report = filterprune.analyze(model)
    assert report.barriers and all("composite" in b for b in report.barriers)
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    check_exact(masked)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_for_sequences_of_any_length_are_pruned(name, tmp_path):
    keras.config.set_floatx("float64")
    model = randomise(DECODERS[name]())
    masked = filterprune.wrap_model(model)
    report = filterprune.analyze(masked)
    assert report.barriers == ()
    # Of two of them one weight, or a constant, meets all heads.
    kinds = {"ffn"} if name in ("Qwen3", "T5") else {"heads", "ffn"}
    assert kinds <= {group.kind for group in report.prunable}
    close_at_random(masked)
    small = filterprune.compact(masked)
    assert small.count_params() < 0.9 * model.count_params()
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    for size in (7, 12):
        # They take their softmax in float32.
        assert difference(masked, small, size=size) < 1e-6
        assert difference(small, loaded, size=size) < 1e-6


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_lose_their_width_too(name):
    model = randomise(LANGUAGE_MODELS[name]())
    masked = filterprune.wrap_model(model)
    assert filterprune.analyze(masked).fixed == ()
    filterprune.prune(masked, 0.5, scope="layer")
    small = filterprune.compact(masked)
    assert small.count_params() < 0.45 * model.count_params()
    assert difference(masked, small, size=9) < LIMITS["float32"]


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_heads_and_feed_forward_widths_are_pruned_exactly(name, dtype):
    keras.config.set_floatx(dtype)
    model = randomise(TRANSFORMERS[name]())
    size = 64 if "ViT" in name or name == "Swin" else 12
    masked = filterprune.wrap_model(model)
    assert difference(model, masked, size=size) < 1e-5
    kinds = {group.kind for group in filterprune.analyze(masked).prunable}
    assert {"heads", "ffn"} <= kinds
    close_at_random(masked)
    small = filterprune.compact(masked)
    assert difference(masked, small, size=size) < LIMITS[dtype]
    assert small.count_params() < 0.9 * model.count_params()


@pytest.mark.parametrize("name", CLOSED_BOXES)
def test_blocks_that_cannot_be_opened_are_named_and_stay_as_they_are(name):
    model = randomise(CLOSED_BOXES[name]())
    report = filterprune.analyze(model)
    assert any("composite layer" in barrier for barrier in report.barriers)
    masked = filterprune.wrap_model(model)
    assert difference(model, masked, size=12) < 1e-5


def test_what_is_left_of_a_decoder_is_causal_and_keeps_to_the_padding():
    masked = filterprune.wrap_model(randomise(TRANSFORMERS["GPT-2"]()))
    close_at_random(masked)
    small = filterprune.compact(masked)
    tokens = np.random.default_rng(0).integers(0, 50, (2, 8))
    padding = np.ones((2, 8), "int32")
    padding[0, 5:] = 0
    before = to_numpy(small({"token_ids": tokens, "padding_mask": padding}))
    assert_close(
        before, masked({"token_ids": tokens, "padding_mask": padding}), 1e-4, 1e-5
    )
    tokens[0, 5:] = 1  # behind the end
    tokens[1, 6] = (tokens[1, 6] + 1) % 50  # in the future
    after = to_numpy(small({"token_ids": tokens, "padding_mask": padding}))
    assert_close(after[0, :5], before[0, :5], 1e-4, 1e-5)
    assert_close(after[1, :6], before[1, :6], 1e-4, 1e-5)


@pytest.mark.parametrize("name", SAVED)
def test_masked_and_compact_models_are_loaded_by_themselves(name, tmp_path):
    def loaded(model):
        model.save(tmp_path / "model.keras")
        return keras.models.load_model(tmp_path / "model.keras", compile=False)

    # A file of DINOv2 does not hold all of its weights: some follow from others.
    model = loaded(randomise(SAVED[name]()))
    masked = filterprune.wrap_model(model)
    assert difference(model, masked, size=12) < 1e-5
    filterprune.prune(masked, 0.3)
    assert difference(masked, loaded(masked), size=12) < 1e-5
    small = filterprune.compact(masked)
    assert difference(small, loaded(small), size=12) < 1e-5


def test_keras_hub_is_not_imported_before_it_is_needed():
    code = "import filterprune, sys; sys.exit('keras_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
