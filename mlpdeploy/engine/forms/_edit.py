"""What forms share: a model with other nodes in the place of some, the nodes that a norm stands for, and shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Operations:
    """Nodes that take the place of one: each is named after it and numbered."""

    def __init__(self, place: onnx.NodeProto) -> None:
        self.place = place
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """One operation more; its result, which is called `output` where that is given."""
        name = f"{self.place.name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output or name], name, **attributes))
        return output or name

    def constant(self, values: Any, dtype: type[np.generic]) -> str:
        """A constant of these values."""
        return self.add("Constant", value=numpy_helper.from_array(np.array(values, dtype)))

    def centred_mean(self, x: str, axes: str) -> tuple[str, str, str]:
        """The mean of `x` over `axes`, what `x` differs from it by, and the square of that."""
        mean = self.add("ReduceMean", x, axes)
        centred = self.add("Sub", x, mean)
        return mean, centred, self.add("Mul", centred, centred)

    def scaled(self, x: str) -> None:
        """`x` in the dtype of what the norm at this place reads, times its scale, plus its shift: its result."""
        given, scale, *shift = self.place.input
        narrow = self.add("CastLike", x, given)
        scaled = self.add("Mul", narrow, scale, output="" if shift else self.place.output[0])
        if shift:
            self.add("Add", scaled, shift[0], output=self.place.output[0])


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


def keep_read(model: onnx.ModelProto, more: Iterable[onnx.TensorProto], reshaped: Collection[str] = ()) -> None:
    """Add constants, leave out those that nothing reads, and forget the shapes of what is `reshaped`, in place."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    constants = [one for one in (*graph.initializer, *more) if one.name in read]
    told = [one for one in graph.value_info if one.name not in reshaped]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(constants)
    graph.value_info.extend(told)


def readers_of(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each tensor, one that reads it twice once."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    return readers


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The sizes of every tensor of the graph whose shape the file tells, 0 for one that it does not know."""
    told = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in told}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The values of a node's attributes, by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
