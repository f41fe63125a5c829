"""`compact`: from a model with gates to a smaller one, checked and saved."""

import dataclasses

from filterprune.cli import models
from filterprune.cli.arguments import add_json, add_model, add_output, add_verb
from filterprune.cli.output import Failed, Output, refusing
from filterprune.compaction import compact
from filterprune.errors import VerificationError
from filterprune.report import analyze
from filterprune.reporting.text import not_counted
from filterprune.verification import compare


def add_verbs(verbs) -> None:
    """Add the verb of this file."""
    parser = add_verb(
        verbs,
        "compact",
        _compact,
        "remove what the closed gates of a masked model leave out",
        """Remove every channel whose gate is closed and save a plain Keras model, which
        computes the same; both are run on generated inputs and compared first.""",
        """
        filterprune compact masked.keras -o small.keras
        filterprune compact masked.keras -o small.keras --no-compile
        """,
    )
    add_model(parser, text="a .keras file of a model with gates")
    add_output(parser, "the .keras file to write")
    add_compile(parser)
    add_json(parser)


def add_compile(parser) -> None:
    """What a file holds beyond the model itself."""
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="leave the optimizer, the loss and the metrics out: a smaller file",
    )


def _compact(args) -> int:
    out = Output(args.json)
    models.check_output(args.output, args.overwrite, args.model, suffix=".keras")
    with out.working("Loading"):
        masked = models.load(args.model, args.imports, compile=not args.no_compile)
    with refusing():
        before = analyze(masked).before
    finish(out, args, masked, before)
    return 0


def finish(out: Output, args, masked, before, save_masked=None, **figures) -> None:
    """Compact, verify, save, and say what came of it.

    Args:
        out: where to say it.
        args: the arguments of the verb.
        masked: the model with gates.
        before: what it costs.
        save_masked: where to save that too, if anywhere.
        **figures: what else goes into the JSON.
    """
    with out.working("Compacting and verifying"), refusing():
        try:
            small = compact(masked)
        except VerificationError as error:
            raise Failed(f"{error} Nothing was written.") from error
        found = compare(masked, small)
        report = analyze(small)
        after = report.before
    size = models.size_of(args.model)
    if save_masked:
        models.save(masked, save_masked, args.overwrite)
    sizes = size, models.save(small, args.output, args.overwrite)
    macs = "MACs (not all are counted)" if report.uncounted else "MACs"
    rows = [
        _row("parameters", before.params, after.params, "fewer"),
        _row(macs, before.macs, after.macs, "fewer"),
        _row("bytes of weights", before.bytes, after.bytes, "smaller"),
        _row("bytes of the file", *sizes, "smaller"),
    ]
    out.table(f"'{masked.name}'", ("", ">before", ">after", ">change"), rows)
    if report.uncounted:
        out.say(not_counted(report))
    out.say(
        f"Largest difference from the model with gates: {found.difference:.1e} of the "
        f"largest value of a channel (allowed: {found.tolerance:.0e})"
    )
    for path in filter(None, (save_masked, args.output)):
        out.say(f"Saved {path}")
    out.figures(
        input=args.model,
        output=args.output,
        **figures,
        before={**dataclasses.asdict(before), "file_bytes": sizes[0]},
        uncounted=list(report.uncounted),
        after={**dataclasses.asdict(after), "file_bytes": sizes[1]},
        verification=dataclasses.asdict(found),
    )


def _row(name: str, before: int, after: int, word: str) -> tuple[str, ...]:
    cells = f"{before:,}", f"{after:,}"
    if after > before:
        before, after, word = after, before, {"fewer": "more"}.get(word, "larger")
    return name, *cells, f"{before / after:.2f}x {word}" if after else ""
