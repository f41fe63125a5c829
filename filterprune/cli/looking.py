"""`inspect` and `report`: what can be pruned, what it costs, what went."""

import dataclasses

from filterprune.cli import models
from filterprune.cli.arguments import add_json, add_model, add_output, add_verb
from filterprune.cli.output import Output, refusing
from filterprune.reporting.text import cells, not_counted


def add_verbs(verbs) -> None:
    """Add the verbs of this file."""
    parser = add_verb(
        verbs,
        "inspect",
        _inspect,
        "say what can be pruned, what cannot and why, and what it costs",
        """Say what of a model can be pruned, what cannot and why, and what it costs in
        parameters, multiply-accumulates of one sample and bytes of weights. Of a model
        with gates it also says what is left.""",
        """
        filterprune inspect model.keras
        filterprune inspect model.keras --json | jq .before.macs
        """,
    )
    add_model(parser)
    add_json(parser)
    parser = add_verb(
        verbs,
        "report",
        _report,
        "write a page to look at: what goes, what stays and why",
        """Write one HTML file that shows a model with gates: the graph, the layers,
        what is removed from them, and the reasons for what stays. It needs no other
        file.""",
        """
        filterprune report masked.keras -o report.html
        """,
    )
    add_model(parser, text="a .keras file, mostly of a model with gates")
    add_output(parser, "the .html file to write")
    add_json(parser)


def _inspect(args) -> int:
    out = Output(args.json)
    report = _analyze(out, args)
    size = models.size_of(args.model)
    gates = "with gates" if report.masked else "without gates"
    out.say(f"{args.model}: '{report.model_name}', {gates}, {size:,} bytes\n")
    out.table(
        "Groups of channels, kept or removed together",
        ("layers", "kind", ">width", ">kept", "prunable"),
        [
            (
                group.name,
                group.kind,
                f"{group.size:,}",
                f"{group.alive:,}",
                _prunable(group),
            )
            for group in report.groups
        ],
    )
    if report.barriers:
        rows = [(barrier,) for barrier in report.barriers]
        out.table("Not understood, and kept as it is", ("what, and why",), rows)
    rows = [(layer.name, *cells(layer, " -> ")) for layer in report.layers]
    out.table(
        "Cost",
        ("layer", ">parameters", ">MACs", ">bytes"),
        [*rows, ("total", *cells(report, " -> "))],
    )
    if report.uncounted:
        out.say(not_counted(report))
    if args.json:
        out.figures(file=args.model, file_bytes=size, **report.to_dict())
    return 0


def _report(args) -> int:
    out = Output(args.json)
    models.check_output(args.output, args.overwrite, args.model, suffix=".html")
    report = _analyze(out, args)
    with out.working("Drawing"):
        page = report.to_html()
    models.write_text(page, args.output, args.overwrite)
    size = models.size_of(args.output)
    out.say(f"Saved {args.output}, {size:,} bytes")
    out.figures(
        file=args.model,
        output=args.output,
        output_bytes=size,
        before=dataclasses.asdict(report.before),
        after=dataclasses.asdict(report.after),
    )
    return 0


def _analyze(out: Output, args):
    from filterprune.report import analyze

    with out.working("Loading"):
        model = models.load(args.model, args.imports)
    with out.working("Analysing"), refusing():
        return analyze(model)


def _prunable(group) -> str:
    text = "yes" if group.prunable else f"no: {group.reason}"
    return text + "".join(f"; some stay: {reason}" for reason in group.stays)
