"""Writing files whole or not at all."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence


def check_target(
    path: str | os.PathLike,
    overwrite: bool = False,
    also: Sequence[str] = (),
    marker: str | None = None,
) -> pathlib.Path:
    """Raise unless something can be written to a path.

    Args:
        path: where to write to.
        overwrite: whether a file that is there may be replaced.
        also: suffixes of more files that are written beside it.
        marker: what a folder must hold to be replaced. Defaults to `None`: no
            folder is.

    Returns:
        The path, absolute.

    Raises:
        FileNotFoundError: if the folder does not exist.
        FileExistsError: if a file is there and `overwrite` is false.
        IsADirectoryError: if a folder is there that is not to be replaced.
        NotADirectoryError, PermissionError: if the folder is none, or is not to
            be written to.
    """
    path = pathlib.Path(path).absolute()
    folder = path.parent
    if not folder.exists():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {folder} is no folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write {path}: no permission in {folder}")
    for target in (path, *(path.with_suffix(suffix) for suffix in also)):
        if not overwrite and os.path.lexists(target):
            raise FileExistsError(f"{target} exists already")
    if path.is_dir() and not (marker and (path / marker).is_file()):
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    return path


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike,
    overwrite: bool = False,
    also: Sequence[str] = (),
    marker: str | None = None,
) -> Iterator[pathlib.Path]:
    """A path to write to: what is there takes its place if the block succeeds.

    It is in a new folder beside the target, so that the move is atomic. If the
    block raises, what was at `path` is as before and nothing else is left.

    Args:
        path, overwrite, also, marker: as in `check_target`.

    Yields:
        The path to write to, of the same name.
    """
    path = check_target(path, overwrite, also, marker)
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}-", dir=path.parent, ignore_cleanup_errors=True
    ) as folder:
        made = pathlib.Path(folder) / path.name
        yield made
        check_target(path, overwrite, also, marker)  # it may be there by now
        for suffix in also:  # the main file last: where it is, all is
            os.replace(made.with_suffix(suffix), path.with_suffix(suffix))
        if made.is_dir() and path.is_dir():
            _swap_folders(made, path, pathlib.Path(folder) / "before")
        else:
            os.replace(made, path)


def _swap_folders(made: pathlib.Path, path: pathlib.Path, aside: pathlib.Path) -> None:
    """A folder that is not empty cannot be replaced: it is moved aside first."""
    os.replace(path, aside)
    try:
        os.replace(made, path)
    except BaseException:
        os.replace(aside, path)
        raise
