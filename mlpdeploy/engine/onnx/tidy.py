"""What makes an exported ONNX model good to read: names that tell the module, nothing twice, no leftovers."""

from __future__ import annotations

import re

import onnx_ir as ir
from onnx_ir.passes import common
from torch import fx

from mlpdeploy.engine.onnx.program import ORIGIN
from mlpdeploy.graph.tracing.place import network_of


def tidy(model: ir.Model, batch: str, *groups: frozenset[str]) -> tuple[frozenset[str], ...]:
    """Improve `model` in place; for each group of nodes of the typed graph, the names of the nodes that stem from them.

    The symbolic first dimension of the inputs is called `batch`.
    """
    stem = _name_nodes(model, groups)
    results = (output for node in model.graph for output in node.outputs)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *results]
    _name_batch(model, values, batch)
    for value in values:
        value.metadata_props.clear()
    for improve in (
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        improve(model)
    return stem


def _name_nodes(model: ir.Model, groups: tuple[frozenset[str], ...]) -> tuple[frozenset[str], ...]:
    """Name every node `<module path>/<operation>`, numbered where a module has several of a kind."""
    stem: tuple[set[str], ...] = tuple(set() for _ in groups)
    used: set[str] = set()
    for node in model.graph:
        source = node.meta.get("node")
        path = network_of(source) if isinstance(source, fx.Node) else ""
        base = f"{path}/{node.op_type}" if path else node.op_type
        name, count = base, 1
        while name in used:
            name, count = f"{base}_{count}", count + 1
        used.add(name)
        node.name = name
        origin = (source.meta.get("custom") or {}).get(ORIGIN) if isinstance(source, fx.Node) else None
        for names, group in zip(stem, groups, strict=True):
            if origin in group:
                names.add(name)
    return tuple(map(frozenset, stem))


def _name_batch(model: ir.Model, values: list[ir.Value], name: str) -> None:
    """Call the batch by its name in all shapes, where it is a factor of a dimension as well (`16*s21`)."""
    symbols = {str(value.shape[0]) for value in model.graph.inputs if value.shape}
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in symbols))
    for value in values:
        for index, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                value.shape[index] = ir.SymbolicDim(pattern.sub(name, str(size.value)))  # type: ignore[index]
