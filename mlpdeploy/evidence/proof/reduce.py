"""The smallest part of an ONNX file that is still computed wrongly, when it is given what it should be given.

Between two places of the file lies a part: what it reads was computed before, what it gives is read behind. Of the
values at such places the right ones are known, so each part can be run by itself. First the earliest place is found up
to which the file is wrong, then the latest from which it still is, both by bisection.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import helper

from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.proof.compare import row_errors, usual
from mlpdeploy.evidence.proof.runs import Outputs, Run

Open = Callable[[onnx.ModelProto], Run]
"""A file to what computes it: another interpreter, or an engine that is built of it."""


@dataclass(frozen=True)
class Part:
    """A file of some of the nodes, what it reads, and what it should give for that; arrays have rows in front.

    `errors` are how far it is off, by output, relative to the rows of what it should give.
    """

    model: onnx.ModelProto
    inputs: Arrays
    outputs: Outputs
    errors: Mapping[str, float]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes: the module and the operation."""
        return tuple(node.name for node in self.model.graph.node if node.name)


def smallest(model: onnx.ModelProto, known: Arrays, allowed: float, opened: Open) -> Part | None:
    """The smallest part whose outputs are off by more than `allowed`; None where the whole file is not.

    `known` are the right values of the file's inputs and outputs and of what lies between, by name, each (rows, ...):
    the more there are, the smaller the part.
    """
    file = _File(model, known)
    places = file.places
    tried: dict[tuple[int, int], Part] = {}

    def wrong(first: int, last: int) -> bool:
        if (first, last) not in tried:
            tried[first, last] = file.run(places[first], places[last], opened)
        return max(tried[first, last].errors.values(), default=0.0) > allowed

    ends = range(1, len(places))
    if not ends or not wrong(0, ends[-1]):
        return None
    last = ends[bisect.bisect_left(ends, True, hi=len(ends) - 1, key=lambda end: wrong(0, end))]
    first = bisect.bisect_left(range(last), True, key=lambda start: not wrong(start, last)) - 1
    found = tried[max(first, 0), last]
    worst = max(found.errors, key=lambda name: found.errors[name])
    alone = file.run(places[max(first, 0)], places[last], opened, only=worst)
    return alone if max(alone.errors.values()) > allowed else found


class _File:
    """A file's nodes that depend on its inputs, in order, with what is known of their values."""

    def __init__(self, model: onnx.ModelProto, known: Arrays) -> None:
        self.model = onnx.shape_inference.infer_shapes(model)
        graph = self.model.graph
        self.types = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
        self.given = [value.name for value in graph.input]
        self.results = [value.name for value in graph.output]
        self.rows = len(known[self.given[0]])
        self.made = {name: 0 for name in self.given}  # by value, how many nodes must have run
        self.read: dict[str, int] = {}  # by value, the last node that reads it
        self.nodes: list[onnx.NodeProto] = []
        self.constant: list[onnx.NodeProto] = []
        for node in graph.node:
            if not any(name in self.made for name in _read_by(node)):
                self.constant.append(node)
                continue
            self.read.update(dict.fromkeys((name for name in _read_by(node) if name in self.made), len(self.nodes)))
            self.nodes.append(node)
            self.made.update(dict.fromkeys(filter(None, node.output), len(self.nodes)))
        self.read.update(dict.fromkeys(self.results, len(self.nodes)))
        self.known = {name: values for name, values in known.items() if self._fits(name, values)}

    def _fits(self, name: str, values: np.ndarray) -> bool:
        """Whether a value of the file is meant, row by row."""
        if name not in self.made or name not in self.types or values.ndim == 0 or len(values) != self.rows:
            return False
        return len(self.types[name].tensor_type.shape.dim) == values.ndim

    @cached_property
    def places(self) -> list[int]:
        """How many nodes lie before each place at which all values that are still read are known."""
        unknown = [
            (self.made[name], self.read[name]) for name in self.made if name in self.read and name not in self.known
        ]
        return [
            place for place in range(len(self.nodes) + 1) if not any(made <= place <= read for made, read in unknown)
        ]

    def run(self, first: int, last: int, opened: Open, only: str | None = None) -> Part:
        """The nodes from one place to another, or what of them makes one output, and how far off their outputs are."""
        nodes = self.nodes[first:last]
        names = [name for name in self.known if first < self.made[name] <= last <= self.read.get(name, -1)]
        names = names if only is None else [only]
        part = self._model(nodes, names)
        inputs = {value.name: self._typed(value) for value in part.graph.input}
        found, wanted = opened(part)(inputs), {name: self.known[name] for name in names}
        errors = {name: float(row_errors(found[name], wanted[name], usual(wanted, name)).max()) for name in names}
        return Part(part, inputs, wanted, errors)

    def _typed(self, value: onnx.ValueInfoProto) -> np.ndarray:
        return self.known[value.name].astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))

    def _model(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> onnx.ModelProto:
        """A file of those nodes that the outputs need, with the constants that these read."""
        needed, taken = set(outputs), list[onnx.NodeProto]()
        for node in reversed([*self.constant, *nodes]):
            if needed.intersection(node.output):
                taken.insert(0, node)
                needed.update(_read_by(node))
        within = {name for node in taken for name in node.output}
        inputs = [name for name in self.made if name in needed - within]
        whole = self.model.graph
        graph = helper.make_graph(
            taken,
            whole.name,
            [self._port(name) for name in inputs],
            [self._port(name) for name in outputs],
            [tensor for tensor in whole.initializer if tensor.name in needed],
        )
        part = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        kinds = {node.op_type for node in taken if node.domain}
        part.functions.extend(function for function in self.model.functions if function.name in kinds)
        return part

    def _port(self, name: str) -> onnx.ValueInfoProto:
        """A value as input or output: its rows are the batch of the file's own inputs."""
        kind, values = self.types[name].tensor_type, self.known[name]
        batch = self.types[self.given[0]].tensor_type.shape.dim[0]
        rows = batch.dim_param or batch.dim_value
        return helper.make_tensor_value_info(name, kind.elem_type, [rows, *values.shape[1:]])


def _read_by(node: onnx.NodeProto) -> list[str]:
    """What a node reads, and what the nodes within it do."""
    inner = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return [*filter(None, node.input), *(name for graph in inner for one in graph.node for name in _read_by(one))]
