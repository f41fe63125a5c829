"""How roots are put together to groups, held against doing it one by one."""

import re

import keras
import numpy as np
import pytest
from exactness import randomise
from keras import layers, ops

import filterprune
from filterprune.channels.groups import _alike, _parts


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_those_found_one_by_one(seed):
    rng = np.random.default_rng(seed)
    count = 30
    vectors = [rng.integers(0, count, rng.integers(1, 12)) for _ in range(8)]
    names = [f"layer{number}" for number in range(8)]
    keys = (rng.integers(0, 3, count), rng.integers(-1, 2, count))

    part, members, roots = _parts(count, vectors, names)
    found = [
        (members[part[same[0]]], same.tolist()) for same in _alike(roots, (part, *keys))
    ]

    inside: dict[int, list] = {}
    for vector, name in zip(vectors, names):
        for root in np.unique(vector).tolist():
            inside.setdefault(root, []).append(name)
    expected: dict[tuple, list] = {}
    for root, paths in inside.items():
        key = (tuple(paths), *(key[root] for key in keys))
        expected.setdefault(key, []).append(root)
    assert found == [(key[0], roots) for key, roots in expected.items()]
    assert (part == 0).sum() == count - len(inside)


def rotated(x):
    """As in rotary embeddings: each half is added to the other."""
    y = layers.Dense(2, name="tied")(x)
    first, second = ops.split(y, 2, axis=-1)
    return ops.add(y, ops.concatenate([-second, first], axis=-1))


def single(x):
    y = layers.Dense(1, activation="sigmoid", name="tied")(x)
    return y * layers.Dense(6)(x)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (rotated, r"all its channels are tied together by `add\w*` \(Add\)"),
        (single, "a single channel, and a tensor cannot be left without any"),
    ],
)
def test_a_group_of_one_channel_is_not_prunable_and_does_not_count(build, reason):
    x = keras.Input((5,))
    wide = layers.Dense(10, name="wide")(x)
    y = layers.Concatenate()([build(x), layers.Dense(4, name="read")(wide)])
    model = randomise(keras.Model(x, layers.Dense(2)(y)))
    report = filterprune.analyze(model)
    (group,) = [group for group in report.groups if "tied" in group.layers]
    assert group.size == 1 and group not in report.prunable
    assert re.search(reason, group.reason)

    masked = filterprune.wrap_model(model)
    assert not isinstance(masked.get_layer("tied"), filterprune.layers.Masked)
    filterprune.prune(masked, sparsity=0.5, scope="layer")
    assert masked.get_layer("wide").alive == 5


def test_a_squeezed_channel_does_not_let_the_others_pay_for_it():
    """A global fraction is one of all channels that can go."""
    x = keras.Input((6, 8))
    y = layers.Dense(32, name="width")(x)
    heads = layers.Reshape((6, 4, 8))(layers.Dense(32, name="heads")(y))
    squares = ops.sum(heads * heads, axis=1, keepdims=True)  # over positions
    heads = heads / ops.sqrt(1.0 + squares)
    scores = ops.softmax(ops.einsum("bnhd,bmhd->bhnm", heads, heads))
    values = layers.Reshape((6, 4, 8))(layers.Dense(32, name="values")(y))
    out = layers.Reshape((6, 32))(ops.einsum("bhnm,bmhd->bnhd", scores, values))
    y = y + layers.Dense(32, name="back")(out)
    model = randomise(keras.Model(x, layers.Dense(3)(y)))
    (group,) = [g for g in filterprune.analyze(model).fixed if "heads" in g.layers]
    assert re.search(r"tied together by `einsum\w*` \(Einsum\)", group.reason)
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, sparsity=0.5)
    assert masked.get_layer("width").alive == 16
