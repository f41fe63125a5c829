"""How long the analysis takes, against `clone_model`, and how it grows.

    python benchmarks/analysis.py [--quick]

Prints a table and writes `benchmarks/results/analysis.json`. Times are medians
of interleaved runs.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import filterprune  # noqa: E402
from filterprune.channels.groups import study  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "analysis.json"
NETS = ("ResNet50", "DenseNet201", "EfficientNetV2L", "NASNetLarge")
BARS = {"ratio": 0.15, "growth": 1.5}


def seconds(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def analyse(model) -> None:
    """All of it: labels, groups, and what can be pruned."""
    _ = study(model).groups


def measure(name: str, repeats: int) -> dict:
    keras.utils.clear_session()
    constructor = getattr(keras.applications, name)
    model = constructor(weights=None, include_top=False, input_shape=(64, 64, 3))
    analyse(model)  # compiles and caches what it runs
    pairs = [
        (
            seconds(lambda: analyse(model)),
            seconds(lambda: keras.models.clone_model(model)),
        )
        for _ in range(repeats)
    ]
    analysis, clone = np.median(pairs, axis=0)
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
        print(f"{key}: {worst:.2f}, bar {bar}: {'holds' if worst <= bar else 'missed'}")
    if not options.quick:
        result = {
            "versions": {
                "filterprune": filterprune.__version__,
                "Keras": keras.__version__,
                "TensorFlow": tensorflow.__version__,
                "Python": platform.python_version(),
            },
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "nets": rows,
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
