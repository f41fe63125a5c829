"""`distill` on real digits: the loss of a formula, and all else as without it."""

import os
import subprocess
import sys

import builders
import keras
import numpy as np
import pytest
from builders import build, compiled
from exactness import check_exact, to_numpy
from keras import layers

import filterprune
from filterprune import FilterPruningCallback, PolynomialDecay, distill

X, Y = builders.digits(512)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(seed=0, activation=None, units=3, name="net", **kwargs):
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(units, activation=activation, name="head", **kwargs)(x)
    return builders.randomise(keras.Model(inputs, x, name=name), seed)


def softmax(x):
    exp = np.exp(x - x.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def kl(teacher, student):
    """KL(teacher || student) of probabilities, one value a row."""
    return (teacher * np.log(teacher / student)).sum(-1)


def predict(model, x):
    return to_numpy(model(x, training=False)).astype("float64")


def loss_of(student, x, y, sample_weight=None):
    """The training loss for predictions in inference mode."""
    y_pred = student(x, training=False)
    args = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
    args = {
        key: v if v is None else keras.ops.convert_to_tensor(v)
        for key, v in args.items()
    }
    return to_numpy(student.compute_loss(**args, training=True)).item()


def values(model):
    return {v.path: to_numpy(v).tobytes() for v in model.variables}


x, y = X[:12], Y[:12] % 3


def test_the_loss_is_that_of_the_formula():
    student, teacher = net(0), net(1)
    student.compile("sgd", LOGITS)
    s, t = predict(student, x), predict(teacher, x)
    hard = -np.log(softmax(s))[np.arange(12), y]
    assert loss_of(student, x, y) == pytest.approx(hard.mean(), rel=1e-4)
    assert distill(student, teacher, alpha=0.3, temperature=2.5) is student
    soft = 2.5**2 * kl(softmax(t / 2.5), softmax(s / 2.5))
    expected = 0.7 * hard + 0.3 * soft
    assert loss_of(student, x, y) == pytest.approx(expected.mean(), rel=1e-4)
    weights = np.linspace(0, 2, 12).astype("float32")
    weighted = (expected * weights).mean()
    assert loss_of(student, x, y, weights) == pytest.approx(weighted, rel=1e-4)


@pytest.mark.parametrize(
    "activations", [("softmax", None), (None, "softmax"), ("softmax", "softmax")]
)
def test_probabilities_and_logits_are_told_apart(activations):
    """A softmax at the end changes nothing: its logarithms are logits."""
    student, teacher = net(0, activations[0]), net(1, activations[1])
    student.compile("sgd", "sparse_categorical_crossentropy")
    distill(student, teacher, alpha=1.0, temperature=3.0)
    s, t = predict(net(0), x), predict(net(1), x)
    expected = 9 * kl(softmax(t / 3), softmax(s / 3)).mean()
    assert loss_of(student, x, y) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_yes_or_no_outputs(activation, units):
    student, teacher = (net(seed, activation, units) for seed in (0, 1))
    student.compile("sgd", "mse")
    distill(student, teacher, 1.0, 2.0, "binary_kl", from_logits=activation is None)
    s, t = (1 / (1 + np.exp(-predict(net(i, None, units), x) / 2)) for i in (0, 1))
    pairs = (np.stack([p, 1 - p], axis=-1) for p in (t, s))
    expected = 4 * kl(*pairs).mean()
    assert loss_of(student, x, predict(student, x)) == pytest.approx(expected, rel=1e-3)


def test_numbers_are_compared_as_they_are():
    student, teacher = net(0), net(1)
    student.compile("sgd", "mae")
    distill(student, teacher, alpha=0.25, distance="mse")
    s, t = predict(student, x), predict(teacher, x)
    expected = 0.75 * abs(s - 1).mean() + 0.25 * ((s - t) ** 2).mean()
    assert loss_of(student, x, np.ones((12, 3))) == pytest.approx(expected, rel=1e-4)


def test_regularisation_is_not_scaled():
    student, teacher = net(0, kernel_regularizer=keras.regularizers.L2(0.1)), net(1)
    student.compile("sgd", LOGITS)
    added = 0.1 * (to_numpy(student.get_layer("head").kernel) ** 2).sum()
    hard = loss_of(student, x, y) - added
    distill(student, teacher, alpha=1.0)
    soft = loss_of(student, x, y) - added
    distill(student, teacher, alpha=0.5)
    assert loss_of(student, x, y) == pytest.approx(
        0.5 * hard + 0.5 * soft + added, rel=1e-4
    )


def test_several_outputs_are_summed():
    def model(seed):
        inputs = keras.Input((8, 8, 1), name="image")
        h = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
        outputs = {"map": layers.Conv2D(2, 1, name="map")(h)}
        outputs["class"] = layers.Dense(3, name="class")(layers.Flatten()(h))
        return builders.randomise(keras.Model(inputs, outputs), seed)

    student, teacher = model(0), model(1)
    student.compile("sgd", {"map": LOGITS, "class": LOGITS})
    distill(student, teacher, alpha=1.0, temperature=1.0)
    s, t = student(x), teacher(x)
    expected = sum(
        kl(softmax(to_numpy(t[key])), softmax(to_numpy(s[key]))).mean() for key in s
    )
    labels = {"map": np.zeros((12, 6, 6), "int32"), "class": y}
    labels = keras.tree.map_structure(keras.ops.convert_to_tensor, labels)
    found = student.compute_loss(keras.ops.convert_to_tensor(x), labels, s)
    assert to_numpy(found).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("eagerly", [False, True])
def test_fit_learns_from_the_teacher_and_validates_without_it(eagerly):
    student, teacher = net(0), net(1)
    student.compile(
        keras.optimizers.SGD(0.0), LOGITS, metrics=["accuracy"], run_eagerly=eagerly
    )
    student.get_layer("bn").trainable = False  # no batch statistics
    plain = student.evaluate(x, y, batch_size=12, verbose=0, return_dict=True)
    fit = {"batch_size": 12, "verbose": 0, "validation_data": (x, y)}
    without = student.fit(x, y, **fit).history
    assert without["loss"][0] == pytest.approx(plain["loss"], rel=1e-4)
    before = values(teacher)
    distill(student, teacher, alpha=0.5)  # the train function is made already
    history = student.fit(x, y, **fit).history
    soft = 16 * kl(*(softmax(predict(m, x) / 4) for m in (teacher, student))).mean()
    expected = 0.5 * plain["loss"] + 0.5 * soft
    assert history["loss"][0] == pytest.approx(expected, rel=1e-3)
    assert history["val_loss"][0] == pytest.approx(plain["loss"], rel=1e-4)
    assert history.keys() == without.keys()
    assert history["accuracy"] == without["accuracy"]
    again = student.evaluate(x, y, batch_size=12, verbose=0, return_dict=True)
    assert again == pytest.approx(plain)
    assert values(teacher) == before
    # Another teacher takes the place of the first; `None` of both.
    distill(student, teacher, alpha=1.0)
    assert student.fit(x, y, **fit).history["loss"][0] == pytest.approx(soft, rel=1e-3)
    distill(student, None)
    assert student.fit(x, y, **fit).history["loss"] == pytest.approx(without["loss"])
    assert "compute_loss" not in vars(student)


def test_a_student_comes_nearer_to_its_teacher():
    def trained(seed, teacher=None):
        keras.utils.set_random_seed(seed)
        model = compiled(net(seed, units=10))
        model.optimizer.learning_rate = 0.01
        distill(model, teacher, alpha=0.9)
        model.fit(X[:256], Y[:256], batch_size=32, epochs=8, verbose=0)
        return model

    def far(student):
        unseen = (softmax(predict(model, X[256:])) for model in (teacher, student))
        return kl(*unseen).mean()

    teacher = trained(1)
    assert far(trained(2, teacher)) < 0.8 * far(trained(2))


def test_pruning_with_a_teacher_gives_a_plain_compact_model(tmp_path):
    model = compiled(build("plain"))
    teacher = build("sequential")
    before = values(teacher)
    masked = filterprune.wrap_model(model)
    weights = len(masked.variables)
    distill(masked, teacher)
    callback = FilterPruningCallback(PolynomialDecay(0, 0.5, end_step=6), frequency=2)
    masked.fit(X[:256], Y[:256], callbacks=[callback], verbose=0)
    assert values(teacher) == before
    assert len(masked.variables) == weights
    small = check_exact(masked)
    assert small.count_params() < model.count_params()
    assert type(small) is type(model)
    assert "compute_loss" not in vars(small)
    assert small.loss.get_config() == model.loss.get_config()

    masked.save(tmp_path / "masked.keras")
    loaded = keras.models.load_model(tmp_path / "masked.keras")
    assert "compute_loss" not in vars(loaded)
    distill(small, teacher).save(tmp_path / "small.keras")
    code = f"""
import sys, keras
keras.models.load_model({str(tmp_path / "small.keras")!r})
assert "filterprune" not in sys.modules
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)


def test_a_sequential_student_stays_sequential():
    masked = compiled(filterprune.wrap_model(build("sequential")))
    assert distill(masked, build("plain")) is masked
    filterprune.prune(masked, 0.5)
    small = filterprune.compact(masked, verify=False)
    assert type(small) is keras.Sequential
    assert "compute_loss" not in vars(small)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student, expert = net(0, "softmax"), net(1)
        student.compile("sgd", "sparse_categorical_crossentropy")
        distill(student, expert)
        history = student.fit(X[:64], Y[:64] % 3, verbose=0).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(history["loss"]).all()


def test_copies_have_no_teacher():
    model = distill(compiled(build("plain")), build("plain", 1))
    for copy in (
        filterprune.wrap_model(model),
        keras.models.clone_model(model),
        builders.clone(model),
    ):
        assert "compute_loss" not in vars(copy)
    assert "compute_loss" in vars(model)


def test_a_loss_of_the_students_own_is_kept():
    class Own(type(build("plain"))):
        def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
            return keras.ops.mean(y_pred) * 0 + 3.0

    other = net(0)
    student = Own(other.input, other.output)
    student.compile("sgd", LOGITS)
    distill(student, net(0), alpha=0.5)
    assert loss_of(student, x, y) == pytest.approx(1.5)
    distill(student, None)
    assert loss_of(student, x, y) == 3.0


class Silent(type(keras.Model(*[keras.Input((1,))] * 2))):
    def compute_loss(self, x, y, y_pred, sample_weight=None):
        return keras.ops.mean(y_pred)


def silent():
    other = net(0)
    model = Silent(other.input, other.output)
    model.compile("sgd", LOGITS)
    return model


def of_classes(units, activation=None):
    return lambda: net(1, activation, units)


@pytest.mark.parametrize(
    ("student", "teacher", "arguments", "error", "words"),
    [
        (None, None, {"student": 3}, TypeError, "`student` to be a Keras model"),
        (lambda: net(0), None, {}, ValueError, "to be compiled. Received: 'net'"),
        (silent, None, {}, ValueError, "to take `training`"),
        (None, lambda: "resnet", {}, TypeError, "`teacher` to be a Keras model"),
        (None, lambda: keras.Sequential([layers.Dense(3)]), {}, ValueError, "built"),
        (None, of_classes(4), {}, ValueError, r"\(4, 3\). Received: 'net', which"),
        (None, lambda: build("nested"), {}, ValueError, "takes the inputs of 'net'"),
        (None, of_classes(3, "sigmoid"), {}, ValueError, "binary_kl"),
        (None, None, {"alpha": 1.1}, ValueError, r"in \[0, 1\]. Received: alpha=1.1"),
        (None, None, {"temperature": 0}, ValueError, "temperature=0"),
        (None, None, {"distance": "l2"}, ValueError, "one of .*'l2'"),
        (None, None, {"distance": "binary_kl"}, ValueError, "`from_logits` to be giv"),
    ],
)
def test_what_is_wrong_is_refused(student, teacher, arguments, error, words):
    student = (student or (lambda: compiled(net(0))))()
    arguments = {
        "student": student,
        "teacher": (teacher or of_classes(3))(),
        **arguments,
    }
    with pytest.raises(error, match=words):
        distill(**arguments)
    assert "compute_loss" not in vars(student)


def test_one_class_needs_another_distance():
    student = compiled(net(0, units=1))
    with pytest.raises(ValueError, match=r"classes\)` for `distance=\"kl\"`. Received"):
        distill(student, net(1, units=1))


def test_a_teacher_that_would_be_trained_is_refused():
    student = compiled(net(0))
    with pytest.raises(ValueError, match="shares weights that the student trains"):
        distill(student, student)
    distill(student, keras.models.clone_model(student))
