"""`FilterPruningCallback` in real fits, on real handwritten digits."""

import builders
import keras
import numpy as np
import pytest
from builders import closed
from exactness import assert_close, to_numpy

import filterprune
from filterprune import ConstantSparsity, FilterPruningCallback, PolynomialDecay

BATCH = 32
X, Y = builders.digits(8 * BATCH)  # 8 steps an epoch
FILTERS = 8 + 16 + 16  # of `builders.plain`


class Recorder(keras.callbacks.Callback):
    """Notes after every batch the step, the fraction of closed gates, the gates."""

    def on_train_begin(self, logs=None):
        self.steps, self.sparsity, self.gates = [], [], []
        self.at_first_batch = None

    def on_train_batch_begin(self, batch, logs=None):
        if self.at_first_batch is None:
            self.at_first_batch = closed(self.model)

    def on_train_batch_end(self, batch, logs=None):
        gates = closed(self.model)
        makers = [v for k, v in gates.items() if not k.endswith(("_bn", "_sigmoid"))]
        self.steps.append(int(to_numpy(self.model.optimizer.iterations)))
        self.sparsity.append(float(np.mean(np.concatenate(makers))))
        self.gates.append(gates)

    def reached(self, sparsity):
        """The first step after which the model is so sparse."""
        return next(
            step
            for step, found in zip(self.steps, self.sparsity, strict=True)
            if found == pytest.approx(sparsity)
        )


def digits_net(name="plain", **kwargs):
    model = builders.BUILDERS[name]()
    return builders.compiled(filterprune.wrap_model(model), **kwargs)


def fit(masked, schedule, epochs=1, also=(), **kwargs):
    """Fit on the digits; the `History` and what a `Recorder` noted."""
    recorder = Recorder()
    options = {"batch_size": BATCH, "epochs": epochs, "verbose": 0}
    options |= {key: kwargs.pop(key) for key in ("initial_epoch",) if key in kwargs}
    callback = FilterPruningCallback(schedule, **kwargs)
    callbacks = [callback, recorder, *also]
    return masked.fit(X, Y, callbacks=callbacks, **options), recorder


@pytest.mark.parametrize(
    ("frequency", "executions"), [(1, 1), (3, 4), (7, 1), (7, 4), (100, 1), (100, 4)]
)
def test_final_sparsity_is_reached_exactly_at_the_end(frequency, executions):
    if executions > 1 and keras.backend.backend() == "torch":
        pytest.skip("Keras has no `steps_per_execution` on PyTorch")
    masked = digits_net(steps_per_execution=executions)
    schedule = PolynomialDecay(final_sparsity=0.5, begin_step=2, end_step=13)
    history, seen = fit(masked, schedule, epochs=2, frequency=frequency)
    end = next(step for step in seen.steps if step >= 13)
    assert end == 13 + (-13) % executions
    assert seen.reached(0.5) <= end
    assert seen.sparsity[seen.steps.index(end)] == 0.5
    assert seen.sparsity[-1] == 0.5
    if frequency == 100:
        assert seen.reached(0.5) == end
    assert history.history["sparsity"][-1] == 0.5


@pytest.mark.parametrize("frequency", [1, 3, 5])
def test_sparsity_follows_the_schedule_at_every_step(frequency):
    schedule = PolynomialDecay(0.1, 0.6, begin_step=2, end_step=13)
    _, seen = fit(digits_net(), schedule, epochs=2, frequency=frequency)
    assert seen.steps == list(range(1, 17))
    for step, found in zip(seen.steps, seen.sparsity, strict=True):
        due = [s for s in range(2, step + 1) if (s - 2) % frequency == 0 or s >= 13]
        expected = schedule(due[-1]) if due else 0.0
        assert abs(found - expected) <= 0.5 / FILTERS + 1e-9, step


