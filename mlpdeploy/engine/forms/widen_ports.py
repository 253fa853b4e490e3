"""BF16 inputs and outputs become float32 ones, for ONNX Runtime, whose Python calls know no BF16.

before: y = f(x)                          x, y: BF16
after:  l = Cast(x, BF16); r = f(l); y = Cast(r, FLOAT)
The identity: a BF16 value is also a float32 value, so the first cast gives back what was fed.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

_LOW, _WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with float32 ports, and how many were BF16."""
    ports = [one for one in (*model.graph.input, *model.graph.output) if one.type.tensor_type.elem_type == _LOW]
    if not ports:
        return model, 0
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    renamed = {port.name: _free(f"{port.name}/bf16", taken) for port in ports}
    first = [
        helper.make_node("Cast", [one.name], [renamed[one.name]], f"{one.name}/Narrow", to=_LOW)
        for one in graph.input if one.name in renamed
    ]  # fmt: skip
    last = [
        helper.make_node("Cast", [renamed[one.name]], [one.name], f"{one.name}/Widen", to=_WIDE)
        for one in graph.output if one.name in renamed
    ]  # fmt: skip
    for port in (*graph.input, *graph.output):
        if port.name in renamed:
            port.type.tensor_type.elem_type = _WIDE
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    return result, len(ports)


def _free(name: str, taken: set[str]) -> str:
    """A name that no value has."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
