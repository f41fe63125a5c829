"""How roots are put together to groups, held against doing it one by one."""

import numpy as np
import pytest

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
    for root, layers in inside.items():
        key = (tuple(layers), *(key[root] for key in keys))
        expected.setdefault(key, []).append(root)
    assert found == [(key[0], roots) for key, roots in expected.items()]
    assert (part == 0).sum() == count - len(inside)
