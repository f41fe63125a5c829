"""Files are written whole or not at all."""

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from filterprune import files
from filterprune.files import PREFIX, check_target, replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_made_takes_the_place(tmp_path):
    with replacing(tmp_path / "a.txt") as made:
        made.write_text("new")
        assert names(tmp_path) == [made.parent.name] and made.name == "a.txt"
    assert (tmp_path / "a.txt").read_text() == "new" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_block_that_raises(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), replacing(tmp_path / "a.txt", overwrite=True) as made:
        made.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_file_that_came_in_between_stays(tmp_path):
    with pytest.raises(FileExistsError), replacing(tmp_path / "a.txt") as made:
        made.write_text("new")
        (tmp_path / "a.txt").write_text("theirs")
    assert (tmp_path / "a.txt").read_text() == "theirs"
    assert names(tmp_path) == ["a.txt"]


def test_files_beside_it_come_along(tmp_path):
    (tmp_path / "a.bin").touch()
    with pytest.raises(FileExistsError, match=r"a\.bin"):
        check_target(tmp_path / "a.xml", also=(".bin",))
    with replacing(tmp_path / "a.xml", overwrite=True, also=(".bin",)) as made:
        made.write_text("x")
        made.with_suffix(".bin").write_text("b")
    assert (tmp_path / "a.bin").read_text() == "b"
    assert names(tmp_path) == ["a.bin", "a.xml"]


def full(folder, text):
    folder.mkdir()
    (folder / "marker").write_text(text)


def test_folders_are_replaced_if_they_are_known(tmp_path):
    full(tmp_path / "model", "old")
    with pytest.raises(IsADirectoryError):
        check_target(tmp_path / "model", overwrite=True)
    with replacing(tmp_path / "model", overwrite=True, marker="marker") as made:
        full(made, "new")
    assert (tmp_path / "model" / "marker").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_a_folder_comes_back_if_its_place_cannot_be_taken(tmp_path, monkeypatch):
    full(tmp_path / "model", "old")
    replace = os.replace

    def failing(source, target):
        if target == tmp_path / "model" and (source / "marker").read_text() == "new":
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with (
        pytest.raises(OSError, match="no"),
        replacing(tmp_path / "model", overwrite=True, marker="marker") as made,
    ):
        full(made, "new")
    assert (tmp_path / "model" / "marker").read_text() == "old"


def test_links_count_as_files(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        check_target(tmp_path / "link")


def test_a_link_goes_on_pointing_to_the_same_place(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("there/a.txt")
    (tmp_path / "dangling.txt").symlink_to("there/new.txt")
    for link in ("link.txt", "dangling.txt"):
        with replacing(tmp_path / link, overwrite=True) as made:
            assert made.name == link
            made.write_text("new")
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / link).read_text() == "new"
    assert names(tmp_path / "there") == ["a.txt", "new.txt"]
    assert names(tmp_path) == ["dangling.txt", "link.txt", "there"]


def test_links_in_circles_and_to_nowhere(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("no/such/place")
    for name in ("a", "c"):
        with pytest.raises(OSError, match="cannot write"):
            check_target(tmp_path / name, overwrite=True)
    assert names(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_is_as_readable_as_the_one_before(tmp_path, mode):
    for name in ("a.xml", "a.bin"):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(mode)
    with replacing(tmp_path / "a.xml", overwrite=True, also=(".bin",)) as made:
        made.write_text("new")
        made.with_suffix(".bin").write_text("new")
    for name in ("a.xml", "a.bin"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_read_only_files_are_not_replaced(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o400)
    with pytest.raises(PermissionError, match="read-only"):
        check_target(tmp_path / "a.txt", overwrite=True)


def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", os.devnull):
        with pytest.raises(OSError, match="no regular file"):
            check_target(path, overwrite=True)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert names(tmp_path) == ["pipe"]


def test_names_of_any_length(tmp_path):
    """What the system takes is written; what it does not is known before."""
    name = "a" * 251 + ".txt"
    with replacing(tmp_path / name) as made:
        made.write_text("new")
    assert names(tmp_path) == [name]
    with pytest.raises(OSError, match="name too long"):
        check_target(tmp_path / f"a{name}")
    assert names(tmp_path) == [name]


PROGRAM = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("files", {file!r})  # without Keras
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
path, number, at = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def end(*args):
    os.kill(os.getpid(), number)

if at == "swap":
    files.os.replace, move = (lambda a, b: (move(a, b), end())), files.os.replace
with files.replacing(path, overwrite=True, marker="marker") as made:
    made.mkdir()
    (made / "marker").write_text("new")
    if at == "block":
        end()
"""


def killed(path, number, at):
    program = textwrap.dedent(PROGRAM).format(file=files.__file__)
    arguments = [sys.executable, "-c", program, path, str(int(number)), at]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("at", ["block", "swap"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_process_that_was_killed(tmp_path, number, at):
    """On SIGTERM at once, on SIGKILL with the next file that is written there.

    A folder that had been moved aside for its successor comes back.
    """
    full(tmp_path / "model", "old")
    done = killed(tmp_path / "model", number, at)
    assert done.returncode == -number, done.stderr
    left = [name for name in names(tmp_path) if name.startswith(PREFIX)]
    assert len(left) == (number == signal.SIGKILL)
    with replacing(tmp_path / "other.txt") as made:
        made.write_text("new")
    assert names(tmp_path) == ["model", "other.txt"]
    assert (tmp_path / "model" / "marker").read_text() == "old"


def test_what_others_write_at_the_same_time_stays(tmp_path):
    with (
        replacing(tmp_path / "a.txt") as first,
        replacing(tmp_path / "b.txt") as second,
    ):
        second.write_text("b")
        first.write_text("a")
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_folders_that_only_look_like_ours_stay(tmp_path):
    full(tmp_path / ".filterprune-cache", "mine")
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / ".filterprune-cache")
    with replacing(tmp_path / "a.txt") as made:
        made.write_text("new")
    assert (tmp_path / ".filterprune-cache" / "marker").read_text() == "mine"


def test_signal_handlers_of_others_are_left_alone(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with replacing(tmp_path / "a.txt") as made:
            made.write_text("new")
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, mine)
    with replacing(tmp_path / "b.txt") as made:
        made.write_text("new")
    assert signal.getsignal(signal.SIGTERM) is before
