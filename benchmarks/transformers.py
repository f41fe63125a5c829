"""A vision transformer at half of its heads and half of its feed-forward width.

    python benchmarks/transformers.py [--seeds 3] [--quick]

Real digits of 8 x 8 pixels (scikit-learn), 1,400 to train on and 397 to test on, cut
into patches of 2 x 2. For every seed one dense net is trained. From it each method
closes half of the heads and half of the feed-forward units of every block, at once,
and is fine-tuned for as many epochs. The result has, for every method, the accuracy
right after the gates are closed and after fine-tuning, of the compact net, and for
both nets the milliseconds of an image. It is written to
`benchmarks/results/transformers.json`. The exit status is 1 if no method beats random
choices by `MARGIN`.
"""

import argparse
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers, ops

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import filterprune  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "transformers.json"
MARGIN = 0.05
EPOCHS = {"dense": 30, "tune": 3}


def load_digits():
    """Patches `(images, 16, 4)` and labels, to train on and to test on."""
    from sklearn.datasets import load_digits as load

    data = load()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = (data.images[order] / 16).astype("float32").reshape(-1, 4, 2, 4, 2)
    x, y = x.transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4), data.target[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def positions(count, width):
    """Sines and cosines of the place of each patch."""
    angles = np.arange(count)[:, None] / 50 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype("float32")


def vision_transformer(width=32, heads=4, ffn=96, blocks=3):
    """Blocks that normalise first, and a mean over all patches."""
    inputs = keras.Input((16, 4))
    x = ops.add(layers.Dense(width)(inputs), positions(16, width))
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(heads, width // heads)(y, y)
        y = layers.LayerNormalization()(x)
        y = layers.Dense(ffn, activation="gelu")(y)
        x = x + layers.Dense(width)(y)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x), name="vit")


def compiled(model, rate=2e-3):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(rate)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


def accuracy(model, data):
    return float(model.evaluate(*data[2:], batch_size=397, verbose=0)[1])


def milliseconds(model, x):
    """The time of an image in batches of 200: the best of several runs."""
    batch, run = ops.convert_to_tensor(x[:200]), model.predict_on_batch
    run(batch)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / len(batch)


METHODS = {
    "random": lambda data: "random",
    "l2": lambda data: "l2",
    "group": lambda data: "group",
    "taylor": lambda data: filterprune.criteria.Taylor(data[:2], batches=8),
}


def measure(seed, epochs):
    """The figures of all methods for one seed."""
    data = load_digits()
    keras.utils.set_random_seed(seed)
    dense = compiled(vision_transformer())
    dense.fit(*data[:2], batch_size=64, epochs=epochs["dense"], verbose=0)
    found = {"dense": {"accuracy": accuracy(dense, data), **size(dense, data)}}
    for name, make in METHODS.items():
        keras.utils.set_random_seed(seed)
        masked = filterprune.wrap_model(dense)
        filterprune.prune(
            masked, 0.5, make(data), scope="layer", kinds={"heads", "ffn"}
        )
        small = compiled(filterprune.compact(masked), 1e-3)
        cell = {"pruned": accuracy(small, data), **size(small, data)}
        small.fit(*data[:2], batch_size=64, epochs=epochs["tune"], verbose=0)
        found[name] = {**cell, "tuned": accuracy(small, data)}
        print(seed, name, found[name], flush=True)
    return found


def size(model, data):
    cost = filterprune.analyze(model).before
    return {
        "params": cost.params,
        "macs": cost.macs,
        "ms": milliseconds(model, data[2]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs")
    args = parser.parse_args()
    epochs = {"dense": 12, "tune": 1} if args.quick else EPOCHS
    seeds = range(1 if args.quick else args.seeds)
    cells = [measure(seed, epochs) for seed in seeds]
    mean = {
        name: {key: float(np.mean([c[name][key] for c in cells])) for key in values}
        for name, values in cells[0].items()
    }
    if not args.quick:
        versions = {"keras": keras.__version__, "backend": keras.backend.backend()}
        result = {**versions, "epochs": epochs, "mean": mean, "seeds": cells}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for name, values in mean.items():
        print(name, {key: round(value, 4) for key, value in values.items()})
    best = max(mean[name]["pruned"] for name in METHODS if name != "random")
    if best < mean["random"]["pruned"] + MARGIN:
        sys.exit(f"No method beats random choices by {MARGIN:.0%}.")


if __name__ == "__main__":
    main()