@pytest.mark.parametrize("steps", [30, 150])
def test_by_default_gates_close_in_about_fifty_small_steps(steps):
    asked = set()

    class Watched(PolynomialDecay):
        def __call__(self, step):
            asked.add(step)
            return super().__call__(step)

    fit(digits_net(), Watched(end_step=steps), epochs=-(-steps // 8))
    assert min(asked) == 0 and max(asked) == steps
    assert len(asked) == min(steps, 50) + 1


def test_sparsity_is_in_the_history_and_rises():
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=20, power=1)
    history, seen = fit(digits_net(), schedule, epochs=3, frequency=2)
    found = history.history["sparsity"]
    assert len(found) == 3
    assert found == sorted(found)
    assert 0 < found[0] < found[1] < found[2] == 0.5
    assert found == [seen.sparsity[step - 1] for step in (8, 16, 24)]
    assert len(history.history["loss"]) == 3


def test_it_trains_while_it_prunes():
    masked = digits_net("sequential")
    masked.optimizer.learning_rate = 0.01
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=40)
    history, _ = fit(masked, schedule, epochs=15, frequency=5)
    assert history.history["accuracy"][-1] > 0.6 > history.history["accuracy"][0]
    small = filterprune.compact(masked)
    assert small.count_params() < masked.count_params()
    expected = masked.evaluate(X, Y, verbose=0)
    assert_close(small.evaluate(X, Y, verbose=0), expected, rtol=1e-3)


def test_gates_of_tied_layers_agree():
    _, seen = fit(
        digits_net("residual"),
        PolynomialDecay(final_sparsity=0.5, end_step=7),
        frequency=2,
    )
    for gates in seen.gates:
        assert gates["stem"] == gates["outer"]
        assert gates["stem"] == gates["stem_bn"] == gates["outer_bn"]
        assert gates["inner"] == gates["inner_bn"]
    assert any(seen.gates[-1]["stem"])


def test_closed_gates_stay_closed():
    rng = np.random.default_rng(0)  # which filter is dear changes all the time
    _, seen = fit(
        digits_net(),
        PolynomialDecay(final_sparsity=0.8, end_step=14),
        epochs=2,
        frequency=1,
        criterion=lambda kernel: rng.random(kernel.shape[1]),
    )
    flat = np.array([np.concatenate(list(gates.values())) for gates in seen.gates])
    assert (flat[1:] >= flat[:-1]).all()
    assert seen.sparsity[-1] == pytest.approx(0.8)


def test_gates_that_were_closed_before_stay_closed():
    masked = digits_net()
    filterprune.prune(masked, 0.3)
    before = closed(masked)
    _, seen = fit(masked, PolynomialDecay(0.0, 0.5, end_step=7), frequency=2)
    for gates in [seen.at_first_batch, *seen.gates]:
        for path, old in before.items():
            assert np.array(gates[path])[old].all()
    assert seen.sparsity[-1] == 0.5


def test_a_second_fit_continues_the_schedule():
    masked = digits_net()
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=12, power=1)
    with pytest.warns(filterprune.PruningWarning):
        _, first = fit(masked, schedule, frequency=5)
    assert first.steps[-1] == 8
    assert first.sparsity[-1] == pytest.approx(schedule(5), abs=0.5 / FILTERS)
    _, second = fit(masked, schedule, frequency=5)
    assert second.steps[0] == 9
    assert min(second.sparsity) >= first.sparsity[-1]
    assert second.reached(0.5) == 12


def test_a_fit_after_the_end_changes_no_gate():
    masked = digits_net("residual")
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=7)
    first, _ = fit(masked, schedule, frequency=2)
    before = closed(masked)
    history, seen = fit(masked, schedule, frequency=2)
    assert all(gates == before for gates in [seen.at_first_batch, *seen.gates])
    assert history.history["sparsity"] == first.history["sparsity"][-1:]


class Crash(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_is_resumed(tmp_path):
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=13, power=1)
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(digits_net(), schedule, 2, [backup, Crash()], frequency=5)
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    history, seen = fit(digits_net(), schedule, 2, [backup], frequency=5)
    assert seen.steps == list(range(9, 17))
    assert any(map(any, seen.at_first_batch.values()))
    assert seen.reached(0.5) == 13
    assert history.history["sparsity"] == [0.5]


