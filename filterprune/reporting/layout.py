"""Where the boxes of a graph go: layers from top to bottom, few crossings.

After Sugiyama, Tagawa and Toda, "Methods for visual understanding of
hierarchical system structures", IEEE Trans. SMC 11(2), 1981: levels by longest
path, an order within each level by the barycentres of neighbours, and places
that are as near to those of the neighbours as the gaps allow.
"""

import dataclasses
import itertools
from collections.abc import Sequence

ACROSS, DOWN = 20.0, 26.0  # the gaps between boxes, and between levels
LANE = 10.0  # the width that an edge takes where it passes a level
SWEEPS = 12


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where boxes and edges go.

    Attributes:
        places: for each box the left and the upper end.
        paths: for each edge the points that it goes through, from top to bottom.
        width, height: of the whole drawing.
    """

    places: list[tuple[float, float]]
    paths: list[list[tuple[float, float]]]
    width: float
    height: float


def arrange(
    sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]
) -> Layout:
    """Place boxes so that every edge goes down.

    Args:
        sizes: the width and height of each box.
        edges: pairs of boxes, each from an earlier one to a later one.
    """
    level = _levels(len(sizes), edges)
    widths = [width for width, _ in sizes]
    rows: list[list[int]] = [[] for _ in range(max(level, default=0) + 1)]
    for box, number in enumerate(level):
        rows[number].append(box)
    chains = []
    for start, end in edges:  # where an edge passes a level it has a lane there
        chain = [start]
        for number in range(level[start] + 1, level[end]):
            chain.append(len(widths))
            rows[number].append(len(widths))
            widths.append(LANE)
        chains.append([*chain, end])
    centres = _centres(rows, widths, _neighbours(len(widths), chains))
    left = min((c - w / 2 for c, w in zip(centres, widths)), default=0.0)
    centres = [c - left for c in centres]
    heights = [
        max((sizes[i][1] for i in row if i < len(sizes)), default=0.0) for row in rows
    ]
    tops = [0.0]
    for height in heights:
        tops.append(tops[-1] + height + DOWN)
    places = [
        (centres[box] - width / 2, tops[level[box]])
        for box, (width, _) in enumerate(sizes)
    ]
    paths = [
        _path(
            chain,
            centres,
            [tops[level[chain[0]] + i] for i in range(len(chain))],
            [heights[level[chain[0]] + i] for i in range(len(chain))],
            sizes,
        )
        for chain in chains
    ]
    right = max((c + w / 2 for c, w in zip(centres, widths)), default=0.0)
    return Layout(places, paths, right, max(tops[-1] - DOWN, 0.0))


def _path(chain, centres, tops, heights, sizes) -> list[tuple[float, float]]:
    """The points of one edge: straight through the levels that it passes."""
    points = [(centres[chain[0]], tops[0] + sizes[chain[0]][1])]
    if tops[0] + heights[0] > points[0][1]:
        points.append((centres[chain[0]], tops[0] + heights[0]))
    for box, top, height in list(zip(chain, tops, heights))[1:-1]:
        points += [(centres[box], top), (centres[box], top + height)]
    return [*points, (centres[chain[-1]], tops[-1])]


def _levels(count: int, edges) -> list[int]:
    """The level of each box: one below all that it reads, or nearer to a reader."""
    level = [0] * count
    reads: list[list[int]] = [[] for _ in range(count)]
    read_by: list[list[int]] = [[] for _ in range(count)]
    for start, end in edges:
        reads[end].append(start)
        read_by[start].append(end)
    for box in range(count):
        level[box] = max((level[i] + 1 for i in reads[box]), default=0)
    for box in reversed(range(count)):
        if len(read_by[box]) > len(reads[box]):  # its edges get shorter
            level[box] = min(level[i] for i in read_by[box]) - 1
    return level


def _neighbours(count: int, chains) -> tuple[list[list[int]], list[list[int]]]:
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for chain in chains:
        for start, end in itertools.pairwise(chain):
            above[end].append(start)
            below[start].append(end)
    return above, below


def _centres(rows, widths, neighbours) -> list[float]:
    """The middle of everything: order and places are found together."""
    centres = [0.0] * len(widths)
    for row in rows:
        _place(
            row, [float(i) * (ACROSS + LANE) for i in range(len(row))], widths, centres
        )
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        near = neighbours[0 if down else 1]
        for row in rows if down else reversed(rows):
            wanted = {i: _mean(near[i], centres, centres[i]) for i in row}
            if sweep < SWEEPS - 4:  # the last sweeps leave the order alone
                row.sort(key=lambda i: (wanted[i], centres[i]))
            _place(row, [wanted[i] for i in row], widths, centres)
    return centres


def _mean(boxes, centres, default: float) -> float:
    return sum(centres[i] for i in boxes) / len(boxes) if boxes else default


def _place(row, wanted, widths, centres) -> None:
    """Set the middles of a row as near to those wanted as the widths allow.

    Boxes that would overlap form a block around the mean of what they want: the
    least squares under gaps (pool adjacent violators).
    """
    offsets, at = [], 0.0
    for number, box in enumerate(row):
        if number:
            at += (widths[row[number - 1]] + widths[box]) / 2 + ACROSS
        offsets.append(at)
    blocks: list[list[float]] = []  # the sum of what is wanted, and how many
    for want, offset in zip(wanted, offsets):
        blocks.append([want - offset, 1])
        while (
            len(blocks) > 1
            and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]
        ):
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    starts = [total / count for total, count in blocks for _ in range(int(count))]
    for box, start, offset in zip(row, starts, offsets):
        centres[box] = start + offset
