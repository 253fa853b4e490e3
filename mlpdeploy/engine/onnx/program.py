"""The typed graph as the program that PyTorch's ONNX exporter takes.

torch.export would make one by running the graph, and the exporter would run that again to take operations apart: most
of the time of both. Every node of the graph knows what it gives (`meta["val"]`), so that only the bookkeeping is left:
a program has its weights as inputs, and a signature that tells which input is what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from mlpdeploy.graph.editor import weight

ORIGIN = "mlpdeploy"
"""Key of `node.meta["custom"]` under which a node of a program has the name that it has in the typed graph."""


class Apart(ExportedProgram):
    """A program some operations of which have no ONNX form: the exporter has to take them apart."""

    def run_decompositions(self, *args: Any, **options: Any) -> ExportedProgram:
        return _with_bounds_of_one_kind(super().run_decompositions(*args, **options))


class Whole(ExportedProgram):
    """A program of which every operation has an ONNX form: there is nothing to take apart."""

    def run_decompositions(self, *_: Any, **__: Any) -> ExportedProgram:
        return _with_bounds_of_one_kind(self)


def program(module: fx.GraphModule, has_form: Callable[[Any], bool]) -> ExportedProgram:
    """`module` as a program with one input for each weight and each placeholder; `module` stays as it is.

    `has_form` tells of an operation whether the exporter writes it as it is.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    inputs, state = _weights(module, graph, copies)
    results: list[TensorArgument] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            copies[node] = _input(graph, node)
            inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(copies[node].name), None))
        elif node.op == "call_function":
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta["custom"] = {ORIGIN: node.name}
        elif node.op == "output":
            graph.output(tuple(copies[one] for one in node.args[0]))
            results = [TensorArgument(copies[one].name) for one in node.args[0]]
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, result, None) for result in results]
    whole = all(has_form(node.target) for node in graph.nodes if node.op == "call_function")
    signature, calls = ExportGraphSignature(inputs, outputs), [ModuleCallEntry("", _call(inputs, results))]
    return (Whole if whole else Apart)(nn.Module(), graph, signature, state, {}, calls)


def _with_bounds_of_one_kind(made: ExportedProgram) -> ExportedProgram:
    """Both bounds of a clamp as real numbers, where one is: the exporter's promotion of types takes no others."""
    for node in made.graph.nodes:
        if node.target is torch.ops.aten.clamp.default and any(isinstance(one, float) for one in node.args):
            node.args = tuple(float(one) if isinstance(one, int) else one for one in node.args)
    return made


def _input(graph: fx.Graph, node: fx.Node) -> fx.Node:
    made = graph.placeholder(f"of_{node.name}")
    made.meta["val"] = node.meta["val"]
    return made


def _call(inputs: list[InputSpec], results: list[TensorArgument]) -> ModuleCallSignature:
    """Called with one tensor for each input, a program gives a tuple."""
    given = [one.arg for one in inputs if one.kind is InputKind.USER_INPUT]
    taken, returned = tuple(range(len(given))), tuple(range(len(results)))
    return ModuleCallSignature(given, [*results], pytree.tree_structure((taken, {})), pytree.tree_structure(returned))


def _weights(
    module: fx.GraphModule, graph: fx.Graph, copies: dict[fx.Node, fx.Node]
) -> tuple[list[InputSpec], dict[str, torch.Tensor]]:
    """An input for each weight, in front of all others; the weights by their names."""
    known: dict[str, fx.Node] = {}
    inputs, state = [], {}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        name, value = str(node.target), weight(module, node)
        assert value is not None
        if name not in known:
            known[name] = _input(graph, node)
            inputs.append(InputSpec(InputKind.BUFFER, TensorArgument(known[name].name), name, persistent=True))
            state[name] = value
        copies[node] = known[name]
    return inputs, state
