"""Half of the heads, half of the feed-forward width, half of the recurrent units.

    python benchmarks/transformers.py [--seeds 3] [--models vit lm rnn] [--quick]

Three models, on real data that is at hand offline: a vision transformer and a
recurrent reader of rows on digits of 8 x 8 pixels (scikit-learn; 1,400 to train on,
397 to test on), and a language model of characters on the language reference that
Python carries along (`pydoc_data`; nine tenths to train on). For every seed one dense
model is trained. From it the default criterion, Taylor and random choices (the mean
of `DRAWS`) each close half of every group of the kinds pruned, at once; the compact
model is then fine-tuned. The table has the accuracy right after pruning and after
fine-tuning, and the milliseconds of a batch, for the dense and the compact model in
turn: the best of many runs. It is written to `benchmarks/results/transformers.json`
and, to be read, `transformers.md`. The exit status is 1 if, of the heads and the
feed-forward width of one of the transformers, the default does not choose better than
at random by `MARGIN`, right after pruning.
"""

import argparse
import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Callable

import measuring
import keras
import numpy as np
from keras import layers, ops

import filterprune

RESULTS = measuring.RESULTS / "transformers.json"
MARGIN = 0.03
DRAWS = 5
DECAY = 0.3  # as transformers are trained: what is not needed gets small
LETTERS, CONTEXT = 64, 48


def digits():
    """Images and labels, to train on and to test on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.images[order] / 16).astype("float32"), data.target[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def patches():
    """The same images as sequences of 16 patches of 2 x 2."""
    x, y, x_test, y_test = digits()

    def cut(images):
        parts = images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
        return parts.reshape(-1, 16, 4)

    return cut(x), y, cut(x_test), y_test


def text():
    """Windows of characters, and for each character the one that follows."""
    from pydoc_data import topics

    whole = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    known = [letter for letter, _ in Counter(whole).most_common(LETTERS - 1)]
    numbers = {letter: number + 1 for number, letter in enumerate(known)}
    codes = np.array([numbers.get(letter, 0) for letter in whole], "int32")
    rows = codes[: codes.size // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    x, y = rows[:, :-1], rows[:, 1:]
    count = 9 * len(rows) // 10
    return x[:count], y[:count], x[count:], y[count:]


def positions(count, width):
    """Sines and cosines of each place."""
    angles = np.arange(count)[:, None] / 50 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype("float32")


def block(x, heads, ffn, **kwargs):
    """A transformer block that normalises first."""
    width = x.shape[-1]
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(heads, width // heads)(y, y, **kwargs)
    y = layers.LayerNormalization()(x)
    y = layers.Dense(ffn, activation="gelu")(y)
    return x + layers.Dense(width)(y)


def vision_transformer(width=32, heads=4, ffn=96, blocks=3):
    inputs = keras.Input((16, 4))
    x = ops.add(layers.Dense(width)(inputs), positions(16, width))
    for _ in range(blocks):
        x = block(x, heads, ffn)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x), name="vit")


def language_model(width=64, heads=4, ffn=256, blocks=2):
    """A causal transformer whose embedding scores the characters as well."""
    inputs = keras.Input((CONTEXT - 1,), dtype="int32")
    table = layers.ReversibleEmbedding(LETTERS, width)
    x = ops.add(table(inputs), positions(CONTEXT - 1, width))
    for _ in range(blocks):
        x = block(x, heads, ffn, use_causal_mask=True)
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, table(x, reverse=True), name="lm")


def recurrent_reader(units=32):
    """Reads an image row by row, both ways."""
    inputs = keras.Input((8, 8))
    x = layers.Bidirectional(layers.LSTM(units, return_sequences=True))(inputs)
    return keras.Model(inputs, layers.Dense(10)(layers.GRU(units)(x)), name="rnn")


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its data and what of it is pruned."""

    build: Callable
    data: Callable
    kinds: frozenset
    epochs: tuple[int, int]  # of the dense model, of fine-tuning
    rate: float
    what: str


HEADS = frozenset({"heads", "ffn"})
TASKS = {
    "vit": Task(vision_transformer, patches, HEADS, (30, 3), 2e-3, "digits, patches"),
    "lm": Task(language_model, text, HEADS, (6, 1), 2e-3, "characters of a text"),
    "rnn": Task(
        recurrent_reader, digits, frozenset({"units"}), (20, 3), 4e-3, "digits, rows"
    ),
}


def compiled(model, rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=DECAY)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


