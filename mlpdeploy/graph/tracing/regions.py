"""Regions of a traced network that torch.export keeps as graphs of their own become a part of the graph around them.

`torch.no_grad`, `torch.enable_grad` and `torch.autocast` in a network's forward make such regions. Gradients play no
part here, and an autocast that is off, or that is a GPU's, does nothing to a network that computes on the CPU. One that
is on would have the network itself round to another precision, which is what the plan decides: it is refused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from mlpdeploy.errors import NetworkError
from mlpdeploy.graph.tracing.place import UNKNOWN, line_of, place_of

_GRADIENTS = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast


def inline_regions(module: fx.GraphModule, network: str) -> None:
    """Copy the nodes of every such region to where it is called.

    Raises NetworkError, with the place in `network`, for any other kind of region.
    """
    for node in list(module.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            _inline(module, node, network)
    module.graph.eliminate_dead_code()


def _inline(module: fx.GraphModule, call: fx.Node, network: str) -> None:
    region, arguments = _region(module, call, network)
    path = str(region.target)
    inner = module.get_submodule(path)
    assert isinstance(inner, fx.GraphModule)
    inline_regions(inner, network)
    copies: dict[fx.Node, Any] = {}
    places = [node for node in inner.graph.nodes if node.op == "placeholder"]
    copies.update(zip(places, arguments, strict=True))
    with module.graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op not in ("placeholder", "output"):
                copies[node] = module.graph.node_copy(node, copies.__getitem__)
                if node.op == "get_attr":
                    copies[node].target = f"{path}.{node.target}"
    (output,) = (node for node in inner.graph.nodes if node.op == "output")
    results = fx.map_arg(output.args[0], copies.__getitem__)
    for taken in list(call.users):
        assert taken.target is operator.getitem, f"{taken.name} reads the results of a region as a whole"
        taken.replace_all_uses_with(results[taken.args[1]])
        module.graph.erase_node(taken)
    module.graph.erase_node(call)


def _region(module: fx.GraphModule, call: fx.Node, network: str) -> tuple[fx.Node, tuple[Any, ...]]:
    """The node of the region's graph, and what it is called with. Raises NetworkError where it does more than that."""
    if call.target is _GRADIENTS:
        return call.args[1], call.args[2:]  # type: ignore[return-value]
    if call.target is not _AUTOCAST:
        raise NetworkError(
            f"{network} calls {call.target}, which no engine has, in{_place(module, call)}; write it without"
        )
    device, dtype, enabled = call.args[:3]
    if enabled and device == "cpu":
        raise NetworkError(
            f"{network} asks for torch.autocast in {dtype} on the CPU, in{_place(module, call)}; the precision of an "
            "engine is that of --precision: remove it there"
        )
    return call.args[4], call.args[5:]  # type: ignore[return-value]


def _place(module: fx.GraphModule, call: fx.Node) -> str:
    """Where the code of a region stands; where the call itself has no line, what lies in the region has one."""
    parts = dict(module.named_modules())
    regions = (parts.get(str(one.target)) for one in call.all_input_nodes if one.op == "get_attr")
    inner = (node for region in regions if isinstance(region, fx.GraphModule) for node in region.graph.nodes)
    return place_of(next((node for node in (call, *inner) if line_of(node) != UNKNOWN), call))
