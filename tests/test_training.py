"""Every way of training that Keras has: gates close on time, compact is exact."""

import os
import signal
import subprocess
import sys
import textwrap

import builders
import keras
import numpy as np
import pytest
from exactness import assert_close, assert_equal, to_numpy

import filterprune
from filterprune import FilterPruningCallback, PolynomialDecay
from filterprune.channels.trace import adafactor_factors
from filterprune.selection import Selector

BATCH = 32
X, Y = builders.digits(8 * BATCH)
BACKEND = keras.backend.backend()
SCHEDULE = PolynomialDecay(final_sparsity=0.5, end_step=12, power=1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(name="plain", optimizer="adam", **kwargs):
    masked = filterprune.wrap_model(builders.BUILDERS[name]())
    kwargs = {**builders.WITHOUT_XLA, **kwargs}
    masked.compile(optimizer, LOSS, metrics=["accuracy"], **kwargs)
    return masked


def fit(masked, epochs=2, callbacks=(), **kwargs):
    callback = FilterPruningCallback(SCHEDULE, frequency=3)
    options = {"batch_size": BATCH, "epochs": epochs, "verbose": 0, **kwargs}
    return masked.fit(X, Y, callbacks=[callback, *callbacks], **options).history


def check(masked, rtol=1e-3, atol=1e-4):
    """The compact model computes what the trained one does, and is smaller."""
    small = filterprune.compact(masked)
    expected, found = (m.predict(X[:32], verbose=0) for m in (masked, small))
    assert_close(found, expected, rtol=rtol, atol=atol)
    assert small.count_params() < 0.8 * masked.count_params()
    return small


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}])
def test_compiled_and_eager(options):
    if BACKEND == "torch" and "jit_compile" in options:
        pytest.skip("torch.compile needs a C++ compiler")
    masked = net(**options)
    assert fit(masked)["sparsity"][-1] == 0.5
    check(masked)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(policy):
    keras.config.set_dtype_policy(policy)
    try:
        masked = net()
    finally:
        keras.config.set_dtype_policy("float32")
    assert fit(masked)["sparsity"][-1] == 0.5
    check(masked, rtol=0.1, atol=0.1)


def test_a_step_that_loss_scaling_skips_does_not_count():
    """Gradients that overflow are not applied: the schedule waits for them."""
    inner = keras.optimizers.SGD(0.01)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**200)
    masked = net(optimizer=scaled)
    with pytest.warns(filterprune.PruningWarning, match="before the pruning schedule"):
        history = fit(masked, epochs=1)
    steps = int(to_numpy(scaled.iterations))
    expected = SCHEDULE(steps - steps % 3)
    assert history["sparsity"][-1] == pytest.approx(expected, abs=0.02)


# On JAX a plain model fails too in what follows a `fit` with `use_ema`: variables
# and their averages share buffers, which Keras 3.15 then donates twice.
AVERAGES_ONCE = "Keras cannot go on after `use_ema` on JAX"


@pytest.mark.skipif(BACKEND == "jax", reason=AVERAGES_ONCE)
def test_exponential_moving_averages():
    masked = net(optimizer=keras.optimizers.Adam(1e-3, use_ema=True))
    assert fit(masked)["sparsity"][-1] == 0.5
    check(masked)
    masked.optimizer.finalize_variable_values(masked.trainable_variables)
    check(masked)


def test_swapped_averages():
    masked = net(optimizer=keras.optimizers.Adam(1e-3, use_ema=True))
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    history = fit(masked, callbacks=[swap], validation_data=(X[:64], Y[:64]))
    assert history["sparsity"][-1] == 0.5
    check(masked)


def test_frozen_layers_are_pruned_and_do_not_move():
    masked = net()
    masked.get_layer("conv1").trainable = False
    masked.compile("adam", LOSS, **builders.WITHOUT_XLA)
    before = to_numpy(masked.get_layer("conv1").layer.kernel).copy()
    assert fit(masked)["sparsity"][-1] == 0.5
    assert_equal(masked.get_layer("conv1").layer.kernel, before)
    small = check(masked)
    assert small.get_layer("conv1").trainable is False
    assert small.get_layer("conv1").filters < 8


