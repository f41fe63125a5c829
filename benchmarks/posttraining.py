"""Accuracy that is left after pruning without training, on unlabelled images.

    python benchmarks/posttraining.py [--seeds 3] [--nets resnet mobilenet]
        [--left 0.65 0.5 0.25] [--images 512 2048] [--methods ...] [--few]
    python benchmarks/posttraining.py --quick

The dense nets are those of `accuracy.py`: five epochs on 20,000 images of Fashion-MNIST
(Debian's package `dataset-fashion-mnist`). Calibration images are the first of those,
without labels; accuracy is that on all 10,000 test images. `--few` also takes 32 to
256 images. `--quick` takes digits, and ends with 1 unless the fit is ahead of the
pruned net and of new statistics, at a half and at a quarter of the MACs. Each cell is
written when it is done, and skipped when it is there:
`benchmarks/results/posttraining.json`. A table for the documents is written along:
`benchmarks/results/posttraining.rst`.
"""

import argparse
import pathlib
import sys
import time

import measuring
import keras
import numpy as np
from measuring import standard_error
from accuracy import accuracy, macs, trained
from accuracy_data import load_digits, load_fashion
from accuracy_nets import NETS

import filterprune

RESULTS = measuring.RESULTS / "posttraining.json"
TABLE = RESULTS.with_suffix(".rst")
# The most points that may be lost, by net, MACs left and images.
BARS = {
    ("resnet", 0.65): {512: 0.5, 2048: 0.3},
    ("resnet", 0.5): {512: 1.0, 2048: 0.6},
    ("resnet", 0.25): {512: 2.3, 2048: 1.8},
    ("mobilenet", 0.65): {512: 0.7, 2048: 0.4},
    ("mobilenet", 0.5): {512: 1.2, 2048: 0.6},
    ("mobilenet", 0.25): {512: 4.2, 2048: 2.6},
}
FEW = (32, 64, 128, 256)
CRITERIA = ("l1", "l2", "bn_scale", "lamp", "fpgm", "random")


def pruned(dense, left, images, *, reconstruct=None, recalibrate=False, **how):
    """Prune a dense net in one shot, and recover without labels."""
    if reconstruct is not None:
        return filterprune.compress(
            dense, images, 1 - left, target="macs", verbose=0, **reconstruct, **how
        )
    masked = filterprune.wrap_model(dense)
    filterprune.prune(masked, 1 - left, target="macs", **how)
    if recalibrate:
        filterprune.recalibrate(masked, images)
    return filterprune.compact(masked)


METHODS = {
    "pruned": lambda *cell: pruned(*cell),
    "recalibrated": lambda *cell: pruned(*cell, recalibrate=True),
    "fitted": lambda *cell: pruned(*cell, reconstruct={"refine": 0}),
    "fitted and refined": lambda *cell: pruned(*cell, reconstruct={}),
    "reconstruction, fitted": lambda dense, left, images: pruned(
        dense,
        left,
        images,
        reconstruct={"refine": 0},
        criterion=filterprune.criteria.Reconstruction(images, batches=16),
    ),
} | {
    f"{name}, fitted": (
        lambda *cell, name=name: pruned(
            *cell, reconstruct={"refine": 0}, criterion=name
        )
    )
    for name in CRITERIA
}
MAIN = ("fitted and refined", "fitted", "pruned", "recalibrated")


def cells(args):
    """What to measure: the dense nets, then what the bars are of, then the rest."""
    for net in args.nets:
        for seed in range(args.seeds):
            yield net, "dense", 1.0, 0, seed
    for method in args.methods:
        for images in args.images if method in MAIN[:2] else args.images[:1]:
            for left in args.left:
                for net in args.nets:
                    for seed in range(args.seeds):
                        yield net, method, left, images, seed


