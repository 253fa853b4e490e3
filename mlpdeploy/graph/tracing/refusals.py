"""What a network may not do to be compiled: each in one line, with the module and the line of its user's code."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from mlpdeploy.errors import NetworkError
from mlpdeploy.graph.tracing.place import place_of

RESERVED = ("meta", "graph", "code")
"""Attributes of every `fx.GraphModule`."""

LOWEST = {
    dtype for name in dir(torch) if name.startswith("float8") and isinstance(dtype := getattr(torch, name), torch.dtype)
}
"""Formats of numbers that only products of quantised codes know."""


def require_free_names(network: nn.Module) -> None:
    """Raise where a part of the network has a name that the traced module keeps for itself."""
    taken = next(
        (name for name in RESERVED if name in {**network._modules, **network._parameters, **network._buffers}), None
    )
    if taken is not None:
        raise NetworkError(
            f"{type(network).__name__} has a part called {taken!r}, which torch.export cannot: rename it"
        )


def require_no_state(
    network: nn.Module, exported: torch.export.ExportedProgram, program: torch.export.ExportedProgram
) -> None:
    """Raise where the network writes into its inputs or buffers; `exported` is the program as it was written."""
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        held = {node for node, buffer in exported.graph_signature.inputs_to_buffers.items() if buffer == changed[0]}
        raise NetworkError(
            f"{type(network).__name__} writes into {changed[0]!r}{_writer(exported.graph, {changed[0], *held})}; a "
            "network must leave its inputs and buffers alone: compute a new tensor"
        )


def _writer(graph: fx.Graph, names: set[str]) -> str:
    """`, in module 'a.b' (file.py, line 7)`: the first operation that writes into a placeholder, or a view of it."""
    views = {node for node in graph.nodes if node.name in names}
    for node in graph.nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and views.intersection(node.all_input_nodes):
            if target._schema.is_mutable and node.args[0] in views:
                return f", in{place_of(node)}"
            if target.is_view:
                views.add(node)
    return ""


def require_known_values(network: nn.Module, module: fx.GraphModule) -> None:
    """Raise where a shape or a number depends on the values of a tensor."""
    for node in module.graph.nodes:
        values = node.meta.get("val")
        values = values if isinstance(values, list | tuple) else [values]
        if node.op == "call_function" and any(map(free_unbacked_symbols, values)):
            raise NetworkError(
                f"{type(network).__name__} makes a number or a shape out of the values of a tensor ({node.target}), in"
                f"{place_of(node)}; keep it a tensor of a fixed shape there"
            )


def require_writable(network: nn.Module, module: fx.GraphModule) -> None:
    """Raise where an operation is of a kind that no file of an engine can hold."""
    for node in module.graph.nodes:
        reason = _unwritable(module, node) if node.op == "call_function" else None
        if reason is not None:
            raise NetworkError(f"{type(network).__name__} {reason}, in{place_of(node)}")


def _unwritable(module: fx.GraphModule, node: fx.Node) -> str | None:
    values = pytree.tree_leaves(node.meta.get("val"))
    low = next((one.dtype for one in values if isinstance(one, torch.Tensor) and one.dtype in LOWEST), None)
    if low is not None:
        return f"computes in {str(low).removeprefix('torch.')}, which no engine gives back: leave such casts out"
    operands = (getattr(module, str(one.target), None) for one in node.all_input_nodes if one.op == "get_attr")
    if any(isinstance(one, torch.Generator | torch.ScriptObject) for one in (*operands, *node.kwargs.values())):
        return "draws from a generator of random numbers in forward: draw once, and register a buffer"
    if node.target is torch.ops.aten.lstm.input:
        arguments: Any = node.args
        _, _, weights, biases, layers, _, _, both, _ = arguments
        if len(weights) != layers * (2 if both else 1) * (4 if biases else 2):
            return "has an LSTM with proj_size, which no ONNX file can say: put a Linear behind the LSTM"
    return None


def lost_batch(module: fx.GraphModule, batch: int) -> str:
    """Which operation made a number of the free axis that was traced with `batch` rows; nothing where none did."""

    def is_free(node: fx.Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, torch.Tensor) and value.dim() > 0 and not isinstance(value.shape[0], int)

    for node in module.graph.nodes:
        value = node.meta.get("val")
        fixed = isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == batch
        if node.op == "call_function" and fixed and not is_free(node) and any(map(is_free, node.all_input_nodes)):
            return (
                f", since torch.export takes it for {batch} in {node.target}, in{place_of(node)}: write that "
                "otherwise (torch.gather for take_along_dim)"
            )
    return ""
