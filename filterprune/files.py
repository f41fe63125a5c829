"""Writing files whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves has to be removed by hand
    fcntl = None  # type: ignore[assignment]

# Folders of this name beside a target hold what is being written. Their owner keeps
# them locked, so that those of processes that were killed are known.
PREFIX = ".filterprune-unfinished-"
# Where a folder that is about to be replaced waits meanwhile.
ASIDE = "before"


def check_target(
    path: str | os.PathLike,
    overwrite: bool = False,
    also: Sequence[str] = (),
    marker: str | None = None,
) -> pathlib.Path:
    """Raise unless something can be written to a path.

    A file of that name is made, and removed again, to find out.

    Args:
        path: where to write to. Of a symbolic link that is to be overwritten it is
            the place that it points to.
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
            be written to, or a file that is there is read-only.
        OSError: if something is there that is no file, such as a device, or the
            name is too long.
    """
    path = pathlib.Path(path).absolute()
    for name in (path, *(path.with_suffix(suffix) for suffix in also)):
        if not overwrite and os.path.lexists(name):
            raise FileExistsError(f"{name} exists already")
        _check_place(name, _real(name), marker if name == path else None)
    return path


def _check_place(name: pathlib.Path, target: pathlib.Path, marker) -> None:
    """Raise unless a file can be put where a name, or a link of it, points to."""
    folder = target.parent
    if not folder.exists():
        raise FileNotFoundError(f"cannot write {name}: there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {name}: {folder} is no folder")
    if os.path.isdir(target):
        if not (marker and (target / marker).is_file()):
            raise IsADirectoryError(f"cannot write {name}: it is a folder")
    elif os.path.lexists(target) and not os.path.isfile(target):
        raise OSError(f"cannot write {name}: it is no regular file")
    elif os.path.isfile(target) and not os.access(target, os.W_OK):
        raise PermissionError(f"cannot write {name}: it is read-only")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write {name}: no permission in {folder}")
    try:
        with _workplace(folder) as work:
            (work / name.name).touch()
    except OSError as error:
        raise OSError(f"cannot write {name}: {error.strerror}") from error


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike,
    overwrite: bool = False,
    also: Sequence[str] = (),
    marker: str | None = None,
) -> Iterator[pathlib.Path]:
    """A path to write to: what is there takes its place if the block succeeds.

    It is in a new folder beside the target, so that the move is atomic. If the
    block raises, or the process is terminated, what was at `path` is as before and
    nothing else is left; what a process leaves that is killed, the next one removes.
    A file that is replaced hands on its permissions and its owner, and a symbolic
    link goes on pointing to the same place.

    Args:
        path, overwrite, also, marker: as in `check_target`.

    Yields:
        The path to write to, of the same name.
    """
    path = check_target(path, overwrite, also, marker)
    with _workplace(_real(path).parent) as folder, _tidied_on_sigterm(folder):
        made = folder / path.name
        yield made
        check_target(path, overwrite, also, marker)  # it may be there by now
        for suffix in also:  # the main file last: where it is, all is
            _place(made.with_suffix(suffix), _real(path.with_suffix(suffix)))
        if made.is_dir() and path.is_dir():
            _swap_folders(made, _real(path), folder / ASIDE)
        else:
            _place(made, _real(path))


def _real(path: pathlib.Path) -> pathlib.Path:
    """What a path stands for, which is elsewhere if it is a symbolic link."""
    return pathlib.Path(os.path.realpath(path)) if os.path.islink(path) else path


def _place(made: pathlib.Path, target: pathlib.Path) -> None:
    """Move a file to its target, as readable as the one that was there."""
    if target.is_file():
        before = target.stat()
        with contextlib.suppress(OSError, AttributeError):  # that is for root to do
            os.chown(made, before.st_uid, before.st_gid)
        os.chmod(made, stat.S_IMODE(before.st_mode))
    try:
        os.replace(made, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # a link may point to another file system
            raise
        with _workplace(target.parent) as folder:
            os.replace(shutil.copy2(made, folder / target.name), target)


def _swap_folders(made: pathlib.Path, path: pathlib.Path, aside: pathlib.Path) -> None:
    """A folder that is not empty cannot be replaced: it is moved aside first."""
    aside.mkdir()
    os.replace(path, aside / path.name)
    try:
        os.replace(made, path)
    except BaseException:
        os.replace(aside / path.name, path)
        raise


@contextlib.contextmanager
def _workplace(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder that is gone afterwards, and is known to be in use until then."""
    for stale in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _locked(stale):
            _tidy(stale)
    while True:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # some file systems have no locks
                stack.enter_context(_locked(folder))
            if not folder.exists():  # another process had it before it was locked
                continue
            try:
                yield folder
            finally:
                _tidy(folder)
            return


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Hold the lock of a folder, which the system opens when a process ends.

    Raises:
        OSError: if somebody else holds it, or there are no locks.
    """
    if fcntl is None:
        raise OSError("no locks")
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


def _tidy(folder: pathlib.Path) -> None:
    """Remove a folder of ours; what waits in it for want of a successor goes back."""
    for aside in folder.glob(f"{ASIDE}/*"):
        if not os.path.lexists(folder.parent / aside.name):
            os.replace(aside, folder.parent / aside.name)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _tidied_on_sigterm(folder: pathlib.Path) -> Iterator[None]:
    """Remove a folder when the process is terminated, unless others care for that."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number, frame):
        _tidy(folder)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
