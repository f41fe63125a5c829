"""The user's callbacks over several fits that are to look like one."""

from collections.abc import Callable, Sequence

import keras

from filterprune.companions import AfterPruning, Passing
from filterprune.origin import Origin


class Relay(Passing):
    """Passes on to other callbacks what happens in one fit after another.

    They are told that training begins at the first fit and that it ends after the
    last. A callback with a method `on_shrink(origin)` is told of a new model.

    Args:
        callbacks: the callbacks.
        is_due: whether the fit is to end after this epoch.

    Attributes:
        history: what `History` notes over all fits.
        epoch: how many epochs there were, counted from the first of all.
        stopped: whether a callback wants training to stop.
    """

    def __init__(self, callbacks: Sequence, is_due: Callable[[int], bool]):
        self._all = keras.callbacks.CallbackList(list(callbacks), add_history=True)
        super().__init__(self._all)
        self._is_due = is_due
        self._begun = False
        self._best: dict[int, tuple] = {}
        self._logs: dict | None = None
        self.epoch: int | None = None
        self.stopped = False
        self.history = next(
            callback
            for callback in self._all.callbacks
            if isinstance(callback, keras.callbacks.History)
        )

    def set_model(self, model):
        if model is self.model:
            return
        self._note_best()
        super().set_model(model)

    def _note_best(self) -> None:
        """Remember whose the best weights are that a callback has noted."""
        for callback in self._all.callbacks:
            weights = getattr(_waiting(callback), "best_weights", None)
            known = self._best.get(id(callback))
            if weights is not None and (known is None or known[0] is not weights):
                self._best[id(callback)] = weights, self.model

    def shrunk(self, origin: Origin, model) -> None:
        """Tell of a model that takes the place of the one before."""
        self.set_model(model)
        for callback in self._all.callbacks:
            if hasattr(callback, "on_shrink"):
                callback.on_shrink(origin)

    def finish(self):
        """Tell that training is over; the model that holds the result.

        Best weights of before a compaction belong to the model of that time, which
        then is the result.
        """
        self._note_best()
        result = self.model
        for callback in self._all.callbacks:
            owner = self._best.get(id(callback), (None, None))[1]
            if owner is not None and getattr(
                _waiting(callback), "restore_best_weights", False
            ):
                callback.set_model(owner)
                result = owner
        self._all.on_train_end(self._logs)
        return result

    def on_train_begin(self, logs=None):
        if not self._begun:
            self._begun = True
            super().on_train_begin(logs)

    def on_train_end(self, logs=None):
        self._logs = logs

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self.epoch = epoch + 1
        self.stopped = self.model.stop_training
        if self._is_due(epoch):
            self.model.stop_training = True


def _waiting(callback):
    """The callback that waits for the end of pruning, or the callback itself."""
    return callback.callback if isinstance(callback, AfterPruning) else callback
