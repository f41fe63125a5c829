"""`PruningTensorBoard`, read back by TensorBoard's own reader."""

import io
import pathlib
import subprocess
import sys

import builders
import keras
import numpy as np
import pytest
from builders import closed
from exactness import to_numpy

import filterprune
from filterprune import FilterPruningCallback, PolynomialDecay, PruningTensorBoard
from filterprune.tensorboard import CLOSED, OPEN, gate_image

pytest.importorskip("tensorboard")
X, Y = builders.digits(128)  # 4 steps an epoch


class Gates(keras.callbacks.Callback):
    """Notes after every step which gates are closed."""

    def on_train_begin(self, logs=None):
        self.seen = {}

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.seen[int(to_numpy(optimizer.iterations))] = closed(self.model)


# When to write, and at which steps that is.
WHEN = {"batch": range(9), "epoch": [0, 4, 8], 3: [0, 3, 4, 7, 8], 100: [0, 4, 8]}


def train(log_dir, *callbacks, **kwargs):
    masked = filterprune.wrap_model(builders.build("plain"))
    builders.compiled(masked, **builders.EAGERLY)
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=6, power=1)
    pruning = FilterPruningCallback(schedule, frequency=2, target="macs")
    board = PruningTensorBoard(log_dir, **kwargs)
    options = {"batch_size": 32, "epochs": 2, "verbose": 0}
    return masked.fit(X, Y, callbacks=[pruning, board, *callbacks], **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One fit, written at all those times: its folder, and the gates at each step."""
    folder, gates = tmp_path_factory.mktemp("logs"), Gates()
    boards = [
        PruningTensorBoard(folder / str(freq), freq, gates=freq == "batch")
        for freq in WHEN
    ]
    train(folder, gates, *boards)
    return folder, gates.seen


def read(folder):
    from tensorboard.backend.event_processing import event_accumulator

    options = {event_accumulator.IMAGES: 0, event_accumulator.SCALARS: 0}
    return event_accumulator.EventAccumulator(str(folder), options).Reload()


def series(events, tag):
    return {event.step: event.value for event in events.Scalars(tag)}


def test_sparsity_and_widths_over_steps(run):
    folder, seen = run
    events = read(folder / "batch" / "pruning")
    makers = ["conv1", "conv2", "hidden"]
    sizes = {"conv1": 8, "conv2": 16, "hidden": 16}
    tags = {"sparsity", "macs_removed", *(f"width/{name}" for name in makers)}
    assert set(events.Tags()["scalars"]) == tags
    for name in makers:
        found = series(events, f"width/{name}")
        assert found.pop(0) == sizes[name]
        assert found == {step: g[name].count(False) for step, g in seen.items()}
    found = series(events, "sparsity")
    assert found.pop(0) == 0
    for step, gates in seen.items():
        count = sum(gates[name].count(True) for name in makers)
        assert found[step] == pytest.approx(count / sum(sizes.values()))
    assert series(events, "macs_removed")[8] == pytest.approx(0.5, abs=0.05)


def test_gates_as_images(run):
    from PIL import Image

    folder, seen = run
    found = read(folder / "batch" / "pruning").Images("gates")
    images = {image.step: image for image in found}
    assert set(images) == {0, *seen}
    for step, gates in seen.items():
        stream = io.BytesIO(images[step].encoded_image_string)
        pixels = np.asarray(Image.open(stream))
        assert pixels.shape == (images[step].height, images[step].width, 3)
        for band, name in enumerate(("conv1", "conv2", "hidden")):
            width = pixels.shape[1] // len(gates[name])
            row = pixels[band * 14 + 5, width // 2 :: width]
            assert [tuple(cell) == CLOSED for cell in row.tolist()] == gates[name]
            assert {tuple(cell) for cell in row.tolist()} <= {CLOSED, OPEN}


def test_a_half_closed_gate_is_in_between():
    image = gate_image([np.array([1.0, 0.5, 0.0]), np.ones(600)])
    assert image.shape == (26, 600, 3)
    shades = image[0, [100, 300, 500]].astype(int).tolist()
    middle = [(a + b) // 2 for a, b in zip(OPEN, CLOSED)]
    assert shades == [list(OPEN), middle, list(CLOSED)]


@pytest.mark.parametrize("freq", WHEN)
def test_when_it_writes(freq, run):
    events = read(run[0] / str(freq) / "pruning")
    steps = [event.step for event in events.Scalars("sparsity")]
    assert steps == list(WHEN[freq])
    assert events.Tags()["images"] == (["gates"] if freq == "batch" else [])


class Crash(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_what_was_written_outlives_a_crash_and_a_new_fit_has_a_new_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Crash())
    assert series(read(tmp_path / "pruning"), "sparsity").keys() == {0, 4}
    train(tmp_path)
    files = list((tmp_path / "pruning").iterdir())
    assert len(files) == 2
    assert all("tfevents" in path.name for path in files)


def test_it_works_without_the_pruning_callback(tmp_path):
    masked = filterprune.wrap_model(builders.mlp(4, 16, 3))
    masked.compile("sgd", "mse", **builders.EAGERLY)
    filterprune.prune(masked, 0.5)
    x, y = np.ones((32, 4)), np.ones((32, 3))
    callbacks = [PruningTensorBoard(tmp_path)]
    masked.fit(x, y, batch_size=16, callbacks=callbacks, verbose=0)
    assert series(read(tmp_path / "pruning"), "sparsity") == {0: 0.5, 2: 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"update_freq": 0}, "update_freq=0"),
        ({"update_freq": "step"}, "update_freq='step'"),
        ({"update_freq": 1.5}, "update_freq=1.5"),
        ({"log_dir": "gs://bucket/logs"}, "local directory.*gs://bucket"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PruningTensorBoard(**change)


def test_a_model_without_gates_is_refused_and_nothing_is_written(tmp_path):
    model = builders.compiled(builders.build("plain"))
    with pytest.raises(ValueError, match="has none"):
        model.fit(X, Y, callbacks=[PruningTensorBoard(tmp_path)], verbose=0)
    assert not list(tmp_path.iterdir())


def test_without_tensorboard_the_message_says_what_to_install(monkeypatch):
    find = filterprune.tensorboard.importlib.util.find_spec
    monkeypatch.setattr(
        filterprune.tensorboard.importlib.util,
        "find_spec",
        lambda name: None if name == "tensorboard" else find(name),
    )
    with pytest.raises(ImportError, match=r'pip install "filterprune\[tensorboard\]"'):
        PruningTensorBoard()


ALONE = """
import sys
sys.modules["tensorflow"] = None  # as if it were not installed
import numpy as np, keras, filterprune
x = keras.Input((4,))
model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(8)(x)))
model.compile("sgd", "mse")
filterprune.wrap_model(model).fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0,
    callbacks=[filterprune.PruningTensorBoard("logs")])
print("trained")
"""


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it is the backend")
def test_it_needs_no_tensorflow(tmp_path):
    root = str(pathlib.Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{ALONE}"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.stdout.split() == ["trained"], done.stderr
