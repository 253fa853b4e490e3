"""The transposes that the rules left, and why each must be there: what made the tensor, and who reads it.

Two operations meet that need the same tensor in two layouts. ONNX's convolutions and norms over channels have these in
front of the grid; LayerNorm and projections have them last; a product of two activations takes stacks of rows and
columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from mlpdeploy.graph.kinds import ALONG, CONVOLUTIONS, is_getitem, is_pointwise, shape_of
from mlpdeploy.graph.tracing.place import network_of

aten = torch.ops.aten

CHANNELS_FIRST = "channels in front of the grid"
LAYOUTS = {
    **dict.fromkeys(CONVOLUTIONS, CHANNELS_FIRST),
    aten.batch_norm.default: CHANNELS_FIRST,
    aten.group_norm.default: CHANNELS_FIRST,
    aten.instance_norm.default: CHANNELS_FIRST,
    aten.avg_pool2d.default: CHANNELS_FIRST,
    aten.adaptive_avg_pool2d.default: CHANNELS_FIRST,
    aten.upsample_bilinear2d.vec: CHANNELS_FIRST,
    aten.conv_transpose2d.input: CHANNELS_FIRST,
    aten.layer_norm.default: "the normalised axes last",
    aten.linear.default: "the axes of its weight last",
    aten.matmul.default: "batch, rows and columns in that order",
    aten.bmm.default: "batch, rows and columns in that order",
    aten.scaled_dot_product_attention.default: "heads in front",
    aten.index_select.default: "the axis that it picks from by itself",
    aten.cat.default: "its parts in one layout",
}
"""What an operation needs of the layout of the tensors that it reads and makes."""


@dataclass(frozen=True)
class Transpose:
    """A transpose that is left: the user's module, the permutation of which sizes, and the reason."""

    where: str
    permutation: str
    reason: str


def transposes(graph: fx.Graph) -> tuple[Transpose, ...]:
    """Every permutation of an activation in `graph`, in order; those that ONNX makes of an attention are among them."""
    explained = {aten.permute.default: _permute, aten.scaled_dot_product_attention.default: _attention}
    return tuple(explained[node.target](node) for node in graph.nodes if node.target in explained)


def _permute(node: fx.Node) -> Transpose:
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    readers = dict.fromkeys(_needs(reader) for reader in _readers(node))
    return _explained(node, source, node.args[1], f"{_makes(source)}; {', '.join(readers)}")  # type: ignore[arg-type]


def _attention(node: fx.Node) -> Transpose:
    keys: fx.Node = node.args[1]  # type: ignore[assignment]
    reason = f"{_name(node)} multiplies its queries by the keys transposed"
    return _explained(node, keys, (*range(len(shape_of(keys)) - 2), -1, -2), reason)


def _explained(node: fx.Node, source: fx.Node, permutation: Sequence[int], reason: str) -> Transpose:
    sizes = [str(size) if isinstance(size, int) else "batch" for size in shape_of(source)]
    moved = [sizes[index] for index in permutation]
    return Transpose(network_of(node) or node.name, f"{' '.join(sizes)} -> {' '.join(moved)}", reason)


def _makes(node: fx.Node) -> str:
    """What made a tensor, looking back through what leaves the layout as it is."""
    while node.op == "call_function" and node.target not in LAYOUTS and _passes(node):
        node = node.all_input_nodes[0]
    if node.op == "placeholder":
        return f"{node.target} comes so"
    return f"{_name(node)} gives {LAYOUTS.get(node.target, 'the layout of its operands')}"  # type: ignore[call-overload]


def _needs(node: fx.Node) -> str:
    if node.op == "output":
        return "the network returns it so"
    return f"{_name(node)} wants {LAYOUTS.get(node.target, 'the layout of its other operand')}"  # type: ignore[call-overload]


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who reads a tensor, looking through reshapes and through what leaves the layout as it is."""
    for user in node.users:
        if user.op == "call_function" and user.target not in LAYOUTS and _passes(user):
            yield from _readers(user)
        else:
            yield user


def _passes(node: fx.Node) -> bool:
    """Whether a node only reshapes, or works along one tensor as it lies."""
    single = is_pointwise(node) and len(node.all_input_nodes) == 1
    return node.target is aten.reshape.default or node.target in ALONG or is_getitem(node) or single


def _name(node: fx.Node) -> str:
    target = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(target, "__name__", target)).rpartition(".")[2]
