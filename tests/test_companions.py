"""Callbacks that keep the best epoch, next to the one that prunes."""

import copy

import builders
import keras
import pytest
from builders import closed

import filterprune
from filterprune import AfterPruning, FilterPruningCallback, PolynomialDecay

X, Y = builders.digits(64)
# The best epoch is the second; half is closed from the third on, of 2 steps each.
SCORES = [0.5, 0.9, 0.6, 0.8, 0.7, 0.6]
SCHEDULE = PolynomialDecay(final_sparsity=0.5, end_step=5, power=1)


class Score(keras.callbacks.Callback):
    """Logs a score that others go by."""

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = SCORES[epoch]


def net():
    masked = filterprune.wrap_model(builders.build("plain"))
    return builders.compiled(masked, **builders.EAGERLY)


def pruning(schedule=SCHEDULE):
    return FilterPruningCallback(schedule, frequency=1)


def stop(**kwargs):
    options = {"mode": "max", "patience": 9, "restore_best_weights": True}
    return keras.callbacks.EarlyStopping("score", **(options | kwargs))


def fit(masked, *callbacks, epochs=6):
    callbacks = [Score(), *callbacks]
    options = {"batch_size": 32, "epochs": epochs, "verbose": 0}
    return masked.fit(X, Y, callbacks=callbacks, **options).history["sparsity"]


def sparsity(masked):
    return filterprune.selection.Selector(masked).sparsity()


def ours(caught):
    """The warnings of filterprune among those that were caught."""
    return [w for w in caught if w.category is filterprune.PruningWarning]


class TestEarlyStopping:
    @pytest.mark.parametrize("pruning_first", [True, False])
    def test_best_weights_of_before_the_end_are_warned_of(self, pruning_first):
        masked, callbacks = net(), [pruning(), stop()]
        words = r"epoch 2, with a sparsity of 0\.4.*was 0\.500 .*AfterPruning"
        with pytest.warns(filterprune.PruningWarning, match=words) as caught:
            history = fit(masked, *callbacks[:: 1 if pruning_first else -1])
        assert history[-1] == 0.5
        assert sparsity(masked) == history[1] < 0.5  # Keras did restore them
        assert [w.filename for w in ours(caught)] == [__file__]

    def test_nothing_is_said_where_the_best_is_pruned_far_enough(self):
        masked = net()
        fit(masked, pruning(), stop(start_from_epoch=2))
        assert sparsity(masked) == 0.5

    @pytest.mark.parametrize("pruning_first", [True, False])
    def test_one_that_waits_restores_the_best_that_is_pruned(self, pruning_first):
        masked, first = net(), pruning()
        best = stop()
        callbacks = [first, AfterPruning(best, first)]
        fit(masked, *callbacks[:: 1 if pruning_first else -1])
        assert best.best_epoch == 3
        assert sparsity(masked) == 0.5

    def test_patience_counts_from_the_end_of_the_schedule(self):
        masked, first = net(), pruning()
        best = stop(patience=2)
        assert len(fit(masked, first, AfterPruning(best, first))) == 6
        assert best.stopped_epoch == 5
        plain = stop(patience=1, min_delta=1, restore_best_weights=False)
        with pytest.warns(filterprune.PruningWarning, match="before the pruning"):
            assert len(fit(net(), pruning(), plain)) == 2

    def test_where_fit_ends_early_the_figure_is_that_of_the_weights(self):
        masked = net()
        with pytest.warns(filterprune.PruningWarning) as caught:
            first = pruning(PolynomialDecay(end_step=99))
            history = fit(masked, first, stop(), epochs=3)
        texts = [str(warning.message) for warning in ours(caught)]
        assert any("`fit` ended at step 6" in text for text in texts)
        assert all(f"{history[1]:.3f}" in text for text in texts)
        assert sparsity(masked) == history[1] < history[-1]


class TestModelCheckpoint:
    def checkpoint(self, path):
        return keras.callbacks.ModelCheckpoint(
            path, "score", mode="max", save_best_only=True
        )

    @pytest.mark.parametrize("pruning_first", [True, False])
    def test_a_best_file_of_before_the_end_is_warned_of(self, pruning_first, tmp_path):
        path = tmp_path / "best.keras"
        callbacks = [pruning(), self.checkpoint(path)]
        words = r"best\.keras' after epoch 2, with a sparsity of 0\.4"
        with pytest.warns(filterprune.PruningWarning, match=words):
            history = fit(net(), *callbacks[:: 1 if pruning_first else -1])
        assert sparsity(keras.saving.load_model(path)) == history[1]

    def test_so_is_one_that_a_second_fit_does_not_replace(self, tmp_path):
        masked, first = net(), pruning()
        checkpoint = self.checkpoint(tmp_path / "best.keras")
        with pytest.warns(filterprune.PruningWarning, match="ended at step 4"):
            fit(masked, first, checkpoint, epochs=2)
        with pytest.warns(filterprune.PruningWarning, match="after epoch 2"):
            fit(masked, first, checkpoint, epochs=1)

    def test_one_that_waits_saves_the_best_that_is_pruned(self, tmp_path):
        path, first = tmp_path / "best.keras", pruning()
        fit(net(), first, AfterPruning(self.checkpoint(path), first))
        assert sparsity(keras.saving.load_model(path)) == 0.5

    def test_one_that_keeps_every_epoch_is_left_alone(self, tmp_path):
        every = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
        fit(net(), pruning(), every)


def test_weights_that_any_other_callback_puts_back_are_warned_of():
    masked = net()
    before = masked.get_weights()
    back = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: masked.set_weights(before)
    )
    with pytest.warns(filterprune.PruningWarning, match=r"0\.000, and was 0\.500"):
        fit(masked, back, pruning())


def test_two_that_prune_are_refused_before_anything_is_closed():
    masked = net()
    before = closed(masked)
    with pytest.raises(ValueError, match=r"one `FilterPruningCallback` for 'plain'"):
        fit(masked, pruning(), pruning(PolynomialDecay(final_sparsity=0.2)))
    assert closed(masked) == before


def test_shrinking_lets_a_callback_wait_too():
    masked, first = net(), pruning()
    best = stop()
    small, history = filterprune.fit_shrinking(
        masked,
        X,
        Y,
        epochs=6,
        batch_size=32,
        verbose=0,
        callbacks=[Score(), first, AfterPruning(best, first)],
    )
    assert best.best_epoch == 3
    assert history.history["sparsity"][-1] == 0.5
    filters = small.get_layer("conv1").filters + small.get_layer("conv2").filters
    assert filters + small.get_layer("hidden").units == 20


def test_a_copy_waits_for_the_copy():
    """As tuners make them: for every trial."""
    first = pruning()
    callbacks = copy.deepcopy([first, AfterPruning(stop(), first)])
    fit(net(), *callbacks)
    assert callbacks[1].callback.best_epoch == 3


@pytest.mark.parametrize(
    "wrong", [(None, pruning()), (stop(), stop()), (stop(), SCHEDULE)]
)
def test_what_cannot_wait(wrong):
    with pytest.raises(TypeError, match=r"FilterPruningCallback.*Received"):
        AfterPruning(*wrong)
