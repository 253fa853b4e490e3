"""What 8-bit codes cost, site by site, and the fewest sites that must stay out of it for a budget to hold."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from mlpdeploy.evidence.proof.compare import require_classes
from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.quantisation.calibrate import EXACT_DB, Arrays, Step, batches, fake_quantised, outputs, sqnr_db
from mlpdeploy.graph.quantisation.codes import Codes, channel_scales, coded, storable
from mlpdeploy.graph.quantisation.sites import Quantisation, Site, sites, taking
from mlpdeploy.graph.rewrite import Rewritten


@dataclass(frozen=True)
class Sensitivity:
    """What happens to the output where one site alone takes codes.

    `noise` is the squared error over the squared output, `sqnr_db` the same in decibels. `top1` is the change of top-1
    in points: of accuracy with labels, else of agreement with FP32; None where the output is no logits.
    """

    node: str
    module: str
    macs: int
    noise: float
    top1: float | None

    @property
    def sqnr_db(self) -> float:
        """Signal to noise in decibels; infinite without noise."""
        return -10 * math.log10(self.noise) if self.noise > 0 else math.inf

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values; no noise at all has no decibels."""
        return asdict(self) | {"sqnr_db": None if self.noise == 0 else self.sqnr_db}


@dataclass(frozen=True)
class Target:
    """What a mixed network must reach: at most `max_drop` points of top-1 lost, or at least `min_sqnr` decibels."""

    max_drop: float | None = None
    min_sqnr: float | None = None


@dataclass(frozen=True)
class MixedPoint:
    """A mixed network: how many sites stay out of 8 bits, the share of multiply-accumulates that is in them, and how
    well it does: `top1` is the accuracy, or the agreement with FP32 without labels."""

    kept: int
    quantised_macs: float
    sqnr_db: float | None
    top1: float | None


@dataclass(frozen=True)
class Judge:
    """Rows, what FP32 makes of them, and their labels where known."""

    rows: Arrays
    expected: np.ndarray
    labels: np.ndarray | None

    @classmethod
    def of(cls, balanced: Rewritten, rows: Arrays, labels: np.ndarray | None) -> Judge:
        """With the FP32 outputs of `balanced`. Raises InputError for a label that is no class."""
        expected = outputs(balanced.module, rows, balanced.inputs)
        if labels is not None:
            require_classes(labels, expected)
        return cls(rows, expected, labels)

    @property
    def classes(self) -> np.ndarray:
        """The right classes: the labels, or else those that FP32 finds."""
        return self.expected.argmax(1) if self.labels is None else self.labels

    def top1(self, logits: np.ndarray) -> float | None:
        """The share of rows with the right class."""
        return float((logits.argmax(1) == self.classes).mean()) if logits.shape[1] > 1 else None

    def noise(self, output: np.ndarray) -> float:
        """The squared error over the squared FP32 output."""
        expected = self.expected.astype(np.float64)
        return float(((expected - output) ** 2).sum()) / max(float((expected**2).sum()), 1e-300)

    def drop(self, logits: np.ndarray) -> float:
        """Points of top-1 lost against FP32."""
        return 100 * ((self.top1(self.expected) or 0.0) - (self.top1(logits) or 0.0))


