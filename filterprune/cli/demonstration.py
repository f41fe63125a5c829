"""`demo`: all of it, on real digits."""

import dataclasses

from filterprune.cli.arguments import add_json, add_verb, seed
from filterprune.cli.output import Output, Refused, refusing


def add_verbs(verbs) -> None:
    """Add the verb of this file."""
    parser = add_verb(
        verbs,
        "demo",
        _demo,
        "see all of it work on real digits",
        """Train a small convnet on 5,000 real digits, remove 70 % of its filters while
        it trains on, compact it, and measure: accuracy, size, latency.""",
        """
        filterprune demo
        filterprune demo --quick --output /tmp/demo
        """,
    )
    parser.add_argument(
        "--seed",
        type=seed,
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
    add_json(parser)


def _demo(args) -> int:
    from filterprune import demo

    out = Output(args.json)
    with refusing(ImportError):
        demo.check_packages()
    try:
        folder = demo.make_folder(args.output)
    except OSError as error:
        raise Refused(f"cannot save to {args.output}: {error.strerror}") from error
    from rich.console import Console

    console = None if args.json else Console()
    result = demo.run(args.seed, folder, args.quick, console)
    if console is not None:
        console.print(result.table())
    out.say(f"Saved {result.dense.path}")
    out.say(f"Saved {result.compact.path}, which loads with Keras alone.")
    out.say(f"Done in {result.seconds:.0f} s.")
    out.figures(**dataclasses.asdict(result))
    return 0
