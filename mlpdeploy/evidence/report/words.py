"""What several writers of tables say alike, for the terminal, report.md and the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PHASES = {
    "host_to_device_ms": "copy in",
    "compute_ms": "compute",
    "device_to_host_ms": "copy out",
    "end_to_end_ms": "end to end",
}
"""A call's parts on a GPU, and the whole, by their names in a bench document."""


@dataclass(frozen=True)
class DeviceRow:
    """A contender on a GPU: milliseconds as PHASES has them, and why no CUDA graph computed it ("" where one did)."""

    batch: int
    name: str
    milliseconds: tuple[float, ...]
    uncaptured: str

    @property
    def graph(self) -> str:
        """Whether a CUDA graph computed it, and if not, why."""
        return f"no: {self.uncaptured}" if self.uncaptured else "yes"


def device_rows(measurements: Iterable[Mapping[str, Any]]) -> list[DeviceRow]:
    """Those contenders of a bench document's measurements that a GPU's clock timed."""
    return [
        DeviceRow(one["batch"], row["name"], tuple(row["phases"][part] for part in PHASES), row["phases"]["uncaptured"])
        for one in measurements
        for row in one["contenders"]
        if row.get("phases")
    ]


def clock_notes(measurements: Iterable[Mapping[str, Any]]) -> list[str]:
    """Where the host's clock had to do for a GPU, and why."""
    told = ((one["batch"], one.get("host_clock")) for one in measurements)
    return [f"At batch {batch} times are the host's, copies included: {reason}" for batch, reason in told if reason]


EXTREME = (
    "Extreme rows run in a batch of their own, ordinary ones among them. A flat row may be worse conditioned in the "
    "network itself than a random one; it may then be off by so much more."
)
"""What stands above `extreme_rows`."""


