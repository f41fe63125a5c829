"""What users of other tools type is told what it is called here."""

import inspect

import builders
import pytest

import filterprune
from filterprune import FilterPruningCallback, PolynomialDecay

VALUES = [
    ({"criterion": "L1"}, "l1"),
    ({"criterion": "l1_norm"}, "l1"),
    ({"criterion": "GroupNorm"}, "group"),
    ({"criterion": "magnitude"}, "group"),
    ({"criterion": "TaylorFO"}, "taylor"),
    ({"criterion": "BNScale"}, "bn_scale"),
    ({"criterion": "fpmg"}, "fpgm"),
    ({"target": "FLOPs"}, "macs"),
    ({"target": "flops"}, "macs"),
    ({"target": "parameters"}, "params"),
    ({"target": "channels"}, "filters"),
    ({"target": "memory"}, "bytes"),
    ({"scope": "Global"}, "global"),
    ({"scope": "uniform"}, "layer"),
    ({"scope": "local"}, "layer"),
    ({"rounding": "ceil"}, "up"),
    ({"kinds": {"channel"}}, "channels"),
]
NAMES = [
    ("amount", "sparsity"),
    ("pruning_ratio", "sparsity"),
    ("ratio", "sparsity"),
    ("ch_sparsity", "sparsity"),
    ("sparsty", "sparsity"),
    ("importance", "criterion"),
    ("max_pruning_ratio", "max_sparsity"),
    ("pruning_ratio_dict", "overrides"),
    ("min_channels", "min_filters"),
    ("divisor", "round_to"),
]


@pytest.fixture(scope="module")
def masked():
    return filterprune.wrap_model(builders.build("plain"))


@pytest.mark.parametrize(("given", "meant"), VALUES, ids=str)
def test_values(masked, given, meant):
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        filterprune.prune(masked, 0.5, **given)


@pytest.mark.parametrize(("given", "meant"), NAMES)
def test_names_of_arguments(masked, given, meant):
    words = f"`prune` has no argument `{given}`. Did you mean `{meant}`"
    with pytest.raises(TypeError, match=words):
        filterprune.prune(masked, **{given: 0.5})


@pytest.mark.parametrize(
    ("function", "given", "words"),
    [
        (FilterPruningCallback, {"sparsity": 0.5}, "mean `schedule`"),
        (FilterPruningCallback, {"pruning_schedule": None}, "mean `schedule`"),
        (PolynomialDecay, {"target_sparsity": 0.5}, "mean `final_sparsity`"),
        (PolynomialDecay, {"frequency": 5}, "FilterPruningCallback"),
        (filterprune.wrap_model, {"ignored_layers": ()}, "mean `exclude`"),
        (filterprune.prune, {"ignored_layers": ()}, r"wrap_model\(.*exclude"),
        (filterprune.compact, {"amount": 0.5}, "`prune` takes a `sparsity`"),
        (filterprune.prune, {"colour": "red"}, r"`colour`\. Its arguments are: masked"),
    ],
)
def test_names_that_belong_elsewhere(function, given, words):
    with pytest.raises(TypeError, match=words):
        function(**given)


@pytest.mark.parametrize(
    ("value", "meant"), [(50, 0.5), (12.5, 0.125), ("50%", 0.5), ("0.3", 0.3)]
)
def test_percents_and_texts_are_told_the_fraction(masked, value, meant):
    for function in (
        lambda: filterprune.prune(masked, value),
        lambda: PolynomialDecay(final_sparsity=value),
        lambda: filterprune.prune(masked, 0.5, max_sparsity=value),
        lambda: filterprune.prune(masked, 0.5, overrides={"conv1": value}),
    ):
        with pytest.raises((TypeError, ValueError), match=f"Did you mean {meant}"):
            function()


@pytest.mark.parametrize("value", [1.0, -0.5, 200, "half", None])
def test_nothing_is_made_up(masked, value):
    with pytest.raises((TypeError, ValueError)) as info:
        filterprune.prune(masked, value)
    assert "Did you mean" not in str(info.value)


def test_flops_are_not_macs(masked):
    with pytest.raises(ValueError, match=r"MAC\) is two FLOPs"):
        filterprune.prune(masked, target="flops", budget=1e6)


def test_signatures_are_as_written():
    assert "sparsity" in inspect.signature(filterprune.prune).parameters
    assert "schedule" in inspect.signature(FilterPruningCallback).parameters
    assert PolynomialDecay(0.1, 0.5) == PolynomialDecay(initial_sparsity=0.1)
