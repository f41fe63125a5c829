"""The graph of a report as an SVG drawing."""

import itertools
from html import escape

from filterprune.reporting.layout import arrange
from filterprune.reporting.text import change

LINE = 15  # the height of a line of text
PAD = 8
LETTERS = (7.4, 6.7, 6.1)  # what a letter takes: in the name, the kind, the rest
MOST = 30  # letters in a line


def draw(nodes) -> str:
    """The nodes as boxes from top to bottom, coloured by what is removed.

    A box holds a layer and those behind it that it alone leads to and that make
    no channels, such as its normalisation and activation.

    Args:
        nodes: the `NodeReport`s of a report.

    Returns:
        An `<svg>` element without colours of its own: they are the page's.
    """
    boxes = _boxes(nodes)
    number = {i: b for b, box in enumerate(boxes) for i in box}
    edges = {
        (number[i], b): None
        for b, box in enumerate(boxes)
        for i in nodes[box[0]].inputs
    }
    lines = [_lines([nodes[i] for i in box]) for box in boxes]
    sizes = [(_width(texts) + 2 * PAD, len(texts) * LINE + PAD) for texts in lines]
    layout = arrange(sizes, list(edges))
    width, height = (round(size) + 4 for size in (layout.width, layout.height))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        'aria-label="The graph of the model, inputs at the top">'
    ]
    parts += [_edge(path) for path in layout.paths]
    parts += [
        _box([nodes[i] for i in box], texts, size, layout.places[b])
        for b, (box, texts, size) in enumerate(zip(boxes, lines, sizes))
    ]
    return "\n".join([*parts, "</svg>"])


def _boxes(nodes) -> list[list[int]]:
    """The numbers of the nodes in each box."""
    readers = [0] * len(nodes)
    for node in nodes:
        for i in node.inputs:
            readers[i] += 1
    boxes: list[list[int]] = []
    box_of: dict[int, list[int]] = {}
    for number, node in enumerate(nodes):
        alone = len(node.inputs) == 1 and readers[node.inputs[0]] == 1
        if alone and not node.makes and not node.barrier:
            box = box_of[node.inputs[0]]
        else:
            box = []
            boxes.append(box)
        box.append(number)
        box_of[number] = box
    return boxes


def _lines(nodes) -> list[str]:
    """The text in a box: the first layer with its kind and width, the others."""
    head = nodes[0]
    second = head.kind
    if head.width is not None:
        second += f" {change(head.width, head.width_after)}"
    elif head.kind == "InputLayer":
        second = f"input {shape(head.shape)}"
    return [_short(head.name), _short(second), *(_short(n.name) for n in nodes[1:])]


def _width(texts) -> float:
    """About how wide the text in a box is."""
    return max(len(text) * LETTERS[min(i, 2)] for i, text in enumerate(texts))


def _short(text: str) -> str:
    return text if len(text) <= MOST else f"\u2026{text[1 - MOST :]}"


def shape(sizes) -> str:
    """A tensor's shape without its batch, as in `56 x 56 x 64`."""
    words = ["?" if size is None else str(size) for size in sizes[1:]]
    return " \u00d7 ".join(words) or "scalar"


def _edge(points) -> str:
    path = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for (x, y), (u, v) in itertools.pairwise(points):
        middle = (y + v) / 2
        path += (
            f"V{v:.0f}"
            if abs(x - u) < 0.5
            else f"C{x:.0f} {middle:.0f} {u:.0f} {middle:.0f} {u:.0f} {v:.0f}"
        )
    return f'<path class="edge" d="{path}"/>'


def _box(nodes, texts, size, place) -> str:
    head = nodes[0]
    kind = "barrier" if head.barrier else "fixed" if head.reason else "free"
    (width, height), (x, y) = size, place
    rectangle = f'width="{width:.0f}" height="{height:.0f}" rx="5"'
    parts = [
        f'<g class="box {kind}" transform="translate({x:.0f} {y:.0f})">',
        f"<title>{escape(_tooltip(nodes))}</title>",
        f'<rect class="base" {rectangle}/>',
    ]
    if head.removed > 0:
        strength = 0.12 + 0.68 * head.removed
        parts.append(f'<rect class="gone" {rectangle} fill-opacity="{strength:.2f}"/>')
    parts.append(f'<rect class="frame" {rectangle}/>')
    for number, text in enumerate(texts):
        style = ("name", "kind")[number] if number < 2 else "more"
        at = PAD / 2 + LINE * (number + 0.75)
        parts.append(
            f'<text class="{style}" x="{PAD}" y="{at:.0f}">{escape(text)}</text>'
        )
    return "".join([*parts, "</g>"])


def _tooltip(nodes) -> str:
    rows = []
    for node in nodes:
        sizes = dict.fromkeys(map(shape, (node.shape, node.shape_after)))
        rows.append(f"{node.name} ({node.kind}): " + " \u2192 ".join(sizes))
        if node.removed:
            rows[-1] += f", {node.removed:.0%} removed"
        if node.reason:
            rows.append(f"stays: {node.reason}")
    return "\n".join(rows)
