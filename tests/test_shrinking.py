"""Compacted while it trains: as one fit to callbacks, and to what comes out."""

import builders
import keras
import numpy as np
import pytest
from exactness import assert_close, assert_equal, check_exact, to_numpy

import filterprune
from filterprune import FilterPruningCallback, PolynomialDecay, fit_shrinking
from filterprune.origin import Origin
from filterprune.selection import Selector
from filterprune.shrinking import _shrunk

BATCH = 32
X, Y = builders.digits(4 * BATCH)
BACKEND = keras.backend.backend()
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# Eager on TensorFlow: to compile a model takes longer than to train it.
EAGER = {"run_eagerly": True} if BACKEND == "tensorflow" else {}
SCHEDULE = PolynomialDecay(final_sparsity=0.6, end_step=12)


def net(name="residual", optimizer="adam"):
    masked = filterprune.wrap_model(builders.build(name))
    masked.compile(optimizer, LOSS, metrics=["accuracy"], **EAGER)
    return masked


def shrink(masked, callbacks=(), epochs=5, x=X, y=Y, pruning=None, **kwargs):
    """Fit, compacting after most epochs; the models and epochs seen come along."""
    pruning = pruning or FilterPruningCallback(SCHEDULE, frequency=2)
    if x is X:
        kwargs = {"batch_size": BATCH, "shuffle": False, **kwargs}
    return fit_shrinking(
        masked,
        x,
        y,
        epochs=epochs,
        callbacks=[pruning, *callbacks],
        verbose=0,
        **kwargs,
    )


class Watch(keras.callbacks.Callback):
    """Notes what it is told, and how large the model is at the time."""

    def __init__(self):
        super().__init__()
        self.told, self.sizes, self.steps = [], [], []

    def on_train_begin(self, logs=None):
        self.told.append("begin")

    def on_train_end(self, logs=None):
        self.told.append("end")

    def on_epoch_begin(self, epoch, logs=None):
        self.told.append(epoch)

    def on_epoch_end(self, epoch, logs=None):
        self.sizes.append(self.model.count_params())
        self.steps.append(int(to_numpy(self.model.optimizer.iterations)))


@pytest.mark.parametrize("options", [{"target": "macs"}, {"scope": "layer"}])
def test_it_ends_where_masked_training_does(options):
    """By scores that do not look at weights of channels that are gone."""
    results = []
    for train in ("fit", "shrink"):
        keras.utils.set_random_seed(0)
        # Adam would make steps of what rounding leaves of a gradient of zero.
        masked = net(optimizer=keras.optimizers.SGD(0.01, momentum=0.9))
        pruning = FilterPruningCallback(
            SCHEDULE, frequency=2, criterion="bn_scale", **options
        )
        if train == "shrink":
            small, history = shrink(masked, pruning=pruning)
        else:
            history = masked.fit(
                X,
                Y,
                batch_size=BATCH,
                epochs=5,
                shuffle=False,
                verbose=0,
                callbacks=[pruning],
            )
            small = filterprune.compact(masked)
        results.append((small, history.history))
    (expected, logs), (found, merged) = results
    assert merged.keys() == logs.keys()
    for name, values in logs.items():
        assert_close(merged[name], values, rtol=1e-3, atol=1e-4)
    for new, old in zip(found.weights, expected.weights, strict=True):
        assert_close(new, old, rtol=1e-3, atol=1e-4)
    assert int(to_numpy(found.optimizer.iterations)) == 20
    for new, old in zip(
        found.optimizer.variables, expected.optimizer.variables, strict=True
    ):
        assert_close(new, old, rtol=1e-2, atol=1e-4)


def test_to_callbacks_it_is_one_fit(tmp_path):
    watch = Watch()
    others = [
        watch,
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
    ]
    small, history = shrink(net(), others, validation_data=(X[:32], Y[:32]))
    assert watch.told == ["begin", 0, 1, 2, 3, 4, "end"]
    assert watch.sizes == sorted(watch.sizes, reverse=True)
    assert len(set(watch.sizes)) >= 3  # compacted twice at least
    assert watch.steps == [4, 8, 12, 16, 20]
    assert history.epoch == [0, 1, 2, 3, 4]
    assert {len(values) for values in history.history.values()} == {5}
    assert {"val_loss", "sparsity", "learning_rate"} <= history.history.keys()
    assert history.history["sparsity"][-1] == pytest.approx(0.6, abs=0.03)
    assert small.history is history
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", *"01234"]
    assert float(to_numpy(small.optimizer.learning_rate)) == pytest.approx(1e-3 / 32)
    last = keras.models.load_model(tmp_path / "5.keras")
    assert_close(
        small.predict(X[:8], verbose=0), last.predict(X[:8], verbose=0), atol=1e-5
    )


def batches():
    while True:
        for start in range(0, len(X), BATCH):
            yield X[start : start + BATCH], Y[start : start + BATCH]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return len(X) // BATCH

    def __getitem__(self, number):
        rows = slice(number * BATCH, (number + 1) * BATCH)
        return X[rows], Y[rows]


@pytest.mark.parametrize("kind", ["generator", "PyDataset", "tf.data", "split"])
def test_data_of_every_kind(kind):
    watch, more = Watch(), {}
    x, y = X, Y
    if kind == "generator":
        x, y, more = batches(), None, {"steps_per_epoch": 4}
    elif kind == "PyDataset":
        x, y = Batches(), None
    elif kind == "tf.data":
        if BACKEND != "tensorflow":
            pytest.skip("TensorFlow is not installed")
        import tensorflow

        x = tensorflow.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)
        y, more = None, {"validation_data": x}
    else:
        more = {"validation_split": 0.25}
    small, history = shrink(net("plain"), [watch], epochs=4, x=x, y=y, **more)
    assert len(set(watch.sizes)) >= 2
    assert history.epoch == [0, 1, 2, 3]
    assert ("val_loss" in history.history) == (kind in ("tf.data", "split"))
    assert small.count_params() < watch.sizes[0]


