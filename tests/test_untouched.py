"""No public function changes the model that it is given, to the last bit."""

import functools
import warnings

import keras
import numpy as np
import pytest
from exactness import close_at_random, randomise, to_numpy
from keras import layers, ops

import filterprune
from filterprune.rebuilding import states_of


@keras.saving.register_keras_serializable("tests")
class Counting(layers.Layer):
    """Counts its calls, in a weight and in an attribute, and adds a loss."""

    calls = 0

    def build(self, input_shape):
        self.seen = self.add_weight(shape=(), name="seen", trainable=False)
        self.added = self.add_weight(shape=(), name="added")

    def call(self, x):
        self.calls += 1
        self.seen.assign_add(1.0)
        self.add_loss(1e-3 * ops.mean(ops.square(x)))
        return x + 0.0 * self.added


@keras.saving.register_keras_serializable("tests")
class Drawing(layers.Layer):
    """Draws random numbers in inference too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(5)

    def call(self, x):
        return x + 0.1 * keras.random.normal(ops.shape(x), seed=self.generator)


@filterprune.composite
@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A composite layer with statistics and a seed in it."""

    def build(self, input_shape):
        self.dense = layers.Dense(input_shape[-1])
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.2, seed=1)
        self.dense.build(input_shape)
        self.norm.build(input_shape)

    def call(self, x, training=None):
        y = self.norm(self.dense(x), training=training)
        return x + self.drop(y, training=training)


def build_everything():
    """A compiled model of all that can move, and that has moved."""
    x = keras.Input(batch_shape=(4, 6, 3))
    scale = layers.Normalization(name="scale")
    scale.adapt(np.random.default_rng(0).normal(2, 3, (50, 6, 3)))
    y = layers.Conv1D(8, 3, padding="same", name="first")(scale(x))
    y = layers.BatchNormalization(name="foldable")(y)
    y = layers.BatchNormalization(name="moving")(ops.relu(y), training=True)
    y = layers.Dropout(0.3, seed=3)(y, training=True)
    z = keras.Input((6, 8))
    inner = keras.Model(z, layers.BatchNormalization()(layers.Conv1D(8, 1)(z)))
    y = inner(y) + inner(ops.tanh(y))  # a nested model, shared
    y = Block(name="block")(Drawing()(Counting(name="counting")(y)))
    # Keras 3.15 changes the state in place, which PyTorch cannot differentiate.
    stateful = keras.backend.backend() != "torch"
    y = layers.LSTM(5, stateful=stateful, name="memory")(y)
    model = keras.Model(x, layers.Dense(2, activation="softmax")(y), name="everything")
    randomise(model)
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    model.train_on_batch(*data())
    model(data()[0])  # so that losses are numbers
    return model


def data(seed=0, count=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6, 3)), np.eye(2)[rng.integers(0, 2, count)]


def state(model):
    """All variables, those that Keras does not list and attributes included."""
    parts = [model, *model._flatten_layers(include_self=False)]
    found = {v.path: v for v in (*model.variables, *model.optimizer.variables)}
    for number, metric in enumerate(model.metrics):
        found |= {f"{number}/{v.path}": v for v in metric.variables}
    for layer in parts:
        for number, value in enumerate(states_of(layer)):
            found[f"{layer.name}/state{number}"] = value
    values = {path: to_numpy(v).copy() for path, v in found.items()}
    counter = model.get_layer("counting")
    counted = getattr(counter, "layer", counter)
    values["calls"] = np.array(counted.calls)
    values["losses"] = np.array([float(loss) for loss in model.losses])
    return values


def masked_with_closed_gates():
    masked = filterprune.wrap_model(build_everything())
    close_at_random(masked)
    masked.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    masked.train_on_batch(*data())
    masked(data()[0])
    return masked


# Built once for the tests after which they are as they were.
everything = functools.cache(build_everything)
masked_everything = functools.cache(masked_with_closed_gates)


def each_layer(model):
    for layer in model.layers:
        if not isinstance(layer, layers.Normalization):
            filterprune.wrap(layer)


def distilled(model):
    student = filterprune.wrap_model(model)
    student.compile("adam", "categorical_crossentropy")
    filterprune.distill(student, model, from_logits=False)
    student.fit(*data(), batch_size=4, verbose=0)


def replayed(model):
    filterprune.replay(model, filterprune.kept_indices(filterprune.wrap_model(model)))


