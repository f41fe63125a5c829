"""`verify`: whether two files compute the same."""

import os

import keras

from filterprune.channels.trace import check_model, trace
from filterprune.cli import data, models
from filterprune.cli.arguments import (
    add_generated,
    add_json,
    add_model,
    add_verb,
    positive,
)
from filterprune.cli.output import FAILED, Output, Refused, muted, refusing
from filterprune.runtimes import Exported, format_of
from filterprune.verification import compare, generate_inputs


def add_verbs(verbs) -> None:
    """Add the verb of this file."""
    parser = add_verb(
        verbs,
        "verify",
        _verify,
        "check that two models compute the same",
        """Run two models on the same inputs and compare all outputs. The second may be
        exported: a .tflite, .onnx or .xml file or the folder of a SavedModel, where
        what runs those is installed. The exit code is 1 if they differ by more than
        float rounding explains.""",
        """
        filterprune verify masked.keras small.keras
        filterprune verify small.keras small.tflite --batch-size 8
        filterprune verify a.keras b.keras --data batch.npz --tolerance 1e-5
        """,
    )
    add_model(parser, "expected", "a .keras file")
    parser.add_argument("received", metavar="RECEIVED", help="the file to check")
    parser.add_argument(
        "--data", metavar="FILE", help="a .npz file with an array x, in place of noise"
    )
    parser.add_argument(
        "--tolerance",
        type=positive,
        metavar="T",
        help="the largest difference to allow, relative to the largest value "
        "of a channel (default: what rounding may do in the dtypes of the model)",
    )
    add_generated(parser, batch_size=2)
    add_json(parser)


def open_other(path: str, args, model):
    """Another file: a Keras model, or an exported one as a function.

    Raises:
        Refused: if it cannot be loaded or takes other inputs than `model`.
    """
    format = format_of(path) if os.path.exists(path) else None
    if format is not None:
        with muted(), refusing(Exception, prefix=f"cannot load {path}: "):
            return Exported(path, format, model)
    other = models.load(path, args.imports)
    with refusing():
        check_model(other)
    shapes = [
        [(tuple(t.shape[1:]), t.dtype) for t in trace(m).inputs] for m in (model, other)
    ]
    if shapes[0] != shapes[1]:
        texts = [", ".join(f"{shape} {dtype}" for shape, dtype in s) for s in shapes]
        raise Refused(
            f"{path} takes other inputs: expected {texts[0]}, received {texts[1]}"
        )
    return other


def make_inputs(args, model):
    """Inputs from the file of `--data`, or generated ones."""
    if getattr(args, "data", None):
        return data.inputs_from(data.load_arrays(args.data), model, args.data)
    return generate_inputs(model, args.batch_size, args.seed, args.size)


def _verify(args) -> int:
    out = Output(args.json)
    models.check_there(args.expected, args.received)
    with out.working("Loading"):
        model = models.load(args.expected, args.imports)
        with refusing():
            check_model(model)
        other = open_other(args.received, args, model)
    inputs = make_inputs(args, model)
    samples = int(keras.tree.flatten(inputs)[0].shape[0])
    with (
        out.working("Comparing"),
        muted(),
        refusing(Exception, prefix="cannot run both: "),
    ):
        found = compare(model, other, inputs, args.tolerance)
    word = "the same" if found.same else "NOT the same"
    out.say(
        f"{word}: the largest difference is {found.difference:.2g} of the largest "
        f"value of a channel (allowed: {found.tolerance:.0e}; {samples} samples)"
    )
    out.figures(
        expected=args.expected,
        received=args.received,
        same=found.same,
        difference=found.difference,
        tolerance=found.tolerance,
        samples=samples,
    )
    return 0 if found.same else FAILED