class TestEarlyStopping:
    def stop(self, **kwargs):
        return keras.callbacks.EarlyStopping("sparsity", mode="min", **kwargs)

    def test_it_stops(self):
        watch = Watch()
        _, history = shrink(net(), [self.stop(patience=2), watch], epochs=9)
        assert history.epoch == [0, 1, 2]
        assert watch.told[-1] == "end"

    def test_best_weights_of_a_larger_model_come_with_that(self):
        """The best epoch is the first, before anything was compacted."""
        seen = []
        note = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: seen.append(
                note.model.predict(X[:8], verbose=0)
            )
        )
        stop = self.stop(patience=2, restore_best_weights=True)
        with pytest.warns(filterprune.PruningWarning, match="restores .* epoch 1"):
            small, history = shrink(net(), [note, stop], epochs=9)
        assert len(history.epoch) == 3
        assert np.abs(seen[0] - seen[2]).max() > 1e-3
        assert_close(small.predict(X[:8], verbose=0), seen[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:A sparsity of")
def test_bounds_are_those_of_the_model_as_it_was():
    pruning = FilterPruningCallback(
        PolynomialDecay(final_sparsity=0.9, end_step=16),
        frequency=2,
        scope="layer",
        overrides={"inner": {"max_sparsity": 0.5}, "stem": {"min_filters": 3}},
    )
    small, _ = shrink(net(), pruning=pruning, epochs=6, shrink_at=0.1)
    assert small.get_layer("inner").filters == 6
    assert small.get_layer("stem").filters == 3


def test_a_budget_is_one_of_the_model_as_it_was():
    masked = net("plain")
    full = filterprune.analyze(masked).before.macs
    pruning = FilterPruningCallback(
        PolynomialDecay(end_step=16), frequency=2, target="macs", budget=0.3 * full
    )
    small, history = shrink(masked, pruning=pruning, epochs=6)
    left = filterprune.analyze(small).before.macs
    assert 0.2 * full <= left <= 0.3 * full
    assert history.history["macs_removed"][-1] == pytest.approx(1 - left / full)


def test_not_while_closed_gates_may_open_again():
    watch = Watch()
    pruning = FilterPruningCallback(SCHEDULE, frequency=2, regrow_until=11)
    shrink(net(), [watch], pruning=pruning)
    assert len(set(watch.sizes[:3])) == 1
    assert watch.sizes[3] < watch.sizes[2]


def test_with_a_teacher_and_a_penalty():
    masked = net()
    teacher = builders.build("residual", seed=1)
    filterprune.distill(masked, teacher, alpha=0.5, from_logits=True)
    taught = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: taught.append(
            "compute_loss" in vars(note.model)
        )
    )
    penalties = [
        filterprune.GroupLasso(1e-3, frequency=1, end_step=20),
        filterprune.GrowingRegularization(0.5, frequency=1, end_step=20),
    ]
    small, _ = shrink(masked, [*penalties, note])
    assert taught == [True] * 5
    assert "compute_loss" not in vars(small)


def test_optimizers_go_on_behind_layers_that_hold_others():
    """A layer that is not masked, and whose weights come after one of its own."""
    layers = keras.layers
    x = inputs = keras.Input(X.shape[1:])
    x = layers.Conv2D(8, 3, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    head = layers.SpectralNormalization(layers.Dense(10, name="logits"), name="head")
    masked = filterprune.wrap_model(keras.Model(inputs, head(x)))
    masked.compile("adam", LOSS, **EAGER)
    masked.fit(X, Y, batch_size=16, verbose=0)
    new = _shrunk(masked, Origin(masked))
    pairs = zip(masked.optimizer.variables, new.optimizer.variables, strict=True)
    for expected, found in pairs:
        assert_equal(to_numpy(found), to_numpy(expected))


def test_what_is_closed_stays_so_in_the_model_that_follows():
    masked = net("plain")
    origin = Origin(masked)
    filterprune.prune(masked, 0.5)
    before = origin.closed()
    new = _shrunk(masked, origin)
    assert_equal(origin.closed(), before)
    assert Selector(new, origin=origin).sparsity() == 0.5
    assert Selector(new).sparsity() == 0.0
    check_exact(new)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"callbacks": []}, "one `FilterPruningCallback`"),
        ({"shrink_at": 0}, "above 0"),
        ({"shrink_at": 1.5}, "shrink_at"),
        ({"epochs": -1}, "epochs"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    masked = net()
    given = {"epochs": 2, "callbacks": [FilterPruningCallback(SCHEDULE)], **arguments}
    with pytest.raises(ValueError, match=message):
        fit_shrinking(masked, X, Y, **given)
    assert int(to_numpy(masked.optimizer.iterations)) == 0


def test_models_that_cannot_be_fitted():
    pruning = FilterPruningCallback(SCHEDULE)
    with pytest.raises(ValueError, match="compiled"):
        fit_shrinking(filterprune.wrap_model(builders.plain()), X, callbacks=[pruning])
    with pytest.raises(ValueError, match="gates"):
        fit_shrinking(builders.plain(), X, callbacks=[pruning])