# What is called with a plain model, and with a masked one that has closed gates.
PLAIN = {
    "analyze": lambda model: print(filterprune.analyze(model)),
    "compress": lambda model: filterprune.compress(
        model, data(count=24), 0.5, refine=2, verbose=0
    ),
    "distill": distilled,
    "expand": lambda model: filterprune.expand(model),
    "fold_batch_norm": lambda model: filterprune.fold_batch_norm(model),
    "measure_latency": lambda model: filterprune.measure_latency(
        model, batch_size=4, points=2, rehearsals=0, verbose=0
    ),
    "replay": replayed,
    "sensitivity": lambda model: filterprune.sensitivity(
        model, data(), sparsities=(0.5,), batch_size=4, verbose=0
    ),
    "wrap": each_layer,
    "wrap_model": lambda model: filterprune.wrap_model(model),
}
MASKED = {
    "analyze": PLAIN["analyze"],
    "compact": lambda model: filterprune.compact(model),
    "expand": PLAIN["expand"],
    "kept_indices": lambda model: filterprune.kept_indices(model),
    "measure_latency": PLAIN["measure_latency"],
    "sensitivity": PLAIN["sensitivity"],
}
# What trains, prunes or recalibrates the model that it is given, on purpose, or is
# given none; `prune`, `recalibrate` and `reconstruct` are below.
ON_PURPOSE = {
    "AfterPruning",
    "FilterPruningCallback",
    "GroupLasso",
    "GroupWeightDecay",
    "GrowingRegularization",
    "PruningTensorBoard",
    "ScaleL1",
    "fit_shrinking",
    "prune",
    "recalibrate",
    "reconstruct",
}
WITHOUT_A_MODEL = {
    "ConstantSparsity",
    "Criterion",
    "IterativeSparsity",
    "LatencyModel",
    "PolynomialDecay",
    "PruningWarning",
    "ReconstructionReport",
    "Report",
    "Schedule",
    "Sensitivity",
    "VerificationError",
    "__version__",
    "channels",
    "composite",
    "criteria",
    "layers",
    "plots",
    "register_criterion",
    "rule",
    "schedules",
}
ELSEWHERE = {"export_model"}  # `test_exporting.py`


def test_every_public_name_is_in_a_list():
    lists = {*PLAIN, *MASKED, *ON_PURPOSE, *WITHOUT_A_MODEL, *ELSEWHERE}
    assert lists == set(filterprune.__all__)


def assert_untouched(before, model):
    after = state(model)
    assert before.keys() == after.keys()
    changed = [path for path in before if not np.array_equal(before[path], after[path])]
    assert changed == []


@pytest.mark.parametrize("name", PLAIN)
def test_plain_models(name, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = everything()
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)
        PLAIN[name](model)
    assert_untouched(before, model)


@pytest.mark.parametrize("name", MASKED)
def test_masked_models(name, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)
        model = masked_everything()
        before = state(model)
        MASKED[name](model)
    assert_untouched(before, model)


@pytest.mark.parametrize(
    "criterion",
    [
        lambda: "l2",
        lambda: filterprune.criteria.Taylor(data()),
        lambda: filterprune.criteria.ActivationMean(data()),
    ],
)
def test_prune_changes_gates_alone(criterion):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)
        model = masked_everything()
        close_at_random(model)
        before = state(model)
        filterprune.prune(model, 0.6, criterion=criterion())
    after = state(model)
    changed = [path for path in before if not np.array_equal(before[path], after[path])]
    assert changed and all(path.endswith("gate") for path in changed)


def test_recalibrate_changes_statistics_alone():
    model = build_everything()
    before = state(model)
    filterprune.recalibrate(model, [data()[0]])
    after = state(model)
    changed = [path for path in before if not np.array_equal(before[path], after[path])]
    assert changed and all("moving_" in path for path in changed)


def test_reconstruct_changes_weights_alone():
    """Neither gates, nor states, seeds and counters, the optimizer and metrics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", filterprune.PruningWarning)
        model = masked_with_closed_gates()
    fitted = {weight.path for weight in model.weights if "gate" not in weight.path}
    before = state(model)
    filterprune.reconstruct(model, data(count=24), refine=2, verbose=0)
    after = state(model)
    changed = [path for path in before if not np.array_equal(before[path], after[path])]
    changed = set(changed) - {"losses"}  # are those of the last call
    assert changed and changed <= fitted
    assert not any("seen" in path or "seed" in path for path in changed)