def test_layers_with_lora_weights_are_kept_and_all_else_is_pruned():
    model = builders.build("plain")
    model.get_layer("hidden").enable_lora(2)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "lora" in weight.path:
            weight.assign(rng.normal(size=weight.shape))
    masked = filterprune.wrap_model(model)
    builders.assert_same_outputs(model, masked)
    masked.compile("adam", LOSS, **builders.WITHOUT_XLA)
    frozen = to_numpy(masked.get_layer("hidden").weights[0])
    assert fit(masked)["sparsity"][-1] == 0.5
    (barrier,) = filterprune.analyze(masked).barriers
    assert "`hidden` (Dense): it has LoRA weights" in barrier
    small = check(masked)
    assert small.get_layer("hidden").lora_enabled
    assert_equal(small.get_layer("hidden").weights[0], frozen)


def test_restored_best_weights_come_with_their_gates():
    """The best epoch is the first: its gates come back along with its weights."""
    masked = net()
    stop = keras.callbacks.EarlyStopping(
        "sparsity", mode="min", patience=2, restore_best_weights=True
    )
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            (builders.closed(masked), [to_numpy(w).copy() for w in masked.weights])
        )
    )
    with pytest.warns(filterprune.PruningWarning, match="restores .* epoch 1"):
        history = fit(masked, epochs=4, callbacks=[note, stop])
    assert len(history["sparsity"]) == 3  # stopped
    gates, weights = seen[0]
    assert builders.closed(masked) == gates != seen[-1][0]
    for found, expected in zip(masked.weights, weights, strict=True):
        assert_equal(found, expected)
    assert Selector(masked).sparsity() == pytest.approx(history["sparsity"][0])
    check(masked)


