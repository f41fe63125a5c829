"""Other callbacks of the same `fit`: those that keep the best epoch of all."""

import sys
import types
from typing import Any

import keras


class Passing(keras.callbacks.Callback):
    """Passes on to another callback, or a list of them, all that happens.

    Args:
        inner: what to pass on to.
    """

    def __init__(self, inner):
        super().__init__()
        self._inner: Any = inner

    def set_params(self, params):
        super().set_params(params)
        self._inner.set_params(params)

    def set_model(self, model):
        super().set_model(model)
        self._inner.set_model(model)

    def on_train_begin(self, logs=None):
        self._inner.on_train_begin(logs)

    def on_train_end(self, logs=None):
        self._inner.on_train_end(logs)

    def on_epoch_begin(self, epoch, logs=None):
        self._inner.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._inner.on_epoch_end(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        self._inner.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self._inner.on_train_batch_end(batch, logs)

    def on_test_begin(self, logs=None):
        self._inner.on_test_begin(logs)

    def on_test_end(self, logs=None):
        self._inner.on_test_end(logs)

    def on_test_batch_begin(self, batch, logs=None):
        self._inner.on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        self._inner.on_test_batch_end(batch, logs)


class AfterPruning(Passing):
    """Lets another callback wait until the pruning schedule has ended.

    `EarlyStopping(restore_best_weights=True)` and
    `ModelCheckpoint(save_best_only=True)` keep the best of all epochs, which often
    is one with too few channels closed. Behind this they see the end of an epoch
    only if the schedule has ended by then: patience counts from there, and the best
    epoch is the best of those that are pruned as far as you asked.

    Args:
        callback: the callback that waits.
        pruning: the `filterprune.FilterPruningCallback` of the same `fit`, which is
            in the list of callbacks too.

    Raises:
        TypeError: if one of them is not such a callback.

    Example:

    ```python
    pruning = filterprune.FilterPruningCallback(
        filterprune.PolynomialDecay(final_sparsity=0.5))
    best = keras.callbacks.EarlyStopping(
        monitor="loss", patience=3, restore_best_weights=True)
    masked.fit(x, y, epochs=5, verbose=0, callbacks=[
        pruning, filterprune.AfterPruning(best, pruning)])
    ```
    """

    def __init__(self, callback, pruning):
        for value, kind in ((callback, None), (pruning, "a pruning")):
            fits = isinstance(value, keras.callbacks.Callback)
            if not fits or (kind and not hasattr(value, "is_done")):
                raise TypeError(
                    "Expected `AfterPruning(callback, pruning)` with a Keras callback "
                    "and the `FilterPruningCallback` of the same `fit`. Received: "
                    f"callback={callback!r}, pruning={pruning!r}"
                )
        super().__init__(callback)
        self._pruning = pruning
        self._done = False

    @property
    def callback(self):
        """The callback that waits."""
        return self._inner

    def on_train_begin(self, logs=None):
        self._done = False
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._done = self._done or self._pruning.is_done()
        if self._done:
            super().on_epoch_end(epoch, logs)

    def on_train_batch_end(self, batch, logs=None):
        if self._done:  # as of the last epoch: to ask at every batch is slow
            super().on_train_batch_end(batch, logs)

    def on_shrink(self, origin):
        """Pass on that `fit_shrinking` has made a new model."""
        if hasattr(self._inner, "on_shrink"):
            self._inner.on_shrink(origin)


class Companions:
    """The other callbacks in the `fit` of one, and whose weights they keep.

    Args:
        callback: a callback that is being called.
        previous: those of its last `fit`, which may have saved files.
    """

    def __init__(self, callback, previous: "Companions | None" = None):
        self.all = [other for other in _beside(callback) if other is not callback]
        self._closed: dict[int, float] = {}
        self._files: dict[int, tuple] = {} if previous is None else previous._files
        self._look(None)

    def note(self, epoch: int, closed: float) -> None:
        """Note what fraction is closed at the end of an epoch."""
        self._closed[epoch] = closed

    def begin(self, epoch: int) -> None:
        """Look, before an epoch, at what was saved at the end of the last one."""
        self._look(epoch - 1)

    def _checkpoints(self) -> list:
        """Those that save a model where it is the best so far."""
        kind = keras.callbacks.ModelCheckpoint
        return [c for c in self.all if isinstance(c, kind) and c.save_best_only]

    def _look(self, epoch: int | None) -> None:
        for checkpoint in self._checkpoints():
            known = self._files.get(id(checkpoint))
            if known is None or checkpoint.best != known[0]:
                closed = None if epoch is None else self._closed.get(epoch)
                self._files[id(checkpoint)] = checkpoint.best, epoch, closed

    def restored(self) -> tuple[int, float] | None:
        """The epoch that the model is put back to, and what is closed then."""
        for callback in reversed(self.all):
            if (
                isinstance(callback, keras.callbacks.EarlyStopping)
                and callback.restore_best_weights
                and callback.best_weights is not None
                and callback.best_epoch in self._closed
            ):
                return callback.best_epoch, self._closed[callback.best_epoch]
        return None

    def saved(self) -> list[tuple[str, int, float]]:
        """Of files with the best weights: path, epoch and what is closed then."""
        self._look(max(self._closed, default=None))
        found = [(c.filepath, *self._files[id(c)][1:]) for c in self._checkpoints()]
        return [file for file in found if file[-1] is not None]


def _beside(callback) -> list:
    """All callbacks of the `fit` that calls one; that alone if it is not known.

    Keras tells a callback nothing of the others. The list that calls it is the
    `CallbackList` further up the stack.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, keras.callbacks.CallbackList) and any(
            other is callback for other in found.callbacks
        ):
            return list(found.callbacks)
        frame = frame.f_back
    return [callback]
