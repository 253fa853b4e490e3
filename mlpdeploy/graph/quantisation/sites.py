"""Where 8-bit codes go: the projections and convolutions of a rewritten graph that take both operands in INT8 or FP8.

A site is annotated here and converted elsewhere (`typed.apply`). Its weight has one scale for each output channel,
its activation one scale for all of it, and both are symmetric: zero is the code 0, so no product needs a correction
and no bias a form of its own. An activation is quantised where it is computed: what only rearranges it
on its way to a site moves 8-bit codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.kinds import CONVOLUTIONS, convolution_arguments, shape_of
from mlpdeploy.graph.layout.view import Size, size_at
from mlpdeploy.graph.matching.rearrangements import back
from mlpdeploy.graph.quantisation.codes import BLOCKS, CODES, FP8, INT4, NVFP4, Codes, block_of
from mlpdeploy.graph.tracing.place import network_of

aten = torch.ops.aten

SMALLEST = 16
"""Input and output channels below which a product in 8 bits costs more than it saves: tensor cores take 16 or more."""

SMALLEST_SHARE = 1e-4
"""Part of a network's multiply-accumulates below which a product is over sooner than what 8 bits add: the launch that
makes codes of its activation, and on TensorRT the one that no longer runs within the product."""


WIDEST_FP8 = 32
"""Places of a kernel beyond which TensorRT decodes FP8 in launches of their own and convolves in FP16. Of TensorRT-RTX
1.7 for SM 8.9 and 12.0, 5 x 5 is convolved in FP8 and 6 x 6 is not."""


@dataclass(frozen=True)
class Site:
    """An operation that can take codes: a product of the activation `args[activation]` and the weight `args[weight]`.

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


def products(module: fx.GraphModule) -> dict[str, Site]:
    """Every product of an activation and a weight by node name, whether it takes codes or not."""
    found = {}
    for node in module.graph.nodes:
        operands = _operands(module, node)
        if operands is None:
            continue
        activation, place, axis, channels = operands
        matrix = _matrix(module, node, place)
        outputs = matrix.shape[axis]
        each = math.prod(matrix.shape[:-2]) if node.target in _BATCHED else 1
        inputs = matrix.numel() // outputs // each
        macs = math.prod(size_at(size, 1) for size in shape_of(node)) * inputs
        source = back(node.args[activation]).source.name
        found[node.name] = Site(
            node.name, network_of(node), activation, place, axis, channels, source, inputs, outputs, macs
        )
    return found


def sites(module: fx.GraphModule, codes: Codes) -> Sites:
    """Of all products those that take `codes`, and why the others do not."""
    known = products(module)
    least = SMALLEST_SHARE * sum(site.macs for site in known.values())
    found, refused, modules = {}, {}, {}
    for node in module.graph.nodes:
        if (site := known.get(node.name)) is None:
            continue
        reason = _refusal(node, _matrix(module, node, site.weight), site, codes)
        if reason is None and site.macs < least and codes is not INT4:
            reason = f"it has less than {SMALLEST_SHARE:.2%} of the network's multiply-accumulates"
        if reason is None:
            found[node.name] = site
        else:
            refused[node.name], modules[node.name] = reason, site.module
    return Sites(found, refused, modules)


def taking(module: fx.GraphModule, codes: Codes, kept: Collection[str]) -> dict[str, Site]:
    """The sites that take `codes` where those of `kept` stay out, by name."""
    return {name: site for name, site in sites(module, codes).found.items() if name not in kept}


def _matrix(module: fx.GraphModule, node: fx.Node, place: int) -> torch.Tensor:
    matrix = weight(module, node.args[place])
    assert matrix is not None
    return matrix


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


_BATCHED = (aten.matmul.default, aten.mm.default)
"""Products whose weight may be several, one for each place of the axes in front."""

_SEGMENTED = (custom_ops.SEGMENT_GROUPED_PROJECTION, custom_ops.WITH_EPILOGUE)

_READERS: dict[Any, Callable[[fx.GraphModule, fx.Node], Operands | None]] = {
    aten.linear.default: _rows(-1),
    aten.matmul.default: _product,
    aten.mm.default: _product,
    **{projection: _rows(1, 3) for projection in _SEGMENTED},
    **{convolution: _rows(1) for convolution in CONVOLUTIONS},
}


def _refusal(node: fx.Node, matrix: torch.Tensor, site: Site, codes: Codes) -> str | None:
    """Why a product cannot take codes, or None."""
    if codes is INT4 and (node.target in CONVOLUTIONS or _from_the_left(node, site)):
        what = "it is a convolution" if node.target in CONVOLUTIONS else "its weight lies left of the activation"
        return f"{what}, of which TensorRT reads no blocks"
    if codes is NVFP4 and (reason := _no_fp4(node, site)) is not None:
        return reason
    if node.target in CONVOLUTIONS:
        if node.target is not aten.conv2d.padding and convolution_arguments(node)[6] != 1:
            return "its convolution has groups"
        if codes is FP8 and (places := matrix[0, 0].numel()) > WIDEST_FP8:
            return f"its kernel has {places} places, and TensorRT convolves FP8 with up to {WIDEST_FP8}"
    elif matrix.dim() != 2:
        return f"its weight has {matrix.dim()} dimensions"
    if codes is INT4 and block_of(site.inputs) is None:
        return f"its {site.inputs} input channels make no blocks of {' or '.join(map(str, BLOCKS))}"
    if min(site.inputs, site.outputs) < SMALLEST:
        return f"{site.inputs} input and {site.outputs} output channels, where codes pay from {SMALLEST} on"
    return None


def _from_the_left(node: fx.Node, site: Site) -> bool:
    """Whether a weight is multiplied from the left: that of a segment-grouped projection is, before a trailing axis."""
    return site.activation == 1 or (node.target in _SEGMENTED and len(shape_of(node)) > 4)


def _no_fp4(node: fx.Node, site: Site) -> str | None:
    """Why an operation has no blocks of FP4, or None."""
    if node.target in CONVOLUTIONS:
        return "it is a convolution, of which TensorRT makes no blocks of FP4"
    if site.activation:
        return "its weight lies left of the activation, of which blocks of FP4 would lie across"
    if site.inputs % custom_ops.FP4_BLOCK:
        return f"its {site.inputs} input channels make no blocks of {custom_ops.FP4_BLOCK}"
    return None


@dataclass(frozen=True)
class Quantisation:
    """What calibration decided about a graph: enough to plan it again without the data.

    `precision` is that of the codes. `thresholds`: the largest magnitude that an activation's codes hold, by source
    node. `equalised`: the factors of `equalise` by site. `kept`: sites that stay in the higher precision, with the
    reason. `sqnr_db`: the output's signal to quantisation noise by calibrator, as far as they were tried. `data` says
    what it was calibrated on, in words; `random` where that was noise.
    """

    precision: str
    calibrator: str
    thresholds: Mapping[str, float]
    equalised: Mapping[str, tuple[float, ...]]
    sqnr_db: Mapping[str, float]
    data: str
    rows: int
    random: bool = False
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def codes(self) -> Codes:
        """What operands are coded in."""
        return CODES[self.precision]

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Quantisation:
        """Read it back."""
        if document["precision"] not in CODES:
            raise ValueError(f"no precision {document['precision']!r} has codes")
        equalised = {name: tuple(values) for name, values in document["equalised"].items()}
        return cls(**{**document, "equalised": equalised})
