"""What a user writes, to be read by type checkers: `tests/test_typing.py`.

It also runs, so that what is accepted is right. `reveal` lines say which types a user
gets back.
"""

import json
import pathlib
import tempfile
from typing import assert_type

import keras
import numpy as np

import filterprune
from filterprune import channels, criteria, plots, schedules
from filterprune.selection import Selector


@keras.saving.register_keras_serializable("typing")
class Scale(keras.layers.Layer):
    def build(self, input_shape) -> None:
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale


@filterprune.rule(Scale)
def scale(layer: Scale, x: channels.Channels) -> channels.Channels:
    return channels.same(x, scale="in", gates=("scale",))


@filterprune.register_criterion("typing_peak")
def peak(kernel: np.ndarray) -> np.ndarray:
    return np.abs(kernel).max(axis=0)


class Largest(filterprune.Criterion):
    roles = ("maker", "reader")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return np.abs(rows).max(axis=0)


def build() -> keras.Model:
    image = keras.Input((8, 8, 3))
    t = keras.layers.Conv2D(8, 3, activation="relu", name="first")(image)
    t = keras.layers.Conv2D(8, 3, activation="relu", name="second")(Scale()(t))
    t = keras.layers.BatchNormalization()(t)
    t = keras.layers.GlobalAveragePooling2D()(t)
    model = keras.Model(image, keras.layers.Dense(3, name="head")(t))
    model.compile("sgd", "mse")
    return model


def train(x: np.ndarray, y: np.ndarray, folder: pathlib.Path) -> None:
    model = build()
    by_clone = keras.models.clone_model(model, clone_function=filterprune.wrap)
    filterprune.analyze(by_clone)
    filterprune.wrap_model(model, exclude="head")
    filterprune.wrap_model(model, exclude=keras.layers.Dense)
    filterprune.wrap_model(model, exclude=["head", lambda layer: layer.name == "first"])
    masked = filterprune.wrap_model(model, exclude=("head",))

    schedule: filterprune.Schedule = filterprune.PolynomialDecay(
        initial_sparsity=0.0, final_sparsity=0.5, begin_step=0, end_step=2
    )
    schedules.ConstantSparsity(0.5)
    assert_type(schedule(3), float)
    callbacks = [
        filterprune.FilterPruningCallback(
            schedule,
            frequency=1,
            criterion=criteria.Taylor((x, y), batches=1),
            scope={"all": ["*"]},
            min_filters=2,
            round_to=2,
            rounding="up",
            max_sparsity=0.75,
            overrides={"first": {"max_sparsity": 0.5}},
            regrow_until=0.5,
        ),
        filterprune.GroupLasso(1e-4),
        filterprune.PruningTensorBoard(folder / "logs"),
    ]
    history = masked.fit(x, y, epochs=2, callbacks=callbacks)
    plots.sparsity(history)

    small = filterprune.compact(masked, verify=True)
    small.save(folder / "small.keras")
    small.fit(x, y)
    exported = filterprune.export_model(small, folder / "small.tflite", "litert")
    print(exported.path.name, exported.bytes, exported.difference)


def prune(x: np.ndarray, y: np.ndarray) -> None:
    model = build()
    masked = filterprune.wrap_model(model)
    full = filterprune.analyze(masked).before.macs
    assert_type(full, int)
    reached = filterprune.prune(masked, 0.25)
    assert_type(reached, float)
    filterprune.prune(masked, 0.3, criterion=Largest(reduction="max"), scope="layer")
    filterprune.prune(masked, 0.3, criterion=peak)
    filterprune.prune(masked, 0.3, overrides={"first": 0.5})
    filterprune.prune(masked, target="macs", budget=0.6 * full)
    latency = filterprune.measure_latency(model, points=2, verbose=0)
    assert_type(latency.predict(model), float)
    if latency.predict(model) > 1:  # this small model has no time to give away
        filterprune.prune(filterprune.wrap_model(model), 0.1, target=latency)
    filterprune.recalibrate(masked, x)
    filterprune.distill(masked, teacher=model)

    kept = filterprune.kept_indices(masked)
    assert_type(kept, dict[str, list[int]])
    again = filterprune.replay(model, json.loads(json.dumps(kept)))
    again.summary(print_fn=lambda *args, **kwargs: None)

    result = filterprune.sensitivity(model, (x, y), sparsities=(0.5,), verbose=0)
    print(len(result.rows()))
    report = filterprune.analyze(masked)
    assert_type(report.after.params, int)
    for group in report.groups:
        print(group.name, group.size, group.reason or "prunable")
    pathlib.Path("report.html").write_text(report.to_html(), encoding="utf-8")

    selector = Selector(masked, criterion="l2")
    selector.update(0.5)
    pruning = filterprune.FilterPruningCallback(
        filterprune.IterativeSparsity(final_sparsity=0.5), frequency=1, target="macs"
    )
    masked.compile("sgd", "mse")
    small, history = filterprune.fit_shrinking(
        masked, x, y, epochs=2, callbacks=[pruning], verbose=0
    )
    print(small.name, history.history["sparsity"])


def compress(x: np.ndarray) -> None:
    model = build()
    small = filterprune.compress(
        model, x, 0.5, target="macs", exclude=("head",), refine=0, verbose=0
    )
    print(small.filterprune_report)
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5, criterion=criteria.Reconstruction(x))
    report = filterprune.reconstruct(masked, x, refine=0, verbose=0)
    assert_type(report, filterprune.ReconstructionReport)
    assert_type(report.after, float)


def main() -> None:
    x, y = np.zeros((16, 8, 8, 3)), np.zeros((16, 3))
    with tempfile.TemporaryDirectory() as folder:
        train(x, y, pathlib.Path(folder))
    prune(x, y)
    compress(x)
    print(filterprune.__version__)
