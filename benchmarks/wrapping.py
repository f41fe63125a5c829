"""How long `wrap_model` and `compact` take with verification, against `clone_model`.

    python benchmarks/wrapping.py [--quick]

Ratios of what runs in turn, as medians, in seconds of the processor: on two real nets,
and on nets of many custom and of many composite layers, whose weights are few and whose
layers are probed or taken apart. `wrap_model` knows no layer from an earlier call. What
of it is verification is that against `verify=False`.
"""

import argparse
import gc
import sys
import time
import warnings

import measuring
import bars
import keras
import numpy as np
from bars import Bar
from keras import layers

import filterprune
from filterprune.channels import probing, remaking

NETS = ("ResNet50", "EfficientNetB0")
BLOCKS = 24


@keras.saving.register_keras_serializable("benchmarks")
class Scale(layers.Layer):
    """A gain for each channel, which no rule is known for."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(input_shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain


@filterprune.composite
@keras.saving.register_keras_serializable("benchmarks")
class Block(layers.Layer):
    """Two convolutions and a sum, in one layer."""

    def build(self, input_shape):
        width = input_shape[-1]
        self.first = layers.Conv3D(2 * width, 3, padding="same", activation="relu")
        self.norm = layers.BatchNormalization()
        self.second = layers.Conv3D(width, 1)
        self.first.build(input_shape)
        self.norm.build((*input_shape[:-1], 2 * width))
        self.second.build((*input_shape[:-1], 2 * width))

    def call(self, x):
        return x + self.second(self.norm(self.first(x)))


def custom(blocks):
    """A 3-D net of convolutions and custom layers in turn."""
    x = y = keras.Input((16, 16, 16, 1))
    for number in range(blocks):
        y = layers.Conv3D(16 + 4 * (number % 6), 3, padding="same")(y)
        y = layers.ReLU()(Scale()(y))
    return keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling3D()(y)))


def composite(blocks):
    """A 3-D net of composite layers."""
    x = keras.Input((16, 16, 16, 1))
    y = layers.Conv3D(16, 3, padding="same")(x)
    for _ in range(blocks):
        y = Block()(y)
    return keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling3D()(y)))


def builders(quick) -> dict:
    found = {
        name: lambda name=name: getattr(keras.applications, name)(weights=None)
        for name in (NETS[1:] if quick else NETS)
    }
    blocks = BLOCKS // 6 if quick else BLOCKS
    found["custom layers"] = lambda: custom(blocks)
    found["composite layers"] = lambda: composite(blocks)
    return found


def wrap(model, verify=True):
    """Wrap a model whose layers were never seen."""
    probing._FOUND.clear()
    remaking._FOUND.clear()
    filterprune.wrap_model(model, verify=verify)


def measure(build, turns) -> dict:
    keras.utils.clear_session()
    model = build()
    masked = filterprune.wrap_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)
        filterprune.prune(masked, sparsity=0.5, criterion="l1", scope="layer")
        runs = [
            lambda: keras.models.clone_model(model),
            lambda: wrap(model),
            lambda: wrap(model, verify=False),
            lambda: filterprune.compact(masked),
            lambda: filterprune.compact(masked, verify=False),
        ]
        times = measuring.interleaved(
            runs, least=turns, warm=1, between=gc.collect, clock=time.process_time
        )
    names = ("clone", "wrap", "wrap unverified", "compact", "compact unverified")
    row = {f"{name} s": float(np.median(t)) for name, t in zip(names, times)}
    row |= {
        "layers": len(model.layers),
        "wrap": float(np.median(times[1] / times[0])),
        "compact": float(np.median(times[3] / times[0])),
        "verification of the wrapping": float(np.median(times[1] / times[2])) - 1,
    }
    return row


def bars_of(figures) -> list[Bar]:
    return [
        bar
        for name, row in figures.items()
        for bar in (
            Bar(f"wrap_model / clone_model, {name}", row["wrap"], 3.0),
            Bar(f"compact / clone_model, {name}", row["compact"], 3.0),
            Bar(
                f"verification / the rest of wrap_model, {name}",
                row["verification of the wrapping"],
                0.5,
            ),
        )
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, in a minute")
    options = parser.parse_args()
    turns = 2 if options.quick else 3
    figures = {
        name: measure(build, turns) for name, build in builders(options.quick).items()
    }
    found = bars_of(figures)
    bars.save("wrapping", found, figures, options.quick)
    bars.show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
