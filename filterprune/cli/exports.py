"""`export`: to other runtimes."""

import os

from filterprune.cli import models
from filterprune.cli.arguments import add_json, add_model, add_output, add_verb
from filterprune.cli.output import Failed, Output, Refused, muted, refusing
from filterprune.errors import VerificationError
from filterprune.exporting import FORMATS, check_path, default_path, export_model
from filterprune.runtimes import RUNTIMES


def add_verbs(verbs) -> None:
    """Add the verb of this file."""
    parser = add_verb(
        verbs,
        "export",
        _export,
        "export a model for another runtime",
        """Export a plain model for another runtime. Keras converts it; what comes out
        is run on generated inputs, where its runtime is installed, and written only if
        it computes what the Keras model does. OpenVINO has a .bin file beside the .xml
        file.""",
        """
        filterprune export small.keras --to litert
        filterprune export small.keras --to onnx -o deploy/net.onnx
        filterprune export small.keras --to saved_model -o serving/1
        """,
    )
    add_model(parser)
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format")
    text = "what to write (default: the name of the model, beside it)"
    add_output(parser, text, required=False)
    parser.add_argument(
        "--no-verify", action="store_true", help="do not run what comes out"
    )
    add_json(parser)


def _export(args) -> int:
    out = Output(args.json)
    path = args.output or str(default_path(args.model, args.to))
    models.check_input(args.model)
    try:
        with refusing():
            check_path(path, args.to, args.overwrite)
    except Refused as error:
        if isinstance(error.__cause__, FileExistsError):
            raise Refused(f"{error}. Give another name, or --overwrite") from error
        raise
    with out.working("Loading"):
        model = models.load(args.model, args.imports)
    with out.working(f"Exporting to {args.to}"), muted():
        try:
            with refusing(TypeError, ValueError, ImportError, OSError, RuntimeError):
                made = export_model(
                    model, path, args.to, not args.no_verify, args.overwrite
                )
        except Refused as error:
            if isinstance(error.__cause__, VerificationError):
                raise Failed(str(error)) from error
            raise
    out.say(f"Saved {path}, {made.bytes:,} bytes")
    if made.runtime is not None:
        out.say(
            f"Largest difference in {made.runtime}: {made.difference:.1e} of the "
            "largest value of a channel"
        )
    elif not args.no_verify:
        package = RUNTIMES[args.to].packages[0].replace("_", "-")
        out.say(f"Not verified, because {package} is not installed")
    out.figures(
        input=args.model,
        output=os.fspath(made.path),
        format=made.format,
        input_bytes=models.size_of(args.model),
        output_bytes=made.bytes,
        runtime=made.runtime,
        difference=made.difference,
    )
    return 0
