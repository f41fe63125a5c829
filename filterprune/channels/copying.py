"""Deep copies of any object, functions and what they close over included.

`copy.deepcopy` takes functions for constants, so that one defined in a constructor
goes on using the old object, and it fails at the first lock. Here a function gets
cells of its own if anything in them is copied, a lock becomes a fresh one, and what
cannot be copied at all, such as an open file, is shared.
"""

import copyreg
import numbers
import re
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

# What never changes, or is the same thing wherever it is used.
_CONSTANT = (
    *(type(None), type, str, bytes, numbers.Number, range, re.Pattern),
    *(types.ModuleType, types.BuiltinFunctionType, types.CodeType, property),
)
_LOCKS: dict[type, Callable] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}


class CannotCopy(Exception):
    """Raised for what may not be shared: what `special` knows and fails at."""


class Copier:
    """Copies objects that refer to each other, each of them once.

    Args:
        special: from an object to its copy, or to `NotImplemented` where nothing
            is to be known about it; asked first.
    """

    def __init__(self, special: Callable[["Copier", Any], Any]):
        self._special = special
        self._copies: dict[int, Any] = {}
        self._originals: list = []  # alive, so that no other object gets their ids

    def __call__(self, value):
        """The copy of an object, or the object itself if it cannot be copied."""
        if isinstance(value, _CONSTANT):
            return value
        if id(value) not in self._copies:
            try:
                new = self._special(self, value)
            except Exception as error:
                raise CannotCopy(f"{type(value).__name__}: {error}") from error
            if new is NotImplemented:
                try:
                    new = self._copy(value)
                except CannotCopy:
                    raise
                except Exception:
                    new = value
            self.note(value, new)
        return self._copies[id(value)]

    def __contains__(self, value) -> bool:
        return id(value) in self._copies

    def note(self, value, new) -> None:
        """Let `new` stand for `value` from now on, also before it is complete."""
        self._copies[id(value)] = new
        self._originals.append(value)

    def _copy(self, value):
        kind = type(value)
        if kind in _LOCKS:
            return _LOCKS[kind]()
        if kind in _KNOWN:
            return _KNOWN[kind](self, value)
        if hasattr(kind, "__deepcopy__"):
            return value.__deepcopy__(self._copies)
        return self._by_reduction(value)

    def _dict(self, value):
        new: dict = {}
        self.note(value, new)
        new.update((self(key), self(part)) for key, part in value.items())
        return new

    def _list(self, value):
        new: list = []
        self.note(value, new)
        new.extend(map(self, value))
        return new

    def _tuple(self, value):
        new = tuple(map(self, value))
        same = all(a is b for a, b in zip(value, new))
        return self._copies.get(id(value), value if same else new)

    def _method(self, value):
        return types.MethodType(self(value.__func__), self(value.__self__))

    def _reference(self, value):
        target = value()
        return weakref.ref(self(target)) if target in self else value

    def _local(self, value):
        new = threading.local()
        self.note(value, new)
        vars(new).update(self(vars(value)))
        return new

    def _function(self, value):
        """The function itself, unless it closes over something that is copied."""
        cells = value.__closure__ or ()
        extra = (value.__defaults__, value.__kwdefaults__, vars(value))
        if not cells and not any(extra):
            return value
        fresh = tuple(self._copies.get(id(cell), types.CellType()) for cell in cells)
        new = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, None, fresh
        )
        self.note(value, new)
        for old, cell in zip(cells, fresh):
            if old not in self:  # functions that were defined side by side share it
                self.note(old, cell)
                if not _is_empty(old):
                    cell.cell_contents = self(old.cell_contents)
        for name in ("__defaults__", "__kwdefaults__"):
            setattr(new, name, self(getattr(value, name)))
        vars(new).update((key, self(part)) for key, part in vars(value).items())
        for name in ("__qualname__", "__module__", "__doc__", "__annotations__"):
            setattr(new, name, getattr(value, name))
        return new if _differ(value, new) else value

    def _by_reduction(self, value):
        """Copy an object by what it says to `pickle`."""
        reduce = copyreg.dispatch_table.get(type(value))
        found = reduce(value) if reduce else value.__reduce_ex__(4)
        if isinstance(found, str):  # the name of a global
            return value
        make, args, state, items, pairs = (*found, None, None, None)[:5]
        new = make(*map(self, args))
        self.note(value, new)
        if state is not None:
            _set_state(new, self(state))
        for item in items or ():
            new.append(self(item))
        for key, part in pairs or ():
            new[self(key)] = self(part)
        return new


def _is_empty(cell) -> bool:
    """Whether a function refers to a variable that is not set yet."""
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _differ(function, new) -> bool:
    """Whether a copied function has anything that the original does not have."""

    def parts(one):
        cells = [cell for cell in one.__closure__ or () if not _is_empty(cell)]
        return [
            *(cell.cell_contents for cell in cells),
            *(one.__defaults__ or ()),
            *(one.__kwdefaults__ or {}).values(),
            *vars(one).values(),
        ]

    return any(a is not b for a, b in zip(parts(function), parts(new)))


def _set_state(new, state) -> None:
    if hasattr(new, "__setstate__"):
        new.__setstate__(state)
        return
    own, slots = state if isinstance(state, tuple) else (state, None)
    if own:
        vars(new).update(own)
    for key, value in (slots or {}).items():
        object.__setattr__(new, key, value)


_KNOWN: dict[type, Callable] = {
    dict: Copier._dict,
    list: Copier._list,
    tuple: Copier._tuple,
    types.MethodType: Copier._method,
    types.FunctionType: Copier._function,
    weakref.ref: Copier._reference,
    threading.local: Copier._local,
}
