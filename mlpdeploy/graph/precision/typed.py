"""The plan carried out: every weight in its dtype, every cast a node."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import arguments
from mlpdeploy.graph.matching.rearrangements import back
from mlpdeploy.graph.precision import by_rows
from mlpdeploy.graph.precision.plan import Plan, Quantised, is_float
from mlpdeploy.graph.precision.ranges import single_thread
from mlpdeploy.graph.quantisation.codes import NVFP4, channel_scales, coded, coded_blocks, coded_fp4, storable
from mlpdeploy.graph.rewrite import Rewritten
from mlpdeploy.graph.tracing.trace import TensorSpec


@dataclass(frozen=True)
class Typed:
    """A graph whose every cast is a node; inputs and outputs have the dtypes of the specs."""

    module: fx.GraphModule
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fp32: frozenset[str] = frozenset()
    """Names of the nodes that the plan keeps in FP32 although `precision` is lower."""
    quantised: frozenset[str] = frozenset()
    """Names of the nodes whose operands are codes, or whose weight is."""


def apply(rewritten: Rewritten, plan: Plan) -> Typed:
    """The graph with its weights converted and its casts inserted, as `plan` says; `rewritten` stays as it is."""
    with single_thread():
        module = _Typing(rewritten, plan).run()
    dtype = {True: plan.io}
    inputs, outputs = (
        tuple(replace(spec, dtype=dtype.get(spec.dtype.is_floating_point, spec.dtype)) for spec in specs)
        for specs in (rewritten.inputs, rewritten.outputs)
    )
    kept = frozenset(kept.node for kept in plan.kept)
    return Typed(module, plan.precision, inputs, outputs, kept, frozenset((*plan.quantised, *plan.weights)))


class _Typing:
    """Copies a graph node by node, each with its inputs in its own dtype."""

    def __init__(self, rewritten: Rewritten, plan: Plan) -> None:
        self.source, self.plan = rewritten.module, plan
        self.copies: dict[fx.Node, fx.Node] = {}
        self.casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        self.decoded: dict[tuple[fx.Node, float, torch.dtype], fx.Node] = {}
        self.weights: dict[tuple[str, int, torch.dtype], fx.Node] = {}
        self.coded_rows: dict[tuple[fx.Node, float, int, bool], fx.Node] = {}
        graph = fx.Graph()
        for node in self.source.graph.nodes:
            if node.op == "placeholder":
                self.copies[node] = graph.node_copy(node)
        self.editor = Editor(nn.Module(), graph)
        for copy in self.copies.values():
            if copy.meta["val"].is_floating_point():
                with self.editor.fake_mode:
                    copy.meta["val"] = copy.meta["val"].to(plan.io)

    def run(self) -> fx.GraphModule:
        for node in self.source.graph.nodes:
            if node.op == "call_function":
                self.copies[node] = self.typed(node)
            elif node.op == "output":
                self.editor.graph.output(fx.map_arg(node.args[0], lambda arg: self.cast(arg, self.plan.io)))
        return fx.GraphModule(self.editor.module, self.editor.graph)

    def typed(self, node: fx.Node) -> fx.Node:
        dtype = self.plan.dtypes.get(node.name) or self.common(node)
        if dtype is not None and node.name in self.plan.quantised and self.plan.codes is NVFP4:
            return self.by_rows(node, self.plan.quantised[node.name], dtype)
        coded = self.coded(node, dtype) if dtype is not None else {}
        args = tuple(
            coded[place] if place in coded else fx.map_arg(arg, lambda one: self.cast(one, dtype))
            for place, arg in enumerate(node.args)
        )
        kwargs = fx.map_arg(dict(node.kwargs), lambda arg: self.cast(arg, dtype))
        if node.target is torch.ops.aten.rms_norm.default and arguments(node)["eps"] is None:
            # Without one it has that of its dtype: here that of the network's dtype, whatever it gets.
            args, kwargs = args[:3], {**kwargs, "eps": torch.finfo(node.meta["val"].dtype).eps}
        copy = self.editor.call(node.target, args, kwargs, origin=node)
        copy.name = node.name
        return copy

    def common(self, node: fx.Node) -> torch.dtype | None:
        """The dtype in which an operation that makes no real numbers reads those of several dtypes; None for others."""
        found = {
            value.dtype
            for one in node.all_input_nodes
            if is_float(one) and not isinstance(value := self.copies.get(one, one).meta["val"], list | tuple)
        }
        return torch.float32 if len(found) > 1 else None

    def coded(self, node: fx.Node, dtype: torch.dtype) -> dict[int, fx.Node]:
        """The operands of a node that the plan quantises, by their places, as their codes tell them."""
        if node.name in self.plan.residuals:
            place, scale = self.plan.residuals[node.name]
            return {place: self.activation(node.args[place], scale, dtype)}
        if (site := self.plan.weights.get(node.name)) is not None:
            return {site.weight: self.blocks(node.args[site.weight], 1 - site.axis, dtype)}
        how = self.plan.quantised.get(node.name)
        if how is None:
            return {}
        site = how.site
        return {
            site.activation: self.activation(node.args[site.activation], how.scale, dtype),
            site.weight: self.coded_weight(node.args[site.weight], site.axis, dtype),
        }

    def by_rows(self, node: fx.Node, how: Quantised, dtype: torch.dtype) -> fx.Node:
        """A product of which both operands are blocks of FP4."""
        site, segmented = how.site, node.target in by_rows.SEGMENTED
        operands: tuple[Any, ...] = fx.map_arg((node.args[0], *node.args[2:]), lambda one: self.cast(one, dtype))
        x, *given = operands
        key = (x, how.scale, site.inputs, segmented)
        if key not in self.coded_rows:
            rows = by_rows.rows(self.editor, x, site.inputs, segmented)
            number = storable(torch.tensor(how.scale), torch.float32)
            value = self.editor.constant(number, f"{x.name}_scale", origin=x)
            self.coded_rows[key] = self.editor.call(custom_ops.CODED_FP4, (rows, value), origin=x)
        weights = self.fp4_weight(node.args[site.weight], site.axis, dtype)
        return by_rows.product(self.editor, node, x, self.coded_rows[key], weights, given)

    def fp4_weight(self, node: Any, axis: int, dtype: torch.dtype) -> fx.Node:
        """A weight (N, K) as its FP4 codes tell it, of one whose output channels lie along `axis`, shared."""
        key = (str(node.target), axis, dtype)
        if key not in self.weights:
            matrix = weight(self.source, node)
            assert matrix is not None
            codes, scales, scale = coded_fp4(matrix.movedim(axis, 0))
            known, steps = self.constants(node, codes, scales)
            number = self.editor.constant(scale, f"{node.target}_scale", origin=node)
            steps = self.editor.call(custom_ops.DEQUANTISE, (steps, number, 0), origin=node)
            exact = self.editor.call(custom_ops.DEQUANTISE_BLOCKS, (known, steps, 1, custom_ops.FP4_BLOCK), origin=node)
            if dtype != torch.float32:
                exact = self.editor.call(torch.ops.aten.to.dtype, (exact, dtype), origin=node)
            self.weights[key] = exact
        return self.weights[key]

    def activation(self, node: Any, scale: float, dtype: torch.dtype) -> fx.Node:
        """`node` as its codes tell it, quantised before it was rearranged; shared by all who read it."""
        chain = back(node)
        key = (chain.source, scale, dtype)
        if key not in self.decoded:
            number = storable(torch.tensor(scale), dtype)
            value = self.editor.constant(number, f"{chain.source.name}_scale", origin=chain.source)
            exact = self.cast(chain.source, dtype)
            coded = self.editor.call(custom_ops.QUANTISE, (exact, value, self.plan.codes.dtype), origin=chain.source)
            self.decoded[key] = self.editor.call(custom_ops.DEQUANTISE, (coded, value, 0), origin=chain.source)
        return chain.replayed(self.editor, self.decoded[key])

    def coded_weight(self, node: Any, axis: int, dtype: torch.dtype) -> fx.Node:
        """A weight as its codes tell it, shared by all who read it so."""
        key = (str(node.target), axis, dtype)
        if key not in self.weights:
            matrix = weight(self.source, node)
            assert matrix is not None
            scales = channel_scales(matrix, axis, dtype, self.plan.codes)
            known = coded(matrix, scales, axis, self.plan.codes)
            self.weights[key] = self.editor.call(
                custom_ops.DEQUANTISE, (*self.constants(node, known, scales), axis), origin=node
            )
        return self.weights[key]

    def blocks(self, node: Any, axis: int, dtype: torch.dtype) -> fx.Node:
        """A weight as its INT4 codes tell it, whose input channels lie along `axis`, shared by all who read it so."""
        key = (str(node.target), axis, dtype)
        if key not in self.weights:
            matrix = weight(self.source, node)
            assert matrix is not None
            codes, scales = coded_blocks(matrix, axis, dtype)
            block = codes.shape[axis] // scales.shape[axis]
            self.weights[key] = self.editor.call(
                custom_ops.DEQUANTISE_BLOCKS, (*self.constants(node, codes, scales), axis, block), origin=node
            )
        return self.weights[key]

    def constants(self, node: Any, codes: torch.Tensor, scales: torch.Tensor) -> tuple[fx.Node, fx.Node]:
        """Codes and scales of a weight as parts of the graph."""
        known = self.editor.constant(codes, f"{node.target}_codes", origin=node)
        return known, self.editor.constant(scales, f"{node.target}_scales", origin=node)

    def cast(self, node: fx.Node, dtype: torch.dtype | None) -> fx.Node:
        """The copy of `node` in `dtype`; weights are converted once, values by a cast that their readers share."""
        if not is_float(node) or dtype is None:
            return self.weight(node, None) if node.op == "get_attr" else self.copies[node]
        if node.op == "get_attr":
            return self.weight(node, dtype)
        copy = self.copies[node]
        if isinstance(copy.meta["val"], list | tuple) or copy.meta["val"].dtype == dtype:
            return copy
        if (copy, dtype) not in self.casts:
            self.casts[copy, dtype] = self.editor.call(torch.ops.aten.to.dtype, (copy, dtype), origin=node)
        return self.casts[copy, dtype]

    def weight(self, node: fx.Node, dtype: torch.dtype | None) -> fx.Node:
        tensor = weight(self.source, node)
        assert tensor is not None
        dtype = dtype or tensor.dtype
        if (node, dtype) not in self.casts:
            self.casts[node, dtype] = self.editor.constant(tensor.to(dtype), str(node.target), origin=node)
        return self.casts[node, dtype]
