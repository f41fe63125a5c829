"""Accuracy at 2x, 4x and 8x fewer MACs: criteria and recipes on equal terms.

    python benchmarks/accuracy.py [--seeds 3] [--nets resnet mobilenet] [--ratios 2 4 8]
    python benchmarks/accuracy.py --quick

Real images: Fashion-MNIST (Debian's package `dataset-fashion-mnist`), 20,000 to
train on and all 10,000 test images; `--full` trains on all 60,000. `--quick` takes
5,000 digits, and ends with 1 unless the default is ahead where it is so robustly: of
random filters, uniform L1 and L2 with a third of the MACs gone and no training after.
Every pruned net starts from the same dense one and is fine-tuned for as many epochs;
the narrow net is trained from scratch for as many epochs as dense training and
fine-tuning together. Each cell is written when it is done, and skipped when it is
there: `benchmarks/results/accuracy.json`.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import time

import measuring
import keras
import numpy as np
from measuring import standard_error
from accuracy_data import BATCH, EPOCHS, RATE, RATIOS, load_digits, load_fashion
from accuracy_nets import NETS

import filterprune

RESULTS = measuring.RESULTS / "accuracy.json"


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model, epochs, data):
    """With Adam and a cosine decay over so many epochs."""
    steps = epochs * -(-len(data[0]) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps, alpha=0.01)
    # XLA, which Keras takes by itself, makes steps 2.7 times slower on this CPU.
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    optimizer = keras.optimizers.Adam(rate)
    model.compile(optimizer, LOSS, metrics=["accuracy"], jit_compile=jit)
    return model


def fit(model, data, epochs, callbacks=()):
    model.fit(
        data[0],
        data[1],
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
    )


def accuracy(model, data) -> float:
    return float(model.evaluate(data[2], data[3], batch_size=500, verbose=0)[1])


def macs(model) -> int:
    return filterprune.analyze(model).before.macs


def pruned(dense, data, ratio, *, first=1, teach=None, **how):
    """Prune a dense net to so many times fewer MACs, and fine-tune it.

    Filters go during the `first` epochs (at once if that is 0); the net is then
    compacted, which changes the time it takes and nothing else, and goes on.
    """
    epochs, budget = EPOCHS["tune"], macs(dense) / ratio
    masked = compiled(filterprune.wrap_model(dense), epochs, data)
    if first:
        if teach:
            filterprune.distill(masked, dense, **teach)
        fit(masked, data, first, [pruning(data, first, budget, how)])
    else:
        filterprune.prune(masked, target="macs", budget=budget, **how)
    small = filterprune.compact(masked)
    if teach:
        filterprune.distill(small, dense, **teach)
    fit(small, data, epochs - first)
    return small


def pruning(data, first, budget, how):
    """The callback: as a user has it by default, but for what is in `how`."""
    steps = first * -(-len(data[0]) // BATCH)
    schedule = filterprune.PolynomialDecay(final_sparsity=0.5, end_step=steps * 9 // 10)
    return filterprune.FilterPruningCallback(
        schedule, target="macs", budget=budget, **how
    )


def sparse(penalty, **how):
    """Half of the epochs with a penalty on what is to go, then that at once."""

    def prune(dense, data, ratio):
        epochs = EPOCHS["tune"]
        masked = compiled(filterprune.wrap_model(dense), epochs, data)
        fit(masked, data, epochs // 2, [penalty(ratio)])
        filterprune.prune(masked, target="macs", budget=macs(dense) / ratio, **how)
        small = filterprune.compact(masked)
        fit(small, data, epochs - epochs // 2)
        return small

    return prune


def lasso(ratio):
    return filterprune.GroupLasso(1e-2, end_fraction=1.0)


def decay(ratio):
    return filterprune.GroupWeightDecay(0.1, end_fraction=1.0)


def slimming(ratio):
    return filterprune.ScaleL1(1e-2, end_fraction=1.0)


def growing(ratio):
    """On as many channels as will go: MACs fall with their square."""
    share = 1 - ratio**-0.5
    return filterprune.GrowingRegularization(1.0, sparsity=share, end_fraction=1.0)


def taylor(data):
    return filterprune.criteria.Taylor((data[0], data[1]), batches=4)


def fisher(data):
    return filterprune.criteria.Fisher((data[0], data[1]), batches=4)


def narrow(dense, data, ratio):
    """A net of the same kind with fewer channels everywhere, and the same MACs."""
    build = NETS[dense.name]
    width = width_for(build, macs(dense) / ratio)
    model = compiled(build(width), sum(EPOCHS.values()), data)
    fit(model, data, sum(EPOCHS.values()))
    return model


@functools.cache
def width_for(build, wanted: float) -> float:
    """The width whose net comes nearest to so many MACs."""
    widths = np.arange(2, 16, 0.125).tolist()
    return min(widths, key=lambda width: abs(macs(build(width)) - wanted))


def line(first=1, **how):
    """A method: a criterion and a recipe."""
    return lambda dense, data, ratio: pruned(dense, data, ratio, first=first, **how)


# First what a user has by default, and the classics that it is held against.
METHODS = {
    "default": line(),
    "narrow from scratch": narrow,
    "random filters": line(0, criterion="random", scope="layer"),
    "uniform L1": line(0, criterion="l1", scope="layer"),
    "default, at once": line(0),
    "default, layer by layer": line(scope="layer"),
    "default, taught": line(teach={"alpha": 0.5, "temperature": 4.0}),
    "L2": line(criterion="l2"),
    "LAMP": line(criterion="lamp"),
    "FPGM": line(criterion="fpgm"),
    "batch norm, sparse": sparse(slimming, criterion="bn_scale"),
    "default, group decay": sparse(decay),
    "default, group lasso": sparse(lasso),
    "default, growing penalty": sparse(growing),
    "Taylor": lambda d, x, r: pruned(d, x, r, criterion=taylor(x)),
    "Fisher": lambda d, x, r: pruned(d, x, r, criterion=fisher(x)),
}


def untrained(**how):
    """A criterion by itself: statistics are taken anew, and nothing is trained."""

    def prune(dense, data, ratio):
        masked = filterprune.wrap_model(dense)
        filterprune.prune(masked, target="macs", budget=macs(dense) / ratio, **how)
        small = compiled(filterprune.compact(masked), 1, data)
        filterprune.recalibrate(small, data[0][:2048])
        return small

    return prune


UNTRAINED = {
    "untrained group": untrained(),
    "untrained random": untrained(criterion="random", scope="layer"),
    "untrained L1": untrained(criterion="l1", scope="layer"),
    "untrained L2": untrained(criterion="l2"),
}
# What `--quick` takes: the first of each is to be ahead of the others.
QUICK = {1.5: list(UNTRAINED)}
# Lines of Torch-Pruning, and what `accuracy_peer.py` calls them.
PEER = {
    "Torch-Pruning group norm": "group norm",
    "Torch-Pruning sparse learning": "sparse learning",
}


def cells(args):
    """What to measure: all seeds of a line one after another, dense ones first."""
    for net in args.nets:
        for seed in range(args.seeds):
            yield net, "dense", 1, seed
    for method in (*args.methods, *(PEER if args.peer else ())):
        for net in args.nets:
            for ratio in args.ratios:
                for seed in range(args.seeds):
                    yield net, method, ratio, seed


def quick_cells():
    for ratio, methods in {1: ["dense"], **QUICK}.items():
        for method in methods:
            for seed in range(3):
                yield "resnet", method, ratio, seed


def measure(net, method, ratio, seed, data, folder) -> dict:
    """One cell: accuracy on the test images and what the net costs."""
    keras.utils.clear_session(free_memory=False)
    dense = trained(net, seed, data, folder)
    keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    methods = {"dense": lambda *_: dense, **METHODS, **UNTRAINED}
    model = methods[method](dense, data, ratio)
    return {
        "accuracy": accuracy(model, data),
        "macs": macs(model),
        "params": model.count_params(),
        "seconds": round(time.perf_counter() - started, 1),
    }


def trained(net, seed, data, folder):
    """The dense net, trained once and kept in a file."""
    path = folder / f"{net}-{seed}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        model = compiled(NETS[net](), EPOCHS["dense"], data)
        fit(model, data, EPOCHS["dense"])
        model.save(path)
    return keras.models.load_model(path)


def measure_peer(python, net, method, ratio, seed, data, folder) -> dict:
    """One cell of a peer, in its own environment."""
    command = [python, measuring.ROOT / "benchmarks" / "accuracy_peer.py"]
    command += [net, PEER[method], str(ratio), str(seed), str(len(data[0])), folder]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def show(results) -> None:
    """Mean and standard error over seeds, by net, method and ratio."""
    rows: dict = {}
    for key, cell in results.items():
        net, method, ratio, _ = key.split("|")
        rows.setdefault((net, method), {}).setdefault(float(ratio), []).append(
            100 * cell["accuracy"]
        )
    ratios = sorted({ratio for found in rows.values() for ratio in found})
    heads = (f"{ratio:>8g}x      " for ratio in ratios)
    print(f"{'net':10} {'method':30}" + "".join(heads))
    for (net, method), found in rows.items():
        line = f"{net:10} {method:30}"
        for ratio in ratios:
            values = found.get(ratio)
            if values:
                line += f"{np.mean(values):8.2f} ± {standard_error(values):4.2f}"
            else:
                line += " " * 15
        print(line)


def check(results) -> list[str]:
    """Where the ordering is not the one that is robust even on few digits."""
    found: dict = {}
    for key, cell in results.items():
        found.setdefault(key.split("|")[1], []).append(cell["accuracy"])
    mean = {method: np.mean(values) for method, values in found.items()}
    return [
        f"at {ratio}x: {first} is no better than {other}"
        for ratio, (first, *others) in QUICK.items()
        for other in others
        if mean[first] <= mean[other]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--ratios", type=int, nargs="+", default=list(RATIOS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--peer", metavar="PYTHON", help="see `benchmarks/peers.sh`")
    parser.add_argument("--full", action="store_true", help="all 60,000 images")
    parser.add_argument("--quick", action="store_true", help="digits, in minutes")
    args = parser.parse_args()
    if args.quick:
        data, results_path = load_digits(), None
    else:
        data = load_fashion(60_000 if args.full else 20_000)
        results_path = RESULTS.with_stem("accuracy-full") if args.full else RESULTS
    results = {}
    if results_path is not None:
        results = measuring.load(results_path)
    folder = pathlib.Path.home() / ".cache" / "filterprune-benchmarks"
    folder = folder / ("quick" if args.quick else "full" if args.full else "broad")
    folder.mkdir(parents=True, exist_ok=True)
    for cell in quick_cells() if args.quick else cells(args):
        key = "|".join(map(str, cell))
        if key in results:
            continue
        if cell[1] in PEER:
            results[key] = measure_peer(args.peer, *cell, data, folder)
        else:
            results[key] = measure(*cell, data, folder)
        print(key, results[key], flush=True)
        if results_path is not None:
            measuring.save(results_path, {key: results[key]}, **measuring.versions())
    show(results)
    if results_path is not None:
        plot(results, results_path.with_suffix(".png"))
    problems = check(results) if args.quick else []
    for problem in problems:
        print(problem)
    return int(bool(problems))


def plot(results, path) -> None:
    """Accuracy against MACs, a panel for each net, with standard errors."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: `pip install matplotlib`")
        return
    nets = sorted({key.split("|")[0] for key in results})
    seen = {key.split("|")[1] for key in results}
    shown = [method for method in (*METHODS, *PEER) if method in seen]
    colours = {method: f"C{place % 10}" for place, method in enumerate(shown)}
    figure, axes = pyplot.subplots(1, len(nets), figsize=(6 * len(nets), 5.5))
    for net, panel in zip(nets, np.atleast_1d(axes)):
        dense = [v for k, v in results.items() if k.startswith(f"{net}|dense|")]
        full = np.mean([cell["macs"] for cell in dense])
        panel.axhline(
            100 * np.mean([c["accuracy"] for c in dense]), color="black", lw=1
        )
        lines: dict = {}
        for key, cell in results.items():
            name, method, ratio, _ = key.split("|")
            if name == net and method != "dense":
                lines.setdefault(method, {}).setdefault(int(ratio), []).append(cell)
        for method in filter(lines.get, shown):
            points = lines[method]
            found = [points[ratio] for ratio in sorted(points)]
            share = [np.mean([c["macs"] for c in cells]) / full for cells in found]
            rates = [[100 * c["accuracy"] for c in cells] for cells in found]
            errors = [standard_error(values) for values in rates]
            means = [np.mean(values) for values in rates]
            style = {"marker": "o" if shown.index(method) < 10 else "s", "capsize": 2}
            style |= {"color": colours[method], "lw": 3 if method == "default" else 1}
            panel.errorbar(share, means, errors, label=method, **style)
        panel.set(
            title=net, xlabel="MACs left", ylabel="test accuracy, %", xscale="log"
        )
        panel.set_xticks([1 / ratio for ratio in RATIOS])
        panel.set_xticklabels([f"1/{ratio}" for ratio in RATIOS])
        panel.minorticks_off()
    handles: dict = {}
    for panel in np.atleast_1d(axes):
        found = panel.get_legend_handles_labels()
        handles |= dict(zip(found[1], found[0], strict=True))
    figure.legend(
        [handles[m] for m in shown if m in handles],
        [m for m in shown if m in handles],
        loc="lower center",
        ncols=4,
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
