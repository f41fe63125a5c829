"""How long the analysis takes, against `clone_model`, and how it grows.

    python benchmarks/analysis.py [--quick]

Prints a table and writes `benchmarks/results/analysis.json`. Times are medians
of interleaved runs.
"""

import argparse

import measuring
import keras
import numpy as np

from filterprune.channels.groups import study

RESULTS = measuring.RESULTS / "analysis.json"
NETS = ("ResNet50", "DenseNet201", "EfficientNetV2L", "NASNetLarge")
BARS = {"ratio": 0.15, "growth": 1.5}


def analyse(model) -> None:
    """All of it: labels, groups, and what can be pruned."""
    _ = study(model).groups


def measure(name: str, repeats: int) -> dict:
    keras.utils.clear_session()
    constructor = getattr(keras.applications, name)
    model = constructor(weights=None, include_top=False, input_shape=(64, 64, 3))
    pair = (lambda: analyse(model), lambda: keras.models.clone_model(model))
    times = measuring.interleaved(pair, least=repeats, warm=1)
    analysis, clone = np.median(times, axis=1)
    return {
        "layers": len(model.layers),
        "seconds": analysis,
        "per_layer_ms": 1e3 * analysis / len(model.layers),
        "ratio": analysis / clone,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two nets, one run")
    options = parser.parse_args()
    names = NETS[:2] if options.quick else NETS
    rows = {name: measure(name, 1 if options.quick else 5) for name in names}
    base = rows["ResNet50"]["per_layer_ms"]
    print(f"{'net':18}{'layers':>8}{'s':>8}{'ms/layer':>10}{'growth':>8}{'/clone':>8}")
    for name, row in rows.items():
        row["growth"] = row["per_layer_ms"] / base
        print(
            f"{name:18}{row['layers']:8}{row['seconds']:8.2f}"
            f"{row['per_layer_ms']:10.3f}{row['growth']:8.2f}{row['ratio']:8.2f}"
        )
    for key, bar in BARS.items():
        worst = max(row[key] for row in rows.values())
        print(f"{key}: {worst:.2f}, bar {bar}: {measuring.verdict(worst <= bar)}")
    if not options.quick:
        measuring.save(RESULTS, rows, "nets", versions=measuring.versions())


if __name__ == "__main__":
    main()
