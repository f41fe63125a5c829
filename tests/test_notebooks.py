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


def figures(pattern, text):
    """All that the group of a pattern holds, as numbers."""
    return [float(found.replace(",", "")) for found in re.findall(pattern, text)]


def pairs(pattern, text):
    """The same of a pattern of two groups."""
    found = re.findall(pattern, text)
    return [tuple(float(part.replace(",", "")) for part in pair) for pair in found]


def check_transfer(notebook):
    *_, groups, frozen, tuned, compact, around = map(printed, code_cells(notebook))
    assert "backbone/last: prunable" in groups
    accuracy = number(r"compact: ([\d.]+)%", compact)
    assert accuracy == number(r"fine-tuned.*: +([\d.]+)%", tuned) >= 85
    assert number(r"frozen.*: +([\d.]+)%", frozen) < accuracy
    macs = number(r"MACs +([\d,]+) ->", compact)
    assert number(r"MACs .*-> ([\d,]+)", compact) < 0.6 * macs
    assert number(r"outputs: ([\d.e+-]+)", compact) < 1e-4
    assert around == "['hidden']\n"


def check_budget(notebook):
    cells = [*map(printed, code_cells(notebook))]
    text = "".join(cells)
    assert "Groups of channels in" in text  # print(report) prints, here too
    dense = number(r"^accuracy ([\d.]+)%", text)
    macs = number(r"total +[\d,]+ +([\d,]+)", text)
    found = re.findall(r"([\d,]+) MACs: ([\d.]+)%", text)
    points = [[float(part.replace(",", "")) for part in point] for point in found]
    for left, (cost, accuracy) in zip((0.5, 0.25, 0.125), points, strict=True):
        assert cost == pytest.approx(left * macs, rel=0.1)
        assert accuracy >= dense - 10
    assert figures(r"half of the filters +leaves +(\d+)%", text)[0] < 40
    assert number(r"([\d.]+)%\nMACs", cells[-2]) == points[1][1]
    assert "Expected a budget within reach" in cells[-1]


def check_compress(notebook):
    text = "".join(map(printed, code_cells(notebook)))
    dense, pruned, again, small = (
        number(rf"{name}: ([\d.]+)%", text)
        for name in ("dense", "pruned", "recalibrated", "compressed")
    )
    assert dense >= 95 and pruned < dense - 20
    assert small > again and small >= dense - 4
    before, after = pairs(r"outputs +([\d.]+) +([\d.]+)", text)[0]
    assert after < 0.5 * before
    before, after = pairs(r"MACs ([\d,]+) -> ([\d,]+)", text)[0]
    assert after == pytest.approx(0.5 * before, rel=0.05)


def check_deployment(notebook):
    text = "".join(map(printed, code_cells(notebook)))
    keras = dict(re.findall(r"^(dense|compact) +([\d.]+)%, ", text, re.MULTILINE))
    exported = re.findall(r"^(dense|compact) *(?:litert|onnx) *([\d.]+)%", text, re.M)
    assert len(exported) == 4
    for name, accuracy in exported:  # an image may be on the border
        assert float(accuracy) == pytest.approx(float(keras[name]), abs=0.11)
    assert all(figure < 1e-5 for figure in figures(r"differs by ([\d.e+-]+)", text))
    litert, onnx = figures(r"([\d.]+)x faster", text)
    assert min(litert, onnx) > 1.2


def check_custom(notebook):
    *_, before, after, scores, compact, wrong = map(printed, code_cells(notebook))
    assert "`pointwise_matmul` (Matmul) multiplies" in before
    assert "pointwise_kernel (+1) prunable" in before
    assert "attend_dense prunable" in before
    assert after.count("prunable") == 4
    assert min(figures(r"([\d.]+)%", scores)) > 60
    widths = [*map(int, re.findall(r"\d+(?= ->)|(?<=-> )\d+", compact))]
    assert sum(widths[1::2]) < sum(widths[::2])
    assert number(r"difference: ([\d.e+-]+)", compact) < 1e-4
    assert "The rule of `attend` (Attend)" in wrong


def check_from_tfmot(notebook):
    *_, pruned, schedules, _clone, sizes = map(printed, code_cells(notebook))
    found = dict(re.findall(r"^(\w+) +([\d.]+)%", pruned, re.MULTILINE))
    assert found["small"] == found["masked"]
    assert float(found["small"]) >= float(found["dense"]) - 5
    dense, _, small = figures(r"([\d,]+) parameters", pruned)
    assert small == pytest.approx(0.5 * dense, rel=0.05)
    assert float(schedules) < 1e-6
    dense, zeros, small = figures(r"keras: ([\d,]+) bytes", sizes)
    assert zeros == pytest.approx(dense, rel=0.01) and small < 0.6 * dense


# What the cells of each notebook must show.
CLAIMS = {
    "budget.ipynb": check_budget,
    "compress.ipynb": check_compress,
    "custom.ipynb": check_custom,
    "demo.ipynb": check_demo,
    "deployment.ipynb": check_deployment,
    "from_tfmot.ipynb": check_from_tfmot,
    "transfer.ipynb": check_transfer,
}


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


def test_every_notebook_has_claims():
    assert {path.name for path in NOTEBOOKS} == {*CLAIMS}
