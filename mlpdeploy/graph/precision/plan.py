"""Stage 3: a frozen plan that gives every node its dtype, and the graph that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx

from mlpdeploy.errors import InputError
from mlpdeploy.graph.kinds import root_of
from mlpdeploy.graph.precision.fp32_only import formless
from mlpdeploy.graph.precision.lost import protected
from mlpdeploy.graph.precision.ranges import Peaks, Ranges, measure, power
from mlpdeploy.graph.precision.reach import Reach
from mlpdeploy.graph.precision.sensitive import sensitive
from mlpdeploy.graph.precision.small import divisors, small
from mlpdeploy.graph.quantisation.codes import CODES, INT4, Codes
from mlpdeploy.graph.quantisation.sites import Quantisation, Site, products, residuals, sites, taking
from mlpdeploy.graph.rewrite import Rewritten
from mlpdeploy.graph.tracing.place import network_of
from mlpdeploy.precisions import WEIGHT_ONLY

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision name to the dtype of the graph; TF32 is FP32 in the graph and a flag of the engine's builder."""

FP16_MAX = torch.finfo(torch.float16).max

HEADROOM = 0.5
"""The share of the largest FP16 number that values may reach in the range pass; real data may go beyond its samples."""

LARGE_HEADROOM = 0.9
"""That which it may reach for a row a hundred times larger, beyond which little lies."""


REASONS = 3
"""That one line names."""


@dataclass(frozen=True)
class Kept:
    """A node that stays in FP32 in a lower-precision plan: its module in the user's network, and the reason."""

    node: str
    module: str
    reason: str


@dataclass(frozen=True)
class Quantised:
    """A site that takes codes, with the scale of its activation; those of its weight follow from the weight."""

    site: Site
    scale: float


@dataclass(frozen=True)
class Plan:
    """The dtype of every floating-point node by name, of inputs and outputs, and what was kept in FP32 and why.

    An operation that makes no real numbers of some, a comparison, is in `dtypes` where it must read them in FP32.
    """

    precision: str
    dtypes: Mapping[str, torch.dtype]
    io: torch.dtype
    kept: tuple[Kept, ...]
    quantised: Mapping[str, Quantised] = field(default_factory=dict)
    """By name, the nodes whose two operands are 8-bit codes; `dtypes` has what they accumulate to."""
    beside: str = ""
    """The precision of all that is not quantised."""
    residuals: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """By name, the additions that read one operand (its place) as the codes that a site reads too (their scale)."""
    weights: Mapping[str, Site] = field(default_factory=dict)
    """By name, the products that read a weight of INT4 codes, and their activation as it is."""

    @property
    def codes(self) -> Codes:
        """What its quantised operands are coded in."""
        return CODES[self.precision]


def plan(
    rewritten: Rewritten,
    precision: str,
    io: str = "fp32",
    samples: Mapping[str, np.ndarray] | None = None,
    quantisation: Quantisation | None = None,
    beside: str = "fp16",
) -> Plan:
    """Give every node its dtype.

    For FP16 and BF16 the network runs in FP32 over a few random rows, the first of `samples` (arrays by input name) and
    the extreme ones. Nodes whose values come near the end of FP16's range stay in FP32, as do their consumers; large
    angles, places on grids and indices (see `sensitive`); and what a constant or a value too small for the precision
    has to be known for (see `lost`, `small`).

    INT8 and FP8 take a `quantisation` of this graph: its sites take codes, and all else has the precision `beside`, as
    it has beside INT4, whose weights need none.
    """
    for name, known in ((precision, (*DTYPES, *CODES, *WEIGHT_ONLY)), (io, DTYPES), (beside, DTYPES)):
        if name not in known:
            raise InputError(f"precision {name!r} is not one of {', '.join(known)}")
    low = DTYPES[precision if precision in DTYPES else beside]
    reasons = {} if low is torch.float32 else _reasons(rewritten, samples, low)
    if precision not in DTYPES and low is torch.float32:
        taking = sites(rewritten.module, CODES.get(precision, INT4)).found
        reasons = {name: why for name, why in sensitive(rewritten.module, Peaks({}, {})).items() if name in taking}
    calls = [node for node in rewritten.module.graph.nodes if node.op == "call_function"]
    kept = tuple(Kept(node.name, network_of(node), reasons[node.name]) for node in calls if node.name in reasons)
    nodes = [node for node in calls if is_float(node) or node.name in reasons]
    dtypes = {node.name: torch.float32 if node.name in reasons else low for node in nodes}
    if precision in WEIGHT_ONLY:
        weights = {name: site for name, site in sites(rewritten.module, INT4).found.items() if name not in reasons}
        return Plan(precision, dtypes, DTYPES[io], kept, beside=beside, weights=weights)
    if precision not in CODES:
        return Plan(precision, dtypes, DTYPES[io], kept, beside=precision)
    assert quantisation is not None, "codes are planned from a calibration"
    quantised = _quantised(rewritten, quantisation, reasons)
    return Plan(precision, dtypes, DTYPES[io], kept, quantised, beside, _residuals(rewritten, quantised, reasons))


