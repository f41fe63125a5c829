"""A report as JSON and as rows of a data frame."""

import json

import builders
import keras
import pytest
from builders import BUILDERS, build

import filterprune


def pruned(name, sparsity=0.5):
    masked = filterprune.wrap_model(build(name))
    filterprune.prune(masked, sparsity)
    return masked


@pytest.mark.parametrize("name", BUILDERS)
def test_json_holds_what_the_report_does(name):
    report = filterprune.analyze(pruned(name))
    found = json.loads(report.to_json(indent=2))
    assert found == report.to_dict()
    assert found["model"] == report.model_name
    assert found["after"]["macs"] == report.after.macs
    assert [g["alive"] for g in found["groups"]] == [g.alive for g in report.groups]
    assert [g["reason"] for g in found["groups"]] == [g.reason for g in report.groups]
    assert [n["name"] for n in found["nodes"]] == [n.name for n in report.nodes]
    assert "\n" not in report.to_json()


@pytest.mark.parametrize("name", BUILDERS)
def test_widths_are_those_of_the_compact_model(name):
    masked = pruned(name)
    rows = {row["layer"]: row for row in filterprune.analyze(masked).rows()}
    small = builders.leaves(filterprune.compact(masked))
    full = builders.leaves(masked)
    for path, row in rows.items():
        assert row["width"] == full[path].output.shape[-1]
        assert row["width_after"] == small[path].output.shape[-1]
        assert row["removed"] == pytest.approx(1 - row["width_after"] / row["width"])
        assert row["params_after"] == small[path].count_params()
        assert row["kind"] == type(small[path]).__name__


def test_rows_make_a_data_frame():
    pandas = pytest.importorskip("pandas")
    report = filterprune.analyze(pruned("residual"))
    frame = pandas.DataFrame(report.rows()).set_index("layer")
    assert frame["params"].sum() == report.before.params
    assert frame["macs_after"].sum() == report.after.macs
    assert frame.loc["head", "reason"] == "reaches the output `head`"
    assert frame[frame["makes"]].index.tolist() == ["stem", "inner", "outer", "head"]
    assert frame["prunable"].tolist() == [True, None, True, None, True, None, False]


@pytest.mark.parametrize("name", BUILDERS)
def test_nodes_are_the_graph(name):
    """The shapes, before and after, are those of the models' own tensors."""
    masked = pruned(name)
    report = filterprune.analyze(masked)
    small = builders.leaves(filterprune.compact(masked))
    full = builders.leaves(masked)
    for number, node in enumerate(report.nodes):
        assert all(i < number for i in node.inputs)
        assert (node.kind == "InputLayer") == (not node.inputs)
        if node.name in small and node.name not in ("tower", "again"):
            assert node.shape == full[node.name].output.shape
            assert node.shape_after == small[node.name].output.shape
    assert len([n for n in report.nodes if not n.inputs]) == len(masked.inputs)


class Rolled(keras.layers.Layer):
    """Couples all channels, in training in another way, so that no trace tells how."""

    def call(self, x, training=None):
        return keras.ops.cumsum(x if training else keras.ops.flip(x, -1), axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape


def test_a_barrier_has_no_width_and_says_why():
    inputs = keras.Input((8,))
    x = Rolled(name="odd")(keras.layers.Dense(6, name="before")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    nodes = {node.name: node for node in filterprune.analyze(model).nodes}
    assert nodes["odd"].barrier
    assert nodes["odd"].width is None
    assert "no rule" in nodes["odd"].reason
    assert "read by `odd` (Rolled)" in nodes["before"].reason
    assert not nodes["before"].barrier