def test_checkpoints_schedules_of_the_rate_and_an_end_by_nan(tmp_path):
    masked = net(optimizer=keras.optimizers.SGD(0.01))
    path = tmp_path / "best.keras"
    others = [
        keras.callbacks.ModelCheckpoint(path, "loss", save_best_only=True),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=9),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.TerminateOnNaN(),
    ]
    assert fit(masked, callbacks=others)["sparsity"][-1] == 0.5
    assert float(masked.optimizer.learning_rate) < 0.009
    check(keras.models.load_model(path))
    masked.get_layer("head").bias.assign(np.full(10, np.nan))
    history = fit(masked, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert len(history["loss"]) == 1


def test_train_on_batch_and_a_loop_of_ones_own():
    """The documented way without `fit`: ask the schedule, update the selector."""
    masked = net()
    selector = Selector(masked)
    for step in range(16):
        if step % 3 == 0 or step == SCHEDULE.end_step:
            selector.update(SCHEDULE(step))
        rows = slice(step % 8 * BATCH, step % 8 * BATCH + BATCH)
        masked.train_on_batch(X[rows], Y[rows])
    assert selector.sparsity() == 0.5
    check(masked)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(1e-3),
    "amsgrad": lambda: keras.optimizers.Adam(1e-3, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(1e-3),
    "adamax": lambda: keras.optimizers.Adamax(1e-3),
    "nadam": lambda: keras.optimizers.Nadam(1e-3),
    "rmsprop": lambda: keras.optimizers.RMSprop(1e-3, momentum=0.5, centered=True),
    "adagrad": lambda: keras.optimizers.Adagrad(1e-2),
    "adadelta": lambda: keras.optimizers.Adadelta(0.1),
    "ftrl": lambda: keras.optimizers.Ftrl(1e-2),
    "lion": lambda: keras.optimizers.Lion(1e-3),
    "ema": lambda: keras.optimizers.Adam(1e-3, use_ema=True),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_compact_model_trains_on_as_the_masked_one_does(name):
    """Slots, step and rate come along: three more steps give the same weights."""
    if (name, BACKEND) == ("ema", "jax"):
        pytest.skip(AVERAGES_ONCE)
    # Eager on TensorFlow: to compile three steps takes longer than to run them.
    eager = {"run_eagerly": True} if BACKEND == "tensorflow" else {}
    masked = net(optimizer=OPTIMIZERS[name](), **eager)
    fit(masked)
    small = filterprune.compact(masked)
    small.run_eagerly = masked.run_eagerly
    assert int(to_numpy(small.optimizer.iterations)) == 16
    for step in range(3):
        rows = slice(step * BATCH, step * BATCH + BATCH)
        for model in (masked, small):
            model.train_on_batch(X[rows], Y[rows])
    again = filterprune.compact(masked)
    for found, expected in zip(small.weights, again.weights, strict=True):
        # Of a bias before a batch norm the gradient is nothing but rounding, which
        # optimizers that divide by its size take steps by.
        if found.path in ("conv1/bias", "conv2/bias") and "sgd" not in name:
            continue
        apart = np.abs(to_numpy(found) - to_numpy(expected))
        # Lion steps by the sign of what may be nearly zero.
        assert apart.mean() < (4e-3 if name == "lion" else 2e-5)
        if name in ("sgd", "nesterov", "adam"):
            assert apart.max() < 2e-3


SCALED = {
    "adam": lambda: keras.optimizers.Adam(1e-3),
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "accumulated": lambda: keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2),
    "lion": lambda: keras.optimizers.Lion(1e-3),
}


@pytest.mark.parametrize("name", SCALED)
def test_the_state_of_loss_scaling_comes_along(name, tmp_path, recwarn):
    """The scale, its counter and the inner optimizer's state, and into a file."""
    scaled = keras.optimizers.LossScaleOptimizer(
        SCALED[name](), initial_scale=1024.0, dynamic_growth_steps=5
    )
    masked = net(optimizer=scaled)
    fit(masked)
    small = filterprune.compact(masked)
    assert len(small.optimizer.variables) == len(masked.optimizer.variables)
    assert to_numpy(masked.optimizer.dynamic_scale) == 8 * 1024
    for state in ("dynamic_scale", "step_counter", "iterations"):
        old, new = (to_numpy(getattr(m.optimizer, state)) for m in (masked, small))
        assert old == new, state
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    assert not [w for w in recwarn if "optimizer" in str(w.message)]
    for old, new in zip(
        small.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(to_numpy(old), to_numpy(new))


@pytest.mark.parametrize("first", ["mixed_float16", "float32"])
def test_loss_scaling_follows_the_model_and_not_the_policy(first):
    """`auto_scale_loss` scales by the policy at the time: ours may be another."""
    keras.config.set_dtype_policy(first)
    try:
        masked = net()
        masked.train_on_batch(X[:BATCH], Y[:BATCH])
        keras.config.set_dtype_policy(
            {"float32": "mixed_float16"}.get(first, "float32")
        )
        filterprune.prune(masked, 0.5)
        small = filterprune.compact(masked)
    finally:
        keras.config.set_dtype_policy("float32")
    assert type(small.optimizer) is type(masked.optimizer)
    assert len(small.optimizer.variables) == len(masked.optimizer.variables)
    small.train_on_batch(X[:BATCH], Y[:BATCH])
    assert int(to_numpy(small.optimizer.iterations)) == 2


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_optimizers_whose_slots_are_not_those_of_single_weights(name):
    """They are sliced where that is exact; the model trains on in any case."""
    if name == "muon" and not hasattr(keras.optimizers, "Muon"):
        pytest.skip("this Keras has no Muon")
    kind = {"adafactor": "Adafactor", "muon": "Muon"}[name]
    masked = net(optimizer=getattr(keras.optimizers, kind)(1e-3))
    fit(masked)
    small = check(masked)
    assert int(to_numpy(small.optimizer.iterations)) == 16
    before = small.evaluate(X, Y, verbose=0)[0]
    small.fit(X, Y, batch_size=BATCH, epochs=2, verbose=0)
    assert small.evaluate(X, Y, verbose=0)[0] < before + 0.1


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.01),
        lambda: keras.optimizers.Adam(1e-3),
        lambda: keras.optimizers.Adam(1e-3, use_ema=True),
    ],
    ids=["sgd", "adam", "ema"],
)
def test_folded_constants_outlive_the_optimizer(optimizer, use_bias):
    """A closed channel that is a constant further on is part of a bias then."""
    if BACKEND == "jax" and optimizer().use_ema:
        pytest.skip(AVERAGES_ONCE)
    x = keras.Input((8, 8, 1))
    y = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(x) + 0.25
    y = keras.layers.GlobalMaxPooling2D()(y)
    y = keras.layers.Dense(10, use_bias=use_bias, name="head")(y)
    masked = filterprune.wrap_model(builders.randomise(keras.Model(x, y)))
    masked.compile(optimizer(), LOSS, **builders.WITHOUT_XLA)
    fit(masked)
    masked.optimizer.finalize_variable_values(masked.trainable_variables)
    small = check(masked, rtol=1e-4, atol=1e-5)
    assert small.get_layer("head").use_bias
    small.optimizer.finalize_variable_values(small.trainable_variables)
    expected, found = (m.predict(X[:32], verbose=0) for m in (masked, small))
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def second_moments(model, kernel):
    """What Adafactor divides the gradients of a kernel by, squared."""
    weights = model.trainable_variables
    (index,) = [i for i, weight in enumerate(weights) if weight is kernel]
    rows, columns = (to_numpy(f[index]) for f in adafactor_factors(model.optimizer))
    mean = rows.mean(-1, keepdims=True)
    return (rows / mean)[..., None] * columns[..., None, :]


