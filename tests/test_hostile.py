"""Broken and unkind input: a clear error or an exact result, and nothing harmed."""

import zipfile

import builders
import keras
import numpy as np
import pytest
from exactness import check_exact, close_at_random, randomise, to_numpy
from keras import layers

import filterprune

BACKEND = keras.backend.backend()
TENSORFLOW = BACKEND == "tensorflow"


@pytest.mark.parametrize("name", ["plain", "residual", "squeeze_excite"])
@pytest.mark.parametrize("wrapper", [filterprune.wrap_model, builders.clone])
def test_gates_of_other_values_are_multiplied_in(name, wrapper):
    masked = wrapper(builders.randomise(builders.BUILDERS[name]()))
    rng = np.random.default_rng(0)
    filterprune.prune(masked, sparsity=0.3)
    for layer in builders.masked_layers(masked).values():
        gate = to_numpy(layer.gate)
        layer.gate.assign(gate * rng.choice([0.5, 1.0, 2.0, -1.0], gate.shape))
    small = check_exact(masked)
    assert small.count_params() < masked.count_params()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "function", [filterprune.compact, lambda m: filterprune.prune(m, 0.5)]
)
def test_gates_that_are_not_finite_name_their_layer(value, function):
    masked = filterprune.wrap_model(builders.plain())
    masked.get_layer("conv2").gate.assign([value] + [1] * 15)
    before = repr(builders.snapshot(masked))  # NaN is not even equal to itself
    with pytest.raises(ValueError, match="gates of 'conv2' to be finite"):
        function(masked)
    assert repr(builders.snapshot(masked)) == before


def test_weights_that_are_not_finite_stay_so_in_the_compact_model():
    """It computes what the masked model computes, NaN for NaN."""
    masked = filterprune.wrap_model(builders.randomise(builders.plain()))
    close_at_random(masked)
    masked.get_layer("head").kernel.assign(np.full((16, 10), np.nan))
    small = filterprune.compact(masked)
    x = builders.sample(small)
    assert np.isnan(builders.outputs(small, x)[0]).all()


def test_closed_filters_with_weights_that_are_not_finite():
    """Zero times NaN is NaN: the masked model shows it, and compact refuses."""
    masked = filterprune.wrap_model(builders.randomise(builders.plain()))
    kernel = to_numpy(masked.get_layer("conv1").layer.kernel).copy()
    kernel[..., 0] = np.nan
    masked.get_layer("conv1").layer.kernel.assign(kernel)
    builders.close(masked.get_layer("conv1"), 0)
    builders.close(masked.get_layer("conv1_bn"), 0)
    with pytest.raises(filterprune.VerificationError):
        filterprune.compact(masked)


def test_a_model_that_was_changed_after_it_was_wrapped():
    masked = filterprune.wrap_model(builders.randomise(builders.sequential()))
    close_at_random(masked)
    masked.pop()
    masked.add(layers.Dense(4, name="new_head"))
    masked.get_layer("conv1").trainable = False
    masked.get_layer("bn1").layer.gamma.assign(np.full(8, 3.0))
    small = check_exact(randomise_head(masked))
    assert small.get_layer("new_head").units == 4
    assert small.get_layer("conv1").trainable is False
    assert small.count_params() < masked.count_params()


def randomise_head(model):
    head = model.get_layer("new_head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape))
    return model


def test_keras_itself_refuses_a_layer_without_filters():
    with pytest.raises(ValueError, match="filters"):
        layers.Conv2D(0, 3)


@pytest.mark.parametrize("name", ["plain", "residual", "squeeze_excite", "nested"])
def test_compact_models_are_quantized_and_exported(name, tmp_path):
    masked = filterprune.wrap_model(builders.randomise(builders.BUILDERS[name]()))
    close_at_random(masked)
    small = filterprune.compact(masked)
    x = builders.sample(small)
    expected = builders.outputs(small, x)
    for file in ("small.keras", "small.weights.h5"):
        (small.save_weights if "weights" in file else small.save)(tmp_path / file)
    if TENSORFLOW:
        import tensorflow

        small.export(tmp_path / "saved", verbose=False)
        saved = tensorflow.saved_model.load(tmp_path / "saved")
        served = saved.serve(x)
        for a, b in zip(keras.tree.flatten(served), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    small.quantize("int8")
    for a, b in zip(builders.outputs(small, x), expected, strict=True):
        assert np.abs(a - b).max() < 0.1 * np.abs(b).max() + 0.05


class Tied(layers.Layer):
    """Multiplies by the kernel of another layer, transposed."""

    def __init__(self, other, **kwargs):
        super().__init__(**kwargs)
        self.other = other

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.other.kernel))


