"""What share of real nets can be pruned, and how exact compaction is.

Builds nets of `keras.applications` (and of `keras-hub`, if it is installed)
without weights from a hub, gives every weight a random value, closes half of
every group at random, compacts, and compares. Writes `docs/coverage.rst` and
`benchmarks/results/coverage.json`; nets measured before are skipped unless
`--again` is given.

    python benchmarks/coverage.py [--quick] [--again] [NAME ...]
"""

import argparse
import sys
import time

import measuring
import keras

sys.path.insert(0, str(measuring.ROOT / "tests"))

from exactness import calibrate, close_at_random, difference, randomise

import filterprune

RESULTS = measuring.RESULTS / "coverage.json"
TABLE = measuring.ROOT / "docs" / "coverage.rst"
QUICK = ("MobileNetV2", "ResNet50", "ConvNeXtTiny")
# NASNetLarge and its like need room for their reductions.
SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}


def constructors():
    """Every constructor of `keras.applications` by name."""
    found = vars(keras.applications).items()
    return {
        name: value
        for name, value in sorted(found)
        if callable(value) and name[0].isupper()
    }


def hub_models():
    """Backbones and tasks of `keras-hub` by name; none where it is missing."""
    try:
        import hub_models as hub
    except ImportError:
        return {}
    found = hub.WHOLE | hub.COMPOSITE | hub.KEPT | hub.CLOSED_BOXES
    found |= hub.TRANSFORMERS | hub.DECODERS | hub.LANGUAGE_MODELS | hub.SAVED
    return {f"keras-hub {name}": build for name, build in found.items()}


def size_for(name, model):
    """The size of images, or the length of sequences, where any will do."""
    if any("int" in x.dtype for x in model.inputs):
        return 12
    return 64 if name in hub_models() else 96


def build(name):
    """A net with random weights, at its smallest input."""
    if name in hub_models():
        return calibrate(randomise(hub_models()[name]()))
    size = SMALLEST.get(name, 32)
    constructor = constructors()[name]
    options = {"weights": None, "classifier_activation": None}
    try:
        model = constructor(input_shape=(size, size, 3), **options)
    except Exception:
        model = constructor(**options)
    return calibrate(randomise(model))


def measure(name, dtype):
    """How exact one net is in one dtype, and what of it can be pruned."""
    keras.utils.clear_session()
    keras.config.set_floatx(dtype)
    model = build(name)
    report = filterprune.analyze(model)
    every = sum(group.filters for group in report.groups)
    small, found, seconds = model, None, None
    if report.prunable:
        masked = filterprune.wrap_model(model)
        close_at_random(masked)
        started = time.perf_counter()
        small = filterprune.compact(masked, verify=False)
        seconds = time.perf_counter() - started
        found = difference(masked, small, size=size_for(name, model))
    return {
        "layers": len(model.layers),
        "difference": found,
        "prunable": sum(group.filters for group in report.prunable) / max(every, 1),
        "reasons": sorted({str(group.reason) for group in report.fixed}),
        "barriers": list(report.barriers),
        "params": [model.count_params(), small.count_params()],
        "compact_seconds": seconds,
    }


def shown(cell):
    """The difference that was measured, as text."""
    if cell is None or cell["difference"] is None:
        return ""
    return f"{cell['difference']:.1e}"


def table(nets, versions):
    """The results as reStructuredText."""
    lines = [
        "Coverage",
        "========",
        "",
        "Made by ``python benchmarks/coverage.py`` with "
        + ", ".join(f"{name} {value}" for name, value in versions.items())
        + ".",
        "",
        "Every net has random weights and statistics (batch norms near those of",
        "their inputs, so that a signal gets through), half of every group of channels",
        "is closed at random, and the outputs of the masked and the compact model are",
        "compared: the largest difference, relative to the largest output. Prunable is",
        "the share of filters that can be removed; the others are named by the reason.",
        "Left is the share of parameters.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - net",
        "     - layers",
        "     - prunable",
        "     - left",
        "     - float32",
        "     - float64",
        "     - what stays, and why",
    ]
    for name, cell in sorted(nets.items()):
        single, double = cell.get("float32"), cell.get("float64")
        known = single or double
        reasons = known["reasons"] + known["barriers"]
        lines += [
            f"   * - {name}",
            f"     - {known['layers']}",
            f"     - {known['prunable']:.1%}",
            f"     - {known['params'][1] / known['params'][0]:.2f}",
            f"     - {shown(single)}",
            f"     - {shown(double)}",
            "     - " + "; ".join(reason.replace("`", "``") for reason in reasons),
        ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="nets; all by default")
    parser.add_argument("--quick", action="store_true", help="three nets only")
    parser.add_argument("--again", action="store_true", help="measure all anew")
    options = parser.parse_args()
    everything = [*constructors(), *hub_models()]
    names = options.names or (QUICK if options.quick else everything)
    nets, versions = measuring.load(RESULTS, "nets"), measuring.versions("keras-hub")
    for name in names:
        cell = nets.setdefault(name, {})
        for dtype in ("float32", "float64"):
            if options.again or dtype not in cell:
                cell[dtype] = measure(name, dtype)
                found = shown(cell[dtype])
                share = cell[dtype]["prunable"]
                print(f"{name:34} {dtype}  prunable {share:6.1%}  {found}", flush=True)
                measuring.save(RESULTS, nets, "nets", versions=versions)
                measuring.write(TABLE, table(nets, versions))


if __name__ == "__main__":
    main()
