"""How long the analysis takes, against `clone_model`, and how it grows.

    python benchmarks/analysis.py [--quick]

Prints a table and writes `benchmarks/results/analysis.json`. Times are medians
of interleaved runs.
"""

import argparse
import gc
import sys

import measuring
import bars
import keras
import numpy as np
from bars import Bar

from filterprune.channels.groups import study

NETS = ("ResNet50", "DenseNet201", "EfficientNetV2L", "NASNetLarge")


def analyse(model) -> None:
    """All of it: labels, groups, and what can be pruned."""
    _ = study(model).groups


def measure(name: str, repeats: int) -> dict:
    keras.utils.clear_session()
    constructor = getattr(keras.applications, name)
    model = constructor(weights=None, include_top=False, input_shape=(64, 64, 3))
    pair = (lambda: analyse(model), lambda: keras.models.clone_model(model))
    times = measuring.interleaved(pair, least=repeats, warm=1, between=gc.collect)
    analysis, clone = np.median(times, axis=1)
    return {
        "layers": len(model.layers),
        "seconds": analysis,
        "per_layer_ms": 1e3 * analysis / len(model.layers),
        "ratio": analysis / clone,
    }


def bars_of(rows) -> list[Bar]:
    base = rows["ResNet50"]["per_layer_ms"]
    found = [
        Bar(f"analysis / clone_model, {n}", r["ratio"], 0.15) for n, r in rows.items()
    ]
    found += [
        Bar(
            f"analysis, time per layer / ResNet50's, {n}", r["per_layer_ms"] / base, 1.5
        )
        for n, r in rows.items()
        if n != "ResNet50"
    ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two nets, one run")
    options = parser.parse_args()
    names = NETS[:2] if options.quick else NETS
    rows = {name: measure(name, 1 if options.quick else 5) for name in names}
    found = bars_of(rows)
    bars.save("analysis", found, rows, options.quick)
    bars.show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
