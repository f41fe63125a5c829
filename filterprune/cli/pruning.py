"""`prune`: from a model in a file to a smaller one."""

import dataclasses
import inspect
import os

from filterprune import criteria
from filterprune.budget import TARGETS
from filterprune.channels.kinds import KINDS
from filterprune.cli import data, models
from filterprune.cli.arguments import (
    add_json,
    add_model,
    add_output,
    add_verb,
    count,
    floor,
    fraction,
    positive,
    share,
    steps,
)
from filterprune.cli.compacting import add_compile, finish
from filterprune.cli.data import predict
from filterprune.cli.output import Output, Refused, refusing
from filterprune.gates import is_masked
from filterprune.latency import measure_latency
from filterprune.limits import ROUNDINGS, SCOPES
from filterprune.reconstruction.fitting import reconstruct
from filterprune.recovery import recalibrate
from filterprune.report import analyze
from filterprune.selection import prune
from filterprune.wrapping import wrap_model

# The command line has the defaults of the function.
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(prune).parameters.items()
}


# On the two nets of `benchmarks/accuracy_nets.py`, trained on Fashion-MNIST.
WITHOUT_DATA = (
    "Without --data the weights that are left stay as they are, and most of what the "
    "model knows is lost: with half of its MACs gone, a net of 90 % accuracy keeps 18 "
    "to 28 %. Give --data inputs.npz (no labels needed), or train the model on."
)


def add_verbs(verbs) -> None:
    """Add the verb of this file."""
    parser = add_verb(
        verbs,
        "prune",
        _prune,
        "prune a model in one shot and save the smaller one",
        """Prune a model in one shot, without training: score its filters, close the
        gates of the least important ones, remove those, check that the smaller model
        computes what the one with closed gates does, and save it. With --data, which
        need no labels, the layers that are left are fitted to make up for what is
        gone. Without, train the model on, or prune in training
        (FilterPruningCallback), to win accuracy back.""",
        """
        filterprune prune model.keras -o small.keras --target macs --remove 0.5 --data inputs.npz
        filterprune prune model.keras -o small.keras --target macs --remove 0.5 --round-to 8
        filterprune prune model.keras -o small.keras --target macs --budget 5e8
        filterprune prune model.keras -o small.keras --remove 0.3 --criterion taylor \\
            --data batch.npz --recalibrate
        """,  # noqa: E501
    )
    add_model(parser)
    add_output(parser, "the .keras file to write")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument(
        "--remove", type=fraction, metavar="FRACTION", help="how much is to go"
    )
    amount.add_argument(
        "--budget", type=positive, metavar="N", help="how much may be left, as 5e8"
    )
    _add_selection(parser)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        metavar="FILE",
        help="a .npz file with an array x, some hundreds of inputs to fit the layers "
        "that are left on; with y, the accuracy is said, and criteria can look at the "
        "loss (of several inputs: one array under the name of each; of several "
        "outputs: y_NAME, or y_0, y_1, ...)",
    )
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--refine",
        type=steps,
        default="auto",
        metavar="N",
        help="steps of training towards the outputs of the model before, after the "
        "fit; 0 for none (default: %(default)s, at most 400)",
    )
    how.add_argument(
        "--no-reconstruct",
        action="store_true",
        help="fit nothing: the weights that are left stay as they are",
    )
    how.add_argument(
        "--recalibrate",
        action="store_true",
        help="fit nothing; only estimate the statistics of batch normalisation anew",
    )
    group.add_argument(
        "--batch-size",
        type=count,
        default=32,
        metavar="N",
        help="samples in a batch of it (default: %(default)s)",
    )
    group.add_argument(
        "--batches", type=count, metavar="N", help="how many a criterion looks at"
    )
    group.add_argument(
        "--loss",
        help="the Keras loss for criteria that take gradients (default: that which "
        "the model is compiled with)",
    )
    parser.add_argument(
        "--save-masked",
        metavar="FILE",
        help="also save the model with its gates, for `filterprune report` and to "
        "train on",
    )
    add_compile(parser)
    add_json(parser)


def _add_selection(parser) -> None:
    choice = parser.add_argument_group("what goes")
    choice.add_argument(
        "--target",
        choices=TARGETS,
        default=_DEFAULTS["target"],
        help="what is counted; latency is measured on this machine, and a budget of it "
        "is in seconds (default: %(default)s)",
    )
    choice.add_argument(
        "--criterion",
        default=_DEFAULTS["criterion"],
        metavar="NAME",
        help=f"{', '.join(criteria.names(False))}; with --data also "
        f"{', '.join(criteria.names(True))} (default: %(default)s)",
    )
    choice.add_argument(
        "--scope",
        choices=SCOPES,
        default=_DEFAULTS["scope"],
        help="what is ranked together (default: %(default)s)",
    )
    choice.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="LAYER",
        help="a layer, or a model in the model, to leave as it is; as often as needed",
    )
    choice.add_argument(
        "--round-to", type=count, metavar="N", help="keep multiples of N channels"
    )
    choice.add_argument(
        "--rounding",
        choices=ROUNDINGS,
        default=_DEFAULTS["rounding"],
        help="to which multiple (default: %(default)s)",
    )
    choice.add_argument(
        "--min-filters",
        type=floor,
        default=_DEFAULTS["min_filters"],
        metavar="N",
        help="channels that every group keeps at least: a number, or a fraction of "
        "the group such as 0.1 (default: %(default)s)",
    )
    choice.add_argument(
        "--max-sparsity",
        type=share,
        default=_DEFAULTS["max_sparsity"],
        metavar="FRACTION",
        help="of a group that may go at most (default: %(default)s)",
    )
    choice.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        metavar="KIND",
        help=f"what sort of channels to prune, some of {', '.join(KINDS)}; "
        "`filterprune inspect` shows those of a model (default: all)",
    )


