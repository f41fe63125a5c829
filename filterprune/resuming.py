"""Going on after a kill: what `fit_shrinking` keeps where a backup is to be."""

import importlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras

from filterprune.errors import one_line
from filterprune.files import replacing
from filterprune.origin import Origin

# Which weights there are, in the order in which they are loaded.
STATE = "filterprune.json"


class Backup(keras.callbacks.Callback):
    """Takes the place of a `BackupAndRestore` while a model shrinks.

    Keras keeps one file of weights, which only a model of the same shapes can load.
    Here there is one for each compaction, of the state just before it, and one of
    the last state: a resumed run loads and compacts in turn, and so computes what
    the run that was killed did. What is listed in `STATE` is complete: files are
    written whole, and the list is replaced last.

    Args:
        callback: the `BackupAndRestore`.
        others: the other callbacks. The state is kept of those with methods
            `state_to_resume()`, which returns what JSON can hold, and
            `resume_from(state)`.
        criterion: what filters are scored by. Its state is kept likewise.
        is_ready: whether enough is closed to compact the model.
    """

    def __init__(
        self, callback, others: Sequence, criterion, is_ready: Callable[[], bool]
    ):
        super().__init__()
        self._keras = callback
        self._shrinking = [c for c in others if hasattr(c, "on_shrink")]
        self._others = [c for c in others if hasattr(c, "state_to_resume")]
        self._criterion = [criterion] if hasattr(criterion, "state_to_resume") else []
        self._is_ready = is_ready
        self._folder = pathlib.Path(callback.backup_dir)
        self._every = callback.save_freq
        self._batches = 0
        self._epoch = 0
        self.entries = self._read()
        # What the model was, if it was compacted before training went on.
        self.pending: Origin | None = None

    def _read(self) -> list[dict]:
        path = self._folder / STATE
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise ValueError(
                f"Expected the backup of a run in {path}. Received: a file that "
                f"cannot be read: {error}. Delete the folder to start anew."
            ) from error

    def load(self, model, entry: dict) -> None:
        """Give a model the state of an entry.

        Raises:
            ValueError: if it does not fit.
        """
        path = self._folder / entry["weights"]
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        try:
            model.load_weights(path)
        except Exception as error:  # what Keras raises depends on what does not fit
            raise ValueError(
                f"Expected a backup of '{model.name}' in {self._folder}. Received: "
                f"{path.name}, which does not fit: {one_line(error)} Resume with the "
                "model and the arguments of the run that was killed, or delete the "
                "folder to start anew."
            ) from error
        for variable, value in zip(extras(model), entry["extras"]):
            variable.assign(value)
        _resume(self._criterion, entry["criterion"])
        _set_random_state(entry["random"])

    def on_train_begin(self, logs=None):
        if self.entries:
            _resume(self._others, self.entries[-1]["callbacks"])
            if self.pending is None:  # `fit` may have drawn numbers since
                _set_random_state(self.entries[-1]["random"])
        else:  # a plain `fit` may have left a backup
            self._keras.set_model(self.model)
            self._keras.on_train_begin(logs)
        if self.pending is not None:
            for callback in (*self._shrinking, self):
                callback.on_shrink(self.pending)

    def on_shrink(self, origin) -> None:
        """Keep the last state, which is of the model before."""
        self.entries.append({})

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        if self._every != "epoch" and self._every and self._batches >= self._every:
            self._batches = 0
            self._write(self._epoch, False)

    def on_epoch_end(self, epoch, logs=None):
        ready = self._is_ready()
        if self._every == "epoch" or (self._every and ready):
            self._write(epoch + 1, ready)

    def _write(self, epoch: int, ready: bool) -> None:
        name = f"filterprune-{time.time_ns()}.weights.h5"
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / name) as made:
            self.model.save_weights(made)
        entry = {
            "weights": name,
            "epoch": epoch,
            "ready": ready,
            "extras": [
                keras.ops.convert_to_numpy(variable).tolist()
                for variable in extras(self.model)
            ],
            "callbacks": [c.state_to_resume() for c in self._others],
            "random": _random_state(),
            "criterion": [c.state_to_resume() for c in self._criterion],
        }
        self.entries[-1:] = [entry]
        with replacing(self._folder / STATE, overwrite=True) as made:
            made.write_text(json.dumps(self.entries), encoding="utf-8")
        listed = {entry["weights"] for entry in self.entries}
        for path in self._folder.glob("filterprune-*.weights.h5"):
            if path.name not in listed:
                os.remove(path)

    def finish(self) -> None:
        """Delete what is there, if `BackupAndRestore` would."""
        if self._keras.delete_checkpoint and self._folder.exists():
            shutil.rmtree(self._folder)


def extras(model) -> list:
    """What a model goes on from besides its weights: seeds, states of layers."""
    weights = {id(weight) for weight in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def _random_state() -> list | None:
    """Where PyTorch's own generator is: there dropout and data draw from it."""
    if keras.backend.backend() != "torch":
        return None
    return importlib.import_module("torch").get_rng_state().tolist()


def _set_random_state(state: list | None) -> None:
    if keras.backend.backend() == "torch" and state is not None:
        torch: Any = importlib.import_module("torch")
        torch.set_rng_state(torch.tensor(state, dtype=torch.uint8))


def _resume(parts: Sequence, states: Sequence) -> None:
    for part, state in zip(parts, states):
        part.resume_from(state)
