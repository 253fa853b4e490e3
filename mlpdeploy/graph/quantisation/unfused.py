"""Products that FP8 makes dearer, for engines in which nothing runs within a product of codes.

before: codes -> product -> (hidden, FP16) -> launch of bias and GELU, reads and writes hidden -> codes
after:  FP16 -> product with bias and GELU within -> codes

Such an engine writes what a product of codes gives in FP16, and reads it in a launch of its own. In FP16 a product
writes its codes itself, and reads an input and a weight of twice the bytes. A product before an activation stays in
FP16 where that is fewer bytes at batch 1, and where its weight has fewer numbers than what it gives, so that the engine
hardly grows: token mixing, and channels of large maps. INT8 codes are made in a launch of their own behind FP16 too.
"""

from __future__ import annotations

import math

from torch import fx

from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.kinds import CONVOLUTIONS, is_pointwise, is_pointwise_convolution, is_view, shape_of
from mlpdeploy.graph.layout.view import size_at
from mlpdeploy.graph.quantisation.codes import FP8
from mlpdeploy.graph.quantisation.sites import Site, sites

REASON = "FP16 moves fewer bytes: behind codes its activation, {hidden:,} numbers an image, is a launch of its own"


def unfused(module: fx.GraphModule) -> dict[str, str]:
    """The sites of a graph that are cheaper in FP16, by name, with the reason; none where all would be."""
    graph = {node.name: node for node in module.graph.nodes}
    taking = sites(module, FP8).found
    coded = {site.source for site in taking.values()}
    found = {
        name: REASON.format(hidden=_numbers(graph[name]))
        for name, site in taking.items()
        if _is_dearer(module, graph[name], site) and _activated(module, graph[name]) in coded
    }
    return found if len(found) < len(taking) else {}


def _activated(module: fx.GraphModule, node: fx.Node) -> str | None:
    """The activation that reads a product, in another shape or with a constant added, where nothing else does.

    Of convolutions those count that an engine has as products (`engine.forms.multiply_pointwise`), with the activation
    alone: behind any other TensorRT-RTX 1.7 makes codes in a launch of its own in any case.
    """
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    others = [one for one in reader.all_input_nodes if one is not node]
    if node.target in CONVOLUTIONS:
        return reader.name if _is_product(node) and is_pointwise(reader) and not others else None
    if is_view(reader):
        return _activated(module, reader)
    if not is_pointwise(reader) or any(weight(module, one) is None for one in others):
        return None
    return _activated(module, reader) if others else reader.name


def _is_product(node: fx.Node) -> bool:
    """Whether a convolution is one of one place, of an even number of places."""
    return is_pointwise_convolution(node) and math.prod(size_at(size, 1) for size in shape_of(node)[2:]) % 2 == 0


def _is_dearer(module: fx.GraphModule, node: fx.Node, site: Site) -> bool:
    """Whether codes of a product move more bytes of one image than FP16.

    Of codes: the input and the weight, a byte each, and the result, which is written and read in FP16 before its codes
    are written. In FP16: the input, which is written and read in two bytes, the weight, and the result's codes.
    """
    source, matrix = node.args[site.activation], weight(module, node.args[site.weight])
    assert isinstance(source, fx.Node) and matrix is not None
    given, read = _numbers(node), _numbers(source)
    return matrix.numel() < given and 2 * read + matrix.numel() < 4 * given


def _numbers(node: fx.Node) -> int:
    """How many numbers one image has of it."""
    return math.prod(size_at(size, 1) for size in shape_of(node))
