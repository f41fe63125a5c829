"""What a user writes is accepted by mypy and by pyright, and runs."""

import importlib.util
import json
import os
import pathlib
import runpy
import subprocess
import sys

import keras
import pytest

import filterprune

CODE = pathlib.Path(__file__).parent / "typing" / "user_code.py"
HOME = pathlib.Path(filterprune.__file__).parents[1]


def check(folder, *command, **environment):
    """Run a type checker in an empty folder; fails with what it prints."""
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    (folder / CODE.name).write_text(CODE.read_text())
    found = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_mypy_accepts_it(tmp_path):
    # Keras 3.15 has no types of its own for mypy.
    options = ("--ignore-missing-imports", "--follow-imports=silent")
    check(tmp_path, "mypy", *options, CODE.name, MYPYPATH=str(HOME))


def test_pyright_accepts_it(tmp_path):
    settings = {"include": [CODE.name], "extraPaths": [str(HOME)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    check(tmp_path, "pyright", "--pythonpath", sys.executable)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="it exports to LiteRT"
)
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(CODE))["main"]()


def test_the_package_says_that_it_is_typed():
    assert (pathlib.Path(filterprune.__file__).parent / "py.typed").is_file()