def require_codes(rewritten: Rewritten, planned: Plan) -> None:
    """Raise InputError where codes were asked for and no product takes any, with the reasons."""
    if planned.precision in DTYPES or planned.quantised or planned.weights:
        return
    refused = sites(rewritten.module, CODES.get(planned.precision, INT4)).refused
    kept = {one.node: f"it {one.reason}" for one in planned.kept}
    why = dict.fromkeys(
        refused.get(name) or kept.get(name) or "it stays out by what it costs" for name in products(rewritten.module)
    )
    reasons = "; ".join([*why][:REASONS]) or "it has none with a weight"
    raise InputError(
        f"no product of this network takes {planned.precision.upper()}: {reasons}; build it in fp16 or fp32"
    )


def _quantised(rewritten: Rewritten, quantisation: Quantisation, reasons: Mapping[str, str]) -> dict[str, Quantised]:
    """The sites that take codes: all but those that were kept out and those that need FP32."""
    codes = quantisation.codes
    return {
        name: Quantised(site, quantisation.thresholds[site.source] / codes.largest)
        for name, site in taking(rewritten.module, codes, {*quantisation.kept, *reasons}).items()
    }


def _residuals(
    rewritten: Rewritten, quantised: Mapping[str, Quantised], reasons: Mapping[str, str]
) -> dict[str, tuple[int, float]]:
    """The additions that read codes, all but those that need FP32."""
    scales = {how.site.source: how.scale for how in quantised.values()}
    found = residuals(rewritten.module, {name: how.site for name, how in quantised.items()})
    return {name: (one.place, scales[one.source]) for name, one in found.items() if name not in reasons}


def is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, torch.Tensor) and item.is_floating_point() for item in values)


def _reasons(rewritten: Rewritten, samples: Mapping[str, np.ndarray] | None, low: torch.dtype) -> dict[str, str]:
    """Why each node that cannot run in the low precision cannot, by node name."""
    module, reach = rewritten.module, Reach(low)
    ranges = measure(rewritten, samples, divisors(module).values())
    overflows = _overflows(module.graph, ranges) if low is torch.float16 else {}
    found = small(module, ranges, reach) | protected(module, ranges.usual, reach) | formless(module, low)
    return found | sensitive(module, ranges.usual) | overflows


def _overflows(graph: fx.Graph, ranges: Ranges) -> dict[str, str]:
    """Why each node that cannot run in FP16 cannot, by node name: what it computes or what it reads is too large."""
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        value = _beyond(node, ranges)
        if node.op == "call_function" and (reached := value or _formed(node, ranges)) is not None:
            reasons[node.name] = f"reaches {reached:.3g}, FP16 ends at 6.55e4"
        if value:
            for user in node.users:
                reasons.setdefault(user.name, f"reads {value:.3g} from {node.name}")
    return reasons


def _beyond(node: fx.Node, ranges: Ranges) -> float | None:
    """The largest magnitude of a node where that is beyond its share of FP16, or no number; None elsewhere."""
    usual, largest = ranges.usual.of(node), ranges.largest.get(node.name, 0.0)
    return None if usual <= HEADROOM * FP16_MAX and largest <= LARGE_HEADROOM * FP16_MAX else largest


def _formed(node: fx.Node, ranges: Ranges) -> float | None:
    """What a node forms on its way where that is beyond its share of FP16, or no number; None elsewhere."""
    inside = ranges.usual.inside.get(node.name, 0.0)
    if not inside <= HEADROOM * FP16_MAX:
        return inside
    largest = power(ranges.largest.get(node.name, 0.0), root_of(node))
    return None if largest <= LARGE_HEADROOM * FP16_MAX else largest
