"""Segment-grouped projections of a CPU engine multiply columns, not rows.

The file's body gathers rows, (b, p, q, s) -> (b, q, (p s)), and multiplies them by W: it moves runs of s numbers. With
few numbers in a run that is slow, and columns are cheaper: (b, p, q, s) -> (b, (p s), q), multiplied by W from the
left. `benchmarks/forms.py` measures both on the shapes of the ViP networks.
"""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.onnx.functions import SEGMENTS, attribute_ints, local_function
from mlpdeploy.graph.custom_ops import DOMAIN

COLUMNS = f"{SEGMENTS}_by_columns"


def rewrite(model: onnx.ModelProto, run: int | None = None) -> tuple[onnx.ModelProto, int]:
    """The same model whose segment-grouped projections multiply columns: all, or those with runs shorter than `run`."""
    constant = {tensor.name for tensor in model.graph.initializer}
    # A weight of 8-bit codes is no constant of the file; engines gather rows of codes cheaply.
    calls = [n for n in model.graph.node if n.domain == DOMAIN and n.op_type == SEGMENTS and n.input[1] in constant]
    chosen = [node for node in calls if run is None or _split(node)[3] < run]
    if not chosen:
        return model, 0
    result = onnx.ModelProto()
    result.CopyFrom(model)
    names = {node.name for node in chosen}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in result.graph.node:
        if node.name in names and node.op_type == SEGMENTS and node.domain == DOMAIN:
            _, _, segments, size = _split(node)
            source = weights[node.input[1]]
            node.op_type, node.input[1] = COLUMNS, f"{source.name}/transposed"
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("merge", [0, source.dims[0], -1]))
            node.attribute.append(helper.make_attribute("split", [0, segments, size, -1]))
    present = {name for node in result.graph.node for name in node.input}
    for name, tensor in weights.items():
        if (transposed := f"{name}/transposed") in present:
            result.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), transposed))
    kept = [tensor for tensor in result.graph.initializer if tensor.name in present]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    result.functions.append(_function())
    return result, len(chosen)


def _split(node: onnx.NodeProto) -> list[int]:
    """[0, 0, K, T] of a call."""
    return list(next(attribute.ints for attribute in node.attribute if attribute.name == "split"))


def _function() -> onnx.FunctionProto:
    """X (B, P, Q, S), W (K*T, P*S) to Y (B, K, Q, T); attributes `merge` = [0, P*S, -1], `split` = [0, K, T, -1]."""
    nodes = [
        attribute_ints("merge"),
        attribute_ints("split"),
        helper.make_node("Transpose", ["X"], ["columns"], perm=[0, 1, 3, 2]),
        helper.make_node("Reshape", ["columns", "merge"], ["merged"]),
        helper.make_node("MatMul", ["W", "merged"], ["projected"]),
        helper.make_node("Reshape", ["projected", "split"], ["factored"]),
        helper.make_node("Transpose", ["factored"], ["Y"], perm=[0, 1, 3, 2]),
    ]
    return local_function(COLUMNS, nodes, ["merge", "split"])
