"""Latency as a target: are budgets met, and is more kept than by counting MACs?

    python benchmarks/latency.py [--batch 8] [--nets ResNet50 MobileNetV2] [--quick]

ResNet50 and MobileNetV2 at 224 x 224 are pruned once to 0.7, 0.5 and 0.35 of the
latency that they have on this machine, with widths that are multiples of 8; full
and compact model are then run in turn, and the median of the ratios of neighbouring
runs is compared with the budget. Kept importance is the share of the scores of all
filters that is left. That of a MACs target is read off, by interpolation, where the
measured latency is the same; "MACs, traded" trades importance for MACs as the
latency target does for time, to tell apart what measuring adds. Weights are random,
each filter's scaled by a lognormal factor: trained ones cannot be had offline. The
results are in `benchmarks/results/latency.json`.
"""

import argparse
import os
import sys
import time
import warnings

import measuring
import bars
import keras
import numpy as np
from bars import Bar

import filterprune
from filterprune.budget import Budget
from filterprune.cost import CostModel
from filterprune.latency import LatencyModel
from filterprune.latency.measuring import make_plans
from filterprune.latency.units import run_model
from filterprune.limits import Limits
from filterprune.selection import Selector

NETS = ("ResNet50", "MobileNetV2")
BUDGETS = (0.7, 0.5, 0.35)
# How far around a budget the MACs targets are that it is compared with.
AROUND = (-0.08, 0.0, 0.08)
BAR = 0.07


def build(name, size):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    constructor = getattr(keras.applications, name)
    model = constructor(weights=None, input_shape=(size, size, 3))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            value = keras.ops.convert_to_numpy(kernel)
            kernel.assign(value * rng.lognormal(0, 0.4, value.shape[-1]))
    return model


def closing(masked, closed):
    """The compact model with these slots closed."""
    selector = Selector(masked)
    selector.set_gates(closed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)
        small = filterprune.compact(masked, verify=False)
    selector.set_gates(np.zeros_like(closed))
    return small


def ratios(full, others, seconds):
    """The median of each run's time over that of the full run next to it."""
    times = measuring.interleaved([full, *others], seconds)
    least = times.min(axis=1)
    return measuring.ratios(times), least[1:] / least[0], least[0]


def by_macs(masked, batch, points):
    """MACs in the place of seconds, to trade importance for them alike."""
    analysis = Selector(masked).slots.analysis
    costs, tables = CostModel(analysis), {}
    for plan in make_plans(analysis, batch, points)[0]:
        figures = {}
        for survivors, name in zip(plan.survivors, plan.names, strict=True):
            cost = costs.layers(survivors.alive).get(plan.unit.call.path)
            figures[name] = 0.0 if cost is None else float(cost.macs)
        tables.setdefault(plan.unit.signature, []).append(plan.table(figures))
    return LatencyModel(tables, batch, {})


def select_for(selector, share, left):
    """What a selector keeps where `left(closed)` is about a share."""
    low, high = 0.0, selector.reachable
    for _ in range(14):
        middle = (low + high) / 2
        if left(selector.select(middle)) > share:
            low = middle
        else:
            high = middle
    return selector.select(high)


def measure(name, size, batch, budgets, points, seconds) -> dict:
    model = build(name, size)
    started = time.perf_counter()
    latency = filterprune.measure_latency(model, batch, points=points, verbose=0)
    took = time.perf_counter() - started
    masked, limits = filterprune.wrap_model(model), Limits(round_to=8)
    full = run_model(model, batch)
    traded = Selector(masked, "l2", limits, Budget(by_macs(masked, batch, points)))
    plain = Selector(masked, "l2", limits, Budget("macs"))
    value = plain.scores() * plain.slots.filters
    rows = {}
    for budget in budgets:
        selector = Selector(masked, "l2", limits, Budget(latency))
        before = time.perf_counter()
        selector.rehearse(1 - budget)
        rehearsed = time.perf_counter() - before
        chosen = [selector.select(1 - budget)]

        def left(closed, selector=selector):
            return 1 - selector.budget.removed(selector.slots, closed)

        for other in (plain, traded):
            chosen += [select_for(other, budget + step, left) for step in AROUND]
        runs = [run_model(closing(masked, closed), batch) for closed in chosen]
        median, least, shortest = ratios(full, runs, seconds)
        kept = [float(value[~closed].sum() / value.sum()) for closed in chosen]
        rows[str(budget)] = {
            "predicted": left(chosen[0]),
            "measured": float(median[0]),
            "measured, shortest runs": float(least[0]),
            "full ms": 1e3 * float(shortest),
            "kept": kept[0],
            "kept by MACs": at(median[0], median[1:4], kept[1:4]),
            "kept by MACs, traded": at(median[0], median[4:7], kept[4:7]),
            "rehearsal s": rehearsed,
        }
    return {"seconds to measure": took, "budgets": rows}


def at(x, xs, ys) -> float:
    """The value of a line through points at `x`."""
    slope, offset = np.polyfit(xs, ys, 1)
    return float(slope * x + offset)


def show(nets) -> bool:
    print(
        f"{'net':12}{'budget':>8}{'measured':>10}{'off by':>8}{'kept':>8}"
        f"{'MACs':>8}{'traded':>8}  bars"
    )
    every = True
    for name, net in nets.items():
        for budget, row in net["budgets"].items():
            off = row["measured"] / float(budget) - 1
            held = abs(off) <= BAR, row["kept"] > row["kept by MACs"]
            every &= all(held)
            words = " ".join(map(measuring.verdict, held))
            print(
                f"{name:12}{budget:>8}{row['measured']:10.3f}{off:8.1%}"
                f"{row['kept']:8.3f}{row['kept by MACs']:8.3f}"
                f"{row['kept by MACs, traded']:8.3f}  {words}"
            )
    return every


def bars_of(nets) -> list[Bar]:
    found = []
    for name, net in nets.items():
        for budget, row in net["budgets"].items():
            what, share = f"{name} pruned to {budget} of its latency", float(budget)
            off = row["measured"] / share
            more = row["kept"] - row["kept by MACs"]
            found.append(Bar(f"{what}: measured / budget", off, 1 + BAR, 1 - BAR))
            found.append(Bar(f"{what}: kept beyond a MACs target", more, least=0.0))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--quick", action="store_true", help="one net, 64 px, minutes")
    options = parser.parse_args()
    nets = {}
    for name in ["MobileNetV2"] if options.quick else options.nets:
        if options.quick:
            nets[name] = measure(name, 64, 32, (0.6,), 3, 3.0)
        else:
            nets[name] = measure(name, 224, options.batch, BUDGETS, 5, 30.0)
    if not options.quick:
        nets = {**measuring.load(bars.path_of("latency", False), "nets"), **nets}
    show(nets)
    about = {"batch": options.batch, "load": os.getloadavg(), "key": "nets"}
    bars.save("latency", bars_of(nets), nets, options.quick, merge=True, **about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
