"""Accuracy at 2x, 4x and 8x fewer MACs: criteria and recipes on equal terms.

    python benchmarks/accuracy.py [--seeds 3] [--nets resnet mobilenet] [--ratios 2 4 8]
    python benchmarks/accuracy.py --quick

Real images: Fashion-MNIST (Debian's package `dataset-fashion-mnist`), 20,000 to
train on and all 10,000 test images; `--full` trains on all 60,000. `--quick` takes
5,000 digits and 8x fewer MACs, and ends with 1 if random filters or uniform L1 do as
well as what is the default.
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
from keras import layers

import filterprune

RESULTS = measuring.RESULTS / "accuracy.json"


def resnet(width=16):
    """Three stages of a residual block each, 16-32-64 by default."""

    def conv(x, filters, size, strides=1, name=None):
        x = layers.Conv2D(
            filters, size, strides, padding="same", use_bias=False, name=name
        )(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((28, 28, 1))
    x = layers.ReLU()(conv(inputs, round(width), 3))
    for stage in range(3):
        filters, strides = round(width * 2**stage), 1 if stage == 0 else 2
        y = layers.ReLU()(conv(x, filters, 3, strides))
        y = conv(y, filters, 3)
        short = x if stage == 0 else conv(x, filters, 1, strides)
        x = layers.ReLU()(layers.Add()([y, short]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="resnet")


def mobilenet(width=16):
    """Inverted residuals as in MobileNetV2, 16-24-32 by default."""

    def norm(x):
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(round(width), 3, 2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU(6)(norm(x))
    for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1)):
        filters = round(filters * width / 16)
        y = layers.Conv2D(4 * x.shape[-1], 1, use_bias=False)(x)
        y = layers.ReLU(6)(norm(y))
        y = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y)
        y = layers.ReLU(6)(norm(y))
        y = norm(layers.Conv2D(filters, 1, use_bias=False)(y))
        x = layers.Add()([x, y]) if x.shape == y.shape else y
    x = layers.Conv2D(round(8 * width), 1, use_bias=False)(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU(6)(norm(x)))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="mobilenet")


NETS = {"resnet": resnet, "mobilenet": mobilenet}
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


def pruned(dense, data, ratio, *, first=1, prepare=(), teach=None, **how):
    """Prune a dense net to so many times fewer MACs, and fine-tune it.

    Filters go during the `first` epochs (at once if that is 0); the net is then
    compacted, which changes the time it takes and nothing else, and goes on.
    """
    epochs, budget = EPOCHS["tune"], macs(dense) / ratio
    masked = compiled(filterprune.wrap_model(dense), epochs, data)
    if first:
        if teach:
            filterprune.distill(masked, dense, **teach)
        fit(masked, data, first, [*prepare, pruning(data, first, budget, how)])
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
    "default, half of the time": line(3),
    "default, layer by layer": line(scope="layer"),
    "default, taught": line(teach={"alpha": 0.5, "temperature": 4.0}),
    "L2": line(criterion="l2"),
    "LAMP": line(criterion="lamp"),
    "FPGM": line(criterion="fpgm"),
    "batch norm": line(criterion="bn_scale"),
    "batch norm, sparse": lambda d, x, r: pruned(
        d, x, r, first=3, criterion="bn_scale", prepare=[filterprune.ScaleL1(1e-2)]
    ),
    "default, group lasso": lambda d, x, r: pruned(
        d, x, r, first=3, prepare=[filterprune.GroupLasso(1e-3)]
    ),
    "Taylor": lambda d, x, r: pruned(d, x, r, criterion=taylor(x)),
    "Fisher": lambda d, x, r: pruned(d, x, r, criterion=fisher(x)),
}


# What `--quick` takes.
QUICK = ["default", "random filters", "uniform L1"]
# Lines of Torch-Pruning, and what `accuracy_peer.py` calls them.
PEER = {
    "Torch-Pruning group norm": "group norm",
    "Torch-Pruning sparse learning": "sparse learning",
}


def cells(nets, seeds, ratios, methods, peer):
    """What to measure: all seeds of a line one after another, dense ones first."""
    for net in nets:
        for seed in range(seeds):
            yield net, "dense", 1, seed
    for method in (*methods, *(PEER if peer else ())):
        for net in nets:
            for ratio in ratios:
                for seed in range(seeds):
                    yield net, method, ratio, seed


def measure(net, method, ratio, seed, data, folder) -> dict:
    """One cell: accuracy on the test images and what the net costs."""
    keras.utils.clear_session(free_memory=False)
    dense = trained(net, seed, data, folder)
    keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    model = dense if method == "dense" else METHODS[method](dense, data, ratio)
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
        rows.setdefault((net, method), {}).setdefault(int(ratio), []).append(
            100 * cell["accuracy"]
        )
    print(f"{'net':10} {'method':22}" + "".join(f"{r:>8}x      " for r in (1, *RATIOS)))
    for (net, method), found in rows.items():
        line = f"{net:10} {method:22}"
        for ratio in (1, *RATIOS):
            values = found.get(ratio)
            if values:
                line += f"{np.mean(values):8.2f} ± {standard_error(values):4.2f}"
            else:
                line += " " * 15
        print(line)


def check(results) -> list[str]:
    """The ordering that is robust even on few digits."""
    mean: dict = {}
    for key, cell in results.items():
        mean.setdefault(tuple(key.split("|")[:3]), []).append(cell["accuracy"])
    mean = {key: np.mean(values) for key, values in mean.items()}
    return [
        f"{net} at {ratio}x: the default is no better than {other}"
        for (net, method, ratio), value in mean.items()
        for other in QUICK
        if method == "default" and other != "default"
        if value <= mean[net, other, ratio]
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
        args.seeds, args.nets, args.methods, ratios = 2, ["resnet"], QUICK, (8,)
        data, results_path = load_digits(), None
    else:
        data, ratios = load_fashion(60_000 if args.full else 20_000), args.ratios
        results_path = RESULTS.with_stem("accuracy-full") if args.full else RESULTS
    results = {}
    if results_path is not None:
        results = measuring.load(results_path)
    folder = pathlib.Path.home() / ".cache" / "filterprune-benchmarks"
    folder = folder / ("quick" if args.quick else "full" if args.full else "broad")
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells(args.nets, args.seeds, ratios, args.methods, args.peer):
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
    figure, axes = pyplot.subplots(1, len(nets), figsize=(6 * len(nets), 4.5))
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
        for method, points in lines.items():
            found = [points[ratio] for ratio in sorted(points)]
            share = [np.mean([c["macs"] for c in cells]) / full for cells in found]
            rates = [[100 * c["accuracy"] for c in cells] for cells in found]
            errors = [standard_error(values) for values in rates]
            means = [np.mean(values) for values in rates]
            panel.errorbar(share, means, errors, marker="o", capsize=2, label=method)
        panel.set(
            title=net, xlabel="MACs left", ylabel="test accuracy, %", xscale="log"
        )
        panel.set_xticks([1 / ratio for ratio in RATIOS])
        panel.set_xticklabels([f"1/{ratio}" for ratio in RATIOS])
        panel.minorticks_off()
    np.atleast_1d(axes)[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