def accuracy(model, data):
    return float(model.evaluate(*data[2:], batch_size=256, verbose=0)[1])


def milliseconds(models, x):
    """The time of a batch of 64, the models taken in turn: the best of all turns."""
    batch = ops.convert_to_tensor(x[:64])
    runs = [functools.partial(model.predict_on_batch, batch) for model in models]
    return 1000 * np.min(measuring.interleaved(runs, least=30), axis=1)


def pruned(dense, task, criterion):
    """The compact model of half of every group of the task's kinds."""
    masked = filterprune.wrap_model(dense)
    filterprune.prune(masked, 0.5, criterion, scope="layer", kinds=task.kinds)
    return compiled(filterprune.compact(masked), task.rate / 2)


def measure(task, seed, quick):
    """The figures of one seed."""
    data = task.data()
    epochs = [max(count // 2, 1) for count in task.epochs] if quick else task.epochs
    keras.utils.set_random_seed(seed)
    dense = compiled(task.build(), task.rate)
    dense.fit(*data[:2], batch_size=64, epochs=epochs[0], verbose=0)
    cost = filterprune.analyze(dense).before
    found = {"dense": accuracy(dense, data), "params": cost.params, "macs": cost.macs}
    draws = [filterprune.criteria.Random(seed * DRAWS + n) for n in range(DRAWS)]
    taylor = filterprune.criteria.Taylor(data[:2], batches=8)
    choices = {"default": ["group"], "taylor": [taylor], "random": draws}
    for name, criteria in choices.items():
        models = [pruned(dense, task, criterion) for criterion in criteria]
        found[f"{name} pruned"] = float(np.mean([accuracy(m, data) for m in models]))
        keras.utils.set_random_seed(seed)
        small = models[0]
        small.fit(*data[:2], batch_size=64, epochs=epochs[1], verbose=0)
        found[f"{name} tuned"] = accuracy(small, data)
    cost = filterprune.analyze(small).before
    found |= {"params after": cost.params, "macs after": cost.macs}
    times = milliseconds([dense, small], data[2])
    return found | dict(zip(("ms", "ms after"), map(float, times), strict=True))


ROWS = (
    ("accuracy, dense", "dense", "{:.3f}"),
    ("right after pruning, default", "default pruned", "{:.3f}"),
    ("right after pruning, Taylor", "taylor pruned", "{:.3f}"),
    ("right after pruning, random", "random pruned", "{:.3f}"),
    ("fine-tuned, default", "default tuned", "{:.3f}"),
    ("fine-tuned, Taylor", "taylor tuned", "{:.3f}"),
    ("fine-tuned, random", "random tuned", "{:.3f}"),
    ("parameters", "params", "{:,.0f}"),
    ("parameters left", "params after", "{:,.0f}"),
    ("MACs", "macs", "{:,.0f}"),
    ("MACs left", "macs after", "{:,.0f}"),
    ("ms a batch of 64", "ms", "{:.2f}"),
    ("ms a batch of 64, compact", "ms after", "{:.2f}"),
)


def table(means) -> str:
    """The figures, to be read."""
    heads = [f"{name} ({TASKS[name].what})" for name in means]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for title, key, form in ROWS:
        cells = [form.format(mean[key]) for mean in means.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def averages(cells: dict) -> dict:
    """The mean of each figure over the seeds of a model."""
    found: dict[str, list] = {}
    for key, cell in cells.items():
        found.setdefault(key.split()[0], []).append(cell)
    return {
        name: {key: float(np.mean([c[key] for c in own])) for key in own[0]}
        for name, own in found.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--quick", action="store_true", help="one seed, half as long")
    args = parser.parse_args()
    cells = {} if args.quick else measuring.load(RESULTS)
    for name in args.models:
        for seed in range(1 if args.quick else args.seeds):
            key = f"{name} {seed}"
            cells[key] = measure(TASKS[name], seed, args.quick)
            print(key, cells[key], flush=True)
            if not args.quick:
                measuring.save(RESULTS, {key: cells[key]}, **measuring.versions())
    means = averages(cells)
    print(table(means))
    if not args.quick:
        measuring.write(RESULTS.with_suffix(".md"), table(means))
    for name in args.models:
        mean = means[name]
        if (
            TASKS[name].kinds == HEADS
            and mean["default pruned"] < mean["random pruned"] + MARGIN
        ):
            sys.exit(f"{name}: the default does not beat random choices by {MARGIN}.")


if __name__ == "__main__":
    main()
