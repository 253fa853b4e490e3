"""Circular padding as parts that are joined, for OpenVINO, whose reader knows no `Pad` that wraps around.

before: x -> Pad(wrap)
after:  Concat(the end of x, x, the start of x), axis by axis
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.forms._edit import replaced

_END = np.iinfo(np.int64).max


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model without a `Pad` that wraps around by known numbers."""
    wraps = [node for node in model.graph.node if _wraps(node)]
    read = {name for node in wraps for name in node.input[1:]}
    known = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name in read}
    made = {node.name: list(_parted(node, known)) for node in wraps if _is_known(node, known)}
    return replaced(model, made), len(made)


def _wraps(node: onnx.NodeProto) -> bool:
    modes = [one.s for one in node.attribute if one.name == "mode"]
    return node.op_type == "Pad" and not node.domain and modes == [b"wrap"]


def _is_known(node: onnx.NodeProto, known: dict[str, np.ndarray]) -> bool:
    """Whether it pads by known numbers, of which none takes away, along known axes."""
    told = (node.input[1], *node.input[3:])
    return all(name in known for name in told) and bool((known[node.input[1]] >= 0).all())


def _parted(node: onnx.NodeProto, known: dict[str, np.ndarray]) -> Iterator[onnx.NodeProto]:
    pads = known[node.input[1]].tolist()
    count = len(pads) // 2
    axes = known[node.input[3]].tolist() if len(node.input) > 3 else range(count)
    moved = [(axis, *sides) for axis, *sides in zip(axes, pads[:count], pads[count:], strict=True) if any(sides)]
    value = node.input[0]
    for place, (axis, front, back) in enumerate(moved):
        name, parts = f"{node.name}/axis_{axis}", [value]
        if front:
            parts.insert(0, f"{name}/front")
            yield from _sliced(value, -front, _END, axis, parts[0])
        if back:
            parts.append(f"{name}/back")
            yield from _sliced(value, 0, back, axis, parts[-1])
        value = node.output[0] if place == len(moved) - 1 else name
        yield helper.make_node("Concat", parts, [value], name, axis=axis)
    if not moved:
        yield helper.make_node("Identity", [value], [node.output[0]], node.name)


def _sliced(value: str, start: int, end: int, axis: int, name: str) -> Iterator[onnx.NodeProto]:
    bounds = {"start": start, "end": end, "along": axis}
    for what, number in bounds.items():
        yield helper.make_node("Constant", [], [f"{name}/{what}"], f"{name}/{what}", value_ints=[number])
    yield helper.make_node("Slice", [value, *(f"{name}/{what}" for what in bounds)], [name], name)