class TestEndLeftOut:
    @pytest.mark.parametrize(("fraction", "end"), [(0.6, 10), (1.0, 16), (0.01, 1)])
    def test_it_is_a_fraction_of_the_steps(self, fraction, end):
        _, seen = fit(
            digits_net(),
            PolynomialDecay(final_sparsity=0.5),
            epochs=2,
            frequency=100,
            end_fraction=fraction,
        )
        assert seen.reached(0.5) == end

    def test_it_is_no_sooner_than_the_beginning(self):
        schedule = PolynomialDecay(final_sparsity=0.5, begin_step=7)
        _, seen = fit(digits_net(), schedule, end_fraction=0.5)
        assert seen.reached(0.5) == 8

    def test_a_second_fit_has_an_end_of_its_own(self):
        masked = digits_net()
        fit(masked, PolynomialDecay(final_sparsity=0.3), frequency=100)
        _, seen = fit(masked, PolynomialDecay(final_sparsity=0.5), frequency=100)
        assert seen.reached(0.5) == 8 + 1  # 15 % of eight steps

    def test_it_counts_updates_where_gradients_are_accumulated(self):
        masked = digits_net()
        optimizer = keras.optimizers.Adam(gradient_accumulation_steps=2)
        masked.compile(optimizer, masked.loss)
        history, seen = fit(masked, PolynomialDecay(final_sparsity=0.5), epochs=2)
        assert seen.steps[-1] == 8  # 16 batches
        assert history.history["sparsity"][-1] == 0.5

    def test_it_needs_to_know_the_steps(self):
        def endless():
            while True:
                yield X[:BATCH], Y[:BATCH]

        masked = digits_net()
        callback = FilterPruningCallback(PolynomialDecay(final_sparsity=0.5))
        masked.fit(endless(), steps_per_epoch=2, callbacks=[callback], verbose=0)
        stream = (batch for _, batch in zip(range(3), endless()))
        with pytest.raises(ValueError, match=r"end_step.*steps_per_epoch"):
            masked.fit(stream, callbacks=[callback], verbose=0)


@pytest.mark.parametrize("begin", [0, 5])
def test_constant_sparsity_closes_at_once(begin):
    schedule = ConstantSparsity(0.5, begin_step=begin)
    _, seen = fit(digits_net(), schedule)
    expected = [0.0] * (begin - 1) + [0.5] * (8 - max(begin - 1, 0))
    assert seen.sparsity == expected
    assert any(map(any, seen.at_first_batch.values())) == (begin == 0)


def test_ending_too_early_is_warned_of_with_figures():
    schedule = PolynomialDecay(final_sparsity=0.75, end_step=500)
    with pytest.warns(filterprune.PruningWarning) as caught:
        _, seen = fit(digits_net(), schedule, frequency=2)
    (warning,) = [w for w in caught if w.category is filterprune.PruningWarning]
    message = str(warning.message)
    for figure in ("step 8", "step 500", f"{seen.sparsity[-1]:.3f}", "0.750"):
        assert figure in message
    assert "end_step" in message


def test_ending_in_time_is_not_warned_of(recwarn):
    fit(digits_net(), PolynomialDecay(final_sparsity=0.5, end_step=8))
    assert not [w for w in recwarn if w.category is filterprune.PruningWarning]


@pytest.mark.filterwarnings("ignore:A sparsity of")
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_round_to_and_min_filters_hold_at_every_step(scope):
    schedule = PolynomialDecay(final_sparsity=0.95, end_step=7)
    options = {"frequency": 1, "scope": scope}
    _, seen = fit(digits_net(), schedule, round_to=4, min_filters=3, **options)
    counts = [[g.count(False) for g in gates.values()] for gates in seen.gates]
    assert all(count % 4 == 0 for at_step in counts for count in at_step)
    assert min(counts[-1]) == max(counts[-1]) == 4
    _, seen = fit(digits_net(), schedule, min_filters=3, **options)
    assert [g.count(False) for g in seen.gates[-1].values()] == [3] * 6


def test_a_target_out_of_reach_is_warned_of_before_training():
    schedule = PolynomialDecay(final_sparsity=0.9, end_step=7)
    with pytest.warns(filterprune.PruningWarning, match=r"0\.200 less"):
        history, _ = fit(digits_net(), schedule, frequency=3, min_filters=4)
    assert history.history["sparsity"] == [pytest.approx(0.7)]


def test_scope_layer_prunes_all_groups_alike():
    schedule = PolynomialDecay(final_sparsity=0.25, end_step=7)
    _, seen = fit(digits_net(), schedule, scope="layer")
    gates = seen.gates[-1]
    assert [sum(gates[name]) for name in ("conv1", "conv2", "hidden")] == [2, 4, 4]