def test_adafactor_makes_the_same_of_its_sliced_moments():
    """Of the square kernel too, whose rows are as many as its columns."""
    masked = net(optimizer=keras.optimizers.Adafactor(1e-3))
    fit(masked)
    small = filterprune.compact(masked)
    kept = {path: ~np.array(gates) for path, gates in builders.closed(masked).items()}
    for name, read in {"conv2": "conv1", "hidden": "conv2"}.items():
        assert not kept[name].all() and not kept[read].all()
        expected = second_moments(masked, masked.get_layer(name).layer.kernel)
        expected = np.compress(kept[name], expected, axis=-1)
        expected = np.compress(kept[read], expected, axis=-2)
        found = second_moments(small, small.get_layer(name).kernel)
        assert_close(found, expected, rtol=1e-4)


RUN = """
import os, signal, sys
sys.path[:0] = {paths!r}
import keras, numpy as np, builders, filterprune
keras.utils.set_random_seed(0)
if keras.backend.backend() == "tensorflow":
    import tensorflow
    tensorflow.config.experimental.enable_op_determinism()
masked = filterprune.wrap_model(builders.plain())
masked.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
x, y = builders.digits(256)

class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 4):
            os.kill(os.getpid(), signal.SIGKILL)

schedule = filterprune.PolynomialDecay(final_sparsity=0.5, end_step=20)
callbacks = [filterprune.FilterPruningCallback(schedule, frequency=3)]
callbacks += [keras.callbacks.BackupAndRestore(sys.argv[1])]
callbacks += [Kill()] if sys.argv[2] == "kill" else []
masked.fit(x, y, batch_size=32, epochs=3, shuffle=False, callbacks=callbacks, verbose=0)
np.savez(sys.argv[3], **{{w.path.replace("/", "."): keras.ops.convert_to_numpy(w)
                        for w in masked.weights}})
"""


def test_a_killed_run_resumes_and_ends_where_it_would_have(tmp_path):
    """SIGKILL in the middle of the second epoch; the same data, no shuffling.

    Keras restores what was backed up at the end of the first. On TensorFlow, on
    one kind of CPU and with its operations deterministic, to the last bit.
    """
    here = os.path.dirname(__file__)
    program = textwrap.dedent(RUN).format(paths=[here, os.path.dirname(here)])

    def run(backup, mode, result):
        return subprocess.run(
            [sys.executable, "-c", program, tmp_path / backup, mode, tmp_path / result],
            env={**os.environ, "KERAS_BACKEND": BACKEND},
            capture_output=True,
            text=True,
            timeout=300,
        )

    whole = run("a", "whole", "whole.npz")
    assert whole.returncode == 0, whole.stderr[-2000:]
    killed = run("b", "kill", "killed.npz")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = run("b", "whole", "resumed.npz")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    expected, found = (np.load(tmp_path / f"{n}.npz") for n in ("whole", "resumed"))
    for name in expected.files:
        if name.endswith("gate") or BACKEND == "tensorflow":
            assert_equal(found[name], expected[name])
        assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
