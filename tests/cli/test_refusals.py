"""What cannot be run as given: exit code 2, one line, nothing touched."""

import os
import resource
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import filterprune
from filterprune import cli

PRUNE = "prune full.keras -o {tmp}/a.keras --remove 0.5"
FILES = ("truncated.keras", "empty.keras", "text.keras", "nowhere.keras", "notes.txt")
VERBS = (
    "inspect {file}",
    "report {file} -o {tmp}/a.html",
    "prune {file} -o {tmp}/a.keras --remove 0.5",
    "compact {file} -o {tmp}/a.keras",
    "verify {file} full.keras",
    "verify full.keras {file}",
    "bench full.keras {file}",
    "export {file} --to onnx -o {tmp}/a.onnx",
)


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("file", [*FILES, "."])
def test_files_that_are_no_models(run, files, tmp_path, verb, file):
    before = contents(files)
    found = run(*verb.format(file=file, tmp=tmp_path).split())
    assert found.code == 2
    assert len(found.err.splitlines()) == 1 and len(found.err) < 1000
    assert found.err.startswith("filterprune: error: ") and file in found.err
    assert found.out == ""
    assert contents(files) == before and not list(tmp_path.iterdir())


def test_lambdas_are_never_run(run):
    found = run("inspect", "lambda.keras")
    assert found.code == 2
    assert "safe mode only" in found.complaint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--criterion no_such", "expected --criterion to be one of activation_mean"),
        ("--criterion taylor", "looks at data: give --data"),
        ("--recalibrate", "--recalibrate looks at data: give --data"),
        ("--data batch.npz --no-reconstruct", "nothing looks at --data"),
        ("--refine 20", "go with --data"),
        ("--loss mse", "--loss and --batches are for criteria that look at data"),
        ("--criterion apoz --data batch.npz --loss mse", "takes no --loss"),
        ("--criterion taylor --data nowhere.npz", "there is no file nowhere.npz"),
        ("--criterion taylor --data full.keras", "to end with .npz"),
        ("--criterion taylor --data batch.npz --no-compile", "give --loss"),
        ("--criterion taylor --data batch.npz --loss no_such", "no_such"),
        ("--exclude stme", "Did you mean 'stem'?"),
        ("--round-to 100", "Expected `round_to` to be no larger than any layer"),
        ("--save-masked {tmp}/a.keras", "are the same file"),
        ("--save-masked {tmp}/a.h5", "to end with .keras"),
    ],
)
def test_options_that_make_no_sense(run, tmp_path, options, message):
    found = run(*f"{PRUNE} {options}".format(tmp=tmp_path).split())
    assert found.code == 2 and message in found.complaint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("prune full.keras -o a.keras", "one of the arguments --remove --budget"),
        ("prune full.keras -o a.keras --remove 1", "below 1, received '1'"),
        ("prune full.keras -o a.keras --remove half", "a number, received 'half'"),
        ("prune full.keras -o a.keras --budget -1", "above 0"),
        ("prune full.keras -o a.keras --remove 0.5 --budget 9", "not allowed with"),
        ("prune full.keras --remove 0.5", "-o/--output"),
        ("prune full.keras -o a.keras --remove 0.5 --round-to 0", "at least 1"),
        ("prune full.keras -o a.keras --remove 0.5 --max-sparsity 2", "from 0 to 1"),
        ("prune full.keras -o a.keras --remove 0.5 --target time", "invalid choice"),
        ("export small.keras --to pdf", "invalid choice: 'pdf'"),
        ("export small.keras --to tflite", "Did you mean 'litert'?"),
        ("export small.keras --to SavedModel", "Did you mean 'saved_model'?"),
        ("export small.keras --format onnx", "--format. Did you mean '--to'?"),
        ("prune full.keras -o a.keras --amount 0.5", "Did you mean '--remove'?"),
        ("prune full.keras -o a.keras --pruning-ratio=0.5", "Did you mean '--remove'"),
        ("prune full.keras -o a.keras --sparsity 50", "Did you mean '--remove'?"),
        ("prune full.keras -o a.keras --remove 50", "Did you mean 0.5?"),
        ("prune full.keras -o a.keras --remove 50%", "Did you mean 0.5?"),
        ("prune full.keras -o a.keras --flops 1e6", "'--target macs --budget 5e8'?"),
        ("prune full.keras -o a.keras --remove 0.5 --target flops", "mean 'macs'?"),
        ("prune full.keras -o a.keras --remove 0.5 --importance l1", "'--criterion'?"),
        (
            "prune full.keras -o a.keras --remove 0.5 --criterio l1 --xyz",
            "option --xyz.",
        ),
        ("prun full.keras", "invalid choice: 'prun'"),
        ("prun full.keras", "Did you mean 'prune'?"),
        ("bench full.keras", "OTHER"),
    ],
)
def test_usage(run, argv, message):
    found = run(*argv.split())
    assert found.code == 2 and message in found.err.replace("\n", " ")


