"""Every notebook runs from top to bottom, and shows what it says."""

import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    """What a cell wrote to its standard output."""
    streams = (out for out in cell.outputs if out.output_type == "stream")
    return "".join(out.text for out in streams if out.name == "stdout")


def number(pattern, text):
    """The number that the group of a pattern holds, commas left out."""
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in {text!r}"
    return float(found[1].replace(",", ""))


def check_demo(notebook):
    report, last = map(printed, code_cells(notebook)[-2:])
    dense = number(r"accuracy of dense +([\d.]+)%", report)
    masked = number(r"accuracy of masked +([\d.]+)%", report)
    assert dense >= 96
    assert masked >= dense - 2
    assert number(r"accuracy of compact +([\d.]+)%", report) == masked
    assert number(r"Keras alone: accuracy ([\d.]+)%", last) == masked
    assert number(r"outputs: ([\d.e+-]+)", last) < 1e-4
    params = number(r", ([\d,]+) parameters", last)
    assert params == number(r"parameters [\d,]+ -> ([\d,]+)", report)
    assert params < 0.2 * number(r"parameters ([\d,]+) ->", report)


# What the last cells of each notebook must show.
CLAIMS = {"demo.ipynb": check_demo}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs_and_shows_what_it_claims(path, tmp_path, monkeypatch):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    # A cell that fails raises, with its traceback.
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    CLAIMS[path.name](notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_stored_executed_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert path.stat().st_size < 100_000
    CLAIMS[path.name](notebook)


def test_there_are_notebooks():
    assert NOTEBOOKS
