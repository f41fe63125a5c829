"""What compact promises: exact, plain, whole, and plain words where it cannot."""

import builders
import keras
import numpy as np
import pytest
from exactness import (
    assert_close,
    assert_equal,
    check_exact,
    close_at_random,
    difference,
    randomise,
    to_numpy,
)
from keras import layers, ops

import filterprune
from filterprune.channels.groups import study


def gate_of(masked, name):
    return masked.get_layer(name).gate


def close(masked, name, *channels):
    gate = keras.ops.convert_to_numpy(gate_of(masked, name)).copy()
    gate[list(channels)] = 0
    gate_of(masked, name).assign(gate)


def only(*names):
    """A clone function that masks the named layers and copies the rest."""

    def clone(layer):
        if layer.name in names:
            return filterprune.wrap(layer)
        return type(layer).from_config(layer.get_config())

    return clone


def wrap_only(model, *names):
    masked = keras.models.clone_model(model, clone_function=only(*names))
    targets = [weight for weight in masked.weights if weight.name != "gate"]
    for weight, target in zip(model.weights, targets, strict=True):
        target.assign(weight)
    return masked


def stack(padding="same", size=3, use_bias=True, follower=None):
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(6, 3, padding="same", name="first")(x)
    y = follower(y) if follower else y
    y = layers.Conv2D(4, size, padding=padding, use_bias=use_bias, name="second")(y)
    y = layers.GlobalAveragePooling2D()(y)
    return randomise(keras.Model(x, layers.Dense(2, name="head")(y)))


def residual():
    x = keras.Input((6, 6, 3))
    a = layers.Conv2D(6, 3, padding="same", name="a")(x)
    b = layers.Conv2D(6, 3, padding="same", name="b")(a)
    y = layers.Add(name="add")([a, b])
    y = layers.Conv2D(3, 3, name="c")(y)
    return randomise(keras.Model(x, layers.Flatten(name="out")(y)))


class TestConstants:
    """Only the convolution is masked: what follows makes a constant of zero."""

    @pytest.mark.parametrize("use_bias", [True, False])
    @pytest.mark.parametrize(
        ("padding", "size"), [("valid", 3), ("same", 1), ("valid", 1)]
    )
    def test_a_constant_is_folded_into_the_bias(self, padding, size, use_bias):
        model = stack(padding, size, use_bias, layers.BatchNormalization())
        masked = wrap_only(model, "first")
        close(masked, "first", 0, 3)
        small = check_exact(masked)
        assert small.get_layer("first").filters == 4
        assert small.get_layer("second").use_bias

    def test_a_constant_before_zero_padding_stays_and_is_explained(self):
        model = stack("same", 3, True, layers.BatchNormalization(name="norm"))
        masked = wrap_only(model, "first")
        close(masked, "first", 0, 3)
        with pytest.warns(filterprune.PruningWarning, match="`norm`.*`second`"):
            small = filterprune.compact(masked)
        assert small.get_layer("first").filters == 6
        assert difference(masked, small) < 1e-5
        with pytest.warns(filterprune.PruningWarning):
            filterprune.compact(masked)
        reason = filterprune.analyze(masked).groups[0].reason
        assert "`norm`" in reason and "`second`" in reason

    def test_a_constant_that_zero_padding_makes_uneven_can_go(self):
        """Found by the fuzzer: called prunable, then kept."""
        x = keras.Input((8, 8, 3))
        y = ops.add(layers.Conv2D(4, 3, padding="same")(x), 0.25)
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        model = randomise(keras.Model(x, layers.Dense(3)(layers.Flatten()(y))))
        (group, _) = filterprune.analyze(model).groups
        assert group.reason is None
        masked = filterprune.wrap_model(model)
        close_at_random(masked)
        assert check_exact(masked).layers[1].filters == 2

    @pytest.mark.parametrize("norm", [lambda y: y, layers.BatchNormalization()])
    def test_a_reason_names_what_adds_a_constant_behind_a_norm(self, norm):
        x = keras.Input((8, 8, 3))
        y = norm(layers.Conv2D(4, 3, padding="same", name="made")(x))
        table = np.random.default_rng(0).normal(size=(8, 8, 4))
        y = layers.Flatten()(y + table)
        model = randomise(keras.Model(x, layers.Dense(3)(y)))
        (add,) = [op for op in model.operations if "add" in op.name]
        (group, _) = study(model, lambda call: call.op is add).groups
        assert group.reason == f"`{add.name}` (Add) leaves more behind than one number"
        # A gate behind the sum makes it removable.
        masked = filterprune.wrap_model(model)
        close_at_random(masked)
        assert check_exact(masked).get_layer("made").filters == 2

    def test_no_gate_goes_behind_a_sum_that_needs_none(self):
        """A number can go into a bias, and the gate of a norm does for a table."""
        x = keras.Input((8, 8, 3))
        y = ops.sqrt(layers.Conv2D(4, 3)(x) ** 2 + 1e-3)
        y = layers.Conv2D(4, 3)(y + np.arange(4.0))
        y = layers.BatchNormalization()(y + np.arange(144.0).reshape(6, 6, 4)[:4, :4])
        model = randomise(keras.Model(x, layers.Dense(3)(layers.Flatten()(y))))
        masked = filterprune.wrap_model(model)
        assert not [
            op for op in masked.operations if "add" in op.name and "gate" in op.name
        ]
        close_at_random(masked)
        assert check_exact(masked).count_params() < model.count_params()

    def test_a_masked_follower_makes_it_removable(self):
        model = stack("same", 3, True, layers.BatchNormalization(name="norm"))
        masked = wrap_only(model, "first", "norm")
        close(masked, "first", 0, 3)
        close(masked, "norm", 0, 3)
        assert check_exact(masked).get_layer("first").filters == 4

    def test_a_constant_after_a_gap_is_folded_into_dense(self):
        x = keras.Input((6, 6, 3))
        y = layers.Conv2D(6, 3, name="first")(x)
        y = layers.Activation("sigmoid")(y)
        y = layers.Flatten()(y)
        model = randomise(keras.Model(x, layers.Dense(2, use_bias=False)(y)))
        masked = wrap_only(model, "first")
        close(masked, "first", 1, 2)
        assert check_exact(masked).get_layer("first").filters == 4