def test_weights_that_layers_share():
    """What the tie needs is kept whole; that it is undone is told."""
    x = keras.Input((8,))
    encoder = layers.Dense(6, name="encoder")
    y = encoder(layers.Dense(16, activation="relu", name="wide")(x))
    y = Tied(encoder, name="decoder")(y)
    y = layers.Dense(8, activation="relu", name="hidden")(y)
    model = randomise(keras.Model(x, layers.Dense(3, name="head")(y)))
    with pytest.warns(filterprune.PruningWarning, match="'encoder' and 'decoder'"):
        masked = filterprune.wrap_model(model)
    builders.assert_same_outputs(model, masked)
    close_at_random(masked)
    small = check_exact(masked)
    assert small.get_layer("decoder").other.kernel.shape == (16, 6)
    assert small.get_layer("hidden").units == 4
    by_layer = builders.clone(model)
    close_at_random(by_layer)
    check_exact(by_layer)


@pytest.mark.skipif(BACKEND == "jax", reason="Keras exports from JAX by TensorFlow")
@pytest.mark.filterwarnings("ignore")  # those of the exporters
@pytest.mark.parametrize("name", ["plain", "residual", "squeeze_excite"])
def test_compact_models_run_in_onnx_runtime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    masked = filterprune.wrap_model(builders.randomise(builders.BUILDERS[name]()))
    close_at_random(masked)
    small = filterprune.compact(masked)
    small.export(tmp_path / "small.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    x = builders.sample(small)
    (source,) = session.get_inputs()
    (found,) = session.run(None, {source.name: to_numpy(x)})
    (expected,) = builders.outputs(small, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def edited(path, edit):
    """Change the texts of a `.keras` file, by their names in it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, edit(name, content))


def test_a_file_of_another_version_of_keras(tmp_path):
    """The version alone does no harm; settings that are not known do, by name."""
    masked = filterprune.wrap_model(builders.randomise(builders.plain()))
    close_at_random(masked)
    path = tmp_path / "masked.keras"
    masked.save(path)

    def version(name, content):
        return content.replace(keras.__version__.encode(), b"99.0.0")

    def setting(name, content):
        return content.replace(b'"axis": -1', b'"axis": -1, "from_later": 1')

    edited(path, version)
    loaded = keras.models.load_model(path)
    assert builders.closed(loaded) == builders.closed(masked)
    builders.assert_same_outputs(masked, loaded)
    edited(path, setting)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError), match="from_later"):
        keras.models.load_model(path)
    assert path.read_bytes() == before


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_of_another_model(tmp_path):
    """Keras refuses them, half loaded; gates and weights are still compacted."""
    masked = filterprune.wrap_model(builders.randomise(builders.plain()))
    other = filterprune.wrap_model(builders.residual())
    close_at_random(masked)
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError):
        masked.load_weights(tmp_path / "other.weights.h5")
    check_exact(masked)


BROKEN = {"empty": b"", "no model": b"hello", "truncated": None}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_files_that_are_broken(kind, suffix, tmp_path):
    """Keras says so, and the file is left as it is."""
    masked = filterprune.wrap_model(builders.plain())
    path = tmp_path / f"masked.{suffix}"
    masked.save(path)
    whole = path.read_bytes()
    broken = BROKEN[kind] if BROKEN[kind] is not None else whole[: len(whole) // 2]
    path.write_bytes(broken)
    with pytest.raises((ValueError, OSError, KeyError, zipfile.BadZipFile)):
        keras.models.load_model(path)
    assert path.read_bytes() == broken


def test_no_code_of_a_lambda_is_in_the_compact_model(tmp_path):
    x = keras.Input((6, 6, 3))
    y = layers.Lambda(lambda t: t * 2.0, output_shape=(6, 6, 8))(
        layers.Conv2D(8, 3, padding="same")(layers.Conv2D(8, 1)(x))
    )
    model = randomise(keras.Model(x, layers.Conv2D(2, 1)(y)))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    small = check_exact(masked)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras", safe_mode=True)
    builders.assert_same_outputs(small, loaded)
