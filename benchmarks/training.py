"""What gates cost in training: time and memory, against the plain model.

    python benchmarks/training.py [--toolkit PYTHON] [--quick]

A training step of the masked and of the plain model, in turn, on one batch that is
there: ResNet-50 (64 px, batch 16) and five convolutions (32 px, batch 32), with SGD
and momentum, on TensorFlow without XLA, which makes steps slower on a CPU. `still`
is a step whose gates stand still, the callback asked along; `updated` one at whose
end filters are scored, selected and more of them closed. A run that updates every k
steps takes `still + (updated - still) / k`. Peak memory is that of a process of its
own that trains for some steps.

TensorFlow's toolkit (`tfmot`) prunes single weights by masks; the same is measured of
it, in its own environment (`benchmarks/peers.sh tensorflow-toolkit` makes it), against
the plain model in Keras 2, which is what it works on.
"""

import argparse
import gc
import json
import subprocess
import sys

import measuring
import bars
import numpy as np
from bars import Bar

NETS = {"ResNet-50": (64, 16), "five convolutions": (32, 32)}
MEMORY_STEPS = 6


def build(keras, net):
    size, _ = NETS[net]
    if net == "ResNet-50":
        shape = {"input_shape": (size, size, 3), "classes": 10}
        return keras.applications.ResNet50(
            weights=None, classifier_activation=None, **shape
        )
    layers = keras.layers
    x = inputs = keras.Input((size, size, 3))
    for filters in (32, 64, 64, 128, 128):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        if filters != 32:
            x = layers.MaxPooling2D(padding="same")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def compiled(keras, model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), loss, jit_compile=False)
    return model


def batch(net):
    size, count = NETS[net]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, size, size, 3)).astype("float32")
    return images, rng.integers(0, 10, count)


def our_steps(net):
    """A plain step, one with gates standing still, one with an update; an update."""
    import keras

    import filterprune
    from filterprune.selection import Selector

    model = build(keras, net)
    masked = compiled(keras, filterprune.wrap_model(model))
    plain, (x, y) = compiled(keras, model), batch(net)
    still = _callback(masked, filterprune.ConstantSparsity(0.0, begin_step=10**8))
    ramp = filterprune.PolynomialDecay(final_sparsity=0.5, end_step=4000)
    moving = _callback(masked, ramp)

    def step(callback, number):
        masked.train_on_batch(x, y)
        callback.on_train_batch_end(number)

    selector, count = (
        Selector(filterprune.wrap_model(model), "group"),
        iter(range(10**9)),
    )

    def update():
        number = next(count)  # more of them close every time
        selector.update(0.5 * number / (number + 300))

    return (
        lambda: plain.train_on_batch(x, y),
        lambda: step(still, 0),
        lambda: step(moving, 10**6),
        update,
    )


def _callback(model, schedule):
    """A callback at the point where `fit` has begun."""
    import filterprune

    callback = filterprune.FilterPruningCallback(schedule, frequency=1)
    callback.set_model(model)
    callback.set_params({"epochs": 1, "steps": 10**6})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    return callback