def nearest(extremes: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of a stage's extreme rows in verification.json the one that is nearest to what it may be off, or furthest beyond;
    None where there are none."""

    def share(one: Mapping[str, Any]) -> float:
        if one["error"] is None:
            return math.inf
        return one["error"] / one["allowed"] if one["allowed"] else 0.0

    return max(extremes, key=share, default=None)


def extreme_text(one: Mapping[str, Any] | None, budget: float) -> str:
    """How far off an extreme row is, and what it may be off where that is not the budget."""
    if one is None:
        return ""
    error = "not finite" if one["error"] is None else f"{one['error']:.1e}"
    beyond = "any finite number" if one["allowed"] is None else f"{one['allowed']:.1e}"
    return error if one["allowed"] == budget else f"{error} (allowed: {beyond})"


def extreme_rows(stages: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A header and, for each extreme row, its name and how far off each stage is that ran it; nothing without any."""
    ran = [stage for stage in stages if stage.get("extremes")]
    names = dict.fromkeys(one["row"] for stage in ran for one in stage["extremes"])
    cells = [[name, *(_extreme(stage, name) for stage in ran)] for name in names]
    return (["row", *(stage["name"] for stage in ran)] if ran else [], cells)


def _extreme(stage: Mapping[str, Any], name: str) -> str:
    found = nearest(one for one in stage["extremes"] if one["row"] == name)
    return extreme_text(found, stage["budget"]["max_relative_error"]) or "not compared"


EVALUATED = ("contender", "top-1", "95 % interval", "top-5", "95 % interval")
"""The header of `evaluated_rows`."""


def evaluated_rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    """For each contender of evaluation.json its name, and how often it is right, with what that is sure to."""
    return [[one["name"], *_share(one["top1"]), *_share(one["top5"])] for one in evaluation["contenders"]]


def _share(share: Mapping[str, float]) -> tuple[str, str]:
    return f"{share['share']:.2%}", f"{share['low']:.2%} to {share['high']:.2%}"


def evaluated_lines(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """What else an evaluation says, line by line."""
    yield from evaluation["data"]
    if (paired := evaluation["paired"]) is not None:
        if evaluation["agreement"] is not None:
            yield f"engine and PyTorch see the same class first in {evaluation['agreement']:.2%}"
        only = f"only the engine is right in {paired['engine_only']}, only PyTorch in {paired['pytorch_only']}"
        yield f"{only}; McNemar's exact test: p = {paired['p_value']:.2g}"
    for one in evaluation["contenders"]:
        if one["not_finite"]:
            yield f"{one['name']}: scores of {one['not_finite']} images are not all finite: run verify"
    for skipped in evaluation["skipped"]:
        yield f"skipped {skipped['file']}: {skipped['reason']}"
    if (more := evaluation["unread"] - len(evaluation["skipped"])) > 0:
        yield f"skipped {more} more that cannot be read"


PRODUCTS = ("fully_connected", "corrltn", "deconvolution")
"""Launches of products and convolutions, as TensorRT-RTX calls them."""


def launches_text(launches: Mapping[str, Any]) -> str:
    """What one inference launches, and how much of the engine is the source of what is compiled where it runs."""
    kinds = launches["by_kind"]
    named = {"copies": "that only copy", "normalisations": "of norms", "pointwise": "pointwise"}
    products, fused = sum(kinds.get(kind, 0) for kind in PRODUCTS), kinds.get("runtime_fusion", 0)
    counts = {words: count for what, words in named.items() if (count := launches.get(what))}
    other = launches["total"] - products - fused - sum(counts.values())
    made = "".join(f"{count} {words}, " for words, count in counts.items())
    known = launches.get("by_profile") or {}
    profiles = f" ({', '.join(f'{count} at {batch}' for batch, count in known.items())})" if known else ""
    counted = f"{products} product{'' if products == 1 else 's'}, {fused} product{'' if fused == 1 else 's'}"
    text = f"{launches['total']} for one inference{profiles}: {counted} with what follows them, "
    transposes = f"; {count} of them transpose" if (count := launches.get("transposes")) else ""
    moved = f"; {size / 1e6:.0f} MB read and written" if (size := launches.get("bytes_moved")) else ""
    source = f"; {launches['source_bytes'] / 1e6:.1f} MB of the engine is source of kernels"
    return f"{text}{made}{other} other{transposes}{moved}{source}"


def moving_facts(launches: Mapping[str, Any]) -> dict[str, str]:
    """Rows that say in which modules an engine's launches only copy, and in which they transpose."""
    names = {"copies": "that only copy", "transposes": "that transpose"}
    return {
        names[what]: ", ".join(f"{module} {count}" for module, count in by_module.items())
        for what, by_module in (launches.get("where") or {}).items()
        if by_module
    }


def coded_facts(coded: Mapping[str, Any]) -> dict[str, str]:
    """The manifest's `coded_weights` in words."""
    codes, refused = coded["precision"].upper(), coded["refused"]
    which = f"weights of {coded['sites']} of {coded['of_products']} products, {coded['share_of_weights']:.1%} of all"
    blocks = " and ".join(map(str, coded["blocks"]))
    rows = {codes: f"{which}, in blocks of {blocks}; activations and all else {coded['beside'].upper()}"}
    if refused:
        reasons = dict.fromkeys(one["reason"] for one in refused)
        rows[f"not in {codes}"] = f"{len(refused)}: {'; '.join(reasons)}"
    return rows


def quantised_facts(quantised: Mapping[str, Any]) -> dict[str, str]:
    """The manifest's `quantised` in words."""
    codes = quantised["precision"].upper()
    tried = ", ".join(f"{name} {db:.1f} dB" for name, db in quantised["sqnr_db"].items())
    rows = {
        codes: f"{quantised['sites']} of {quantised['of_sites']} products that can take it, "
        f"{quantised['share_of_macs']:.1%} of their multiply-accumulates; all else {quantised['beside'].upper()}",
        "calibrated": f"on {quantised['data']}, calibrator {quantised['calibrator']} ({tried})",
    }
    if quantised["equalised"]:
        rows["equalised"] = f"{quantised['equalised']} operations"
    if quantised.get("residuals"):
        rows["residuals"] = f"{quantised['residuals']} additions after a convolution read {codes}"
    if quantised["kept"]:
        names = [one["module"] or one["node"] for one in quantised["kept"]]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        rows[f"kept from {codes}"] = ", ".join(names[:5]) + more
    if quantised.get("worth"):
        told = "; ".join(quantised["worth"]["verdicts"])
        rows["worth it"] = told or f"not measured: no engine that multiplies {codes} runs here"
    if quantised["warning"]:
        rows["warning"] = quantised["warning"]
    return rows