class TestBranchesGatedDifferently:
    def test_only_what_is_closed_in_all_members_goes(self):
        masked = filterprune.wrap_model(residual())
        close(masked, "a", 0, 1, 2)
        close(masked, "b", 2, 3)
        with pytest.warns(filterprune.PruningWarning, match="3 closed channels stay"):
            small = filterprune.compact(masked)
        assert small.get_layer("a").filters == small.get_layer("b").filters == 5
        assert difference(masked, small) < 1e-5

    def test_a_gate_on_the_output_that_stays_becomes_a_plain_layer(self):
        x = keras.Input((6, 6, 3))
        a = layers.Conv2D(6, 1, activation="sigmoid", name="a")(x)
        b = layers.Conv2D(6, 1, name="b")(x)
        y = layers.Add()([a, b])
        model = randomise(keras.Model(x, layers.Conv2D(2, 3)(y)))
        masked = filterprune.wrap_model(model)
        close(masked, "a", 0, 1)
        with pytest.warns(filterprune.PruningWarning):
            small = filterprune.compact(masked)
        assert difference(masked, small) < 1e-5
        gate = small.get_layer("a_gate")
        assert isinstance(gate, layers.BatchNormalization) and not gate.trainable

    def test_the_same_in_a_sequential_model(self):
        model = keras.Sequential(
            [
                keras.Input((6, 6, 3)),
                layers.Conv2D(4, 3, activation="sigmoid", name="a"),
                layers.Lambda(lambda x: ops.flip(x, -1), name="opaque"),
                layers.Conv2D(2, 3),
            ]
        )
        masked = keras.models.clone_model(model, clone_function=filterprune.wrap)
        close(masked, "a", 0, 1)
        with pytest.warns(filterprune.PruningWarning, match="`opaque`"):
            small = filterprune.compact(masked)
        assert isinstance(small, keras.Sequential)
        assert difference(masked, small) < 1e-5


class TestFloor:
    def test_a_layer_closed_altogether_keeps_one_channel(self):
        masked = filterprune.wrap_model(stack())
        gate_of(masked, "first").assign(np.zeros(6))
        with pytest.warns(filterprune.PruningWarning, match="without channels"):
            small = filterprune.compact(masked)
        assert small.get_layer("first").filters == 1
        assert difference(masked, small) < 1e-5


