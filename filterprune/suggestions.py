"""What users of other tools type, and what it is called here."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# By what a name is for: other tools' names, without case and punctuation.
_VALUES = {
    "criterion": {
        "l1": "l1 l1norm ln1 l1magnitude l1filterpruner l1filterpruning weightl1",
        "l2": "l2 l2norm ln ln2 norm lp l2filterpruner lnstructured structured",
        "group": "group groupnorm groupl2 groupl1 magnitude magnitudeimportance "
        "groupmagnitude groupmagnitudeimportance grouptaylor depgraph default "
        "weight weights importance",
        "lamp": "lamp lampimportance",
        "fpgm": "fpgm gm geometricmedian fpgmpruner fpgmimportance median",
        "bn_scale": "bnscale bn batchnorm batchnormalization bnscaleimportance "
        "slimming networkslimming gamma slim",
        "random": "random rand randomimportance randomstructured",
        "taylor": "taylor taylorfo taylorfoweight taylorimportance gradient gradients "
        "molchanov",
        "fisher": "fisher hessian hessianimportance obd obdc",
        "apoz": "apoz apozrankfilterpruner zeros",
        "activation_mean": "activationmean activation activations meanactivation "
        "activationmeanrankfilterpruner",
        "hrank": "hrank rank",
    },
    "target": {
        "filters": "filters filter channels channel neurons units sparsity",
        "params": "params param parameters parameter weights weight nparams size",
        "macs": "macs mac flops flop gflops gmacs madds multadds mults ops compute "
        "computation operations",
        "bytes": "bytes byte memory mb mem storage disk",
        "latency": "latency time speed seconds ms runtime inferencetime",
    },
    "scope": {
        "global": "global globally network model all globalpruning",
        "layer": "layer layers local locally uniform layerwise perlayer group groups",
        "isomorphic": "isomorphic isomorphism iso",
    },
    "rounding": {
        "nearest": "nearest round closest",
        "up": "up ceil ceiling above",
        "down": "down floor below",
    },
    "format": {
        "litert": "tflite tensorflowlite lite",
        "saved_model": "tf tensorflow pb tfsavedmodel savedmodel serving",
        "openvino": "ir vino xml openvinoir",
        "onnx": "onnxruntime ort",
    },
    # Behind the name of an option may be an example of its value.
    "option": {
        "--remove": "amount pruningratio pruningrate pruneratio ratio rate sparsity "
        "finalsparsity targetsparsity chsparsity pruningamount percent "
        "percentage fraction prune",
        "--target macs --budget 5e8": "flops macs maxflops maxmacs targetflops",
        "--target params --budget 1e6": "params parameters maxparams targetparams",
        "--target latency --budget 0.01": "latency maxlatency seconds",
        "--criterion": "importance metric method norm score pruner algorithm strategy",
        "--scope": "global globalpruning local layerwise isomorphic",
        "--exclude": "ignore ignoredlayers ignorelayers skip skiplayers",
        "--round-to": "divisor multiple align channelroundto",
        "--min-filters": "minchannels minwidth",
        "--max-sparsity": "maxpruningratio maxamount maxratio maxchsparsity",
        "--output": "out save savepath outfile destination exportpath",
        "--to": "format targetformat fmt",
        "--overwrite": "force yes replace",
        "--data": "dataset calibration calibrationdata images",
        "--batch-size": "bs batch",
        "--import": "customobjects module",
        "--tolerance": "atol rtol tol",
        "--repeats": "runs iterations trials numruns",
    },
}
# Names of arguments elsewhere, and here: the first that a function takes.
_KEYWORDS = {
    "sparsity final_sparsity schedule": "sparsity amount ratio rate pruningratio "
    "pruningrate pruningamount pruneratio prunerate pruningfraction fraction percent "
    "percentage chsparsity channelsparsity targetsparsity totalsparsity sparsityratio "
    "sparsitylevel final target remove finalsparsity keep compression",
    "initial_sparsity": "initial start startsparsity",
    "begin_step": "begin startstep beginstep start",
    "end_step": "end stopstep endstep laststep",
    "criterion": "criterion criteria importance method metric score scorer scores norm "
    "pruner algorithm algo strategy importancefn importancemeasure",
    "scope": "scope globalpruning isglobal globally isomorphic layerwise",
    "min_filters": "minfilters minchannels minunits minwidth minfilter minkeep "
    "minimumfilters",
    "max_sparsity": "maxsparsity maxpruningratio maxratio maxamount maxchsparsity "
    "maxsparsityperlayer",
    "round_to": "roundto divisor divisible multiple multipleof align roundchannels "
    "channelround groupsize",
    "overrides": "overrides pruningratiodict chsparsitydict layersparsity ratios "
    "configlist perlayer layers sparsitydict",
    "exclude": "exclude excluded ignore ignored ignoredlayers ignorelayers skip "
    "skiplayers excludelayers excludenames keeplayers unwrapped",
    "target budget": "flops macs params bytes latency metric",
    "budget": "budget maxflops maxmacs maxparams targetmacs targetflops targetparams "
    "targetlatency constraint",
    "schedule": "schedule pruningschedule scheduler pruningscheduler",
    "frequency": "frequency interval every pruningfrequency updatefrequency period",
    "rounding": "roundingmode",
}
# What an argument is an argument of, where another function is given it.
_ELSEWHERE = {
    "exclude": "leave layers out by `filterprune.wrap_model(model, exclude=...)`",
    "frequency": "it is an argument of `filterprune.FilterPruningCallback`",
    "criterion": "`prune` and `FilterPruningCallback` take a `criterion`",
    "sparsity": "`prune` takes a `sparsity`, and schedules a `final_sparsity`",
    "scope": "`prune` and `FilterPruningCallback` take a `scope`",
}


def _plain(name) -> str:
    """A name without case and punctuation."""
    return "".join(c for c in str(name).lower() if c.isalnum())


def did_you_mean(given, known: Iterable[str], what: str = "") -> str:
    """A sentence for the end of a message: ` Did you mean 'macs'?`, or nothing.

    Args:
        given: what was received; only a string can be meant otherwise.
        known: what may be given.
        what: what it is, such as `"target"`, to know other tools' names for it.
    """
    if not isinstance(given, str):
        return ""
    known, plain = list(known), _plain(given)
    found = [name for name in known if _plain(name) == plain]
    for name, others in _VALUES.get(what, {}).items():
        if name.split(" ")[0] in known and plain in others.split():
            found.append(name)
    names = {_plain(name): name for name in known}
    found += [names[key] for key in difflib.get_close_matches(plain, names, n=1)]
    if not found:
        return ""
    more = " One multiply-accumulate (MAC) is two FLOPs." if "flop" in plain else ""
    return f" Did you mean '{found[0]}'?{more}"


def as_fraction(value) -> str:
    """What fraction is meant by 50, `"50%"` or `"0.5"`, as a sentence, or nothing."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return ""
    if text.endswith("%") or 1 < number < 100:
        number /= 100
    is_new = number != value or isinstance(value, str)
    return f" Did you mean {number:g}?" if 0 < number < 1 and is_new else ""


