"""One trained model in files, for all verbs; and ways to run them."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import builders
import keras
import numpy as np
import pytest

import filterprune
from filterprune import cli

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with `full.keras`, `masked.keras`, `small.keras`, data, broken files.

    Tests read from it and write elsewhere.
    """
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("files")
    x, y = builders.digits(64)
    model = builders.compiled(builders.build("residual"))
    model.fit(x, y, batch_size=64, verbose=0)
    model.save(folder / "full.keras")
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, 0.5)
    masked.save(folder / "masked.keras")
    filterprune.compact(masked).save(folder / "small.keras")
    np.savez(folder / "batch.npz", x=x, y=y)
    whole = (folder / "full.keras").read_bytes()
    (folder / "truncated.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.keras").touch()
    (folder / "text.keras").write_text("no model")
    (folder / "notes.txt").write_text("no model")
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Lambda(lambda t: t * 2)(keras.layers.Conv2D(4, 3)(inputs))
    keras.Model(inputs, outputs).save(folder / "lambda.keras")
    return folder


@dataclasses.dataclass
class Run:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The line that it ends with; TensorFlow logs before it in a process."""
        return self.err.splitlines()[-1]


@pytest.fixture
def run(capsys, monkeypatch, files):
    """Run a command in this process, in the folder of the files."""
    monkeypatch.chdir(files)

    def run(*argv):
        capsys.readouterr()
        try:
            code = cli.main([str(arg) for arg in argv])
        except SystemExit as error:  # argparse
            code = error.code
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


def start(*argv, cwd, **kwargs):
    """Run `python -m filterprune` in a process of its own."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "filterprune", *map(str, argv)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        **kwargs,
    )
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def launch():
    """`start`, for tests that need a process."""
    return start