def test_budgets_out_of_reach_name_the_smallest(run, tmp_path):
    command = (
        "prune full.keras -o {tmp}/a.keras --target macs --budget 10 --min-filters 1"
    )
    found = run(*command.format(tmp=tmp_path).split())
    assert found.code == 2 and "keeps at least 1,738" in found.complaint
    assert not list(tmp_path.iterdir())


def test_data_of_another_shape(run, tmp_path):
    x = np.zeros((4, 9, 9, 1))
    command = f"prune full.keras -o {tmp_path}/a.keras --remove 0.5 --criterion apoz"
    for arrays, message in (
        ({"x": x}, "to have the shape (None, 8, 8, 1)"),
        ({"images": x}, "expected an array 'x'"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "cannot read"),  # a pickle
        ({"x": x[:0, :8, :8]}, "as many samples"),
    ):
        np.savez(tmp_path / "data.npz", **arrays)
        found = run(*command.split(), "--data", tmp_path / "data.npz")
        assert found.code == 2 and message in found.complaint
    (tmp_path / "data.npz").write_bytes(b"PK")
    found = run(*command.split(), "--data", tmp_path / "data.npz")
    assert found.code == 2 and "cannot read" in found.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("prune full.keras -o {to} --remove 0.5", "a.keras"),
        ("compact masked.keras -o {to}", "a.keras"),
        ("export small.keras --to litert -o {to}", "a.tflite"),
        ("export small.keras --to openvino -o {to}", "a.xml"),
        ("report masked.keras -o {to}", "a.html"),
    ],
)
def test_nothing_is_written_over_unless_told(run, tmp_path, argv, name):
    path = tmp_path / name
    path.write_text("precious")
    found = run(*argv.format(to=path).split())
    assert found.code == 2 and "--overwrite" in found.complaint
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


def test_an_input_is_written_over_only_if_told(run, tmp_path, files):
    path = tmp_path / "model.keras"
    path.write_bytes((files / "full.keras").read_bytes())
    command = ("prune", path, "-o", path, "--remove", 0.5)
    found = run(*command)
    assert found.code == 2 and "it is the input" in found.complaint
    assert path.read_bytes() == (files / "full.keras").read_bytes()
    assert run(*command, "--overwrite").code == 0
    small = keras.saving.load_model(path)
    assert (
        small.count_params()
        < keras.saving.load_model(files / "full.keras").count_params()
    )