class TestPlainAndWhole:
    def test_same_names_same_class_no_filterprune_inside(self):
        class MyModel(keras.Model):
            pass

        base = residual()
        model = MyModel(base.inputs, base.outputs, name="mine")
        masked = filterprune.wrap_model(model)
        close_at_random(masked)
        small = check_exact(masked)
        assert type(small) is type(masked) is MyModel
        assert small.name == "mine"
        assert [layer.name for layer in small.layers] == [
            layer.name for layer in model.layers
        ]
        modules = {type(layer).__module__.split(".")[0] for layer in small.layers}
        assert modules == {"keras"}

    def test_neither_model_is_touched(self):
        model = residual()
        masked = filterprune.wrap_model(model)
        close_at_random(masked)
        weights = [*model.weights, *masked.weights]
        before = [to_numpy(weight).copy() for weight in weights]
        calls = [len(layer._inbound_nodes) for layer in (*model.layers, *masked.layers)]
        filterprune.compact(masked)
        after = [to_numpy(weight) for weight in weights]
        for old, new in zip(before, after, strict=True):
            assert_equal(old, new)
        assert calls == [
            len(layer._inbound_nodes) for layer in (*model.layers, *masked.layers)
        ]

    def test_structures_of_inputs_and_outputs_are_kept(self):
        x = {"p": keras.Input((4,), name="p"), "q": keras.Input((4,), name="q")}
        y = layers.Dense(6)(x["p"]) + layers.Dense(6)(x["q"])
        model = keras.Model(x, {"one": layers.Dense(2, name="one")(y), "two": y * 1.0})
        masked = filterprune.wrap_model(randomise(model))
        assert set(masked.output) == {"one", "two"}
        side = keras.Model(x, {"one": model.output["one"]})
        masked = filterprune.wrap_model(side)
        close_at_random(masked)
        assert set(check_exact(masked).output) == {"one"}

    def test_frozen_layers_stay_frozen(self):
        model = residual()
        model.get_layer("b").trainable = False
        masked = filterprune.wrap_model(model)
        close_at_random(masked)
        small = filterprune.compact(masked)
        flags = [small.get_layer(name).trainable for name in "abc"]
        assert flags == [True, False, True]


class TestCompileState:
    @pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "adagrad", "lion"])
    def test_slots_are_sliced(self, optimizer):
        masked = trained(optimizer)
        small = filterprune.compact(masked)
        assert to_numpy(small.optimizer.iterations) == 4
        assert small.optimizer.learning_rate == masked.optimizer.learning_rate
        slots = [v for v in small.optimizer.variables if len(v.shape) == 4]
        assert slots and all(np.abs(to_numpy(v)).sum() > 0 for v in slots)

    # The bias before the batch norm has a gradient of zero, and rounding: without a
    # larger epsilon Adam would step by the sign of the latter.
    @pytest.mark.parametrize(
        "optimizer",
        [keras.optimizers.SGD(0.01, momentum=0.9), keras.optimizers.Adam(epsilon=1e-3)],
        ids=["sgd", "adam"],
    )
    def test_further_training_gives_the_same_weights(self, optimizer):
        masked = trained(optimizer)
        small = filterprune.compact(masked)
        x, y = data()
        for model in (masked, small):
            for _ in range(3):
                model.train_on_batch(x, y)
        again = filterprune.compact(masked)
        for expected, received in zip(again.weights, small.weights, strict=True):
            assert_close(expected, received, atol=5e-5)


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 6, 6, 3)), rng.normal(size=(16, 2))


def trained(optimizer):
    masked = filterprune.wrap_model(stack(follower=layers.BatchNormalization()))
    masked.compile(optimizer, "mse", metrics=["mae"])
    close_at_random(masked)
    x, y = data()
    masked.fit(x, y, batch_size=4, epochs=1, verbose=0, shuffle=False)
    return masked


class TestVerification:
    def test_a_wrong_rule_is_caught_and_the_layer_named(self, monkeypatch):
        from filterprune.channels import registry

        class Mean(layers.Layer):
            def call(self, x):
                return x - keras.ops.mean(x, axis=-1, keepdims=True)

        monkeypatch.setattr(registry, "_LAYER_RULES", dict(registry._LAYER_RULES))
        filterprune.rule(Mean)(
            lambda layer, x: filterprune.channels.same(
                x, elementwise=True, keeps_zero=True
            )
        )
        masked = filterprune.wrap_model(stack(follower=Mean(name="mean")))
        close_at_random(masked)
        with pytest.raises(filterprune.VerificationError, match="layer 'mean'"):
            filterprune.compact(masked)
        filterprune.compact(masked, verify=False)

    def test_a_rule_that_forgets_a_weight_is_caught_and_the_layer_named(
        self, monkeypatch
    ):
        from filterprune.channels import registry

        class Scale(layers.Layer):
            def build(self, input_shape):
                for name in ("first", "second"):
                    weight = self.add_weight(shape=(input_shape[-1],), name=name)
                    setattr(self, name, weight)

            def call(self, x):
                return x * self.first * self.second

        monkeypatch.setattr(registry, "_LAYER_RULES", dict(registry._LAYER_RULES))
        filterprune.rule(Scale)(
            lambda layer, x: filterprune.channels.same(x, keeps_zero=True, first="in")
        )
        masked = filterprune.wrap_model(stack(follower=Scale(name="scale")))
        close_at_random(masked)
        message = r"rule of `scale` \(Scale\).*second"
        with pytest.raises(filterprune.VerificationError, match=message):
            filterprune.compact(masked)


