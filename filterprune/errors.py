"""What filterprune raises and warns of, beyond the usual exceptions."""

import re
import sys
import types
import warnings

# Code of these packages is never the line that a user can change.
_INTERNAL = ("filterprune", "keras")
# What colours a terminal, and other characters that are not to be seen.
_CODES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)"
)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")


class PruningWarning(UserWarning):
    """Something was done, but not all that was asked for."""


class VerificationError(RuntimeError):
    """The compact model does not compute what the masked one does."""


def warn(message: str) -> None:
    """Give a `PruningWarning` that points at the user's line.

    That is the innermost line outside of filterprune and Keras: the call of our
    function, or of the `fit` that runs a callback of ours.
    """
    outermost = sys._getframe(1)
    frame: types.FrameType | None = outermost
    while frame is not None and _package(frame) in _INTERNAL:
        outermost, frame = frame, frame.f_back
    place = frame or outermost
    warnings.warn_explicit(
        message,
        PruningWarning,
        place.f_code.co_filename,
        place.f_lineno,
        module=place.f_globals.get("__name__", "<unknown>"),
        registry=place.f_globals.setdefault("__warningregistry__", {}),
    )


def _package(frame) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def one_line(message, size: int = 600) -> str:
    """The message of an exception, as a part of one of ours.

    Those of Keras and of the backends have several lines, and codes for colours.

    Args:
        message: the exception, or a text.
        size: how many characters of it there may be.
    """
    text = _CONTROLS.sub(" ", _CODES.sub("", str(message))).strip()
    return text if len(text) <= size else f"{text[:size]}..."
