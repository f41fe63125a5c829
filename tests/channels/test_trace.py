"""Fails loudly when Keras changes the private names that `trace` reads."""

import keras
import numpy as np
import pytest
from keras import layers

from filterprune.channels import trace as trace_module
from filterprune.channels.trace import (
    CALLED,
    adafactor_factors,
    check_model,
    complete_config,
    copy_object,
    copy_operation,
    functional_arguments,
    is_graph,
    is_keras_operation,
    metric_functions,
    trace,
    widths_of,
)


@pytest.fixture
def model():
    x = keras.Input((4, 4, 3), name="image")
    conv = layers.Conv2D(3, 1, name="conv")
    y = conv(x) + conv(conv(x)) * 2.0
    return keras.Model(x, {"out": layers.Flatten(name="flat")(y)})


def test_private_names_are_there(model):
    node = next(iter(model._nodes_by_depth.values()))[0]
    for name in ("operation", "arguments", "outputs", "is_input"):
        assert hasattr(node, name), f"Keras' Node lost `{name}`"
    for name in ("args", "kwargs", "keras_tensors"):
        assert hasattr(node.arguments, name), f"SymbolicArguments lost `{name}`"
    for name in ("_inputs_struct", "_outputs_struct"):
        assert hasattr(model, name), f"Keras' Functional lost `{name}`"
    assert hasattr(keras.Sequential(), "_functional")
    assert hasattr(layers.Dense(1), "_inbound_nodes")
    assert hasattr(layers.Dense(1), "_outbound_nodes")


def test_a_copied_operation_has_a_config_of_its_own():
    x = keras.Input((4, 6))
    op = keras.ops.roll(x, 3, axis=-1)._keras_history.operation
    fresh = copy_operation(op, shift=np.int64(1))
    assert fresh.get_config()["shift"] == 1 == fresh.shift
    assert op.get_config()["shift"] == 3
    assert op._auto_config is not None, "Keras' Operation lost `_auto_config`"


def test_a_config_that_keras_did_not_note_is_completed():
    layer = layers.Identity(dtype=keras.DTypePolicy("float32"), name="same")
    with pytest.raises(NotImplementedError):
        layer.get_config()
    copy = copy_object(layer)
    complete_config(copy)
    assert layers.Identity.from_config(copy.get_config()).name == "same"
    with pytest.raises(NotImplementedError):
        layer.get_config()


def test_adafactor_keeps_its_moments_by_rows_and_columns():
    optimizer = keras.optimizers.Adafactor()
    optimizer.build([keras.Variable(np.zeros((2, 3, 4)))])
    rows, columns = adafactor_factors(optimizer)
    assert tuple(rows[0].shape) == (2, 3)
    assert tuple(columns[0].shape) == (2, 4)


def test_functions_behind_metrics_are_found():
    x = keras.Input((2,))
    model = keras.Model(x, layers.Dense(1)(x))

    def own_metric(y_true, y_pred):
        return keras.ops.mean(y_pred)

    model.compile("sgd", "mse", metrics=[own_metric])
    model.train_on_batch(np.ones((2, 2)), np.ones((2, 1)))
    assert own_metric in metric_functions(model)


def test_every_call_is_read_once_and_in_order(model):
    graph = trace(model)
    names = [node.op.name for node in graph.nodes]
    assert names.count("conv") == 3
    assert names[-1] == "flat"
    known = {id(tensor) for tensor in graph.inputs}
    for node in graph.nodes:
        assert {id(tensor) for tensor in node.inputs} <= known
        known |= {id(tensor) for tensor in node.outputs}
    assert graph.output_names == ("flat",)


def test_operations_are_told_from_layers(model):
    ops = [node.op for node in trace(model).nodes]
    assert {type(op).__name__ for op in ops if is_keras_operation(op)} == {
        "Add",
        "Multiply",
    }


def test_a_copied_operation_is_outside_every_graph(model):
    op = next(node.op for node in trace(model).nodes if is_keras_operation(node.op))
    calls = len(op._inbound_nodes)
    fresh = copy_operation(op)
    fresh(keras.Input((2,)), keras.Input((2,)))
    assert len(op._inbound_nodes) == calls
    assert type(fresh) is type(op)


