"""Every verb as a process of its own on real files, good and broken."""

import json
import os
import pty
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import pytest

COMMANDS = {
    "inspect": "inspect masked.keras",
    "prune": "prune full.keras -o {out}/pruned.keras --remove 0.5 --target macs",
    "compact": "compact masked.keras -o {out}/compact.keras",
    "verify": "verify masked.keras small.keras --json",
    "bench": "bench full.keras small.keras --repeats 5 --json",
    "export": "export small.keras --to saved_model -o {out}/saved",
    "broken": "prune truncated.keras -o {out}/broken.keras --remove 0.5",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def runs(files, out, launch):
    """All of them, two at a time: most of the seconds go into importing Keras."""
    with ThreadPoolExecutor(2) as pool:
        started = {
            name: pool.submit(launch, *line.format(out=out).split(), cwd=files)
            for name, line in COMMANDS.items()
        }
    return {name: done.result() for name, done in started.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_exit_codes(runs, name):
    assert runs[name].code == (2 if name == "broken" else 0), runs[name].err
    assert "Traceback" not in runs[name].err
    assert "\x1b" not in runs[name].out + runs[name].err  # no terminal, no codes


def test_inspect_prints_what_is_left_and_why_the_rest_stays(runs):
    lines = [line.split() for line in runs["inspect"].out.splitlines()]
    assert ["inner", "channels", "12", "5", "yes"] in lines
    assert "head" in runs["inspect"].out and "reaches the output" in runs["inspect"].out


@pytest.mark.parametrize(
    ("name", "file"), [("prune", "pruned"), ("compact", "compact")]
)
def test_what_is_saved_is_smaller_and_plain(runs, out, files, name, file):
    small = keras.saving.load_model(out / f"{file}.keras")
    full = keras.saving.load_model(files / "full.keras")
    assert small.count_params() < 0.6 * full.count_params()
    assert "filterprune" not in small.to_json()
    assert f"{small.count_params():,}" in runs[name].out
    assert "Largest difference" in runs[name].out
    assert f"Saved {out / file}.keras" in runs[name].out


def test_json_is_all_that_stdout_has(runs):
    assert json.loads(runs["verify"].out)["same"] is True
    first, second = json.loads(runs["bench"].out)["results"]
    assert (first["file"], first["speedup"]) == ("full.keras", 1.0)
    assert second["median_ms"] > 0


def test_export_is_verified(runs, out):
    assert (out / "saved" / "saved_model.pb").is_file()
    assert "Largest difference in TensorFlow" in runs["export"].out


def test_complaints_are_one_line_and_nothing_is_left(runs, out):
    assert runs["broken"].complaint.startswith(
        "filterprune: error: cannot load truncated.keras: "
    )
    assert runs["broken"].out == ""
    assert {path.name for path in out.iterdir()} == {
        "pruned.keras",
        "compact.keras",
        "saved",
    }


def test_a_terminal_gets_tables_and_progress(files, launch):
    """In a pseudo-terminal: colours and bars, and no plain columns."""
    ours, theirs = pty.openpty()
    root = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", "filterprune", "inspect", "full.keras"],
        cwd=files,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": root, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    text = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            text += os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
    os.close(ours)
    assert process.wait(60) == 0
    shown = text.decode()
    assert "\x1b[" in shown and "Loading ..." in shown
    assert "───" in shown
