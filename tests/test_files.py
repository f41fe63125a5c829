"""Files are written whole or not at all."""

import os

import pytest

from filterprune.files import check_target, replacing


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
