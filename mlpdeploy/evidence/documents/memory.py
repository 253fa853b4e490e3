"""The memory that a graph holds while it runs, from its ONNX file alone: the same number on every machine.

An engine may do better (operations in place, fused ones that store nothing), so this is a property of the graph, good
for comparing two graphs: a copy that a rewrite adds, or an activation that it keeps alive, shows here.
"""

from __future__ import annotations

import math

import onnx
from onnx import helper, inliner, numpy_helper, shape_inference

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_LARGEST = 2**31 - 1


def peak_bytes(model: onnx.ModelProto, batch: int) -> int | str:
    """Bytes of weights and of the most activations alive at once at `batch`; or one line: why it cannot be told.

    Inputs live as long as the run; any other value from the node that makes it to the last that reads it; a reshape
    gives a view of its input.
    """
    if model.ByteSize() > _LARGEST:
        return "the ONNX file is larger than 2 GiB, which shape inference cannot take"
    graph = _with_shapes(model, batch)
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    sizes = {value.name: _size(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    owner: dict[str, str] = {}  # a view -> the value whose memory it is
    last: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            last[owner.get(name, name)] = index
        if node.op_type in _VIEWS:
            owner[node.output[0]] = owner.get(node.input[0], node.input[0])
    for value in (*graph.input, *graph.output):
        last[owner.get(value.name, value.name)] = len(graph.node)
    held = sum(sizes.get(value.name) or 0 for value in graph.input if value.name not in constants)
    most, alive = held, {value.name for value in graph.input}
    for index, node in enumerate(graph.node):
        made = [name for name in node.output if name and name not in constants and name not in owner]
        unknown = next((name for name in made if sizes.get(name) is None), None)
        if unknown is not None:
            return f"the shape of {unknown} is not known"
        alive |= set(made)
        held += sum(sizes[name] or 0 for name in made)
        most = max(most, held)
        for name in {n for n in alive if last.get(n, index) <= index}:
            alive.discard(name)
            held -= sizes[name] or 0
    return most + sum(numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)


def _with_shapes(model: onnx.ModelProto, batch: int) -> onnx.GraphProto:
    """The graph with functions inlined and every shape inferred at this batch."""
    flat = onnx.ModelProto()
    flat.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
    del flat.graph.value_info[:]
    for value in (*flat.graph.input, *flat.graph.output):
        shape = value.type.tensor_type.shape
        if shape.dim and not shape.dim[0].HasField("dim_value"):
            shape.dim[0].dim_value = batch
    return shape_inference.infer_shapes(flat, data_prop=True).graph


def _size(value: onnx.ValueInfoProto) -> int | None:
    """Bytes, or None where a dimension is not known."""
    kind = value.type.tensor_type
    if not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    itemsize: int = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    count: int = math.prod(dim.dim_value for dim in kind.shape.dim)
    return count * itemsize
