"""Pruning in TensorBoard: sparsity, widths and gates over steps."""

import importlib.util
import io
import itertools
import os
import pathlib
import socket
import time
from typing import Any

import keras
import numpy as np

from filterprune.schedules import is_integer, optimizer_step
from filterprune.slots import Slots, masked_analysis

PACKAGES = {"tensorboard": "tensorboard", "PIL": "pillow"}
OPEN, CLOSED, GAP = (47, 102, 144), (217, 72, 15), (255, 255, 255)
BAND, WIDTH = 12, 512  # the pixels of a layer in the image of gates
_NUMBERS = itertools.count()


class PruningTensorBoard(keras.callbacks.Callback):
    """Writes what pruning does during `fit` for TensorBoard, on any backend.

    It writes to the run `pruning` in `log_dir`, next to the runs `train` and
    `validation` of `keras.callbacks.TensorBoard(log_dir)`, by optimizer steps:

    - `sparsity`: the fraction of the prunable filters whose gates are closed;
    - `macs_removed` and the like, where `FilterPruningCallback` has a budget;
    - `width/LAYER`: how many filters of each masked layer are open;
    - `gates`: an image with a band for each of those layers, in graph order from
      the top: open channels blue, closed ones orange, half closed ones between.

    It only looks at gates, and so works with whatever closes them. Put it after
    that callback in `callbacks`, so that it sees what was closed at a step.

    Args:
        log_dir: the directory that TensorBoard is started with.
            Defaults to `"logs"`.
        update_freq: when to write: `"epoch"`, `"batch"`, or an integer: after
            so many batches and at the end of every epoch. Defaults to `"epoch"`.
        gates: whether to write the images. Defaults to `True`.

    Raises:
        ImportError: if tensorboard is not installed. TensorFlow is not needed.
        ValueError: if `log_dir` is no local directory or `update_freq` makes no
            sense; and at the start of `fit` if the model has no gates.

    Example:

    ```python
    masked.compile("sgd", "mse")
    masked.fit(x, y, verbose=0, callbacks=[
        filterprune.FilterPruningCallback(
            filterprune.PolynomialDecay(final_sparsity=0.5), frequency=1),
        filterprune.PruningTensorBoard("logs", update_freq=1),
    ])
    ```
    """

    def __init__(
        self,
        log_dir: str | os.PathLike = "logs",
        update_freq: Any = "epoch",
        gates: bool = True,
    ):
        super().__init__()
        missing = [k for k in PACKAGES if importlib.util.find_spec(k) is None]
        if missing:
            names = " and ".join(PACKAGES[name] for name in missing)
            raise ImportError(
                f"`PruningTensorBoard` needs {names}, which cannot be found. "
                'Install what is missing with: pip install "filterprune[tensorboard]"'
            )
        if "://" in str(log_dir):
            raise ValueError(
                "Expected `log_dir` to be a local directory. "
                f"Received: log_dir={log_dir!r}"
            )
        every = {"epoch": 0, "batch": 1}.get(update_freq, update_freq)
        if not is_integer(every) or (every < 1 and update_freq != "epoch"):
            raise ValueError(
                "Expected `update_freq` to be 'epoch', 'batch' or an integer of at "
                f"least 1. Received: update_freq={update_freq!r}"
            )
        self.log_dir = log_dir
        self.update_freq = update_freq
        self.gates = gates
        self._every = int(every)

    def on_train_begin(self, logs=None):
        self._slots = Slots(masked_analysis(self.model))
        analysis = self._slots.analysis
        self._gates = {
            gate.path: gate for gate in analysis.makers if gate.call.mask is not None
        }
        self._writer = _Writer(pathlib.Path(self.log_dir) / "pruning")
        self._written: int | None = None

    def on_epoch_begin(self, epoch, logs=None):
        self._batches = 0
        if self._written is None:  # here, as by now a resumed run is restored
            self._write(logs)

    def on_train_batch_end(self, batch, logs=None):
        before, self._batches = self._batches, batch + 1
        if self._every and self._batches // self._every > before // self._every:
            self._write(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._write(logs)

    def on_train_end(self, logs=None):
        self._writer.close()

    def _write(self, logs) -> None:
        step = optimizer_step(self.model)
        if step == self._written:
            return
        self._written = step
        filters = self._slots.filters
        scalars = {"sparsity": filters[self._slots.closed()].sum() / filters.sum()}
        scalars |= {k: v for k, v in (logs or {}).items() if k.endswith("_removed")}
        scalars |= {
            f"width/{path}": int((~gate.closed()).sum())
            for path, gate in self._gates.items()
        }
        images = {}
        if self.gates:
            every = [gate.variable for gate in self._gates.values()]
            images["gates"] = gate_image([*map(keras.ops.convert_to_numpy, every)])
        self._writer.write(step, scalars, images)


def gate_image(gates: list[np.ndarray]) -> np.ndarray:
    """A band for each layer, `(height, width, 3)` uint8."""
    width = max([WIDTH, *(gate.size for gate in gates)])
    bands = []
    for gate in gates:
        cells = gate[np.arange(width) * gate.size // width, None].clip(0, 1)
        band = np.broadcast_to(cells * OPEN + (1 - cells) * CLOSED, (BAND, width, 3))
        bands += [band, np.broadcast_to(GAP, (2, width, 3))]
    return np.concatenate(bands[:-1]).astype("uint8")


class _Writer:
    """Writes one file of events.

    By tensorboard's own records and messages, but not by its `EventFileWriter`:
    that imports TensorFlow, wherever it is installed, on every backend.
    """

    def __init__(self, folder: pathlib.Path):
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        path = folder / f"{name}.{os.getpid()}.{next(_NUMBERS)}"
        self._records = RecordWriter(path.open("wb"))
        self._add(file_version="brain.Event:2")

    def write(self, step: int, scalars: dict, images: dict) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in scalars.items()
        ]
        for tag, array in images.items():
            height, width, depth = array.shape
            image = Summary.Image(
                height=height,
                width=width,
                colorspace=depth,
                encoded_image_string=_png(array),
            )
            values.append(Summary.Value(tag=tag, image=image))
        self._add(step=step, summary=Summary(value=values))

    def _add(self, **fields) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
        self._records.flush()  # so that TensorBoard shows it, and a kill loses none

    def close(self) -> None:
        self._records.close()


def _png(array: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()