def test_a_model_of_which_nothing_was_pruned_is_warned_of():
    masked = filterprune.wrap_model(builders.build("plain"))
    words = "No gate of 'plain' is closed.*Prune first"
    with pytest.warns(filterprune.PruningWarning, match=words):
        small = filterprune.compact(masked)
    assert small.count_params() == builders.build("plain").count_params()


@pytest.mark.parametrize(
    "norm",
    [
        layers.LayerNormalization,
        lambda: layers.LayerNormalization(scale=False, center=False),
        lambda: layers.GroupNormalization(2),
        lambda: layers.GroupNormalization(1, center=False),
        layers.RMSNormalization,
        layers.UnitNormalization,
        layers.Softmax,
        lambda: layers.Activation("softmax"),
        layers.BatchNormalization,
        lambda: layers.MultiHeadAttention(2, 4),
    ],
)
@pytest.mark.parametrize("gates", [(0.5, 1.0), (0.0, 0.5, 1.0, 1.0)])
def test_gates_that_are_open_in_part_become_factors(norm, gates):
    """As `fit` leaves them that stops before a schedule's end."""
    norm = norm()
    x = keras.Input((5, 3))
    y = layers.Dense(8, activation="relu", name="first")(x)
    y = norm(y, y) if isinstance(norm, layers.MultiHeadAttention) else norm(y)
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    masked = filterprune.wrap_model(model)
    for gate in study(masked).masks:
        gate.variable.assign(np.resize(gates, gate.variable.shape))
    small = check_exact(masked, limit=1e-5)
    assert small.get_layer("first").units == 8 - 2 * gates.count(0.0)


def test_random_numbers_go_on_where_those_of_the_masked_model_are():
    """Augmentation is the same then, in both models, call by call."""
    x = keras.Input((8, 8, 3))
    y = layers.RandomRotation(0.3)(layers.RandomFlip()(x))
    y = layers.Conv2D(6, 3)(y)
    masked = filterprune.wrap_model(keras.Model(x, layers.Conv2D(2, 1)(y)))
    close_at_random(masked)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    masked(images, training=True)
    small = filterprune.compact(masked)
    for _ in range(2):
        expected = masked(images, training=True)
        assert_close(small(images, training=True), expected, 1e-4, 1e-4)


def test_an_initializer_with_a_value_for_each_channel_loses_some(tmp_path):
    """As the `T-Net` of PointNet has it."""
    bias = keras.initializers.Constant(np.arange(8.0))
    x = keras.Input((5,))
    y = layers.Dense(8, bias_initializer=bias, name="dense")(x)
    head = layers.Dense(2, name="head")(y)
    masked = filterprune.wrap_model(randomise(keras.Model(x, head)))
    masked.get_layer("dense").gate.assign([1, 0, 1, 0, 0, 1, 1, 0])
    small = check_exact(masked)
    value = small.get_layer("dense").bias_initializer.value
    assert list(value) == [0, 2, 5, 6]
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert_close(loaded(np.ones((1, 5))), small(np.ones((1, 5))))


def test_a_nested_model_is_called_on_maps_of_several_sizes():
    """As the heads of RetinaNet are."""
    head = keras.Sequential(
        [
            keras.Input((None, None, 8)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.Conv2D(2, 3, padding="same"),
        ]
    )
    x = keras.Input((16, 16, 3))
    first = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    second = layers.Conv2D(8, 3, strides=2, padding="same")(first)
    model = randomise(keras.Model(x, [head(first), head(second)]))
    masked = filterprune.wrap_model(model)
    close_at_random(masked)
    assert check_exact(masked).count_params() < 0.5 * model.count_params()
