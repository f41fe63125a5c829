"""`bench`: how long models take, side by side."""

import time
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np

from filterprune.channels.trace import check_model
from filterprune.cli import models
from filterprune.cli.arguments import (
    add_generated,
    add_json,
    add_model,
    add_verb,
    count,
    positive,
)
from filterprune.cli.checking import make_inputs, open_other
from filterprune.cli.output import FAILED, Output, muted, refusing


def add_verbs(verbs) -> None:
    """Add the verb of this file."""
    parser = add_verb(
        verbs,
        "bench",
        _bench,
        "measure latencies side by side",
        """Measure how long models take for a batch. They take turns, so that noise on
        the machine hits all alike; the medians, and how many times faster each is than
        the first, are printed. All but the first may be exported: .tflite, .onnx or
        .xml files or SavedModels, where what runs those is installed.""",
        """
        filterprune bench full.keras small.keras
        filterprune bench full.keras small.keras --batch-size 32 --repeats 200
        filterprune bench small.keras small.tflite small.onnx
        filterprune bench full.keras small.keras --min-speedup 1.5
        """,
    )
    add_model(parser, "model", "a .keras file")
    parser.add_argument(
        "others", metavar="OTHER", nargs="+", help="files to compare with it"
    )
    add_generated(parser, batch_size=1)
    parser.add_argument(
        "--repeats",
        type=count,
        default=50,
        metavar="N",
        help="how often each is run (default: %(default)s)",
    )
    parser.add_argument(
        "--warmup",
        type=count,
        default=5,
        metavar="N",
        help="how often before time is taken (default: %(default)s)",
    )
    parser.add_argument(
        "--min-speedup",
        type=positive,
        metavar="X",
        help="exit with 1 unless every other file is X times as fast as the first",
    )
    parser.add_argument(
        "--xla",
        action="store_true",
        help="on TensorFlow let XLA compile Keras models, as fit and predict do",
    )
    add_json(parser)


def interleaved(
    functions: Sequence[Callable[[], object]],
    rounds: Iterable[int],
    between: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """Seconds that functions take, `(functions, rounds)`.

    They take turns, forth and back, so that no one always comes after the same.
    `between` is called before each, and its time is not counted. `clock` tells the
    time, such as `time.process_time` that of the processor.
    """
    taken = []
    for number in rounds:
        order = range(len(functions))
        times = np.zeros(len(functions))
        for i in order if number % 2 == 0 else reversed(order):
            between()
            start = clock()
            functions[i]()
            times[i] = clock() - start
        taken.append(times)
    return np.array(taken).T


def _bench(args) -> int:
    out = Output(args.json)
    paths = [args.model, *args.others]
    models.check_there(*paths)
    with out.working("Loading"):
        model = models.load(args.model, args.imports)
        with refusing():
            check_model(model)
        others = [open_other(path, args, model) for path in args.others]
    inputs = make_inputs(args, model)
    calls = [_call(m, inputs, args.xla) for m in (model, *others)]
    with muted(), refusing(Exception, prefix="cannot run: "):
        interleaved(calls, out.steps("Warming up", args.warmup))
        times = 1e3 * interleaved(calls, out.steps("Measuring", args.repeats))
    results = [_result(p, t, times[0]) for p, t in zip(paths, times, strict=True)]
    samples = int(keras.tree.flatten(inputs)[0].shape[0])
    out.table(
        f"Milliseconds for a batch of {samples}, {args.repeats} runs in turn",
        ("file", ">bytes", ">median", ">10 %", ">90 %", ">times as fast"),
        [
            (
                r["file"],
                f"{r['file_bytes']:,}",
                *(f"{r[key]:.3f}" for key in ("median_ms", "p10_ms", "p90_ms")),
                f"{r['speedup']:.2f}",
            )
            for r in results
        ],
    )
    out.figures(
        batch_size=samples,
        repeats=args.repeats,
        backend=keras.backend.backend(),
        results=results,
    )
    slow = [r for r in results[1:] if r["speedup"] < (args.min_speedup or 0)]
    for r in slow:
        out.say(
            f"{r['file']} is {r['speedup']:.2f} times as fast, expected "
            f"{args.min_speedup:g}"
        )
    return FAILED if slow else 0


def _result(path: str, times: np.ndarray, first: np.ndarray) -> dict:
    low, median, high = (float(np.quantile(times, q)) for q in (0.1, 0.5, 0.9))
    return {
        "file": path,
        "file_bytes": models.size_of(path),
        "median_ms": median,
        "p10_ms": low,
        "p90_ms": high,
        "speedup": float(np.median(first)) / median,
    }


def _call(model, inputs, xla: bool) -> Callable[[], object]:
    """A function without arguments that runs a model once, from NumPy to NumPy."""
    arrays = keras.tree.map_structure(keras.ops.convert_to_numpy, inputs)
    if not isinstance(model, keras.Model):
        return lambda: model(arrays)
    eager_without = keras.backend.backend() != "tensorflow"
    model.compile(jit_compile="auto" if xla or eager_without else False)
    return lambda: model.predict_on_batch(arrays)
