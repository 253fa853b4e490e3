"""A traced graph in float64: the same operations on the same numbers, where only a fault makes a difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mlpdeploy.evidence.proof.runs import WIDER
from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced


def in_float64(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of the network in float64."""
    return tuple(replace(spec, dtype=_wide(spec.dtype)) for spec in specs)


def widened(traced: Traced) -> Traced:
    """The graph with weights, inputs and every dtype that it names in float64; `traced` stays as it is.

    What it makes of nothing, in float32, are the numbers of float32, as where the network itself runs (see
    `runs.Widen`).
    """
    return _Widening(traced).run()


class _Widening:
    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.copies: dict[fx.Node, fx.Node] = {}
        self.weights: dict[str, fx.Node] = {}
        graph = fx.Graph()
        for node in traced.module.graph.nodes:
            if node.op == "placeholder":
                self.copies[node] = graph.node_copy(node)
        self.editor = Editor(nn.Module(), graph)
        for copy in self.copies.values():
            with self.editor.fake_mode:
                copy.meta["val"] = copy.meta["val"].to(_wide(copy.meta["val"].dtype))

    def run(self) -> Traced:
        for node in self.traced.module.graph.nodes:
            if node.op == "get_attr":
                self.copies[node] = self.weight(node)
            elif node.op == "call_function":
                self.copies[node] = self.call(node)
            elif node.op == "output":
                self.editor.graph.output(fx.map_arg(node.args[0], self.copies.__getitem__))
        module = fx.GraphModule(self.editor.module, self.editor.graph)
        return Traced(module, in_float64(self.traced.inputs), in_float64(self.traced.outputs))

    def call(self, node: fx.Node) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self.copies.__getitem__)
        args, kwargs = pytree.tree_map(_wide, (args, kwargs))
        args, kwargs = pytree.tree_map(lambda one: self.cast(one, node), (args, kwargs))
        copy = self.editor.call(node.target, args, kwargs, origin=node)
        copy.name = node.name
        return copy

    def cast(self, value: Any, origin: fx.Node) -> Any:
        if (dtype := _dtype(value)) not in WIDER:
            return value
        return self.editor.call(torch.ops.aten.to.dtype, (value, WIDER[dtype]), origin=origin)

    def weight(self, node: fx.Node) -> fx.Node:
        name = str(node.target)
        if name not in self.weights:
            tensor = weight(self.traced.module, node)
            assert tensor is not None
            wide, owner = tensor.to(_wide(tensor.dtype)), self.editor.module
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, nn.Parameter(wide, requires_grad=False))
            copy = self.editor.graph.create_node("get_attr", name, name=node.name)
            copy.meta = {**node.meta, "val": self.editor.fake_mode.from_tensor(wide, static_shapes=True)}
            self.weights[name] = copy
        return self.weights[name]


def _dtype(value: Any) -> Any:
    """The dtype of a node's tensor."""
    return getattr(value.meta.get("val"), "dtype", None) if isinstance(value, fx.Node) else None


def _wide(value: Any) -> Any:
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value
