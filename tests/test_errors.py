"""What is wrong is refused with words that say what to do, and changes nothing."""

import inspect

import builders
import keras
import numpy as np
import pytest
from builders import build, closed
from keras import layers

import filterprune
from filterprune import ConstantSparsity, FilterPruningCallback, PolynomialDecay


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def subclassed():
    model = Subclassed()
    model(np.ones((1, 3)))
    return model


def masked():
    return filterprune.wrap_model(build("plain"))


def fit(model, **kwargs):
    schedule = kwargs.pop("schedule", ConstantSparsity(0.5))
    callback = FilterPruningCallback(schedule, **kwargs)
    model.compile("sgd", "mse")
    shape = [tensor.shape[1:] for tensor in (model.inputs[0], model.outputs[0])]
    x, y = (np.ones((4, *size), "float32") for size in shape)
    model.fit(x, y, callbacks=[callback], verbose=0)


FUNCTIONS = {
    "wrap_model": filterprune.wrap_model,
    "analyze": filterprune.analyze,
    "compact": filterprune.compact,
    "prune": lambda model: filterprune.prune(model, 0.5),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@every_function
class TestNoModelToWorkOn:
    def test_subclassed(self, function):
        if function in (filterprune.wrap_model, filterprune.analyze):
            match, model = r"built.*'mine'.*Call it once", Subclassed()
        else:
            match, model = r"Functional or Sequential.*'mine'", subclassed()
        with pytest.raises(ValueError, match=match):
            function(model)

    def test_sequential_that_is_not_built(self, function):
        model = keras.Sequential([layers.Dense(2)], name="open")
        with pytest.raises(ValueError, match=r"built.*'open'.*input_shape"):
            function(model)

    @pytest.mark.parametrize(
        "wrong", [None, "model.keras", 3, layers.Dense(2), [1], keras.Model]
    )
    def test_not_a_model(self, function, wrong):
        name = type(wrong).__name__
        with pytest.raises(TypeError, match=rf"Keras model.*Received.*{name}"):
            function(wrong)


@pytest.mark.parametrize(
    "function",
    [filterprune.compact, FUNCTIONS["prune"], fit],
    ids=["compact", "prune", "fit"],
)
def test_no_gates(function):
    with pytest.raises(ValueError, match=r"gates.*'plain'.*wrap_model") as info:
        function(builders.plain())
    assert "clone_function=filterprune.wrap" in str(info.value)


@pytest.mark.parametrize(
    "again",
    [
        lambda model: filterprune.wrap_model(model),
        lambda model: builders.clone(model),
        lambda model: filterprune.wrap(model.get_layer("conv1")),
        lambda model: filterprune.layers.Masked(model.get_layer("conv1")),
    ],
    ids=["wrap_model", "clone_model", "wrap", "Masked"],
)
def test_wrapped_already(again):
    with pytest.raises((TypeError, ValueError), match=r"masked.*'(plain|conv1)'"):
        again(masked())


def test_wrapped_already_inside_a_nested_model():
    backbone = filterprune.wrap_model(build("plain"))
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, backbone(inputs), name="outer")
    with pytest.raises(ValueError, match=r"masked yet.*plain/conv1"):
        filterprune.wrap_model(model)


WRAPS = {"wrap_model": filterprune.wrap_model, "clone_model": builders.clone}


@pytest.mark.parametrize("way", WRAPS)
@pytest.mark.parametrize(
    "function",
    [FUNCTIONS["prune"], fit],
    ids=["prune", "fit"],
)
def test_nothing_can_be_pruned(function, way):
    """The reason, and not that the model is to be wrapped: it was."""
    model = WRAPS[way](builders.mlp(4, 3))
    with pytest.raises(ValueError, match=r"'mlp'.*`d0`: reaches the output") as info:
        function(model)
    assert "Wrap it" not in str(info.value)


def test_wrapping_says_that_nothing_can_be_pruned():
    words = r"'mlp' can be pruned: `d0`: reaches the output `d0`"
    with pytest.warns(filterprune.PruningWarning, match=words) as caught:
        masked = filterprune.wrap_model(builders.mlp(4, 3))
    found = [w for w in caught if w.category is filterprune.PruningWarning]
    assert [w.filename for w in found] == [__file__]
    with pytest.raises(ValueError, match="Nothing in the model 'mlp'"):
        filterprune.compact(masked)


