"""Bars: what figures are held against, and the table of all of them."""

import dataclasses
import json

import measuring


@dataclasses.dataclass(frozen=True)
class Bar:
    """A figure and what it is held against.

    Attributes:
        what: what was measured, in words.
        measured: the figure; `None` if it was not measured.
        most: what it may be at most, or `None`.
        least: what it must be at least, or `None`.
        note: what else to say, such as why nothing was measured.
    """

    what: str
    measured: float | None
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def held(self) -> bool | None:
        """Whether the bar is held; `None` without a figure or a bar."""
        if self.measured is None or (self.most is None and self.least is None):
            return None
        above = self.least is not None and self.measured < self.least
        return not above and (self.most is None or self.measured <= self.most)

    @property
    def wanted(self) -> str:
        """The bar in words."""
        if self.most is None and self.least is None:
            return ""
        if self.most is None:
            return f">= {self.least:g}"
        if self.least is None:
            return f"<= {self.most:g}"
        return f"{self.least:g} to {self.most:g}"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """A line of a table: what, the bar, the figure, whether it is held."""
        found = "not measured" if self.measured is None else f"{self.measured:.3f}"
        words = {None: "", True: "holds", False: "missed"}[self.held]
        return (
            self.what,
            self.wanted,
            found,
            ", ".join(filter(None, (words, self.note))),
        )


def show(bars) -> bool:
    """Print a table; whether no bar was missed."""
    width = max(len(bar.what) for bar in bars)
    for bar in bars:
        what, wanted, found, words = bar.cells
        print(f"{what:{width}}  {wanted:>12}  {found:>12}  {words}", flush=True)
    return all(bar.held is not False for bar in bars)


def save(name: str, bars, figures: dict, quick: bool, packages=(), **more) -> None:
    """Write the bars of one benchmark and the figures behind them.

    Figures of `--quick` are kept apart: they are of fewer nets and turns.

    Args:
        name: of the benchmark.
        bars: its bars.
        figures: what was measured.
        quick: whether by `--quick`.
        packages: of which to note the versions.
        **more: what else `measuring.save` takes.
    """
    measuring.save(
        path_of(name, quick),
        figures,
        **{"key": "figures", "merge": False, **more},
        versions=measuring.versions(*packages),
        bars=[dataclasses.asdict(bar) for bar in bars],
    )


def load(name: str, quick: bool) -> list[Bar]:
    """The bars of one benchmark as they were last measured."""
    path = path_of(name, quick)
    if not path.exists():
        return []
    return [Bar(**bar) for bar in json.loads(path.read_text()).get("bars", [])]


def path_of(name: str, quick: bool):
    """The file of results of a benchmark."""
    folder = measuring.QUICK if quick else measuring.RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json"
