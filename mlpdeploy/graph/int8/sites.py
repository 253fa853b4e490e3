"""Where INT8 goes: the projections and convolutions of a rewritten graph that take both operands in 8 bits.

A site is annotated here and converted elsewhere (`typed.apply`). Its weight has one scale for each output channel,
its activation one scale for all of it, and both are symmetric: zero is the code 0, so no product needs a correction
and no bias an integer form. An activation is quantised where it is computed: what only rearranges it
on its way to a site moves 8-bit codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.kinds import CONVOLUTIONS, convolution_arguments, shape_of
from mlpdeploy.graph.layout.view import Size, size_at
from mlpdeploy.graph.matching.rearrangements import back
from mlpdeploy.graph.tracing.place import network_of

aten = torch.ops.aten

SMALLEST = 16
"""Input and output channels below which a product in 8 bits costs more than it saves: tensor cores take 16 or more."""

SMALLEST_SHARE = 1e-4
"""Part of a network's multiply-accumulates below which a product is over sooner than what 8 bits add: the launch that
makes codes of its activation, and on TensorRT the one that no longer runs within the product."""

LARGEST_CODE = 127
"""Codes are -127 to 127: as many below zero as above."""


@dataclass(frozen=True)
class Site:
    """An operation that can take INT8: a product of the activation `args[activation]` and the weight `args[weight]`.

    `axis` is that of the weight's output channels; `channels` are the activation's axes of input channels, in the order
    in which the weight has them. `source` is the node whose values are quantised: the activation
    before it was rearranged. `module` is the user's; `macs` are multiply-accumulates a sample, `inputs` (K) and
    `outputs` (N) the channels.
    """

    node: str
    module: str
    activation: int
    weight: int
    axis: int
    channels: tuple[int, ...]
    source: str
    inputs: int
    outputs: int
    macs: int

    def columns(self, matrix: torch.Tensor) -> torch.Tensor:
        """The weight as (output channels, input channels, what is left of a kernel)."""
        moved = matrix.movedim(self.axis, 0)
        return moved.reshape(self.outputs, moved.shape[1], -1)

    def scaled(self, matrix: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """The weight with its input channels multiplied by `factors`."""
        shape = [1] * matrix.dim()
        shape[1 if self.axis == 0 else 0] = -1
        return matrix * factors.reshape(shape)

    def broadcast(self, factors: torch.Tensor, shape: Sequence[Size]) -> torch.Tensor:
        """`factors` by input channel, reshaped so that they broadcast to an activation of this shape."""
        kept = {dim % len(shape) for dim in self.channels}
        return factors.reshape([int(size) if dim in kept else 1 for dim, size in enumerate(shape)])


@dataclass(frozen=True)
class Sites:
    """The sites of a graph by node name, in its order, and why other products are none, with their modules."""

    found: dict[str, Site]
    refused: dict[str, str]
    modules: dict[str, str]


def sites(module: fx.GraphModule) -> Sites:
    """Every product of an activation and a weight: those that take INT8, and why the others do not."""
    found, refused, modules = {}, {}, {}
    for node in module.graph.nodes:
        operands = _operands(module, node)
        if operands is None:
            continue
        activation, place, axis, channels = operands
        matrix = weight(module, node.args[place])
        assert matrix is not None
        outputs = matrix.shape[axis]
        inputs = matrix.numel() // outputs
        if (reason := _refusal(node, matrix, inputs, outputs)) is not None:
            refused[node.name], modules[node.name] = reason, network_of(node)
            continue
        macs = math.prod(size_at(size, 1) for size in shape_of(node)) * inputs
        source = back(node.args[activation]).source.name
        found[node.name] = Site(
            node.name, network_of(node), activation, place, axis, channels, source, inputs, outputs, macs
        )
    for node in _negligible(module, found):
        refused[node.name] = f"it has less than {SMALLEST_SHARE:.2%} of the network's multiply-accumulates"
        modules[node.name] = found.pop(node.name).module
    return Sites(found, refused, modules)


def _negligible(module: fx.GraphModule, found: Mapping[str, Site]) -> list[fx.Node]:
    """Products too small for a gain. Not the one that makes the output: what that costs is measured."""
    least = SMALLEST_SHARE * sum(site.macs for site in found.values())
    small = [node for node in module.graph.nodes if node.name in found and found[node.name].macs < least]
    return [node for node in small if any(user.op != "output" for user in node.users)]


@dataclass(frozen=True)
class Residual:
    """The operand of a residual addition that can be read as codes: its place, and the node that is quantised."""

    place: int
    source: str


def residuals(module: fx.GraphModule, found: Mapping[str, Site]) -> dict[str, Residual]:
    """By name, the residual additions of which one operand is quantised for a site of `found` anyway.

    The other operand is what a convolution of `found` made: TensorRT adds a residual in INT8 within that convolution.
    """
    sources = {site.source for site in found.values()}
    adding: dict[str, Residual] = {}
    for node in module.graph.nodes:
        if node.target is not aten.add.Tensor or node.kwargs or not all(isinstance(x, fx.Node) for x in node.args):
            continue
        ends = [back(operand).source for operand in node.args]
        for place, (read, made) in enumerate(zip(ends, reversed(ends), strict=True)):
            if read.name in sources and made.name in found and made.target in CONVOLUTIONS:
                adding[node.name] = Residual(place, read.name)
    return adding


Operands = tuple[int, int, int, tuple[int, ...]]
"""Places of activation and weight among the arguments, the weight's axis of output channels, the activation's axes."""


def _operands(module: fx.GraphModule, node: fx.Node) -> Operands | None:
    """How a product of an activation and a weight lies; None where `node` is something else."""
    reader = _READERS.get(node.target) if node.op == "call_function" else None
    operands = reader(module, node) if reader is not None else None
    return None if operands is None or weight(module, node.args[operands[0]]) is not None else operands


def _rows(*channels: int) -> Callable[[fx.GraphModule, fx.Node], Operands | None]:
    """`op(x, W)` where the rows of W are output channels."""

    def read(module: fx.GraphModule, node: fx.Node) -> Operands | None:
        return (0, 1, 0, channels) if weight(module, node.args[1]) is not None else None

    return read


def _product(module: fx.GraphModule, node: fx.Node) -> Operands | None:
    """`W @ x` has output channels in the rows of W (N, K), `x @ W` in the columns of W (K, N)."""
    left, right = (weight(module, operand) for operand in node.args[:2])
    if left is not None and left.dim() >= 2:
        return 1, 0, left.dim() - 2, (-2,)
    return (0, 1, right.dim() - 1, (-1,)) if right is not None and right.dim() >= 2 else None


_READERS: dict[Any, Callable[[fx.GraphModule, fx.Node], Operands | None]] = {
    aten.linear.default: _rows(-1),
    aten.matmul.default: _product,
    aten.mm.default: _product,
    custom_ops.SEGMENT_GROUPED_PROJECTION: _rows(1, 3),
    custom_ops.WITH_EPILOGUE: _rows(1, 3),
    **{convolution: _rows(1) for convolution in CONVOLUTIONS},
}


def _refusal(node: fx.Node, matrix: torch.Tensor, inputs: int, outputs: int) -> str | None:
    """Why a product cannot take INT8, or None."""
    if node.target in CONVOLUTIONS:
        if node.target is not aten.conv2d.padding and convolution_arguments(node)[6] != 1:
            return "its convolution has groups"
    elif matrix.dim() != 2:
        return f"its weight has {matrix.dim()} dimensions"
    if min(inputs, outputs) < SMALLEST:
        return f"{inputs} input and {outputs} output channels, where 8 bits pay from {SMALLEST} on"
    return None


def channel_scales(matrix: torch.Tensor, axis: int, dtype: torch.dtype) -> torch.Tensor:
    """The scale of each output channel, as a number of `dtype`: its largest magnitude gets the last code."""
    others = [dim for dim in range(matrix.dim()) if dim != axis]
    return storable(matrix.double().abs().amax(others) / LARGEST_CODE, dtype)


def storable(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`scale` as a number of `dtype` that is not smaller, and not zero: a channel of zeros has the code 0 anyway."""
    smallest = torch.finfo(dtype).smallest_normal if dtype is not torch.float16 else 2.0**-24
    rounded = scale.to(dtype)
    up = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    return torch.where(rounded.double() < scale.double(), up, rounded).clamp(min=smallest)


def codes(matrix: torch.Tensor, scales: torch.Tensor, axis: int) -> torch.Tensor:
    """INT8 codes of a weight: round(w / scale) to even, -127 to 127."""
    shape = [-1 if dim == axis else 1 for dim in range(matrix.dim())]
    exact = matrix.double() / scales.double().reshape(shape)
    return exact.round().clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)


@dataclass(frozen=True)
class Quantisation:
    """What calibration decided about a graph: enough to plan INT8 again without the data.

    `thresholds`: the largest magnitude that an activation's codes hold, by source node. `equalised`: the factors of
    `equalise` by site. `kept`: sites that stay in the higher precision, with the reason. `sqnr_db`: the output's
    signal to quantisation noise by calibrator, as far as they were tried. `data` says what it was calibrated on, in
    words; `random` where that was noise.
    """

    calibrator: str
    thresholds: Mapping[str, float]
    equalised: Mapping[str, tuple[float, ...]]
    sqnr_db: Mapping[str, float]
    data: str
    rows: int
    random: bool = False
    kept: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Quantisation:
        """Read it back."""
        equalised = {name: tuple(values) for name, values in document["equalised"].items()}
        return cls(**{**document, "equalised": equalised})
