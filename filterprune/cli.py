"""The command line: `filterprune VERB`, each verb a function."""

import argparse
import sys

from filterprune.version import __version__

# Exit codes beyond 0: what argparse uses, and what shells do on Ctrl-C.
USAGE = 2
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments, without the program's name. Defaults to those of
            the process.

    Returns:
        The exit code: 0, 2 if the command cannot be run as given, 130 if it
        was interrupted.

    Raises:
        SystemExit: by argparse: with 0 after `--help` and `--version`, with 2
            if the arguments make no sense.
    """
    args = _parser().parse_args(argv)
    try:
        return args.verb(args)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="filterprune",
        description="Structured pruning for Keras: really smaller, faster convnets.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_demo(verbs)
    return parser


def _add_demo(verbs) -> None:
    text = (
        "Train a small convnet on 5,000 real digits, remove 70 % of its filters "
        "while it trains on, compact it, and measure: accuracy, size, latency."
    )
    parser = verbs.add_parser(
        "demo", help="see all of it work on real digits", description=text
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="the same seed gives the same accuracies (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        default="filterprune-demo",
        help="where to save dense.keras and compact.keras (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few digits and epochs: seconds instead of minutes, poor accuracy",
    )
    parser.set_defaults(verb=_demo)


def _demo(args) -> int:
    from filterprune import demo

    try:
        demo.check_packages()
        folder = demo.make_folder(args.output)
    except ImportError as error:
        return _refuse(error)
    except OSError as error:
        return _refuse(f"cannot save to {args.output}: {error.strerror}")
    from rich.console import Console

    console = Console()
    result = demo.run(args.seed, folder, args.quick, console)
    console.print(result.table())
    print(f"Saved {result.dense.path}")
    print(f"Saved {result.compact.path}, which loads with Keras alone.")
    print(f"Done in {result.seconds:.0f} s.")
    return 0


def _refuse(reason) -> int:
    """Say why a command cannot be run."""
    print(f"filterprune: error: {reason}", file=sys.stderr)
    return USAGE


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"expected an integer from 0 to {2**32 - 1}, received {text!r}"
        )
    return int(text)