def test_places_that_cannot_be_written_to(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.keras").mkdir()
    for to, message in (
        ("none/a.keras", "there is no folder"),
        ("file/a.keras", "is no folder"),
        ("a.h5", "to end with .keras"),
        ("folder.keras", "exists"),
        ("a" * 250 + ".keras", "name too long"),
    ):
        found = run("compact", "masked.keras", "-o", tmp_path / to)
        assert found.code == 2 and message in found.complaint
    found = run(
        "compact", "masked.keras", "-o", tmp_path / "folder.keras", "--overwrite"
    )
    assert found.code == 2 and "it is a folder" in found.complaint


def bomb(path, name="config.json", size=2**31):
    """A small archive, a part of which unpacks to a lot."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other in {"config.json", "metadata.json", "model.weights.h5"} - {name}:
            archive.writestr(other, "{}")
        with archive.open(name, "w", force_zip64=True) as part:
            block = bytes(2**20)
            for _ in range(size // len(block)):
                part.write(block)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "assets/a"])
def test_archives_that_unpack_to_too_much(run, tmp_path, name):
    """They are not unpacked to find out."""
    bomb(tmp_path / "bomb.keras", name, 2**28)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = run("inspect", tmp_path / "bomb.keras")
    assert found.code == 2 and "which no model does" in found.complaint
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB


def test_archives_that_lie_about_their_sizes(run, tmp_path):
    """Readers stop where a part is said to end."""
    path = tmp_path / "bomb.keras"
    bomb(path, size=2**27)
    content = path.read_bytes()
    size = (2**27).to_bytes(8, "little")
    assert size in content or (2**27).to_bytes(4, "little") in content
    content = content.replace(size, (2**20).to_bytes(8, "little"))
    content = content.replace(size[:4], (2**20).to_bytes(4, "little"))
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = run("inspect", path)
    assert found.code == 2 and len(found.err.splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("truncated.keras", "truncated"),
        ("text.keras", "it is no .keras archive"),
        ("empty.keras", "it is no .keras archive"),
        ("/dev/null", "no regular file"),
        (".", "is a folder"),
    ],
)
def test_files_say_what_is_wrong_with_them(run, file, message):
    found = run("inspect", file)
    assert found.code == 2 and message in found.complaint
    assert "not found" not in found.complaint.lower()


def test_archives_of_something_else(run, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    found = run("inspect", tmp_path / "a.keras")
    assert found.code == 2 and "no config.json" in found.complaint


def test_models_in_float64_are_not_exported(run, tmp_path):
    inputs = keras.Input((8, 8, 3), dtype="float64")
    layers = keras.layers
    outputs = layers.Conv2D(4, 3, dtype="float64", name="wide")(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "m.keras")
    for format in ("onnx", "openvino", "litert"):
        found = run("export", tmp_path / "m.keras", "--to", format)
        assert found.code == 2 and "'wide' does" in found.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def test_models_without_gates_are_not_compacted(run, tmp_path):
    found = run("compact", "full.keras", "-o", tmp_path / "a.keras")
    assert found.code == 2 and "Expected a model with gates" in found.complaint


def test_models_with_gates_are_not_exported(run, tmp_path):
    found = run("export", "masked.keras", "--to", "onnx", "-o", tmp_path / "a.onnx")
    assert found.code == 2 and "Expected a model without gates" in found.complaint


@pytest.mark.parametrize("kind", [OSError(28, "No space left on device"), None])
def test_a_save_that_fails_leaves_nothing(run, tmp_path, monkeypatch, kind):
    """Neither half a file nor a temporary one; so does Ctrl-C."""
    path = tmp_path / "a.keras"
    path.write_text("precious")

    def save(self, filepath, *args, **kwargs):
        with open(filepath, "wb") as file:
            file.write(b"half")
        raise kind or KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save", save)
    found = run("compact", "masked.keras", "-o", path, "--overwrite")
    assert found.code == (2 if kind else 130)
    assert "No space left" in found.err or found.err == "Interrupted.\n"
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


def test_a_failed_verification_exits_with_1_and_writes_nothing(
    run, tmp_path, monkeypatch
):
    def differs(*args):
        raise filterprune.VerificationError("The outputs differ.")

    monkeypatch.setattr(filterprune.compaction, "verify_same", differs)
    found = run("compact", "masked.keras", "-o", tmp_path / "a.keras")
    assert found.code == 1
    assert found.err == (
        "filterprune: failed: The outputs differ. Nothing was written.\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_read_enough(files, launch):
    """As in `filterprune inspect ... | head -1`."""
    read, write = os.pipe()
    os.close(read)
    code = (
        "import sys; from filterprune import cli;"
        "sys.exit(cli.main(['inspect', 'full.keras']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=files,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(write)
    assert done.returncode == 0 and "BrokenPipe" not in done.stderr


def test_warnings_are_lines_too(run, tmp_path):
    """Here: that not all that was asked for could go."""
    options = ("--remove", 0.9, "--min-filters", 4)
    found = run("prune", "full.keras", "-o", tmp_path / "a.keras", *options)
    assert found.code == 0
    (line,) = found.err.splitlines()
    assert line.startswith("filterprune: warning: A sparsity of 0.900 is out of reach")


def test_every_verb_has_examples(capsys):
    for verb in (
        *("inspect", "report", "prune", "compact"),
        *("verify", "bench", "export", "demo"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main([verb, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert f"examples:\n  filterprune {verb}" in text
        assert "--json" in text
