"""Low-precision operations become float32 ones whose results are rounded, for ONNX Runtime.

before: y = Gelu(x)                       x, y: FP16 or BF16
after:  r = Gelu(x); l = Cast(r, low); y = Cast(l, FLOAT)
The identity: a low-precision value is also a float32 value, so widening loses nothing; and a kernel that computes in
float32 and rounds its result once is what TensorRT's and PyTorch's low-precision kernels are. So where a kernel of low
precision gives infinity, this does.

Weights keep their low-precision values; inputs and outputs of low precision become float32, and are rounded as well.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference

from mlpdeploy.errors import BuildError

LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_NARROW = "/narrow"

# Operations that move values without changing them: their results need no rounding.
MOVES = frozenset(
    (
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"),
        *("Reshape", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        *("Unsqueeze", "Where"),
    )
)


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A float32 model that computes what `model` means in FP16 or BF16, its functions inlined.

    A model without low precision comes back as it is. Raises BuildError where a node holds a graph of its own.
    """
    flat = inliner.inline_local_functions(model) if model.functions else model
    low = _low_values(flat)
    if not low:
        return model, 0
    result = onnx.ModelProto()
    result.CopyFrom(flat)
    graph = result.graph
    del graph.node[:], graph.value_info[:], graph.initializer[:]
    graph.initializer.extend(_widened(tensor) for tensor in flat.graph.initializer)
    taken = {name for node in flat.graph.node for name in (*node.input, *node.output)} | set(low)
    for port in graph.input:
        if port.name in low:
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    rename = {port.name: _fresh(port.name, "rounded", taken) for port in graph.input if port.name in low}
    for name, rounded in rename.items():
        graph.node.extend(_rounding(name, rounded, low[name], taken))
    for node in flat.graph.node:
        graph.node.extend(_widened_node(node, low, rename, taken))
    for port in graph.output:
        if port.name in low:
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    rounded = sum(node.op_type == "Cast" and node.name.endswith(_NARROW) for node in graph.node)
    return result, rounded


def _low_values(model: onnx.ModelProto) -> dict[str, int]:
    """The low-precision type of every value that has one, by name, from ONNX's own type inference."""
    graph = shape_inference.infer_shapes(model).graph
    typed = [(v.name, v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output, *graph.value_info)]
    typed += [(tensor.name, tensor.data_type) for tensor in graph.initializer]
    return {name: kind for name, kind in typed if kind in LOW}


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type not in LOW:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)


def _widened_node(
    node: onnx.NodeProto, low: dict[str, int], rename: dict[str, str], taken: set[str]
) -> list[onnx.NodeProto]:
    wide = onnx.NodeProto()
    wide.CopyFrom(node)
    for place, name in enumerate(node.input):
        wide.input[place] = rename.get(name, name)
    for attribute in wide.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            where = f"node {node.name or node.output[0]} ({node.op_type})"
            raise BuildError(f"{where} holds a graph of its own; control flow cannot be judged in low precision")
        if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_widened(attribute.t))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in LOW:
            attribute.i = TensorProto.FLOAT
    after: list[onnx.NodeProto] = []
    if node.op_type not in MOVES and node.op_type != "Constant":
        for place, name in enumerate(node.output):
            if name in low:
                wide.output[place] = _fresh(name, "exact", taken)
                after.extend(_rounding(wide.output[place], name, low[name], taken))
    return [wide, *after]


def _rounding(source: str, target: str, kind: int, taken: set[str]) -> list[onnx.NodeProto]:
    narrow = _fresh(target, "low", taken)
    return [
        helper.make_node("Cast", [source], [narrow], to=kind, name=f"{target}{_NARROW}"),
        helper.make_node("Cast", [narrow], [target], to=TensorProto.FLOAT, name=f"{target}/widen"),
    ]


def _fresh(name: str, suffix: str, taken: set[str]) -> str:
    candidate = f"{name}/{suffix}"
    while candidate in taken:
        candidate += "_"
    taken.add(candidate)
    return candidate
