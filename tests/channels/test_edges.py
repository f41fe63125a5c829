"""Who reads whom, in every shape of graph."""

import builders
import keras
import pytest
from builders import BUILDERS, build
from keras import layers

from filterprune.channels.edges import sources
from filterprune.channels.flow import flow


def named(model):
    """For each call by path the paths of the calls that it reads."""
    found = flow(model)
    paths = [call.path for call in found.calls]
    return {
        path: [paths[i] if i >= 0 else f"input {-1 - i}" for i in read]
        for path, read in zip(paths, sources(found), strict=True)
    }


def test_both_branches_of_a_residual_block():
    edges = named(build("residual"))
    assert edges["stem"] == ["input 0"]
    assert edges["inner"] == ["stem_relu"]
    assert edges["add"] == ["stem_relu", "outer_bn"]


def test_nested_models_are_seen_through():
    edges = named(build("nested"))
    assert edges["backbone/conv1"] == ["input 0"]
    assert edges["top/flatten"] == ["backbone/conv2_sigmoid"]


def test_a_shared_layer_is_called_several_times():
    found = flow(build("shared"))
    read = [
        [found.calls[i].path if i >= 0 else i for i in numbers]
        for call, numbers in zip(found.calls, sources(found), strict=True)
        if call.path in ("tower", "again")
    ]
    assert sorted(map(str, read)) == sorted(
        map(str, [[-1], [-2], ["tower"], ["tower"], ["again"]])
    )


def test_a_nested_model_is_called_twice():
    image = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="d")], name="n")
    model = keras.Model(image, layers.Add(name="add")([inner(image), inner(image * 2)]))
    found = flow(model)
    numbers = [i for i, call in enumerate(found.calls) if call.path == "n/d"]
    edges = sources(found)
    assert len(numbers) == 2
    assert set(edges[-1]) == set(numbers)
    assert sorted(found.calls[edges[i][0]].op.name for i in numbers if edges[i][0] >= 0)


def test_a_held_layer_is_no_call_of_its_own():
    inputs = keras.Input((3, 4))
    held = layers.TimeDistributed(layers.Dense(5), name="held")
    model = keras.Model(inputs, layers.Dense(2, name="head")(held(inputs)))
    assert named(model) == {"held": ["input 0"], "head": ["held"]}


def test_what_is_read_twice_counts_once():
    x = keras.Input((4,))
    y = layers.Dense(4, name="d")(x)
    model = keras.Model(x, layers.Multiply(name="square")([y, y]))
    assert named(model)["square"] == ["d"]


@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_read_has_the_shape_of_what_was_made(name):
    for model in (build(name), builders.clone(build(name))):
        found = flow(model)
        inputs = [tuple(tensor.shape) for tensor in model.inputs]
        for number, (call, read) in enumerate(
            zip(found.calls, sources(found), strict=True)
        ):
            made = [
                found.calls[i].outputs[0] if i >= 0 else inputs[-1 - i] for i in read
            ]
            assert {channels.shape for channels in call.inputs} == set(made)
            assert all(i < number for i in read)
