"""The ONNX local functions of our operations: one for each body of a segment-grouped projection that pays.

Engines without a kernel of ours run the bodies, so a body has only the steps that its tensors need. What follows a
projection (`custom_ops.WITH_EPILOGUE`) stands behind the call, as operations that every engine fuses as it can.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, helper

from mlpdeploy.graph.custom_ops import DOMAIN

OPSET = 20
SEGMENTS = "segment_grouped_projection"


@dataclass(frozen=True)
class Body:
    """A segment-grouped projection in ONNX, by what it has.

    Without a trailing axis: X (B, P, Q, S) and W (P*S, K*T), with `split` = [0, 0, K, T]. With one: X (B, P, Q, S, O)
    and W (K*T, P*S), multiplied from the left, so that o is not moved from its place; `merge` = [0, Q, P*S, O] and
    `split` = [0, K, Q, T, O], where K is more than 1 (`scatters`) [0, Q, K, T, O]. `gathers`: P is more than 1.
    """

    trailing: bool = False
    gathers: bool = True
    scatters: bool = True

    @classmethod
    def of(cls, x: Sequence[int], segments: int) -> Body:
        """The body for an X of these sizes, and K."""
        return cls(True, x[1] > 1, segments > 1) if len(x) == 5 else cls()

    @property
    def name(self) -> str:
        """The name of the function."""
        layout = ["trailing", *["gather"] * self.gathers, *["scatter"] * self.scatters] if self.trailing else []
        return "_".join([SEGMENTS, *layout])

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of its attributes, all of them lists of integers."""
        return (*["merge"] * self.trailing, "split")

    def attributes_of(self, x: Sequence[int], segments: int, size: int) -> dict[str, list[int]]:
        """The attributes for an X of these sizes, K and T."""
        if not self.trailing:
            return {"split": [0, 0, segments, size]}
        split = [0, *([x[2], segments] if self.scatters else [1, x[2]]), size, x[4]]
        return {"merge": [0, x[2], x[1] * x[3], x[4]], "split": split}

    def factors(self, split: Sequence[int]) -> tuple[int, int]:
        """K and T of a call, from its attribute `split`."""
        if not self.trailing:
            return split[2], split[3]
        return split[2] if self.scatters else split[1], split[3]

    def function(self) -> onnx.FunctionProto:
        """The local function."""
        nodes = [*(attribute_ints(name) for name in self.attributes), *self._projection()]
        nodes[-1].output[0] = "Y"
        return local_function(self.name, nodes, self.attributes)

    def _projection(self) -> list[onnx.NodeProto]:
        if not self.trailing:
            return [
                helper.make_node("Transpose", ["X"], ["rows"], perm=[0, 2, 1, 3]),
                helper.make_node("Constant", [], ["merge"], value_ints=[0, 0, -1]),
                helper.make_node("Reshape", ["rows", "merge"], ["merged"]),
                helper.make_node("MatMul", ["merged", "W"], ["projected"]),
                helper.make_node("Reshape", ["projected", "split"], ["factored"]),
                helper.make_node("Transpose", ["factored"], ["projection"], perm=[0, 2, 1, 3]),
            ]
        gather = helper.make_node("Transpose", ["X"], ["rows"], perm=[0, 2, 1, 3, 4])
        scatter = helper.make_node("Transpose", ["factored"], ["projection"], perm=[0, 2, 1, 3, 4])
        return [
            *([gather] if self.gathers else []),
            helper.make_node("Reshape", ["rows" if self.gathers else "X", "merge"], ["merged"]),
            helper.make_node("MatMul", ["W", "merged"], ["projected"]),
            helper.make_node("Reshape", ["projected", "split"], ["factored" if self.scatters else "projection"]),
            *([scatter] if self.scatters else []),
        ]


BODIES = {
    body.name: body for body in (Body(), *(Body(True, *moved) for moved in itertools.product((False, True), repeat=2)))
}
"""Every body by the name of its function."""


def functions(names: Collection[str], opset: int = OPSET) -> list[onnx.FunctionProto]:
    """Those of our ONNX local functions that are called `names`, of the opset of the file."""
    found = [body.function() for name, body in BODIES.items() if name in names]
    for function in found:
        function.opset_import[0].version = opset
    return found


def attribute_ints(name: str) -> onnx.NodeProto:
    """A constant that is the attribute `name` of the function's call."""
    node = helper.make_node("Constant", [], [name])
    node.attribute.append(AttributeProto(name="value_ints", type=AttributeProto.INTS, ref_attr_name=name))
    return node


def local_function(name: str, nodes: Sequence[onnx.NodeProto], attributes: Sequence[str]) -> onnx.FunctionProto:
    """An ONNX function of our domain, from X and W to Y."""
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, ["X", "W"], ["Y"], nodes, opsets, attributes=[*attributes])
