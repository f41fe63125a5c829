"""What binds a selection: pools that are ranked together, floors and widths."""

import dataclasses
import difflib
import fnmatch
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from filterprune.channels.groups import Group
from filterprune.channels.kinds import check_kinds
from filterprune.schedules import check_sparsity, is_integer
from filterprune.slots import Slots
from filterprune.suggestions import as_fraction, did_you_mean, keyword_meant

SCOPES = ("global", "layer", "isomorphic")
ROUNDINGS = ("nearest", "up", "down")
# What every group keeps at least where the user does not say.
MIN_FILTERS = 0.05
# Kinds of groups of which one channel is no longer a signal to add to.
STREAMS = ("channels", "units", "width")
OVERRIDES = ("sparsity", "max_sparsity", "min_filters", "round_to")


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What one group may keep.

    Attributes:
        size: how many slots the group has.
        floor: the fewest it may keep.
        multiple: what it keeps is a multiple of this, or all.
        rounding: `"nearest"`, `"up"` or `"down"`.
        sparsity: the fraction that is to be closed whatever the scores, or None.
    """

    size: int
    floor: int
    multiple: int | None
    rounding: str
    sparsity: float | None = None

    def rounded(self, keep: int, most: int) -> int:
        """The allowed number of slots for `keep`, larger if in doubt.

        Args:
            keep: how many slots are wanted.
            most: how many of them are still open.
        """
        least = min(self.floor, most)
        if self.multiple is None or keep == self.size:
            return min(max(keep, least), most)
        widths = [*range(self.multiple, most + 1, self.multiple)]
        widths += [self.size] if most == self.size else []
        widths = [width for width in widths if width >= least] or [most]
        if self.rounding == "up":
            return min([w for w in widths if w >= keep] or [max(widths)])
        if self.rounding == "down":
            return max([w for w in widths if w <= keep] or [min(widths)])
        odd = self.multiple  # a multiple, rather than all of an odd number
        return min(widths, key=lambda n: (abs(n - keep), n % odd > 0, -n))


@dataclasses.dataclass(frozen=True)
class Limits:
    """What binds the selection.

    Attributes:
        scope: what is ranked together. `"global"`: all filters; `"layer"`: each
            group by itself, so that all lose the same fraction; `"isomorphic"`:
            groups of like structure; or a dict from names of one's own to a
            pattern of layer paths or a list of those (groups that no pattern
            matches are ranked together).
        min_filters: how many slots every group keeps at least: an integer, or a
            fraction of the group in (0, 1). By a fraction every group keeps one
            channel, and residual streams keep two.
        round_to: the number that surviving slots are a multiple of, or None.
        rounding: to which multiple: `"nearest"`, `"up"` or `"down"`.
        max_sparsity: the fraction of a group that may be closed at most.
        overrides: for a layer path or pattern (`"block3_*"`) either the fraction
            of its group to close, whatever its scores, or a dict with some of
            `sparsity` (the same), `max_sparsity`, `min_filters`, `round_to`.
        kinds: the kinds of groups to prune, such as `{"heads", "ffn"}`, or None
            for all.

    Raises:
        TypeError, ValueError: if one of them makes no sense.
    """

    scope: Any = "global"
    min_filters: int | float = MIN_FILTERS
    round_to: int | None = None
    rounding: str = "nearest"
    max_sparsity: float = 1.0
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kinds: Any = None

    def __post_init__(self):
        object.__setattr__(self, "kinds", check_kinds(self.kinds))
        if not isinstance(self.scope, Mapping) and self.scope not in SCOPES:
            raise ValueError(
                f"Expected `scope` to be one of {list(SCOPES)}, or a dict from "
                "names to patterns of layer paths. "
                f"Received: scope={self.scope!r}."
                + did_you_mean(self.scope, SCOPES, "scope")
            )
        if self.rounding not in ROUNDINGS:
            raise ValueError(
                f"Expected `rounding` to be one of {list(ROUNDINGS)}. "
                f"Received: rounding={self.rounding!r}."
                + did_you_mean(self.rounding, ROUNDINGS, "rounding")
            )
        _check_floor("min_filters", self.min_filters)
        if self.round_to is not None:
            _check_count("round_to", self.round_to)
        _check_fraction("max_sparsity", self.max_sparsity)
        object.__setattr__(self, "overrides", dict(self.overrides or {}))
        for pattern, entry in self.overrides.items():
            _check_override(pattern, entry)

    def bounds(self, groups: Sequence[Group]) -> list[Bounds]:
        """What each group may keep.

        Raises:
            ValueError: if a pattern matches no group, or `round_to` is larger
                than a group.
        """
        self._check_patterns(groups)
        found = [self._bounds_of(group) for group in groups]
        small = [
            (group, bounds)
            for group, bounds in zip(groups, found, strict=True)
            if bounds.multiple is not None and bounds.size < bounds.multiple
        ]
        if small:
            names = ", ".join(
                f"'{name}' ({group.size})"
                for group, _ in small
                for name in group.layers
            )
            raise ValueError(
                "Expected `round_to` to be no larger than any layer to prune. "
                f"Received: round_to={small[0][1].multiple}, and the layers {names}. "
                f"Use round_to={min(group.size for group, _ in small)} or less, leave "
                "those layers out by `wrap_model(model, exclude=...)`, or give them "
                "another `round_to` by `overrides`."
            )
        return found

    def _bounds_of(self, group: Group) -> Bounds:
        entries = [
            {"sparsity": entry} if not isinstance(entry, Mapping) else entry
            for pattern, entry in self.overrides.items()
            if matches(group, pattern)
        ]
        merged: dict[str, Any] = {}
        for entry in entries:  # a later one takes precedence
            merged.update(entry)
        multiple = merged.get("round_to", self.round_to)
        least = _floor(merged.get("min_filters", self.min_filters), group)
        most = merged.get("max_sparsity", self.max_sparsity)
        least = max(least, math.ceil((1 - most) * group.size - 1e-9))
        floor = min(least, group.size)
        if multiple is not None:
            floor = min(math.ceil(floor / multiple) * multiple, group.size)
        sparsity = merged.get("sparsity")
        return Bounds(group.size, floor, multiple, self.rounding, sparsity)

    def _check_patterns(self, groups) -> None:
        scope = self.scope if isinstance(self.scope, Mapping) else {}
        for patterns in (self.overrides, *scope.values()):
            check_patterns(
                groups, [patterns] if isinstance(patterns, str) else patterns
            )

    def pools(self, slots: Slots) -> list[np.ndarray]:
        """The groups that are ranked together, as arrays of their numbers."""
        keys = [self._pool(group, slots) for group in slots.groups]
        order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        numbers = np.array([order[key] for key in keys])
        return [np.flatnonzero(numbers == i) for i in range(len(order))]

    def _pool(self, group: Group, slots: Slots):
        if self.scope == "global":
            return 0
        if self.scope == "layer":
            return group.name, group.roots[0]
        if self.scope == "isomorphic":
            return structure(group, slots)
        for name, patterns in self.scope.items():
            patterns = [patterns] if isinstance(patterns, str) else patterns
            if any(matches(group, pattern) for pattern in patterns):
                return name
        return None


def structure(group: Group, slots: Slots) -> frozenset:
    """What is like in groups of one structure: who makes and reads them, how.

    After Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024,
    https://arxiv.org/abs/2407.04616, where substructures are alike if their
    graphs are isomorphic: here, if weights of the same layer types and kernel
    sizes make and read them.
    """
    return slots.structures[int(group.roots[0])]


def matches(group: Group, pattern: str) -> bool:
    """Whether a layer of a group, or a model around it, has that path."""
    return any(
        fnmatch.fnmatchcase(path, pattern)
        or fnmatch.fnmatchcase(path.rsplit("/", 1)[-1], pattern)
        or path.startswith(f"{pattern}/")
        for path in group.layers
    )


def check_patterns(groups: Sequence[Group], patterns: Iterable[str]) -> None:
    """Raise unless every pattern matches a group."""
    for pattern in patterns:
        if not any(matches(group, pattern) for group in groups):
            names = [name for group in groups for name in group.layers]
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(
                "Expected every pattern to match a layer that can be pruned. "
                f"Received: {pattern!r}, which matches none.{hint} Such "
                f"layers are {names[:8]}."
            )


def _floor(least: int | float, group: Group) -> int:
    """How many slots of a group `min_filters` keeps."""
    if is_integer(least):
        return int(least)
    is_stream = len(group.layers) > 1 and group.kind in STREAMS
    return max(math.ceil(least * group.size - 1e-9), 2 if is_stream else 1)


def _check_floor(name: str, value) -> None:
    is_fraction = isinstance(value, numbers.Real) and 0 < float(value) < 1
    if not is_fraction and (not is_integer(value) or int(value) < 1):
        raise ValueError(
            f"Expected `{name}` to be an integer of at least 1, or a fraction of the "
            f"group in (0, 1). Received: {name}={value!r}"
        )


def _check_count(name: str, value) -> None:
    if not is_integer(value) or int(value) < 1:
        raise ValueError(
            f"Expected `{name}` to be an integer of at least 1. "
            f"Received: {name}={value!r}"
        )


def _check_fraction(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(
            f"Expected `{name}` to be a number. Received: {name}={value!r}."
            + as_fraction(value)
        )
    if not 0 <= value <= 1:
        raise ValueError(
            f"Expected `{name}` to be a fraction in [0, 1]. "
            f"Received: {name}={value!r}." + as_fraction(value)
        )


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "sparsity": check_sparsity,
    "max_sparsity": _check_fraction,
    "min_filters": _check_floor,
    "round_to": _check_count,
}


def _check_override(pattern, entry) -> None:
    if not isinstance(pattern, str):
        raise TypeError(
            "Expected `overrides` to be a dict from layer paths or patterns. "
            f"Received the key: {pattern!r}"
        )
    values = entry if isinstance(entry, Mapping) else {"sparsity": entry}
    for name, value in values.items():
        if name not in OVERRIDES:
            raise ValueError(
                f"Expected an override to be a fraction, or a dict with some of "
                f"{list(OVERRIDES)}. Received: {pattern!r}: {entry!r}."
                + keyword_meant(name, OVERRIDES)
            )
        _CHECKS[name](f"overrides[{pattern!r}][{name!r}]", value)