def suggests_keywords(function: F) -> F:
    """Let a function say what an argument that it does not take is called here.

    Args:
        function: a function, or a class for its constructor.
    """
    label = function.__name__
    if inspect.isclass(function):
        function.__init__ = _checked(function.__init__, label)  # type: ignore[method-assign]
        return function
    return _checked(function, label)


def _checked(function: F, label: str) -> F:
    taken = inspect.signature(function).parameters
    known = [name for name in taken if name != "self"]

    @functools.wraps(function)
    def checked(*args, **kwargs):
        for name in kwargs:
            if name not in taken:
                raise TypeError(
                    f"`{label}` has no argument `{name}`.{keyword_meant(name, known)} "
                    f"Its arguments are: {', '.join(known)}."
                )
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def keyword_meant(name: str, known: Sequence[str]) -> str:
    """What an argument is called that is not known, as a sentence, or nothing."""
    plain = _plain(name)
    found = [
        ours.split() for ours, others in _KEYWORDS.items() if plain in others.split()
    ]
    for ours in (name for names in found for name in names):
        if ours in known:
            return f" Did you mean `{ours}`?"
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f" Did you mean `{near[0]}`?"
    for ours in (name for names in found for name in names):
        if ours in _ELSEWHERE:
            remark = _ELSEWHERE[ours]
            return f" {remark[0].upper()}{remark[1:]}."
    return ""
