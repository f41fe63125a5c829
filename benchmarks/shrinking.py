"""Shrink as you train: wall time and accuracy against masked training.

    python benchmarks/shrinking.py [--seeds 3] [--nets resnet mobilenet] [--quick]

Fashion-MNIST (Debian's package `dataset-fashion-mnist`), 20,000 images to train on and
all 10,000 test images. Every net is trained from scratch for 12 epochs and pruned to 4
times fewer MACs between the first and the fifth, once by `fit` and `compact`, once by
`fit_shrinking`, with the same seed; wall time is that of both, compilation included.
Each cell is written when it is done, and skipped when it is there:
`benchmarks/results/shrinking.json`. `--quick` takes 4,000 digits and 4 epochs.
"""

import argparse
import sys
import time

import measuring
import keras
import numpy as np
from measuring import standard_error, verdict
from accuracy import LOSS, NETS
from accuracy_data import BATCH, RATE, load_digits, load_fashion

import filterprune

RESULTS = measuring.RESULTS / "shrinking.json"
WAYS = ("masked", "shrinking")
RATIO = 4
EPOCHS = {"all": 12, "begin": 1, "end": 5}
QUICK = {"all": 4, "begin": 0, "end": 2}
BARS = {"speedup": 1.5}


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


def show(cells) -> bool:
    """A line for each net: means over seeds, and whether the bars hold."""
    every = True
    for net in dict.fromkeys(key.split("|")[0] for key in cells):
        found = {
            way: [v for k, v in cells.items() if k.startswith(f"{net}|{way}|")]
            for way in WAYS
        }
        count = min(map(len, found.values()))
        if not count:
            continue
        first, second = (
            {
                name: [cell[name] for cell in found[way][:count]]
                for name in ("accuracy", "seconds", "macs")
            }
            for way in WAYS
        )
        speedup = np.median(np.divide(first["seconds"], second["seconds"]))
        rates = [100 * np.array(each["accuracy"]) for each in (first, second)]
        lost = rates[0].mean() - rates[1].mean()
        error = max(standard_error(values) for values in rates)
        held = speedup >= BARS["speedup"], lost <= error or count == 1
        every &= all(held)
        print(
            f"{net}, {count} seeds: {np.mean(first['seconds']):.0f} s masked, "
            f"{np.mean(second['seconds']):.0f} s shrinking, {speedup:.2f}x (bar "
            f"{BARS['speedup']}x: {verdict(held[0])}); accuracy "
            f"{rates[0].mean():.2f} and {rates[1].mean():.2f} %, standard error "
            f"{error:.2f} ({verdict(held[1])}); MACs left "
            f"{np.mean(first['macs']):.3f} and {np.mean(second['macs']):.3f}"
        )
    return every


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--quick", action="store_true", help="digits, a minute")
    options = parser.parse_args()
    if options.quick:
        cells, data, options.seeds, options.nets = {}, load_digits(), 1, ["resnet"]
    else:
        cells, data = measuring.load(RESULTS), load_fashion(20_000)
    for net in options.nets:
        for seed in range(options.seeds):
            for way in WAYS:
                key = f"{net}|{way}|{seed}"
                if key in cells:
                    continue
                epochs = QUICK if options.quick else EPOCHS
                cells[key] = run(net, way, seed, data, epochs)
                print(key, cells[key], flush=True)
                if not options.quick:
                    measuring.save(RESULTS, cells, versions=measuring.versions())
    held = show(cells)
    return int(not held and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
