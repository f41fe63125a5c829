"""What the verbs print: tables for people, JSON for machines, progress."""

import contextlib
import functools
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from filterprune.errors import one_line

# Exit codes beyond 0; 2 is what argparse uses, 130 what shells do on Ctrl-C.
FAILED = 1
USAGE = 2
INTERRUPTED = 130


class Refused(Exception):
    """The command cannot be run as given."""


class Failed(Exception):
    """A check failed."""


@contextlib.contextmanager
def refusing(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turn exceptions that say what is wrong with the input into one line.

    Args:
        *kinds: the exceptions. Defaults to those that arguments and files cause.
        prefix: what to say first.
    """
    kinds = kinds or (TypeError, ValueError, ImportError, OSError)
    try:
        yield
    except kinds as error:
        raise Refused(prefix + brief(error)) from error


def brief(error: BaseException, size: int = 600) -> str:
    """The message of an exception in one line."""
    text = one_line(error, sys.maxsize)
    text = text.split(" Full object config:")[0]
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    elif isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= size else f"{text[:size]}..."


class Output:
    """Where a verb puts its results.

    Args:
        as_json: whether to print one JSON object, and no tables.
    """

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        self.rich = importlib.util.find_spec("rich") is not None

    @property
    def interactive(self) -> bool:
        """Whether people see what is printed."""
        return not self.as_json and sys.stdout.isatty()

    def say(self, text: str) -> None:
        """Print a line for people."""
        if not self.as_json:
            print(text)

    def figures(self, **figures: Any) -> None:
        """Print the results for machines: one JSON object."""
        if self.as_json:
            print(json.dumps(_plain(figures), indent=2, allow_nan=False))

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]):
        """Print a table for people.

        Args:
            title: what it shows.
            columns: their heads; one that starts with `>` is set to the right.
            rows: a text for each column.
        """
        if self.as_json:
            return
        heads = [head.removeprefix(">") for head in columns]
        right = [head.startswith(">") for head in columns]
        cells = [[str(cell) for cell in row] for row in rows]
        if self.rich and self.interactive:
            _print_rich(title, heads, right, cells)
        else:
            _print_plain(title, heads, right, cells)

    @functools.cached_property
    def _progress(self):
        """A console on the terminal, by a descriptor of its own, or None."""
        if not self.rich or not sys.stderr.isatty():
            return None
        from rich.console import Console

        return Console(file=os.fdopen(os.dup(sys.stderr.fileno()), "w"))

    @contextlib.contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show that something takes its time; nothing where there is no terminal."""
        if self._progress is None:
            yield
            return
        with self._progress.status(f"{text} ..."):
            yield

    def steps(self, text: str, count: int) -> Iterator[int]:
        """The numbers up to `count`, with a bar on a terminal."""
        if self._progress is None:
            yield from range(count)
            return
        from rich.progress import track

        yield from track(
            range(count), text, console=self._progress, transient=True, total=count
        )


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Without what native code logs, as the converters' does at length."""
    try:
        number = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # it is no file
        yield
        return
    sys.stderr.flush()
    kept, null = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, number)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, number)
        os.close(kept)
        os.close(null)


def _print_rich(title, heads, right, cells) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left")
    for head, is_right in zip(heads, right, strict=True):
        if is_right:
            table.add_column(escape(head), justify="right", no_wrap=True)
        else:
            table.add_column(escape(head), overflow="fold")
    for row in cells:
        table.add_row(*map(escape, row))
    Console().print(table)  # with an empty line at its end


def _print_plain(title, heads, right, cells) -> None:
    """Columns two spaces apart and no line broken, for `grep` and `awk`."""
    rows = [heads, *cells]
    widths = [max(map(len, column)) for column in zip(*rows)]
    print(title)
    for row in rows:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        print("  " + "  ".join(padded).rstrip())
    print()


def _plain(value):
    """Values as JSON has them: no infinity and no NaN, paths as texts."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (int, str, type(None))) else str(value)
