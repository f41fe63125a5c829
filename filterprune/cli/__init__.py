"""The command line: `filterprune VERB`, each family of verbs a file."""

import argparse
import os
import sys
import warnings

from filterprune.cli import (
    checking,
    compacting,
    demonstration,
    exports,
    looking,
    pruning,
    timing,
)
from filterprune.cli.arguments import Parser
from filterprune.cli.output import FAILED, INTERRUPTED, USAGE, Failed, Refused
from filterprune.errors import one_line
from filterprune.version import __version__

_FAMILIES = (
    looking,
    pruning,
    compacting,
    checking,
    timing,
    exports,
    demonstration,
)
_EPILOG = f"""\
exit codes:
  0    done
  {FAILED}    a check failed: models that differ, or too small a speedup
  {USAGE}    it cannot be run as given: wrong arguments, missing or broken files
  {INTERRUPTED}  interrupted

`filterprune VERB --help` has examples. Files are loaded in Keras' safe mode and
written whole or not at all; nothing is replaced without --overwrite.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments, without the program's name. Defaults to those of
            the process.

    Returns:
        The exit code: 0, 1 if a check failed, 2 if the command cannot be run as
        given, 130 if it was interrupted.

    Raises:
        SystemExit: by argparse: with 0 after `--help` and `--version`, with 2
            if the arguments make no sense.
    """
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is meant for developers
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            code = args.verb(args)
        sys.stdout.flush()
        return code
    except Refused as error:
        print(f"filterprune: error: {error}", file=sys.stderr)
        return USAGE
    except Failed as error:
        print(f"filterprune: failed: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # who reads has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="filterprune",
        description="Structured pruning for Keras: really smaller, faster convnets.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for family in _FAMILIES:
        family.add_verbs(verbs)
    return parser


def _show_warning(message, category, *_, **__) -> None:
    print(f"filterprune: warning: {one_line(message, sys.maxsize)}", file=sys.stderr)
