"""What the benchmarks share: taking times in turn, and keeping figures.

Keras is not imported before it is needed: some benchmarks start their work in other
environments and have none in their own process.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Where the figures of `--quick` go: they are of fewer nets and turns.
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
QUICK = CACHE / "filterprune-benchmarks" / "quick-results"
# What is measured is the library beside the benchmarks, not one that is installed.
sys.path.insert(0, str(ROOT))

# The package behind each backend of Keras, and how people write it.
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def versions(*packages: str) -> dict[str, str]:
    """The versions of all that figures depend on, and of these packages if there."""
    import keras

    import filterprune

    backend = keras.backend.backend()
    found = {
        "filterprune": filterprune.__version__,
        "Keras": keras.__version__,
        BACKENDS[backend]: importlib.metadata.version(backend),
        "Python": platform.python_version(),
    }
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The machine in words: its processor, and how many of its cores there are."""
    words = [platform.machine(), f"{os.cpu_count()} cores", _processor()]
    return ", ".join(filter(None, words))


def revision() -> str:
    """The commit of the library that is measured; "unknown" outside a clone."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.check_output(command, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else ""


def load(path: pathlib.Path, key: str = "cells") -> dict:
    """What was measured so far."""
    return json.loads(path.read_text()).get(key, {}) if path.exists() else {}


def save(path, cells, key: str = "cells", merge: bool = True, **about) -> None:
    """Write a file of results whole, along with the cells of runs beside this one.

    Args:
        path: the file.
        cells: what was measured, by name; another measurement of the same name is
            replaced.
        key: where in the file they are.
        merge: whether to keep other cells that are there.
        about: what else to say, such as `versions`; the machine is always said.
    """
    if merge:
        cells = {**load(path, key), **cells}
    result = {**about, "machine": machine(), key: cells}
    write(path, json.dumps(result, indent=1) + "\n")


def write(path: pathlib.Path, text: str) -> None:
    """Write a file such that others see all of it or what was there before."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def standard_error(values) -> float:
    """The standard error of a mean; 0 for a single value."""
    return np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0


def interleaved(
    functions,
    seconds: float = 0.0,
    least: int = 5,
    warm: int = 2,
    between=lambda: None,
    clock=time.perf_counter,
):
    """Seconds that functions take, `(functions, turns)`.

    They take turns, forth and back, so that what else the machine does hits all
    alike.

    Args:
        functions: functions without arguments.
        seconds: how long to go on.
        least: how many turns there are even if that takes longer.
        warm: how many turns before time is taken.
        between: a function to call before each, such as `gc.collect`, so that none
            pays for what another left behind.
        clock: what tells the time.
    """
    from filterprune.cli import timing

    functions = list(functions)
    timing.interleaved(functions, range(warm), between)
    return timing.interleaved(functions, _turns(seconds, least), between, clock)


def _turns(seconds: float, least: int):
    turn, end = 0, time.perf_counter() + seconds
    while turn < least or time.perf_counter() < end:
        yield turn
        turn += 1


def ratios(times) -> np.ndarray:
    """How much longer than the first all others take: medians over turns.

    Of the ratios within a turn, because a machine that slows down slows both.
    """
    return np.median(times[1:] / times[0], axis=1)


def verdict(held: bool) -> str:
    """How tables say whether a bar was reached."""
    return "holds" if held else "missed"
