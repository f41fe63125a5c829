"""What people use around `fit`: loggers, trackers, KerasTuner, scikit-learn."""

import csv
import http.server
import json
import threading

import builders
import keras
import numpy as np
import pytest
from keras import layers

import filterprune
from filterprune import FilterPruningCallback, PolynomialDecay
from filterprune.selection import Selector

SPARSITY = PolynomialDecay(final_sparsity=0.5, end_step=6, power=1)


def digits_rows():
    """Real digits as rows of 64 numbers in [0, 1], and their labels."""
    x, y = builders.digits(1797)
    return x.reshape(-1, 64), y


def mlp(classes=10, loss="sparse_categorical_crossentropy"):
    """A masked net of two hidden layers for rows of digits."""
    inputs = keras.Input((64,))
    x = layers.Dense(32, activation="relu", name="first")(inputs)
    x = layers.Dense(16, activation="relu", name="second")(x)
    outputs = layers.Dense(classes, activation="softmax", name="head")(x)
    masked = filterprune.wrap_model(keras.Model(inputs, outputs))
    optimizer = keras.optimizers.Adam(0.01)
    masked.compile(optimizer, loss, metrics=["accuracy"], **builders.EAGERLY)
    return masked


def train(*callbacks):
    x, y = digits_rows()
    options = {"batch_size": 32, "epochs": 3, "verbose": 0}
    return mlp().fit(x[:128], y[:128], callbacks=list(callbacks), **options)


def pruning():
    return FilterPruningCallback(SPARSITY, frequency=2, target="params")


def test_csv_logger_and_history_hold_the_same_scalars(tmp_path):
    path = tmp_path / "log.csv"
    history = train(pruning(), keras.callbacks.CSVLogger(path)).history
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert set(history) == {"loss", "accuracy", "sparsity", "params_removed"}
    assert set(history) <= set(rows[0])
    for name, values in history.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values)
    assert 0 < history["sparsity"][0] < history["sparsity"][-1]
    assert history["params_removed"][-1] == pytest.approx(0.5, abs=0.05)


def test_trackers_see_everything_in_logs():
    """After every batch and every epoch, as plain numbers."""
    batches, epochs = [], []
    tracker = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: batches.append(dict(logs)),
        on_epoch_end=lambda epoch, logs: epochs.append(dict(logs)),
    )
    history = train(pruning(), tracker).history
    assert len(batches) == 12
    assert all(type(logs["sparsity"]) is float for logs in batches + epochs)
    assert [logs["sparsity"] for logs in batches] == sorted(
        logs["sparsity"] for logs in batches
    )
    for name in history:
        assert [logs[name] for logs in epochs] == history[name]
    assert batches[-1]["params_removed"] == epochs[-1]["params_removed"]


def test_remote_monitor_sends_the_sparsity():
    pytest.importorskip("requests")
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        root = f"http://127.0.0.1:{server.server_port}"
        monitor = keras.callbacks.RemoteMonitor(root, send_as_json=True)
        history = train(pruning(), monitor).history
    finally:
        server.shutdown()
        server.server_close()
    assert [logs["sparsity"] for logs in received] == history["sparsity"]
    assert [logs["epoch"] for logs in received] == [0, 1, 2]


def test_keras_tuner_searches_sparsity_and_criterion(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")
    x, y = digits_rows()

    class Pruned(keras_tuner.HyperModel):
        def build(self, hp):
            return mlp()

        def fit(self, hp, model, *args, callbacks=(), **kwargs):
            callback = FilterPruningCallback(
                PolynomialDecay(final_sparsity=hp.Choice("sparsity", [0.25, 0.75])),
                criterion=hp.Choice("criterion", ["l1", "random"]),
                frequency=2,
            )
            callbacks = [*callbacks, callback]
            history = model.fit(*args, callbacks=callbacks, **kwargs).history
            report = filterprune.analyze(model)
            kept = report.after.macs / report.before.macs
            assert history["sparsity"][-1] == hp.get("sparsity")
            return {"score": history["val_accuracy"][-1] - 2 * kept, "kept": kept}

    objective = keras_tuner.Objective("score", "max")
    tuner = keras_tuner.GridSearch(
        Pruned(), objective=objective, directory=tmp_path, project_name="pruning"
    )
    data = {"validation_data": (x[256:512], y[256:512]), "epochs": 2, "verbose": 0}
    tuner.search(x[:256], y[:256], **data)
    trials = tuner.oracle.get_best_trials(4)
    tried = {tuple(trial.hyperparameters.values.values()) for trial in trials}
    assert len(tried) == 4
    assert trials[0].hyperparameters.get("sparsity") == 0.75  # MACs weigh most here
    best = tuner.get_best_models()[0]
    assert Selector(best).sparsity() == 0.75
    small = filterprune.compact(best)
    builders.assert_same_outputs(best, small)


class TestScikitLearn:
    fit = {"epochs": 6, "batch_size": 64, "verbose": 0}  # noqa: RUF012

    @staticmethod
    def build(X, y):
        return mlp(y.shape[1], "categorical_crossentropy")

    def callback(self):
        return FilterPruningCallback(PolynomialDecay(final_sparsity=0.5), frequency=5)

    @pytest.mark.parametrize("function", [True, False])
    def test_the_wrapper_prunes_while_it_fits(self, function):
        x, y = digits_rows()
        model = self.build if function else mlp(10, "categorical_crossentropy")
        classifier = keras.wrappers.SKLearnClassifier(
            model, fit_kwargs={**self.fit, "callbacks": [self.callback()]}
        )
        classifier.fit(x[:1200], y[:1200])
        assert Selector(classifier.model_).sparsity() == 0.5
        accuracy = classifier.score(x[1200:], y[1200:])
        assert accuracy > 0.8
        small = filterprune.compact(classifier.model_)
        found = small.predict(x[1200:], verbose=0).argmax(axis=1)
        assert np.mean(found == y[1200:]) == pytest.approx(accuracy)

    def test_cross_validation(self):
        """Keras' own `clone` forgets `fit_kwargs`: they are passed to each fit."""
        from sklearn.model_selection import cross_validate

        x, y = digits_rows()
        classifier = keras.wrappers.SKLearnClassifier(self.build)
        params = {**self.fit, "callbacks": [self.callback()]}
        options = {"cv": 2, "return_estimator": True, "params": params}
        result = cross_validate(classifier, x, y, **options)
        assert min(result["test_score"]) > 0.7
        for estimator in result["estimator"]:
            assert Selector(estimator.model_).sparsity() == 0.5