def test_models_wrapped_layer_by_layer_are_pruned_too():
    masked = builders.compiled(builders.clone(builders.plain()))
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=7)
    history, seen = fit(masked, schedule)
    assert history.history["sparsity"] == [0.5]
    assert not any(seen.gates[-1]["head"])


def test_numbers_may_be_those_of_numpy():
    schedule = PolynomialDecay(0.0, np.float32(0.5), 0, np.int64(7))
    options = {"frequency": np.int64(2), "round_to": np.int32(4)}
    history, _ = fit(digits_net(), schedule, **options)
    assert history.history["sparsity"] == [0.5]


def test_mixed_precision_reaches_the_end_as_well():
    keras.config.set_dtype_policy("mixed_float16")
    masked = digits_net()
    keras.config.set_dtype_policy("float32")
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=7)
    history, _ = fit(masked, schedule, frequency=3)
    assert history.history["sparsity"] == [0.5]


def test_validation_and_early_stopping_go_along():
    masked = digits_net()
    stop = keras.callbacks.EarlyStopping("sparsity", mode="max", patience=1)
    callback = FilterPruningCallback(PolynomialDecay(final_sparsity=0.5, end_step=7))
    history = masked.fit(
        X,
        Y,
        batch_size=BATCH,
        epochs=9,
        validation_split=0.125,
        callbacks=[callback, stop],
        verbose=0,
    )
    assert history.history["sparsity"] == [0.5, 0.5]
    assert "val_loss" in history.history


def test_the_callback_can_be_used_again_for_another_model():
    schedule = PolynomialDecay(final_sparsity=0.5)
    callback = FilterPruningCallback(schedule, frequency=100)
    for _ in range(2):
        masked = digits_net()
        masked.fit(X, Y, batch_size=BATCH, callbacks=[callback], verbose=0)
        assert filterprune.selection.Selector(masked).sparsity() == 0.5


class Holder(keras.Model):
    """Trains models that it holds, by a step of its own on TensorFlow."""

    def __init__(self, *nets):
        super().__init__()
        self.nets = list(nets)

    def call(self, x):
        return sum(net(x) for net in self.nets)


def held(*names):
    nets = [builders.BUILDERS[name]() for name in names]
    masked = [filterprune.wrap_model(net) for net in nets]
    holder = Holder(*masked)
    holder.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return holder, masked


def test_a_model_that_is_held_by_the_trained_one_is_pruned():
    holder, (masked,) = held("plain")
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=12, power=1)
    pruning = FilterPruningCallback(schedule, model=masked)
    options = {"batch_size": BATCH, "verbose": 0, "callbacks": [pruning]}
    with pytest.warns(filterprune.PruningWarning, match="at step 8, before"):
        first = holder.fit(X, Y, epochs=1, **options).history["sparsity"]
    assert 0.2 < first[0] < 0.5
    assert not pruning.is_done()
    second = holder.fit(X, Y, epochs=1, **options).history["sparsity"]  # goes on
    assert second == pytest.approx([0.5]) and pruning.is_done()
    small = filterprune.compact(masked)
    assert_close(small(X[:4]), masked(X[:4]), 1e-4, 1e-5)


def test_two_models_that_are_held_have_a_callback_each():
    holder, nets = held("plain", "plain")
    callbacks = [
        FilterPruningCallback(ConstantSparsity(sparsity), model=net)
        for sparsity, net in zip((0.25, 0.5), nets, strict=True)
    ]
    holder.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=callbacks)
    found = [callback.selector.sparsity() for callback in callbacks]
    assert found == pytest.approx([0.25, 0.5])


def test_a_model_that_is_not_held_is_refused():
    holder, _ = held("plain")
    other = filterprune.wrap_model(builders.BUILDERS["plain"]())
    pruning = FilterPruningCallback(ConstantSparsity(0.5), model=other)
    with pytest.raises(ValueError, match=r"held by the model that is trained"):
        holder.fit(X, Y, verbose=0, callbacks=[pruning])
    with pytest.raises(TypeError, match=r"`model` to be a Keras model"):
        FilterPruningCallback(ConstantSparsity(0.5), model="net")