def test_what_is_a_graph(model):
    assert is_graph(model)
    assert is_graph(keras.Sequential([keras.Input((2,)), layers.Dense(1)]))
    assert not is_graph(keras.Sequential([layers.Dense(1)]))
    assert not is_graph(layers.Dense(1))


def test_functional_subclass_is_rebuilt_as_its_class():
    class Plain(keras.Model):
        pass

    class More(keras.Model):
        def __init__(self, *args, extra=1, **kwargs):
            super().__init__(*args, **kwargs)
            self.extra = extra

    class Other(keras.Model):
        def __init__(self, width):
            x = keras.Input((2,))
            super().__init__(x, layers.Dense(width)(x))

    x = keras.Input((2,))
    assert functional_arguments(Plain(x, layers.Dense(1)(x))) == {}
    assert functional_arguments(More(x, layers.Dense(1)(x), extra=3)) == {"extra": 3}
    assert functional_arguments(Other(3)) is None


def test_only_models_pass_the_check():
    with pytest.raises(TypeError, match="Keras model"):
        check_model(layers.Dense(1))


def test_a_copy_that_is_built_leaves_the_original_unbuilt():
    """Keras wraps `build` for each layer: the wrapper must not be copied."""
    layer = keras.layers.PReLU()
    copied = copy_object(layer)
    copied(np.zeros((1, 4)))
    assert copied.built and len(copied.weights) == 1
    assert not layer.built and not layer.weights
    layer(np.zeros((1, 7)))
    assert copied.alpha.shape == (4,) and layer.alpha.shape == (7,)


def test_the_widths_of_a_layer_are_those_of_all_its_calls():
    relu = layers.ReLU()
    assert widths_of(relu, -1) == set()
    for shape in ((4, 6), (4, 6), (3, 8)):
        relu(keras.Input(shape))
    assert widths_of(relu, -1) == {6, 8}
    assert widths_of(relu, 1) == {3, 4}


def test_attributes_that_copies_leave_behind_are_there():
    """Those of the graph, of the last call, and of `compile` and `fit`."""
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(x))
    model.compile("sgd", "mse")
    model.fit(np.zeros((2, 4)), np.zeros((2, 2)), verbose=0)
    model.predict(np.zeros((2, 4)), verbose=0)
    model.evaluate(np.zeros((2, 4)), np.zeros((2, 2)), verbose=0)
    assert trace_module._LEFT_BEHIND.keys() <= vars(model.layers[-1]).keys()
    assert trace_module._COMPILED.keys() - {"optimizer"} <= vars(model).keys()


def test_a_layer_notes_that_it_was_called():
    layer = layers.Dense(2)
    layer.build((None, 4))
    assert vars(layer)[CALLED] is False
    layer(np.zeros((1, 4)))
    assert vars(layer)[CALLED] is True


def test_a_copy_tracks_what_it_is_given():
    """Keras tells by their ids which variables and layers it knows already."""
    layer = layers.Layer()
    layer.kernel = layer.add_weight(shape=(2,))
    layer.parts = [layers.Dense(1)]
    copied = copy_object(layer)
    copied.again = copied.kernel
    assert len(copied.weights) == 1
    copied.parts.append(layers.Dense(3))
    copied.parts[-1].build((None, 4))
    assert len(copied.weights) == 3 and len(layer.weights) == 1


def test_the_copy_of_a_frozen_layer_learns_once_it_is_not_frozen():
    layer = layers.Dense(2)
    layer.build((None, 4))
    layer.trainable = False
    copied = copy_object(layer)
    assert not copied.trainable_weights
    copied.trainable = True
    model = keras.Sequential([keras.Input((4,)), copied])
    model.compile("sgd", "mse")
    before = np.array(keras.ops.convert_to_numpy(copied.kernel))
    model.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0)
    assert not np.array_equal(before, keras.ops.convert_to_numpy(copied.kernel))