def toolkit_steps(net):
    """The same of TensorFlow's toolkit; it has no update apart from a step."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    def step(frequency):
        schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=frequency)
        wrap = tfmot.sparsity.keras.prune_low_magnitude
        model = compiled(tf_keras, wrap(build(tf_keras, net), schedule))
        callback = tfmot.sparsity.keras.UpdatePruningStep()
        callback.set_model(model)
        callback.on_train_begin()
        return lambda: model.train_on_batch(x, y)

    x, y = batch(net)
    plain = compiled(tf_keras, build(tf_keras, net))
    return lambda: plain.train_on_batch(x, y), step(10**8), step(1)


def time_steps(net, way, seconds) -> dict:
    """Medians of ratios to the plain step."""
    steps = our_steps(net) if way == "ours" else toolkit_steps(net)
    times = measuring.interleaved(steps, seconds, warm=3)
    names = ("still", "updated", "update")
    found = dict(zip(names, map(float, measuring.ratios(times))))
    return {
        **found,
        "plain ms": 1e3 * float(np.median(times[0])),
        "turns": len(times.T),
    }


def peak_memory(net, way) -> dict:
    """How many MB a process has taken at most that trains a model."""
    import resource

    import keras

    import filterprune

    model = build(keras, net)
    if way == "masked":
        model = filterprune.wrap_model(model)
    gc.collect()
    compiled(keras, model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(MEMORY_STEPS):
        model.train_on_batch(*batch(net))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"before": before / 1024, "peak": peak / 1024}


def spawn(python, *arguments) -> dict:
    """Run a worker in a process of its own."""
    command = [python, __file__, "--worker", *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure_memory(net, repeats) -> dict:
    """Medians over processes, plain and masked in turn."""
    rows = [
        {way: spawn(sys.executable, "memory", net, way) for way in ("plain", "masked")}
        for _ in range(repeats)
    ]

    def median(way, what):
        return float(np.median([row[way][what] for row in rows]))

    return {
        "plain MB": median("plain", "peak"),
        "masked MB": median("masked", "peak"),
        "MB before the first step": median("plain", "before"),
        "ratio": float(
            np.median([row["masked"]["peak"] / row["plain"]["peak"] for row in rows])
        ),
    }


def every(row, steps) -> float:
    """A step of a run with an update every so many steps."""
    return row["still"] + (row["updated"] - row["still"]) / steps


def bars_of(figures) -> list[Bar]:
    found = []
    for net, row in figures.items():
        ours, theirs = row["ours"], row["toolkit"]
        beside = row["why not"] if theirs is None else None

        def peer(key, theirs=theirs, beside=beside):
            return beside or f"the TensorFlow toolkit {theirs[key]:.2f}"

        found.append(
            Bar(f"step, gates still, {net}", ours["still"], 1.03, note=peer("still"))
        )
        for steps, most in ((1, 1.15), (10, 1.04), (100, 1.03)):
            what = f"step, gates updated every {steps}, {net}"
            note = peer("updated") if steps == 1 else ""
            found.append(Bar(what, every(ours, steps), most, note=note))
        if "memory" in row:
            ratio = row["memory"]["ratio"]
            found.append(Bar(f"peak memory of training, {net}", ratio, 1.05))
    update = figures.get("ResNet-50", {}).get("ours", {}).get("update")
    found.append(Bar("a gate update / a step, ResNet-50", update, 0.15))
    return found


def measure(net, toolkit, quick) -> dict:
    seconds = 5 if quick else 45
    row = {"ours": spawn(sys.executable, "steps", net, "ours", seconds)}
    row["toolkit"], row["why not"] = None, "the TensorFlow toolkit is not there"
    if toolkit:
        try:
            row["toolkit"] = spawn(toolkit, "steps", net, "toolkit", seconds)
            row["why not"] = None
        except (OSError, subprocess.CalledProcessError) as error:
            row["why not"] = f"the TensorFlow toolkit failed ({type(error).__name__})"
    if not quick:
        row["memory"] = measure_memory(net, 3)
    print(net, row, flush=True)
    return row


def work(kind, net, way, seconds=0.0) -> None:
    """What a worker does: one line of JSON."""
    if kind == "steps":
        print(json.dumps(time_steps(net, way, float(seconds))))
    else:
        print(json.dumps(peak_memory(net, way)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toolkit", metavar="PYTHON", help="see `benchmarks/peers.sh`")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--quick", action="store_true", help="one net, a minute")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return 0
    nets = ["five convolutions"] if options.quick else options.nets
    figures = {net: measure(net, options.toolkit, options.quick) for net in nets}
    found = bars_of(figures)
    bars.save("training", found, figures, options.quick)
    bars.show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
