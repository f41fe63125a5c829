"""Boxes of a graph: none overlap, every edge goes down."""

import random

import pytest

from filterprune.reporting.layout import arrange


def random_graph(seed, count=40):
    rng = random.Random(seed)
    sizes = [(rng.uniform(30, 200), rng.uniform(20, 80)) for _ in range(count)]
    edges = [
        (start, end)
        for end in range(1, count)
        for start in sorted(rng.sample(range(end), min(end, rng.choice([1, 1, 2, 3]))))
    ]
    return sizes, edges


@pytest.mark.parametrize("seed", range(8))
def test_no_boxes_overlap_and_all_are_in_the_drawing(seed):
    sizes, edges = random_graph(seed)
    layout = arrange(sizes, edges)
    boxes = [
        (x, y, x + w, y + h)
        for (x, y), (w, h) in zip(layout.places, sizes, strict=True)
    ]
    for number, (a, b, c, d) in enumerate(boxes):
        assert min(a, b) >= -1e-6
        assert c <= layout.width + 1e-6 and d <= layout.height + 1e-6
        for e, f, g, h in boxes[:number]:
            assert c <= e or g <= a or d <= f or h <= b


@pytest.mark.parametrize("seed", range(8))
def test_edges_go_down_and_through_no_box(seed):
    sizes, edges = random_graph(seed)
    layout = arrange(sizes, edges)
    boxes = [(*place, *size) for place, size in zip(layout.places, sizes, strict=True)]
    for (start, end), path in zip(edges, layout.paths, strict=True):
        heights = [y for _, y in path]
        assert heights == sorted(heights)
        assert path[0][1] == pytest.approx(boxes[start][1] + boxes[start][3])
        assert path[-1][1] == pytest.approx(boxes[end][1])
        for x, y in path[1:-1]:
            for number, (left, top, width, height) in enumerate(boxes):
                inside = left < x < left + width and top < y < top + height
                assert not inside or number in (start, end)


def test_a_chain_is_straight():
    sizes = [(50, 20), (120, 20), (80, 40)]
    layout = arrange(sizes, [(0, 1), (1, 2)])
    middles = [x + w / 2 for (x, _), (w, _) in zip(layout.places, sizes, strict=True)]
    assert middles == pytest.approx([60, 60, 60])


def test_a_constant_stands_next_to_its_reader():
    sizes = [(50, 20)] * 5
    layout = arrange(sizes, [(0, 1), (1, 2), (2, 4), (3, 4)])
    assert layout.places[3][1] == layout.places[2][1]


def test_the_same_graph_is_drawn_the_same():
    assert arrange(*random_graph(0)) == arrange(*random_graph(0))


def test_nothing_takes_no_place():
    layout = arrange([], [])
    assert (layout.width, layout.height) == (0, 0)
