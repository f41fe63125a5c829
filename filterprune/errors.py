"""What filterprune raises and warns of, beyond the usual exceptions."""

import re

# What colours a terminal, and other characters that are not to be seen.
_CODES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)"
)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")


class PruningWarning(UserWarning):
    """Something was done, but not all that was asked for."""


class VerificationError(RuntimeError):
    """The compact model does not compute what the masked one does."""


def one_line(message, size: int = 600) -> str:
    """The message of an exception, as a part of one of ours.

    Those of Keras and of the backends have several lines, and codes for colours.

    Args:
        message: the exception, or a text.
        size: how many characters of it there may be.
    """
    text = _CONTROLS.sub(" ", _CODES.sub("", str(message))).strip()
    return text if len(text) <= size else f"{text[:size]}..."
