"""Arguments that several verbs share, and what they may be."""

import argparse
import math
import sys
import textwrap

from filterprune.suggestions import did_you_mean


class Parser(argparse.ArgumentParser):
    """Says what an option or a value is called here that another tool has."""

    def parse_known_args(self, args=None, namespace=None):
        known = [o for o in self._option_string_actions if o.startswith("--")]
        for text in args if args is not None else sys.argv[1:]:
            name = text.split("=")[0]
            if name == "--" or (self._subparsers and not name.startswith("-")):
                break  # what follows is no option, or one of the verb's
            if name.startswith("--") and not any(o.startswith(name) for o in known):
                self.error(
                    f"unrecognized option {name}.{did_you_mean(name, known, 'option')}"
                )
        return super().parse_known_args(args, namespace)

    def _check_value(self, action, value):
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            what = "format" if action.dest == "to" else action.dest
            error.message += did_you_mean(value, action.choices, what)
            raise


def add_verb(verbs, name: str, run, summary: str, text: str, examples: str):
    """A parser for a verb, with a description and examples.

    Args:
        verbs: what `add_subparsers` returned.
        name: the verb.
        run: a function from the arguments to the exit code.
        summary: one line for `filterprune --help`.
        text: what it does.
        examples: commands, one a line.
    """
    parser = verbs.add_parser(
        name,
        help=summary,
        description=textwrap.fill(" ".join(text.split()), 78),
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=run)
    return parser


def add_model(parser, name: str = "model", text: str = "a .keras file", **kwargs):
    """A file to load, and what to import before."""
    parser.add_argument(name, metavar=name.upper(), help=text, **kwargs)
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module, or a .py file, that registers layers of your own; it is "
        "imported, that is, run",
    )


def add_output(parser, text: str, required: bool = True) -> None:
    """Where to write to."""
    parser.add_argument("-o", "--output", metavar="FILE", required=required, help=text)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there"
    )


def add_json(parser) -> None:
    """Figures for machines."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, no tables"
    )


def add_generated(parser, batch_size: int) -> None:
    """The inputs that are made up."""
    parser.add_argument(
        "--batch-size",
        type=count,
        default=batch_size,
        metavar="N",
        help="samples in a batch (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the inputs (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=count,
        default=64,
        metavar="N",
        help="what to take for a size that the model leaves open "
        "(default: %(default)s)",
    )


def seed(text: str) -> int:
    """A seed."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"expected an integer from 0 to {2**32 - 1}, received {text!r}"
        )
    return int(text)


def count(text: str) -> int:
    """An integer above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"expected an integer of at least 1, received {text!r}"
        )
    return int(text)


def steps(text: str) -> int | str:
    """A number of steps, or `auto`."""
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"expected an integer of at least 0, or auto, received {text!r}"
        )
    return text if text == "auto" else int(text)


def floor(text: str) -> int | float:
    """An integer above 0, or a fraction between 0 and 1."""
    value = int(text) if text.isdecimal() else _number(text)
    if not 0 < value < 1 and not (isinstance(value, int) and value >= 1):
        raise argparse.ArgumentTypeError(
            "expected an integer of at least 1, or a fraction between 0 and 1, "
            f"received {text!r}"
        )
    return value


def positive(text: str) -> float:
    """A number above 0, such as `5e8`."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(
            f"expected a number above 0, such as 5e8, received {text!r}"
        )
    return value


def fraction(text: str) -> float:
    """A number in [0, 1)."""
    value = _number(text.removesuffix("%"))
    if not 0 <= value < 1 or text.endswith("%"):
        raise argparse.ArgumentTypeError(
            f"expected a fraction of at least 0 and below 1, received {text!r}."
            f"{_of_percent(value)}"
        )
    return value


def share(text: str) -> float:
    """A number in [0, 1]."""
    value = _number(text.removesuffix("%"))
    if not 0 <= value <= 1 or text.endswith("%"):
        raise argparse.ArgumentTypeError(
            f"expected a fraction from 0 to 1, received {text!r}.{_of_percent(value)}"
        )
    return value


def _of_percent(value: float) -> str:
    return f" Did you mean {value / 100:g}?" if 1 < value < 100 else ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, received {text!r}")
