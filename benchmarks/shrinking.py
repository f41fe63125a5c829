"""Shrink as you train: wall time and accuracy against masked training.

    python benchmarks/shrinking.py [--seeds 3] [--nets resnet mobilenet] [--quick]

Fashion-MNIST (Debian's package `dataset-fashion-mnist`), 20,000 images to train on and
all 10,000 test images. Every net is trained from scratch for 12 epochs and pruned to 4
times fewer MACs from the end of the first to that of the third (by default gates close
in the first 15 %: here after one epoch without), by `fit` and `compact` and again by
`fit_shrinking`, with the same seed; wall time is that of both, compilation included.
Each cell is written when it is done, and skipped when it is there:
`benchmarks/results/shrinking.json`. `--quick` takes 4,000 digits and 4 epochs.
"""

import argparse
import sys
import time

import measuring
import bars
import keras
import numpy as np
from measuring import standard_error
from accuracy import LOSS, NETS
from accuracy_data import BATCH, RATE, load_digits, load_fashion
from bars import Bar

import filterprune

WAYS = ("masked", "shrinking")
RATIO = 4
EPOCHS = {"all": 12, "begin": 1, "end": 3}
QUICK = {"all": 4, "begin": 0, "end": 2}


def run(net, way, seed, data, epochs) -> dict:
    """Train one net in one way."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    steps = -(-len(data[0]) // BATCH)
    model = NETS[net]()
    full = filterprune.analyze(model).before.macs
    rate = keras.optimizers.schedules.CosineDecay(
        RATE, epochs["all"] * steps, alpha=0.01
    )
    masked = filterprune.wrap_model(model)
    # XLA, which Keras takes by itself, makes steps 2.7 times slower on a CPU.
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    masked.compile(
        keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"], jit_compile=jit
    )
    schedule = filterprune.PolynomialDecay(
        begin_step=epochs["begin"] * steps, end_step=epochs["end"] * steps
    )
    pruning = filterprune.FilterPruningCallback(
        schedule, frequency=max(steps // 8, 1), target="macs", budget=full / RATIO
    )
    options = {
        "batch_size": BATCH,
        "epochs": epochs["all"],
        "verbose": 0,
        "callbacks": [pruning],
    }
    started = time.perf_counter()
    if way == "masked":
        masked.fit(data[0], data[1], **options)
        small = filterprune.compact(masked)
    else:
        small, _ = filterprune.fit_shrinking(masked, data[0], data[1], **options)
    seconds = time.perf_counter() - started
    results = small.evaluate(data[2], data[3], batch_size=500, verbose=0)
    return {
        "accuracy": float(results[1]),
        "seconds": round(seconds, 1),
        "macs": filterprune.analyze(small).before.macs / full,
        "params": small.count_params(),
    }


def compare(cells) -> dict:
    """For each net means over the seeds that both ways have."""
    found = {}
    for net in dict.fromkeys(key.split("|")[0] for key in cells):
        rows = [
            [v for k, v in cells.items() if k.startswith(f"{net}|{way}|")]
            for way in WAYS
        ]
        count = min(map(len, rows))
        if not count:
            continue
        seconds, accuracy, macs = (
            np.array([[cell[key] for cell in row[:count]] for row in rows])
            for key in ("seconds", "accuracy", "macs")
        )
        found[net] = {
            "seeds": count,
            "seconds": seconds.mean(axis=1).tolist(),
            "speedup": float(np.median(seconds[0] / seconds[1])),
            "accuracy": (100 * accuracy.mean(axis=1)).tolist(),
            "error": 100 * float(max(map(standard_error, accuracy))),
            "macs": macs.mean(axis=1).tolist(),
        }
    return found


def bars_of(found) -> list[Bar]:
    every = []
    for net, row in found.items():
        what = f"shrinking while training, {net}"
        every.append(Bar(f"{what}: times faster", row["speedup"], least=1.5))
        lost = row["accuracy"][0] - row["accuracy"][1]
        most = row["error"] if row["seeds"] > 1 else None
        every.append(Bar(f"{what}: accuracy lost, %", lost, most))
    return every


def show(found) -> None:
    """A line for each net: means over seeds, masked and shrinking."""
    for net, row in found.items():
        print(
            f"{net}, {row['seeds']} seeds: {row['seconds'][0]:.0f} s masked, "
            f"{row['seconds'][1]:.0f} s shrinking; accuracy {row['accuracy'][0]:.2f} "
            f"and {row['accuracy'][1]:.2f} %, standard error {row['error']:.2f}; MACs "
            f"left {row['macs'][0]:.3f} and {row['macs'][1]:.3f}"
        )


def save(cells, quick) -> None:
    bars.save(
        "shrinking", bars_of(compare(cells)), cells, quick, key="cells", merge=not quick
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--quick", action="store_true", help="digits, a minute")
    options = parser.parse_args()
    if options.quick:
        cells, data, options.seeds, options.nets = {}, load_digits(), 1, ["resnet"]
    else:
        cells, data = (
            measuring.load(bars.path_of("shrinking", False)),
            load_fashion(20_000),
        )
    for net in options.nets:
        for seed in range(options.seeds):
            for way in WAYS:
                key = f"{net}|{way}|{seed}"
                if key in cells:
                    continue
                epochs = QUICK if options.quick else EPOCHS
                cells[key] = run(net, way, seed, data, epochs)
                print(key, cells[key], flush=True)
                save(cells, options.quick)
    save(cells, options.quick)  # the bars of all nets, also if none was new
    show(compare(cells))
    bars.show(bars_of(compare(cells)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
