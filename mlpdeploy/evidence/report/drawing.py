"""Draws the graph of a block: Graphviz places the boxes and routes the edges, and what it placed becomes SVG.

The SVG carries classes and no colours, so that the page decides them. Graphviz gets sizes and no text: which fonts this
machine has does not matter, the reader's are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from mlpdeploy.evidence.report.blocks import INPUT, OUTPUT, Node, Picture
from mlpdeploy.system.text import clean

INCH = 72
CHARACTER, LINE = 6.3, 12.5
"""Width of a character and height of a line, in the SVG's units, for text of size 10; generous."""
LONGEST = 30
"""Characters of the longest line that is not cut."""


def lacking() -> str | None:
    """None where Graphviz can be used, else one line: what this system lacks."""
    try:
        import pygraphviz  # noqa: F401
    except (ImportError, OSError) as error:  # its wheel holds Graphviz, but not the libraries below that
        lines = str(error).splitlines() or [type(error).__name__]
        return f"no drawing of a block: {lines[0]}; Debian, Ubuntu: apt-get install libglib2.0-0"
    return None


def draw(picture: Picture, title: str) -> str:
    """An `<svg>` element with a `<g class="node KIND">` for each box and a `<path class="edge">` for each edge.

    The edges end in the marker `#arrow`, which the page has to define.
    """
    import pygraphviz

    graph = pygraphviz.AGraph(directed=True, strict=False)
    graph.graph_attr.update(ranksep=0.2, nodesep=0.14)
    graph.node_attr.update(shape="box", fixedsize="true", label="")
    graph.edge_attr.update(arrowhead="none")
    keys = {node.key: f"n{index}" for index, node in enumerate(picture.nodes)}
    for node in picture.nodes:
        width, height = _size(node)
        graph.add_node(keys[node.key], width=width / INCH, height=height / INCH)
    for source, target in picture.edges:
        graph.add_edge(keys[source], keys[target])
    placed = graph.draw(format="plain", prog="dot").decode()
    return _svg(placed, {keys[node.key]: node for node in picture.nodes}, title)


def _lines(node: Node) -> list[str]:
    return [
        line if len(line) <= LONGEST else f"{line[: LONGEST // 2]}…{line[-(LONGEST // 2) :]}" for line in node.lines
    ]


def _size(node: Node) -> tuple[float, float]:
    lines = _lines(node)
    return max(34.0, max(map(len, lines)) * CHARACTER + 12), len(lines) * LINE + 8


def _svg(placed: str, nodes: dict[str, Node], title: str) -> str:
    """The SVG of Graphviz's plain output: lines of `graph`, `node` and `edge`, in inches from the lower left."""
    rows = [line.split() for line in placed.splitlines()]
    width, height = (float(size) * INCH for size in next(row for row in rows if row[0] == "graph")[2:4])
    boxes = [_box(row, nodes[row[1]], height) for row in rows if row[0] == "node"]
    edges = [_edge(row, height) for row in rows if row[0] == "edge"]
    opening = (
        f'<svg class="graph" role="img" aria-label="{escape(clean(title))}" style="width:{width + 4:.0f}px" '
        f'viewBox="-2 -2 {width + 4:.1f} {height + 4:.1f}">'
    )
    return "\n".join([opening, *edges, *boxes, "</svg>"])


def _points(numbers: Sequence[str], height: float) -> Iterator[str]:
    for x, y in zip(numbers[::2], numbers[1::2], strict=True):
        yield f"{float(x) * INCH:.1f},{height - float(y) * INCH:.1f}"


def _edge(row: Sequence[str], height: float) -> str:
    """`edge tail head n x1 y1 .. xn yn ..`: a point, then three for each Bézier segment."""
    first, *rest = _points(row[4 : 4 + 2 * int(row[3])], height)
    return f'<path class="edge" marker-end="url(#arrow)" d="M{first}C{" ".join(rest)}"/>'


def _box(row: Sequence[str], node: Node, height: float) -> str:
    x, y, w, h = (float(number) * INCH for number in row[2:6])
    left, top = x - w / 2, height - y - h / 2
    lines = [
        f'<text class="line{index}" x="{x:.1f}" y="{top + 14 + index * LINE:.1f}">{escape(clean(line))}</text>'
        for index, line in enumerate(_lines(node))
    ]
    radius = h / 2 if node.kind in (INPUT, OUTPUT) else 4
    box = f'<rect x="{left:.1f}" y="{top:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{radius:.1f}"/>'
    return f'<g class="node {node.kind}"><title>{escape(clean(node.hint))}</title>{box}{"".join(lines)}</g>'