def measure(net, method, left, images, seed, data, folder) -> dict:
    """One cell: accuracy on the test images and what the net costs."""
    keras.utils.clear_session(free_memory=False)
    dense = trained(net, seed, data, folder)
    keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    model = dense
    if method != "dense":
        model = METHODS[method](dense, left, data[0][:images])
    seconds = time.perf_counter() - started
    model.compile(metrics=["accuracy"], loss=dense.loss, jit_compile=False)
    return {
        "accuracy": accuracy(model, data),
        "macs": macs(model),
        "seconds": round(seconds, 1),
    }


def lost(results) -> dict:
    """The points lost against the dense net of the same seed, by all but the seed."""
    found: dict = {}
    for key, cell in results.items():
        net, method, left, images, seed = key.split("|")
        dense = results.get(f"{net}|dense|1.0|0|{seed}")
        if method != "dense" and dense:
            points = 100 * (dense["accuracy"] - cell["accuracy"])
            row = net, float(left), int(images), method
            found.setdefault(row, []).append(points)
    return found


def table(results) -> str:
    """Points lost as a table in reStructuredText: means over nets."""
    found, lines = lost(results), []
    dense = {
        net: 100
        * np.mean(
            [c["accuracy"] for k, c in results.items() if k.startswith(f"{net}|dense")]
        )
        for net in NETS
        if any(k.startswith(f"{net}|dense") for k in results)
    }
    lines += [
        "Points of accuracy lost against the dense net ("
        + ", ".join(f"{net} {value:.1f} %" for net, value in dense.items())
        + "), on all 10,000 test images of",
        "Fashion-MNIST; means and standard errors over dense nets, by "
        "``benchmarks/posttraining.py``:",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - net, MACs left",
        "     - images",
        *(f"     - {method}" for method in reversed(MAIN)),
    ]
    for net, left in BARS:
        for images in (512, 2048):
            row = [
                found.get((net, left, images if m in MAIN[:2] else 512, m))
                for m in reversed(MAIN)
            ]
            if any(row):
                lines += [f"   * - {net}, {left:g}", f"     - {images}"]
                lines += [f"     - {_mean(values)}" for values in row]
    return "\n".join(lines) + "\n"


def _mean(values) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.1f} ± {standard_error(values):.1f}"


def show(results) -> None:
    for (net, left, images, method), values in sorted(lost(results).items()):
        bar = BARS.get((net, left), {}).get(images) if method == MAIN[0] else None
        text = f"{net:10} {left:5g} {images:5} {method:20} {_mean(values)} lost"
        if bar is not None:
            verdict = measuring.verdict(np.mean(values) <= bar)
            text += f"; at most {bar}: {verdict} ({len(values)} nets)"
        print(text)


def check(results) -> list[str]:
    """Where the fit is not ahead of what others do without labels."""
    found = {row: np.mean(values) for row, values in lost(results).items()}
    return [
        f"{net} at {left}: {MAIN[0]} is not ahead of {other}"
        for (net, left, images, method) in found
        for other in MAIN[2:]
        if method == MAIN[0]
        and found[net, left, images, method] >= found[net, left, images, other]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--left", type=float, nargs="+", default=[0.5, 0.25, 0.65])
    parser.add_argument("--images", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--few", action="store_true", help="also 32 to 256 images")
    parser.add_argument("--quick", action="store_true", help="digits, in minutes")
    args = parser.parse_args()
    folder = pathlib.Path.home() / ".cache" / "filterprune-benchmarks"
    if args.quick:
        args.nets, args.seeds, args.images = ["resnet"], 1, [512]
        args.left, args.methods = [0.5, 0.25], list(MAIN)
        data, results, folder = load_digits(), {}, folder / "quick"
    else:
        data, results = load_fashion(20_000), measuring.load(RESULTS)
        folder = folder / "broad"
    if args.few:
        args.images = [*args.images, *FEW]
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells(args):
        key = "|".join(map(str, cell))
        if key in results:
            continue
        results[key] = measure(*cell, data, folder)
        print(key, results[key], flush=True)
        if not args.quick:
            measuring.save(RESULTS, results, versions=measuring.versions())
    show(results)
    if not args.quick:
        measuring.write(TABLE, table(results))
        return 0
    wrong = check(results)
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
