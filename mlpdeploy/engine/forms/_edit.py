"""What forms share: a model with other nodes in the place of some, and the shapes that a file tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx


def replaced(model: onnx.ModelProto, made: Mapping[str, Sequence[onnx.NodeProto]]) -> onnx.ModelProto:
    """A copy with the nodes `made` in the place of the node of each name; the model itself where there are none."""
    if not made:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        result.graph.node.extend(made.get(node.name, [node]))
    return result


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The sizes of every tensor of the graph whose shape the file tells, 0 for one that it does not know."""
    told = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in told}
