"""`fit_shrinking`, killed at any moment and resumed, ends as if it never was."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import builders
import keras
import numpy as np
import pytest
from exactness import assert_equal, to_numpy
from keras import layers

import filterprune
from filterprune import (
    FilterPruningCallback,
    PolynomialDecay,
    fit_shrinking,
    resuming,
    shrinking,
)

X, Y = builders.digits(128)
BACKEND = keras.backend.backend()
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# Eager on TensorFlow: to compile a model takes longer than to train it.
EAGER = {"run_eagerly": True} if BACKEND == "tensorflow" else {}
EPOCHS = 4


class Killed(BaseException):
    """What ends a process: nothing may catch it."""


def net():
    """With moving statistics, seeds and an optimizer that has state."""
    x = inputs = keras.Input(X.shape[1:])
    x = layers.Conv2D(8, 3, use_bias=False, name="stem")(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.Dropout(0.2)(x)
    x = layers.Conv2D(12, 3, activation="relu", name="inner")(x)
    x = layers.Conv2D(12, 1, activation="relu", use_bias=False, name="last")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(10, name="logits")(x))
    masked = filterprune.wrap_model(builders.randomise(model))
    masked.compile("adam", LOSS, **EAGER)
    return masked


class Moment(keras.callbacks.Callback):
    """Kills the run in some epoch, at some event of a callback."""

    def __init__(self, event, epoch, batch=1):
        super().__init__()
        self.at = event, epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.check("epoch_begin", self.at[2])

    def on_train_batch_end(self, batch, logs=None):
        self.check("batch_end", batch)

    def on_epoch_end(self, epoch, logs=None):
        self.check("epoch_end", self.at[2])

    def check(self, event, batch):
        if (event, self.epoch, batch) == self.at:
            raise Killed


def run(folder, *others, **kwargs):
    """A run as a new process would make it."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    schedule = PolynomialDecay(final_sparsity=0.6, end_step=11)
    given = {
        "epochs": EPOCHS,
        "callbacks": [
            FilterPruningCallback(schedule, frequency=2),
            keras.callbacks.BackupAndRestore(folder),
            *others,
        ],
        **kwargs,
    }
    return fit_shrinking(
        net(), X, Y, batch_size=32, shuffle=False, shrink_at=0.1, verbose=0, **given
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody kills."""
    folder = tmp_path_factory.mktemp("whole") / "backup"
    sizes = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: sizes.append(note.model.count_params())
    )
    small, history = run(folder, note)
    assert len(set(sizes)) == 3  # compacted twice
    assert not folder.exists()  # removed, as by Keras
    return small, history


def assert_as_whole(found, whole):
    assert len(found.weights) == len(whole.weights)
    variables = (found.variables, whole.variables)
    optimizers = (found.optimizer.variables, whole.optimizer.variables)
    for mine, theirs in (variables, optimizers):
        for new, old in zip(mine, theirs, strict=True):
            assert_equal(to_numpy(new), to_numpy(old))


def failing(function, times):
    """A function that kills the run at its n-th call, half way through."""
    calls = iter(range(times))

    def failing(*args, **kwargs):
        if next(calls, None) is None:
            raise Killed
        return function(*args, **kwargs)

    return failing


def half_saved(function, times):
    """`save_weights` that kills the run as it has written a part of a file."""
    fails = failing(function, times)

    def save(self, path, *args, **kwargs):
        pathlib.Path(path).write_bytes(b"half")
        return fails(self, path, *args, **kwargs)

    return save


MOMENTS = [
    ("batch_end", 0),  # nothing is backed up
    ("batch_end", 2),
    ("batch_end", 3),
    ("epoch_begin", 1),
    ("epoch_end", 1),
    ("epoch_end", 3),
]


@pytest.mark.parametrize(("event", "epoch"), MOMENTS)
def test_killed_in_training(tmp_path, whole, event, epoch):
    with pytest.raises(Killed):
        run(tmp_path / "b", Moment(event, epoch))
    small, history = run(tmp_path / "b")
    assert history.epoch == list(range(epoch, EPOCHS))
    assert_as_whole(small, whole[0])


@pytest.mark.parametrize(
    ("owner", "name", "kill", "times"),
    [
        (shrinking, "study", failing, 1),  # before a compaction
        (shrinking.Relay, "finish", failing, 0),  # before the last, when all is trained
        (shrinking, "wrap_paths", failing, 0),  # within a compaction
        (shrinking, "go_on_learning", failing, 1),  # after it
        (keras.Model, "save_weights", half_saved, 0),  # within a backup
        (keras.Model, "save_weights", half_saved, 2),
        (resuming, "extras", failing, 2),  # once its weights are written
        (resuming.os, "remove", failing, 0),  # once it is complete
    ],
)
def test_killed_within_a_compaction_or_a_backup(
    tmp_path, whole, monkeypatch, owner, name, kill, times
):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, kill(getattr(owner, name), times))
        with pytest.raises(Killed):
            run(tmp_path / "b")
    small, _ = run(tmp_path / "b")
    assert_as_whole(small, whole[0])
    assert not (tmp_path / "b").exists()


def test_killed_twice(tmp_path, whole):
    for moment in (Moment("batch_end", 1), Moment("batch_end", 3)):
        with pytest.raises(Killed):
            run(tmp_path / "b", moment)
    assert_as_whole(run(tmp_path / "b")[0], whole[0])


def test_penalties_go_on_where_they_were(tmp_path):
    """Which channels they act on, and at which steps."""

    def penalised(folder, *others):
        return run(
            folder,
            filterprune.GroupLasso(0.1, frequency=3, end_step=14),
            filterprune.GrowingRegularization(5.0, frequency=5, end_step=14),
            *others,
        )[0]

    with pytest.raises(Killed):
        penalised(tmp_path / "b", Moment("batch_end", 2))
    assert_as_whole(penalised(tmp_path / "b"), penalised(tmp_path / "a"))


def test_backups_within_epochs_repeat_the_epoch(tmp_path):
    """As with Keras: weights are those of the middle, and the epoch begins anew."""
    keras.utils.set_random_seed(0)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "b", save_freq=3)
    pruning = FilterPruningCallback(PolynomialDecay(0.6, end_step=11), frequency=2)
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(
            (epoch, int(to_numpy(note.model.optimizer.iterations)))
        )
    )
    for others in ([Moment("batch_end", 2, 3)], []):
        given = {"callbacks": [pruning, backup, note, *others]}
        if others:
            with pytest.raises(Killed):
                run(tmp_path / "b", **given)
        else:
            run(tmp_path / "b", **given)
    assert seen == [(0, 0), (1, 4), (2, 8), (2, 9), (3, 13)]
    assert not (tmp_path / "b").exists()


def test_a_backup_of_fit_is_resumed(tmp_path):
    """A plain `fit` was killed, and `fit_shrinking` goes on."""
    masked = net()
    callbacks = [
        keras.callbacks.BackupAndRestore(tmp_path / "b"),
        Moment("batch_end", 2),
    ]
    with pytest.raises(Killed):
        masked.fit(X, Y, batch_size=32, epochs=3, callbacks=callbacks, verbose=0)
    _, history = run(tmp_path / "b")
    assert history.epoch == [2, 3]


def test_a_backup_of_another_model(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "b", Moment("batch_end", 2))
    before = sorted(path.name for path in (tmp_path / "b").iterdir())
    other = builders.compiled(filterprune.wrap_model(builders.plain()))
    callbacks = [
        FilterPruningCallback(PolynomialDecay(end_step=9)),
        keras.callbacks.BackupAndRestore(tmp_path / "b"),
    ]
    with pytest.raises(ValueError, match=r"backup of 'plain' .*delete the folder"):
        fit_shrinking(other, X, Y, epochs=3, callbacks=callbacks, verbose=0)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == before


PROGRAM = """
import os, signal, sys
sys.path[:0] = {paths!r}
import keras, numpy as np
import test_resuming

class Kill(test_resuming.Moment):
    def check(self, event, batch):
        if (event, self.epoch, batch) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

others = [Kill("batch_end", 2)] if sys.argv[2] == "kill" else []
small, _ = test_resuming.run(sys.argv[1], *others)
np.savez(sys.argv[3], *map(keras.ops.convert_to_numpy, small.variables))
"""


def test_killed_by_the_system(tmp_path, whole):
    """SIGKILL in the middle of an epoch, after a compaction."""
    here = os.path.dirname(__file__)
    program = textwrap.dedent(PROGRAM).format(paths=[here, os.path.dirname(here)])

    def process(mode):
        return subprocess.run(
            [sys.executable, "-c", program, tmp_path / "b", mode, tmp_path / "w.npz"],
            env={**os.environ, "KERAS_BACKEND": BACKEND},
            capture_output=True,
            text=True,
            timeout=300,
        )

    killed, resumed = process("kill"), process("resume")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    found = np.load(tmp_path / "w.npz")
    for name, expected in zip(found.files, whole[0].variables, strict=True):
        assert_equal(found[name], to_numpy(expected))