def test_a_layer_that_hides_all_channels_is_named():
    """By the clone route too, which warns of nothing."""

    class Block(keras.layers.Layer):
        def build(self, input_shape):
            self.inner = keras.layers.Dense(4)
            self.inner.build(input_shape)

        def call(self, x):
            return self.inner(x)

    x = keras.Input((3,))
    masked = builders.clone(keras.Model(x, Block(name="hiding")(x)))
    with pytest.raises(ValueError, match=r"`hiding` \(Block\): .*hides Dense"):
        filterprune.prune(masked, 0.5)


def test_a_model_that_was_not_wrapped_is_to_be_wrapped():
    with pytest.raises(ValueError, match="Wrap it first"):
        filterprune.compact(builders.plain())


def test_nothing_can_be_pruned_once_all_is_excluded():
    with pytest.warns(filterprune.PruningWarning, match="is excluded"):
        model = filterprune.wrap_model(builders.plain(), exclude=lambda layer: True)
    with pytest.raises(ValueError, match=r"gates.*none|Nothing.*can be pruned"):
        filterprune.prune(model, 0.5)


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, float("nan"), float("inf"), 50])
def test_sparsity_outside_its_range(value):
    model = masked()
    for function in (
        lambda: filterprune.prune(model, value),
        lambda: ConstantSparsity(value),
        lambda: PolynomialDecay(final_sparsity=value),
        lambda: PolynomialDecay(initial_sparsity=value),
    ):
        with pytest.raises(ValueError, match=rf"sparsity.*\[0, 1\).*{value}"):
            function()


@pytest.mark.parametrize("value", ["0.5", None, [0.5]])
def test_sparsity_that_is_no_number(value):
    with pytest.raises(TypeError, match=r"`sparsity` to be a number"):
        filterprune.prune(masked(), value)


# Arguments that `prune` and the callback share: value, and what is said of it.
LIMITS = [
    ({"criterion": "l3"}, r"criterion.*'l1', 'l2'.*'l3'"),
    ({"criterion": None}, r"criterion.*None"),
    ({"scope": "local"}, r"scope.*'global', 'layer'.*'local'"),
    ({"scope": None}, r"scope.*None"),
    ({"min_filters": 0}, r"min_filters.*at least 1.*0"),
    ({"min_filters": 1.5}, r"min_filters.*integer.*1.5"),
    ({"min_filters": 1.0}, r"min_filters.*integer.*1.0"),
    ({"min_filters": True}, r"min_filters.*integer.*True"),
    ({"round_to": 0}, r"round_to.*at least 1.*0"),
    ({"round_to": -8}, r"round_to.*at least 1.*-8"),
    ({"round_to": 2.5}, r"round_to.*integer.*2.5"),
    ({"round_to": True}, r"round_to.*integer.*True"),
]
CALLBACK = [
    ({"frequency": 0}, r"frequency.*at least 1.*0"),
    ({"frequency": -3}, r"frequency.*at least 1.*-3"),
    ({"frequency": 2.5}, r"frequency.*integer.*2.5"),
    ({"frequency": "often"}, r"frequency.*integer.*often"),
    ({"end_fraction": 0}, r"end_fraction.*\(0, 1\].*0"),
    ({"end_fraction": 1.5}, r"end_fraction.*\(0, 1\].*1.5"),
]


