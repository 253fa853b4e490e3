"""A value followed back through the operations that only rearrange it, and what is found there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import is_tensor, rearranged, shape_of
from mlpdeploy.graph.layout.view import View


@dataclass(frozen=True)
class Chain:
    """`links` rearrange `source`, first to last; `view` tells the last one's result in the dimensions of `source`."""

    source: fx.Node
    links: tuple[fx.Node, ...]
    view: View

    def replayed(self, editor: Editor, node: fx.Node) -> fx.Node:
        """The same rearrangements of another tensor of the shape of `source`."""
        for link in self.links:
            node = editor.call(link.target, (node, *link.args[1:]), dict(link.kwargs), origin=link)
        return node


def chains(node: fx.Node) -> Iterator[Chain]:
    """The chains that end with `node`, shortest (without links) to longest; cut short where a view cannot be told."""
    links: list[fx.Node] = []
    current = node
    while (view := _view(current, links)) is not None:
        yield Chain(current, tuple(links), view)
        if current.op != "call_function" or not current.args or not isinstance(current.args[0], fx.Node):
            return
        links.insert(0, current)
        current = current.args[0]


def back(node: fx.Node) -> Chain:
    """The longest chain that ends with `node`; without links where `node` does more than rearrange."""
    *_, longest = chains(node)
    return longest


def _view(source: fx.Node, links: Sequence[fx.Node]) -> View | None:
    """What `links` make of `source`; None where one does more than rearrange, or cuts across its dimensions."""
    view: View | None = View.of(shape_of(source)) if is_tensor(source) else None
    for link in links:
        view = rearranged(link, view) if view is not None else None
    return view