def sensitivities(
    balanced: Rewritten,
    quantisation: Quantisation,
    judge: Judge,
    step: Step = lambda phase, done, total: None,
    only: Collection[str] | None = None,
) -> tuple[Sensitivity, ...]:
    """Every site of the (equalised) graph on its own, or `only` these, the most harmful first.

    The FP32 values before a site are computed once; only what depends on the site is computed again for it.
    """
    whole = taking(balanced.module, quantisation.codes, quantisation.kept)
    found = {name: site for name, site in whole.items() if only is None or name in only}
    results: dict[str, list[np.ndarray]] = {name: [] for name in found}
    total = len(found) * -(-len(judge.expected) // len(next(batches(judge.rows, balanced.inputs))[0]))
    done = 0
    with torch.inference_mode():
        for batch in batches(judge.rows, balanced.inputs):
            for name, output in _each_alone(balanced.module, batch, found, quantisation):
                results[name].append(output)
                done += 1
                step("one site at a time", done, total)
    rows = []
    before = judge.top1(judge.expected)
    for name, site in found.items():
        output = np.concatenate(results[name])
        after = judge.top1(output)
        top1 = None if after is None or before is None else 100 * (after - before)
        rows.append(Sensitivity(name, site.module, site.macs, judge.noise(output), top1))
    return tuple(sorted(rows, key=lambda row: -row.noise))


def loud_ends(balanced: Rewritten, quantisation: Quantisation, judge: Judge) -> dict[str, str]:
    """The first and the last site, where one alone makes more noise than all sites between them: with the reason.

    They are often the most sensitive of a network and its cheapest. A network of two sites has none between them.
    """
    names = list(taking(balanced.module, quantisation.codes, quantisation.kept))
    if len(names) < 3:
        return {}
    ends = (names[0], names[-1])
    rest = replace(quantisation, kept={**quantisation.kept, **dict.fromkeys(ends, "")})
    between = judge.noise(outputs(fake_quantised(balanced, rest), judge.rows, balanced.inputs))
    loud = [row for row in sensitivities(balanced, quantisation, judge, only=ends) if row.noise > between]
    decibels = -10 * math.log10(between) if between > 0 else math.inf
    codes = quantisation.precision.upper()
    return {
        row.node: f"in {codes} it alone leaves {row.sqnr_db:.1f} dB, all between the ends {decibels:.1f} dB"
        for row in loud
    }


def mix(
    balanced: Rewritten,
    quantisation: Quantisation,
    judge: Judge,
    ranked: Sequence[Sensitivity],
    target: Target,
    step: Step = lambda phase, done, total: None,
) -> tuple[Quantisation, tuple[MixedPoint, ...]]:
    """Keep out of 8 bits the fewest sites that `target` asks for, and the accuracy at each number that was tried.

    Sites go by the noise that they cause for what they cost: their multiply-accumulates, and one average site's
    for the casts. How many go is bisected, each try measured on the whole network. Without logits `max_drop` asks for
    nothing.
    """
    total = sum(row.macs for row in ranked)
    order = sorted(ranked, key=lambda row: -row.noise / (row.macs + total / len(ranked)))
    points: dict[int, MixedPoint] = {}
    reached: dict[int, bool] = {}

    def enough(count: int) -> bool:
        if count not in points:
            points[count], reached[count] = _point(balanced, quantisation, judge, order, count, target)
            step("mixing precisions", len(points), max(len(points), math.ceil(math.log2(len(order) + 1)) + 1))
        return reached[count]

    low, high = 0, len(order)
    while low < high:
        middle = 0 if low == 0 and not points else (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    enough(low)
    codes = quantisation.precision.upper()
    kept = {
        row.node: f"in {codes} it alone leaves {row.sqnr_db:.1f} dB, for {row.macs / total:.1%} of the products"
        for row in order[:low]
    }
    mixed = replace(quantisation, kept={**quantisation.kept, **kept})
    return mixed, tuple(points[count] for count in sorted(points))


def _point(
    balanced: Rewritten,
    quantisation: Quantisation,
    judge: Judge,
    order: Sequence[Sensitivity],
    count: int,
    target: Target,
) -> tuple[MixedPoint, bool]:
    """The network with the first `count` sites of `order` out of 8 bits, and whether that is enough."""
    mixed = replace(quantisation, kept={**quantisation.kept, **{row.node: "" for row in order[:count]}})
    output = outputs(fake_quantised(balanced, mixed), judge.rows, balanced.inputs)
    sqnr = sqnr_db(judge.expected, output)
    whole = sum(site.macs for site in sites(balanced.module, quantisation.codes).found.values())
    share = sum(row.macs for row in order[count:]) / whole
    enough = (target.min_sqnr is None or sqnr >= target.min_sqnr) and (
        target.max_drop is None or judge.drop(output) <= target.max_drop + 1e-9
    )
    return MixedPoint(count, share, sqnr if sqnr < EXACT_DB else None, judge.top1(output)), enough


def _each_alone(
    module: fx.GraphModule, batch: Sequence[torch.Tensor], found: Mapping[str, Site], quantisation: Quantisation
) -> Iterator[tuple[str, np.ndarray]]:
    """The outputs (rows, numbers) with each site alone in 8 bits."""
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    interpreter.run(*batch)
    values = interpreter.env
    order = list(module.graph.nodes)
    for place, node in enumerate(order):
        if (site := found.get(node.name)) is None:
            continue
        codes = quantisation.codes
        scale = quantisation.thresholds[site.source] / codes.largest
        changed: dict[fx.Node, Any] = {node: _quantised(module, node, site, scale, codes, values)}
        for later in order[place + 1 :]:
            if any(source in changed for source in later.all_input_nodes):
                changed[later] = _run(later, ChainMap(changed, values))
        leaves = pytree.tree_leaves(changed[order[-1]])
        yield node.name, np.concatenate([leaf.float().numpy().reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _quantised(
    module: fx.GraphModule, node: fx.Node, site: Site, scale: float, codes: Codes, values: Mapping[fx.Node, Any]
) -> torch.Tensor:
    args = list(fx.map_arg(node.args, values.__getitem__))
    matrix = weight(module, node.args[site.weight])
    assert matrix is not None
    step = storable(torch.tensor(scale), torch.float32)
    args[site.activation] = custom_ops.dequantise(
        custom_ops.quantise(args[site.activation], step, codes.dtype), step, 0
    )
    scales = channel_scales(matrix, site.axis, torch.float32, codes)
    args[site.weight] = custom_ops.dequantise(coded(matrix, scales, site.axis, codes), scales, site.axis)
    kwargs = fx.map_arg(dict(node.kwargs), values.__getitem__)
    found: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return found


def _run(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    return args[0] if node.op == "output" else node.target(*args, **kwargs)  # type: ignore[operator]
