"""A graph as a list of plain facts, for people and reports: what is computed, where in the network, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from mlpdeploy.graph.tracing.place import network_of


@dataclass(frozen=True)
class Operation:
    """One operation on tensors.

    `op` is the operation's name such as `aten::linear`, `module` the path of the user's module that it came from
    (empty for the network itself), `shape` that of its first result with `batch` in the symbolic axes, and `inputs`
    the names of the operations and network inputs that it reads; weights are left out.
    """

    name: str
    op: str
    module: str
    dtype: str
    shape: tuple[int | str, ...]
    inputs: tuple[str, ...]


def outline(module: fx.GraphModule) -> tuple[Operation, ...]:
    """The operations of a graph in the order in which they run."""
    return tuple(_operations(module))


def name_of(node: fx.Node) -> str:
    """The operation of a call_function node, without its overload: `aten::linear`, `getitem`."""
    target = node.target
    name = str(getattr(target, "overloadpacket", target)) if isinstance(target, torch._ops.OpOverload) else ""
    return name.replace(".", "::", 1) if name else str(getattr(target, "__name__", target))


def _operations(module: fx.GraphModule) -> Iterator[Operation]:
    for node in module.graph.nodes:
        value = _first_tensor(node)
        if node.op != "call_function" or value is None:
            continue
        shape = tuple(map(_size, value.shape))
        inputs = (one.name for one in node.all_input_nodes if one.op != "get_attr" and _first_tensor(one) is not None)
        dtype = str(value.dtype).removeprefix("torch.")
        yield Operation(node.name, name_of(node), network_of(node), dtype, shape, tuple(inputs))


def _size(size: int | torch.SymInt) -> int | str:
    """A number, or the batch or a multiple of it in words: `batch`, `4*batch`."""
    if isinstance(size, int):
        return size
    text = str(size.node.expr)
    for symbol in size.node.expr.free_symbols:
        text = text.replace(str(symbol), "batch")
    return text


def _first_tensor(node: fx.Node) -> torch.Tensor | None:
    """The tensor that a node gives, or the first of a list; None where it gives a number."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) and value else value
    return first if isinstance(first, torch.Tensor) else None
