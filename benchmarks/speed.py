"""Compaction, the compact model and the import: how fast they are.

    python benchmarks/speed.py [--quick]

Ratios of what runs in turn, as medians: `compact(verify=False)`, with half of every
group closed, against `clone_model` and copying the weights of the full model; a
compact model against the same net written by hand with the widths that are left; and
ResNet-50 at 224 x 224 against itself at half of its widths, multiples of 8, for single
images and batches of 8: as `compact` returns it, also in a process of one thread, and
after `fold_batch_norm`. What `import filterprune` takes beyond `import keras` is that
of processes of their own.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import warnings

import measuring
import bars
import keras
import numpy as np
from accuracy_nets import mobilenet, resnet
from bars import Bar

import filterprune
from filterprune.latency.units import run_model

NETS = ("ResNet50", "EfficientNetB0", "DenseNet201", "NASNetLarge")
# Builders of `accuracy.py`, and a width whose half is a width as well.
HAND_WRITTEN = {"residual net": (resnet, 64), "mobile net": (mobilenet, 64)}
# What of the figures of `halves` is shown, and how it is called.
HALVES = (
    ("halves", "as it is", "as it is"),
    ("halves, one thread", "as it is", "one thread"),
    ("halves", "batch norms folded", "its batch norms folded"),
    ("halves", "both folded", "those of both folded"),
)
IMPORT = """
import time
import keras
started = time.perf_counter()
import filterprune
print(time.perf_counter() - started)
"""


def halved(model, round_to=None):
    """Masked, with half of every group closed."""
    masked = filterprune.wrap_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)
        filterprune.prune(
            masked, sparsity=0.5, criterion="l1", scope="layer", round_to=round_to
        )
    return masked


def compacted(masked):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)
        return filterprune.compact(masked, verify=False)


def application(name):
    keras.utils.clear_session()
    return getattr(keras.applications, name)(weights=None)


def compaction(name, turns) -> dict:
    """`compact` against `clone_model` and copying the weights."""
    model = application(name)
    masked = halved(model)

    def clone():
        keras.models.clone_model(model).set_weights(model.get_weights())

    def compact():
        compacted(masked)

    runs = [clone, compact]
    times = measuring.interleaved(runs, least=turns, warm=1, between=gc.collect)
    return {
        "ratio": float(measuring.ratios(times)[0]),
        "clone s": float(np.median(times[0])),
        "compact s": float(np.median(times[1])),
    }


def hand_written(name, batch, seconds) -> dict:
    """A compact model against the same net with fewer channels from the start."""
    keras.utils.clear_session()
    build, width = HAND_WRITTEN[name]
    small, written = compacted(halved(build(width))), build(width // 2)
    if small.count_params() != written.count_params():
        raise RuntimeError(f"the compact {name} has other widths than that by hand")
    runs = [run_model(model, batch) for model in (written, small)]
    times = measuring.interleaved(runs, seconds, least=20)
    return {
        "ratio": float(measuring.ratios(times)[0]),
        "hand-written ms": 1e3 * float(np.median(times[0])),
        "turns": times.shape[1],
    }


def halves(quick) -> dict:
    """How many times faster ResNet-50 is at half of its widths."""
    size, batches, seconds = (64, (1,), 2) if quick else (224, (1, 8), 20)
    keras.utils.clear_session()
    full = keras.applications.ResNet50(weights=None, input_shape=(size, size, 3))
    small = compacted(halved(full, round_to=8))
    models = {
        "as it is": small,
        "batch norms folded": filterprune.fold_batch_norm(small),
        "both folded": filterprune.fold_batch_norm(full),
    }
    found = {}
    for batch in batches:
        runs = [run_model(model, batch) for model in (*models.values(), full)]
        times = measuring.interleaved(runs, seconds)
        faster = np.median(times[-1] / times[:-1], axis=1).tolist()
        row = dict(zip(models, faster, strict=True))
        both = np.median(times[2] / times[1])
        row |= {
            "both folded": float(both),
            "full ms": 1e3 * float(np.median(times[-1])),
        }
        found[str(batch)] = row
    return found


def halves_on_one_thread(quick) -> dict:
    """The same in a process that computes in one thread."""
    env = dict(os.environ, TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")
    command = [sys.executable, __file__, "--halves", *(["--quick"] if quick else [])]
    run = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def import_seconds(repeats) -> float:
    """What the import takes beyond that of Keras, in the median process."""
    command = [sys.executable, "-c", IMPORT]
    runs = [
        subprocess.run(
            command, cwd=measuring.ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        for _ in range(repeats)
    ]
    return float(np.median([float(run.stdout.split()[-1]) for run in runs]))


def measure(quick) -> dict:
    figures: dict = {"import s": import_seconds(3 if quick else 9)}
    figures["compaction"] = {
        name: compaction(name, 2 if quick else 5)
        for name in (NETS[:1] if quick else NETS)
    }
    figures["hand-written"] = {
        name: hand_written(name, 32, 2 if quick else 15) for name in HAND_WRITTEN
    }
    figures["halves"] = halves(quick)
    figures["halves, one thread"] = halves_on_one_thread(quick)
    return figures


def bars_of(figures, quick) -> list[Bar]:
    found = [
        Bar(f"compact / clone_model with its weights, {name}", row["ratio"], 1.3)
        for name, row in figures["compaction"].items()
    ]
    found += [
        Bar(f"compact model / hand-written, {name}", row["ratio"], 1.03, 0.97)
        for name, row in figures["hand-written"].items()
    ]
    least = {} if quick else {"1": 2.8, "8": 3.3}
    found += [
        Bar(
            f"ResNet-50, full / half as wide, batch {batch}, {name}",
            row[how],
            least=least.get(batch) if how != "both folded" else None,
            note="64 px" if quick else "",
        )
        for key, how, name in HALVES
        for batch, row in figures[key].items()
    ]
    what = "import of filterprune beyond keras, s"
    return [*found, Bar(what, figures["import s"], 0.15)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, in a minute")
    parser.add_argument("--halves", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.halves:
        print(json.dumps(halves(options.quick)))
        return 0
    figures = measure(options.quick)
    found = bars_of(figures, options.quick)
    bars.save("speed", found, figures, options.quick)
    bars.show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