def _prune(args) -> int:
    out = Output(args.json)
    _check(args)
    arrays = data.load_arrays(args.data) if args.data else {}
    with out.working("Loading"):
        model = models.load(args.model, args.imports, compile=not args.no_compile)
    with refusing():
        masked = _masked(model, args)
        x = data.inputs_from(arrays, masked, args.data) if args.data else None
        criterion = _criterion(args, x, arrays, masked)
        before = analyze(masked).before
        original = predict(masked, x) if x is not None else None
    target = args.target
    if target == "latency":
        with refusing():
            target = measure_latency(masked, verbose=int(out.interactive))
    with out.working("Pruning"), refusing():
        sparsity = prune(
            masked,
            args.remove,
            criterion,
            scope=args.scope,
            min_filters=args.min_filters,
            round_to=args.round_to,
            target=target,
            budget=args.budget,
            rounding=args.rounding,
            max_sparsity=args.max_sparsity,
            kinds=args.kinds,
        )
    if args.recalibrate:
        with out.working("Recalibrating"), refusing():
            recalibrate(masked, x, batch_size=args.batch_size)
    out.say(f"Closed {sparsity:.1%} of the filters that can be pruned")
    figures = {"target": args.target, "sparsity": sparsity}
    if _reconstructs(args):
        with refusing():
            report = reconstruct(masked, x, refine=args.refine, verbose=out.interactive)
        out.say(report.summary())
        figures["reconstruction"] = dataclasses.asdict(report)
    elif x is None:
        out.say(WITHOUT_DATA)
    if x is not None and _has_targets(arrays):
        targets = data.targets_from(arrays, masked, args.data)
        figures["accuracy"] = _accuracies(out, targets, original, predict(masked, x))
    finish(out, args, masked, before, args.save_masked, **figures)
    return 0


def _reconstructs(args) -> bool:
    return bool(args.data) and not (args.no_reconstruct or args.recalibrate)


def _has_targets(arrays) -> bool:
    return any(name == "y" or name.startswith("y_") for name in arrays)


def _accuracies(out: Output, targets, before, after) -> dict[str, float] | None:
    """How often the largest output is the labelled one; None if that makes no sense."""
    old, new = (data.accuracy(targets, outputs) for outputs in (before, after))
    if old is None or new is None:
        return None
    out.say(f"Accuracy on the labelled inputs: {old:.1%} before, {new:.1%} now")
    return {"before": old, "after": new}


def _check(args) -> None:
    """Refuse what can be known to be wrong before anything is loaded."""
    outputs = [path for path in (args.output, args.save_masked) if path]
    for path in outputs:
        models.check_output(path, args.overwrite, args.model, suffix=".keras")
    if len(set(map(os.path.abspath, outputs))) < len(outputs):
        raise Refused("--output and --save-masked are the same file")
    models.check_input(args.model)
    models.import_modules(args.imports)
    if args.criterion not in criteria.names():
        raise Refused(
            f"expected --criterion to be one of {', '.join(criteria.names())}, "
            f"received {args.criterion}"
        )
    needs = _needs_data(args)
    if (needs or args.recalibrate) and not args.data:
        what = f"--criterion {args.criterion}" if needs else "--recalibrate"
        raise Refused(f"{what} looks at data: give --data FILE.npz with arrays x and y")
    if args.data and args.no_reconstruct and not needs:
        raise Refused(
            f"nothing looks at --data with --no-reconstruct and --criterion "
            f"{args.criterion}"
        )
    if not args.data and (args.refine != "auto" or args.no_reconstruct):
        raise Refused("--refine and --no-reconstruct go with --data FILE.npz")
    if not needs and (args.loss or args.batches):
        raise Refused(
            "--loss and --batches are for criteria that look at data: "
            f"{', '.join(criteria.names(needs_data=True))}"
        )


def _needs_data(args) -> bool:
    return args.criterion in criteria.names(needs_data=True)


def _masked(model, args):
    """The model with gates; those that it has stay as they are."""
    if not is_masked(model):
        return wrap_model(model, exclude=args.exclude)
    if args.exclude:
        raise Refused(
            f"{args.model} has gates already, so --exclude comes too late: give it to "
            "`filterprune.wrap_model`"
        )
    return model


def _criterion(args, x, arrays, model):
    if not _needs_data(args):
        return criteria.get(args.criterion)
    batch: tuple = (x,)
    if _has_targets(arrays):
        batch += (data.targets_from(arrays, model, args.data),)
    options = {
        "batch_size": args.batch_size,
        "batches": args.batches,
        "loss": args.loss,
    }
    given = {name: value for name, value in options.items() if value is not None}
    try:
        criterion = criteria.with_data(args.criterion, batch, **given)
    except TypeError as error:
        if args.loss is None:
            raise
        raise Refused(f"--criterion {args.criterion} takes no --loss") from error
    if getattr(criterion, "loss", "none needed") is None and not model.compiled:
        raise Refused(
            f"--criterion {args.criterion} needs a loss, and {args.model} comes "
            "without one: give --loss, such as mse"
        )
    return criterion
