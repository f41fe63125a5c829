"""The command line, as a user meets it."""

import json
import sys

import pytest

import filterprune
from filterprune import cli, demo


def test_version_and_help(capsys):
    for option, words in (
        ("--version", [f"filterprune {filterprune.__version__}"]),
        ("--help", ["demo", "inspect", "exit codes:", "130"]),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main([option])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words)


def test_demo_as_json(monkeypatch, tmp_path, capsys):
    """One object and nothing else: no progress, no table."""
    cost = filterprune.analyze(demo.build_model(4)).before
    figures = demo.Figures(0.9, cost, tmp_path / "a.keras", 1000, 0.01)
    result = demo.DemoResult(figures, figures, 0.9, 1e-6, 0.7, 10, 5, 0, 1.5)

    def run(seed, folder, quick, console):
        assert console is None
        return result

    monkeypatch.setattr(demo, "run", run)
    assert cli.main(["demo", "--json", "--output", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sparsity"] == 0.7
    assert found["compact"]["cost"]["params"] == cost.params
    assert found["dense"]["path"] == str(tmp_path / "a.keras")


def test_help_of_the_demo_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("--seed", "--output", "--quick", demo.FOLDER):
        assert word in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["dance"], "invalid choice: 'dance'"),
        (["demo", "--speed"], "unrecognized option --speed"),
        (["demo", "--seed", "one"], "expected an integer from 0 to"),
        (["demo", "--seed", "-1"], "received '-1'"),
        (["demo", "--seed", str(2**32)], f"received '{2**32}'"),
    ],
)
def test_bad_usage_exits_with_2_and_a_message(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


def test_output_that_is_a_file_is_refused(tmp_path, capsys):
    path = tmp_path / "taken"
    path.touch()
    assert cli.main(["demo", "--output", str(path)]) == 2
    assert f"cannot save to {path}: File exists" in capsys.readouterr().err


def test_missing_package_is_a_message(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert cli.main(["demo", "--output", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert "mlxtend" in error and 'pip install "filterprune[demo]"' in error
    assert not (tmp_path / "new").exists()


def test_interrupt_leaves_no_traceback(monkeypatch, tmp_path, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