@pytest.mark.parametrize(("kwargs", "message"), LIMITS + CALLBACK, ids=str)
def test_arguments_of_the_callback(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FilterPruningCallback(PolynomialDecay(), **kwargs)


@pytest.mark.parametrize(("kwargs", "message"), LIMITS, ids=str)
def test_arguments_of_prune(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        filterprune.prune(masked(), 0.5, **kwargs)


@pytest.mark.parametrize("wrong", [0.5, None, "polynomial", PolynomialDecay, abs])
def test_a_schedule_that_is_none(wrong):
    with pytest.raises(TypeError, match=r"schedule.*PolynomialDecay.*Received"):
        FilterPruningCallback(wrong)


def test_begin_is_not_before_end():
    with pytest.raises(ValueError, match=r"begin_step=20, end_step=10"):
        PolynomialDecay(begin_step=20, end_step=10)


@pytest.mark.parametrize(
    ("model", "exclude", "words"),
    [
        ("plain", "haed", ["'plain'", "'haed'", "'conv1'", "'hidden'"]),
        ("plain", ("head", "haed"), ["'haed'", "'conv1'"]),
        ("plain", layers.LSTM, ["LSTM", "'conv1'"]),
        ("plain", lambda layer: False, ["lambda", "'conv1'"]),
        ("nested", "backbone/hidden", ["'backbone/hidden'", "'backbone/conv1'"]),
        ("nested", "", ["''", "'backbone/conv1'"]),
    ],
)
def test_exclude_that_matches_nothing(model, exclude, words):
    with pytest.raises(ValueError, match=r"exclude.*matches none") as info:
        filterprune.wrap_model(build(model), exclude=exclude)
    for word in words:
        assert word in str(info.value)


def test_exclude_with_a_slip_is_told_the_name_that_was_meant():
    """The layer that is excluded most is the last one of many."""
    with pytest.raises(ValueError, match=r"'haed'.*'head'"):
        filterprune.wrap_model(build("residual"), exclude="haed")


@pytest.mark.parametrize("exclude", [3, [3], (None,), None])
def test_exclude_of_a_wrong_kind(exclude):
    with pytest.raises(TypeError, match=r"exclude.*Received"):
        filterprune.wrap_model(build("plain"), exclude=exclude)


@pytest.mark.parametrize("function", [filterprune.prune, fit], ids=["prune", "fit"])
def test_round_to_larger_than_a_layer(function):
    model = masked()
    args = (0.5,) if function is filterprune.prune else ()
    with pytest.raises(ValueError, match=r"round_to=16.*'conv1' \(8\)") as info:
        function(model, *args, round_to=16)
    assert "conv2" not in str(info.value)
    assert "round_to=8" in str(info.value)
    assert "exclude" in str(info.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_name_their_layer(value):
    model = masked()
    kernel = model.get_layer("conv2").layer.kernel
    kernel.assign(np.full(kernel.shape, value))
    with pytest.raises(ValueError, match=r"`kernel`.*'conv2'.*not finite"):
        filterprune.prune(model, 0.5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"sparsity": 1.0},
        {"sparsity": 0.5, "criterion": "l3"},
        {"sparsity": 0.5, "scope": "x"},
        {"sparsity": 0.5, "round_to": 100},
        {"sparsity": 0.5, "criterion": lambda kernel: np.full(3, 1.0)},
    ],
)
def test_no_gate_is_changed_by_a_call_that_fails(kwargs):
    model = masked()
    filterprune.prune(model, 0.25)
    before = closed(model)
    with pytest.raises(ValueError):
        filterprune.prune(model, **kwargs)
    assert closed(model) == before


@pytest.mark.parametrize("wrong", [(), ("Dense",), (3,)])
def test_a_rule_for_no_layer(wrong):
    with pytest.raises(TypeError, match=r"layer classes.*Received"):
        filterprune.rule(*wrong)


@pytest.mark.parametrize("wrong", [None, "conv1", 3])
def test_wrap_of_no_layer(wrong):
    with pytest.raises(TypeError, match=r"layer"):
        filterprune.wrap(wrong)


def _warn_while_pruning(masked, tmp_path):
    filterprune.prune(masked, 0.999, min_filters=4)


def _warn_while_compacting(masked, tmp_path):
    filterprune.compact(masked)


def _warn_while_fitting(masked, tmp_path):
    x, y = builders.digits(32)
    callback = FilterPruningCallback(PolynomialDecay(end_step=99))
    masked = builders.compiled(masked, **builders.EAGERLY)
    masked.fit(x, y, verbose=0, callbacks=[callback])


def _warn_while_recalibrating(masked, tmp_path):
    filterprune.recalibrate(builders.mlp(4, 3), np.zeros((8, 4)))


@pytest.mark.parametrize(
    "function",
    [
        _warn_while_pruning,
        _warn_while_compacting,
        _warn_while_fitting,
        _warn_while_recalibrating,
    ],
)
def test_warnings_point_at_the_line_of_the_user(function, tmp_path):
    """Through our own frames and those of Keras, however many there are."""
    first = function.__code__.co_firstlineno
    with pytest.warns(filterprune.PruningWarning) as caught:
        function(masked(), tmp_path)
    lines, _ = inspect.getsourcelines(function)
    for warning in caught:
        if warning.category is filterprune.PruningWarning:
            assert warning.filename == __file__
            assert first < warning.lineno < first + len(lines)
