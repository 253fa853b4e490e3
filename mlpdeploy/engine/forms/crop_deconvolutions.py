"""A transposed convolution computes no places that are cut off behind it, for TensorRT.

before: ConvTranspose -> (b, c, 30, w) -> + constant (c, 30, 1) -> Slice -> (b, c, 28, w)
after:  ConvTranspose with pads, which here cut off -> (b, c, 28, w) -> + constant (c, 28, 1)

TensorRT-RTX 1.7 copies the part that is kept. Hire-MLP cuts a map that was padded to whole regions back to its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.forms._edit import attributes, keep_read, readers_of, replaced, shapes_of


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with such cuts as pads; and how many there are."""
    graph = _Graph(model)
    cuts = [cut for node in model.graph.node if (cut := graph.cut_behind(node)) is not None]
    made: dict[str, list[onnx.NodeProto]] = {}
    constants: list[onnx.TensorProto] = []
    for cut in cuts:
        made |= {cut.convolution.name: [cut.padded()], cut.slice.name: []}
        if cut.sum is not None:
            term, narrow = graph.cut_constant(cut)
            constants.append(narrow)
            made[cut.sum.name] = [cut.added(term, narrow.name)]
    result = replaced(model, made)
    if cuts:
        keep_read(result, constants, {name for cut in cuts for name in cut.given})
    return result, len(cuts)


@dataclass(frozen=True)
class _Cut:
    """A transposed convolution, the sum with a constant behind it if there is one, and the Slice behind these.

    `kept`: by axis of space, the first place that is kept and the one behind the last, of how many there are.
    """

    convolution: onnx.NodeProto
    sum: onnx.NodeProto | None
    slice: onnx.NodeProto
    kept: dict[int, tuple[int, int, int]]

    @property
    def given(self) -> list[str]:
        """The tensors that are not cut yet."""
        return [node.output[0] for node in (self.convolution, self.sum) if node is not None]

    def padded(self) -> onnx.NodeProto:
        """The convolution without the places that are cut off."""
        copy = onnx.NodeProto()
        copy.CopyFrom(self.convolution)
        told = attributes(copy)
        spatial = len(told["kernel_shape"])
        pads = [*told.get("pads", [0] * 2 * spatial)]
        for axis, (first, last, size) in self.kept.items():
            pads[axis - 2] += first
            pads[axis - 2 + spatial] += size - last
        kept = [one for one in copy.attribute if one.name not in ("pads", "auto_pad")]
        del copy.attribute[:]
        copy.attribute.extend([*kept, helper.make_attribute("pads", pads)])
        if self.sum is None:
            copy.output[0] = self.slice.output[0]
        return copy

    def added(self, term: int, narrow: str) -> onnx.NodeProto:
        """The sum, of a constant that is cut too."""
        assert self.sum is not None
        copy = onnx.NodeProto()
        copy.CopyFrom(self.sum)
        copy.input[term], copy.output[0] = narrow, self.slice.output[0]
        return copy


class _Graph:
    """What reads the tensors of a graph, and their shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {one.name: one for one in model.graph.initializer}
        self.shapes, self.outputs = shapes_of(model), {one.name for one in model.graph.output}
        self.readers = readers_of(model)

    def cut_behind(self, node: onnx.NodeProto) -> _Cut | None:
        """What cuts off places of a transposed convolution, which nothing else reads; None where nothing does."""
        if node.op_type != "ConvTranspose" or node.domain or not _is_plain(node):
            return None
        reader, total = self._reader(node), None
        if reader is not None and reader.op_type == "Add" and self._term(reader) is not None:
            reader, total = self._reader(reader), reader
        if reader is None or reader.op_type != "Slice" or reader.domain:
            return None
        kept = self._kept(reader, self.shapes.get(node.output[0], []))
        return None if kept is None else _Cut(node, total, reader, kept)

    def cut_constant(self, cut: _Cut) -> tuple[int, onnx.TensorProto]:
        """Which term of the sum behind a convolution is a constant, and what is kept of it."""
        assert cut.sum is not None
        term = self._term(cut.sum)
        assert term is not None
        values = numpy_helper.to_array(self.constants[cut.sum.input[term]])
        rank = len(self.shapes[cut.convolution.output[0]])
        for axis, (first, last, _) in cut.kept.items():
            own = axis - rank + values.ndim
            if own >= 0 and values.shape[own] > 1:
                values = values.take(range(first, last), own)
        return term, numpy_helper.from_array(np.ascontiguousarray(values), f"{cut.sum.name}/cut")

    def _reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The one node that reads what a node gives; None where several do, or it is an output."""
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and node.output[0] not in self.outputs else None

    def _term(self, node: onnx.NodeProto) -> int | None:
        """Which operand of a sum is a constant of no more axes than the sum."""
        rank = len(self.shapes.get(node.output[0], []))
        fitting = (
            i for i, one in enumerate(node.input) if one in self.constants and len(self.constants[one].dims) <= rank
        )
        return next(fitting, None)

    def _kept(self, node: onnx.NodeProto, shape: list[int]) -> dict[int, tuple[int, int, int]] | None:
        """By axis of space, what a Slice keeps one by one, of how many; None where it does something else."""
        if any(name and name not in self.constants for name in node.input[1:]) or len(shape) < 3:
            return None
        told = [numpy_helper.to_array(self.constants[name]).tolist() if name else [] for name in node.input[1:]]
        starts, ends, axes, steps = [*told, [], []][:4]
        kept = {}
        for first, last, axis in zip(starts, ends, axes or range(len(starts)), strict=True):
            size = shape[axis]
            begin, end, _ = slice(first, last).indices(size)
            if axis % len(shape) < 2 or size == 0 or begin >= end:
                return None
            kept[axis % len(shape)] = (begin, end, size)
        return kept if kept and all(step == 1 for step in steps) else None


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether the size of what a transposed convolution gives comes from its kernel, strides and pads alone."""
    told = attributes(node)
    automatic = told.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in told
    return not automatic and not any(told.get("output_padding", ())) and "kernel_shape" in told
