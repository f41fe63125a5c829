"""Random graphs, random training, random gates: masked and compact must agree.

    python benchmarks/fuzz.py --minutes 10 [--python jax=/path/to/python] ...
    python benchmarks/fuzz.py --backend jax --minutes 60  # on this one alone
    python benchmarks/fuzz.py --backend jax --seed 123  # one batch once more

Takes the backends in turn for as long as it is told: those that this Python has
and those of other environments, given by `--python`. Prints the graphs tried,
the mismatches and the seeds of failures, and adds them to those of earlier runs in
`benchmarks/results/fuzz.json`; a run goes on with the seed behind the last one there.
Ends with 1 if there was a mismatch.
"""

import argparse
import collections
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
import warnings

import measuring
from measuring import BACKENDS

RESULTS = measuring.RESULTS / "fuzz.json"
BATCH = 50  # graphs drawn from one seed
# What plain Keras cannot train: TensorFlow has no gradient of `ResizeArea`, and PyTorch
# none of a stateful GRU.
UNTRAINABLE = ("gradient registry", "modified by an inplace operation")
CHUNK = 5  # minutes, after which what was found is written


def try_batch(seed: int, counts: collections.Counter) -> None:
    """Draw graphs from one seed, train and close gates, compact and compare."""
    from graphs import models, open_models
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    @seeded(seed)
    @settings(
        max_examples=BATCH,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(models(), models(), open_models()), st.data())
    def attempt(model, data):
        counts[try_graph(model, data, st)] += 1
        counts["graphs"] += 1  # hypothesis drops some before they get here

    attempt()


def try_graph(model, data, st) -> str:
    """What became of one graph; raises `AssertionError` on a mismatch."""
    import keras
    import numpy as np
    from exactness import (
        assert_untouched,
        check_exact_but_for_rounding,
        close_at_random,
        randomise,
        state_of,
    )
    from graph_training import diverged, train

    import filterprune
    from filterprune.channels.groups import study

    seed = data.draw(st.integers(0, 99))
    before = state_of(randomise(model, seed))
    if data.draw(st.booleans()):
        masked = filterprune.wrap_model(model)
    else:
        masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
    assert_untouched(model, before)
    if not study(masked).prunable:
        return "nothing to prune"
    how = data.draw(st.sampled_from(["train", "slots", "gates"]))
    if how == "train":
        try:
            train(masked, data, st)
        except ValueError as error:  # the callback says so of weights that are NaN
            if "are not finite" not in str(error):
                raise
            return "diverged"
        except (LookupError, RuntimeError) as error:
            if not any(text in str(error) for text in UNTRAINABLE):
                raise
            how = "slots"
        if diverged(masked):
            return "diverged"
    if how == "slots":
        close_at_random(masked, seed)
    elif how == "gates":
        rng = np.random.default_rng(seed)
        for gate in study(masked).masks:
            gate.variable.assign(rng.integers(0, 2, gate.size))
    try:
        rounded = check_exact_but_for_rounding(masked, batch_size=5)
    except ValueError as error:
        if "takes statistics over its channels" not in str(error):
            raise
        return "refused"
    if rounded:
        return "rounding multiplied"
    return "trained" if how == "train" else "gates set"


def work(minutes: float, seed: int) -> dict:
    """Try batches on this process's backend until the time is up, at least one."""
    sys.path.insert(0, str(measuring.ROOT / "tests"))
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    import keras

    counts: collections.Counter = collections.Counter()
    failures = []
    end = time.monotonic() + 60 * minutes
    while True:
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(seed % 2**32)
        keras.config.set_floatx("float64")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try_batch(seed, counts)
        except Exception as error:
            failures.append({"seed": seed, "error": str(error)[:500]})
            print(f"seed {seed}:", file=sys.stderr)
            traceback.print_exc()
        seed += 1
        if time.monotonic() >= end:
            break
    return {
        "keras": keras.__version__,
        "next_seed": seed,
        "counts": counts,
        "failures": failures,
    }


def spawn(backend: str, python: str, minutes: float, seed: int) -> dict:
    """Run a worker of a backend in its environment."""
    command = [python, __file__, "--worker", "--minutes", str(minutes)]
    result = subprocess.run(
        [*command, "--seed", str(seed)],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        sys.exit(f"The worker of {backend} ended with {result.returncode}.")
    return json.loads(result.stdout.splitlines()[-1])


def add(backend: str, found: dict) -> None:
    """Add what a worker found to the file of results."""
    row = measuring.load(RESULTS, "backends").get(backend, {})
    counts = collections.Counter(row.get("counts")) + collections.Counter(
        found["counts"]
    )
    graphs = collections.Counter(row.get("graphs_at"))
    graphs[measuring.revision()] += found["counts"].get("graphs", 0)
    found |= {"counts": counts, "graphs_at": graphs}
    found["failures"] = [*row.get("failures", ()), *found["failures"]]
    measuring.save(RESULTS, {backend: found}, "backends")


def environments(given: list[str]) -> dict[str, str]:
    """The Python of each backend that can be run."""
    found = {
        name: sys.executable for name in BACKENDS if importlib.util.find_spec(name)
    }
    for pair in given:
        name, _, path = pair.partition("=")
        if name not in BACKENDS or not path:
            sys.exit(f"Expected --python BACKEND=PATH. Received: {pair}")
        found[name] = path
    return found


def show(rows: dict) -> None:
    kinds = sorted(
        {kind for row in rows.values() for kind in row["counts"]} - {"graphs"}
    )
    print(
        f"{'backend':12}"
        + "".join(f"{k:>22}" for k in ["graphs", *kinds, "mismatches"])
    )
    for backend, row in rows.items():
        values = [row["counts"].get(kind, 0) for kind in ["graphs", *kinds]]
        values.append(len(row["failures"]))
        print(f"{backend:12}" + "".join(f"{value:>22,}" for value in values))
        for failure in row["failures"]:
            print(f"  seed {failure['seed']}: {failure['error'][:80]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="in all")
    parser.add_argument("--seed", type=int, help="try one batch, write nothing")
    parser.add_argument("--backend", choices=BACKENDS, help="on this one alone")
    parser.add_argument("--python", action="append", default=[], metavar="B=PATH")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.minutes, args.seed)))
        return 0
    pythons = environments(args.python)
    if args.backend:
        pythons = {args.backend: pythons[args.backend]}
    if args.seed is not None:
        rows = {b: spawn(b, python, 0, args.seed) for b, python in pythons.items()}
        show(rows)
        return int(any(row["failures"] for row in rows.values()))
    for backend, python in pythons.items():
        end = time.monotonic() + 60 * args.minutes / len(pythons)
        while (left := (end - time.monotonic()) / 60) > 0:
            row = measuring.load(RESULTS, "backends").get(backend, {})
            seed = row.get("next_seed", 0)
            add(backend, spawn(backend, python, min(left, CHUNK), seed))
    rows = measuring.load(RESULTS, "backends")
    show(rows)
    return int(any(row["failures"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
