"""Runs the benchmarks of speed and writes the table of all bars.

    python benchmarks/run.py [--quick] [--all] [NAME ...]

Each in a process of its own, one after another. `latency` and `shrinking` take hours
and are run by `--all` or by name only; their bars are those of their last run. Writes
`benchmarks/results/bars.json` and `docs/bars.rst`; `--quick` prints the table of
what it measured, and writes neither.
"""

import argparse
import dataclasses
import pathlib
import subprocess
import sys
import time

import measuring
import bars

HERE = pathlib.Path(__file__).parent
# In minutes on two quiet cores: about 6, 6, 3 and 4.
USUAL = ("training", "speed", "wrapping", "analysis", "deploy")
LONG = ("latency", "shrinking")


def toolkit() -> list[str]:
    """How `training.py` finds TensorFlow's toolkit; nothing if it cannot be had."""
    command = ["bash", HERE / "peers.sh", "tensorflow-toolkit"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    found = result.stdout.strip()
    return ["--toolkit", found] if result.returncode == 0 and found else []


def run(name, quick) -> bool:
    """One benchmark, seen as it prints; whether it came to its end."""
    command = [sys.executable, HERE / f"{name}.py", *(["--quick"] if quick else [])]
    if name == "training":
        command += toolkit()
    print(f"== {name}", flush=True)
    started = time.perf_counter()
    result = subprocess.run(command)
    took = time.perf_counter() - started
    print(f"== {name}: {took:.0f} s, ended with {result.returncode}", flush=True)
    return result.returncode == 0


def table(found) -> str:
    """The bars as reStructuredText."""
    versions = ", ".join(f"{k} {v}" for k, v in measuring.versions().items())
    where = f"with {versions}, on {measuring.machine()}"
    lines = [
        "Bars of speed",
        "=============",
        "",
        f"Made by ``python benchmarks/run.py`` {where}.",
        "",
        "Ratios of what ran in turn, as medians; the scripts in ``benchmarks`` say how",
        "each was measured, and the figures are in ``benchmarks/results``.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - what",
        "     - bar",
        "     - measured",
        "     -",
    ]
    for bar in found:
        what, *cells = bar.cells
        lines += [f"   * - {what}", *(f"     - {cell}".rstrip() for cell in cells)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="which to run; the usual by default")
    parser.add_argument("--quick", action="store_true", help="small, in minutes")
    parser.add_argument("--all", action="store_true", help="also what takes hours")
    options = parser.parse_args()
    every = (*USUAL, *LONG)
    names = options.names or (every if options.all or options.quick else USUAL)
    for name in names:
        if name not in every:
            parser.error(f"there is no benchmark {name} in {every}")
    failed = [name for name in names if not run(name, options.quick)]
    found = []
    for name in every:
        note = "of an earlier run: this one failed" if name in failed else ""
        for bar in bars.load(name, options.quick):
            notes = ", ".join(filter(None, (bar.note, note)))
            found.append(dataclasses.replace(bar, note=notes))
    held = bars.show(found)
    if not options.quick:
        rows = {b.what: {**dataclasses.asdict(b), "held": b.held} for b in found}
        path, versions = measuring.RESULTS / "bars.json", measuring.versions()
        measuring.save(path, rows, "bars", merge=False, versions=versions)
        measuring.write(measuring.ROOT / "docs" / "bars.rst", table(found))
    return int(bool(failed) or (not held and not options.quick))


if __name__ == "__main__":
    sys.exit(main())
