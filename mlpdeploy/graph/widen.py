"""The traced network with everything in float64: the exact reference that a rewrite is held against.

A module that is converted (`network.double()`) is not that: tensors that it keeps as plain attributes or makes in its
forward stay float32, and operands of two dtypes do not multiply. In the graph every tensor is in sight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import is_tensor
from mlpdeploy.graph.trace import TensorSpec, Traced


def widened(traced: Traced) -> Traced:
    """The same graph whose every floating-point number is float64, and every complex one complex128.

    Inputs, weights, tensors made in the network, and what casts to another floating-point type. `traced` stays as it
    is.
    """
    module = _Widening(traced.module).run()
    return Traced(module, *(tuple(map(_spec, specs)) for specs in (traced.inputs, traced.outputs)))


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64 for a floating-point dtype, complex128 for a complex one, any other as it is."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def _spec(spec: TensorSpec) -> TensorSpec:
    return replace(spec, dtype=wide(spec.dtype))


class _Widening:
    """Copies a graph node by node."""

    def __init__(self, source: fx.GraphModule) -> None:
        self.source = source
        self.copies: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        for node in source.graph.nodes:
            if node.op == "placeholder":
                self.copies[node] = graph.node_copy(node)
        self.editor = Editor(nn.Module(), graph)
        for copy in self.copies.values():
            with self.editor.fake_mode:
                copy.meta["val"] = copy.meta["val"].to(wide(copy.meta["val"].dtype))

    def run(self) -> fx.GraphModule:
        for node in self.source.graph.nodes:
            if node.op == "get_attr":
                tensor = weight(self.source, node)
                assert tensor is not None
                self.copies[node] = self.editor.constant(tensor.to(wide(tensor.dtype)), str(node.target), origin=node)
            elif node.op == "call_function":
                self.copies[node] = self.call(node)
            elif node.op == "output":
                self.editor.graph.output(fx.map_arg(node.args[0], self.copies.__getitem__))
        return fx.GraphModule(self.editor.module, self.editor.graph)

    def call(self, node: fx.Node) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self.copies.__getitem__)
        args, kwargs = pytree.tree_map(_wide, (args, kwargs))
        if not any(_is_float(operand) for operand in node.all_input_nodes) and _is_float(node):
            args, kwargs = self.made(node, args, kwargs)
        copy = self.editor.call(node.target, args, kwargs, origin=node)
        copy.name = node.name
        return copy

    def made(self, node: fx.Node, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Of an operation that makes floating-point numbers out of none: a dtype asked for, or its integers wide."""
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        names = [argument.name for argument in schema]
        if "dtype" in names and (names.index("dtype") < len(args) or kwargs.get("dtype") is not None):
            return args, kwargs
        if "dtype" in names and not any(map(is_tensor, node.all_input_nodes)):
            return args, kwargs | {"dtype": torch.float64}
        return fx.map_arg((args, kwargs), lambda one: self.cast(one, node))

    def cast(self, operand: fx.Node, origin: fx.Node) -> fx.Node:
        if not is_tensor(operand):
            return operand
        return self.editor.call(torch.ops.aten.to.dtype, (operand, torch.float64), origin=origin)


def _wide(value: Any) -> Any:
    return wide(value) if isinstance(value, torch.dtype) else value


def _is_float(node: fx.Node) -> bool:
    values = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(one, torch.Tensor) and (one.is_floating_point() or one.is_complex()) for one in values)
