"""What makes an exported ONNX model good to read and cheap to parse: names, constants of full rank, nothing twice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from torch import fx

from mlpdeploy.graph import ops
from mlpdeploy.graph.trace import network_of

ORIGIN = "mlpdeploy"
"""Key of `node.meta["custom"]` under which a node of the typed graph carries its own name through export."""

BROADCASTS = {"Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "LayerNormalization", "segment_grouped_projection"}
"""Operations whose constant operands TensorRT would reshape at run time to the rank of the result."""


def tidy(model: ir.Model, keep: frozenset[str]) -> frozenset[str]:
    """Improve `model` in place; returns the names of the nodes that stem from those of the typed graph in `keep`."""
    kept = _name_nodes(model, keep)
    _full_rank_constants(model)
    _narrow_indices(model)
    for each in (common.DeduplicateInitializersPass(), common.RemoveUnusedNodesPass(), common.ClearMetadataAndDocStringPass()):
        each(model)
    return kept


def _name_nodes(model: ir.Model, keep: frozenset[str]) -> frozenset[str]:
    """Name every node `<module path>/<operation>`, numbered where a module has several of a kind."""
    kept, used = set(), set()
    for node in model.graph:
        source = node.meta.get("node")
        path = network_of(source) if isinstance(source, fx.Node) else ""
        base = f"{path}/{node.op_type}" if path else node.op_type
        name, count = base, 1
        while name in used:
            name, count = f"{base}_{count}", count + 1
        used.add(name)
        node.name = name
        if isinstance(source, fx.Node) and (source.meta.get("custom") or {}).get(ORIGIN) in keep:
            kept.add(name)
    return frozenset(kept)


def _full_rank_constants(model: ir.Model) -> None:
    """Prepend dimensions of 1 to weights of pointwise operations, products and LayerNorm, up to the rank of the result."""
    made: dict[tuple[str, int], ir.Value] = {}
    for node in model.graph:
        shape = node.outputs[0].shape
        if node.op_type not in BROADCASTS or shape is None:
            continue
        rank = len(shape) - (node.domain == ops.DOMAIN)
        for index, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or not 0 < len(value.shape or ()) < rank:
                continue
            key = (value.name or "", rank)
            if key not in made:
                array = value.const_value.numpy()  # type: ignore[union-attr]
                array = array.reshape((1,) * (rank - array.ndim) + array.shape)
                made[key] = _initializer(model, f"{value.name}_rank{rank}", array, value.dtype)
            node.replace_input_with(index, made[key])


def _narrow_indices(model: ir.Model) -> None:
    """Constant indices of Gather as int32, which TensorRT takes without a cast."""
    for node in model.graph:
        indices = node.inputs[1] if node.op_type == "Gather" else None
        if indices is not None and indices.is_initializer() and indices.dtype == ir.DataType.INT64:
            array = indices.const_value.numpy().astype(np.int32)  # type: ignore[union-attr]
            name = f"{indices.name}_int32"
            known = model.graph.initializers.get(name)
            node.replace_input_with(1, known or _initializer(model, name, array, ir.DataType.INT32))


def _initializer(model: ir.Model, name: str, array: np.ndarray, dtype: ir.DataType | None) -> ir.Value:
    tensor = ir.Tensor(array, dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
