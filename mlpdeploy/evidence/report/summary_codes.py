"""The parts of the Markdown summary that are about codes: of 8 bits for both operands, of 4 for weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlpdeploy.evidence.report.markdown import Markdown, code, items, table, text
from mlpdeploy.evidence.report.words import coded_facts, quantised_facts


def in_blocks(coded: Mapping[str, Any] | None) -> str:
    """Which weights are codes, and why others are not."""
    if coded is None:
        return ""
    return f"## {coded['precision'].upper()}\n\n" + table(["", ""], [list(fact) for fact in coded_facts(coded).items()])


def in_8_bits(quantised: Mapping[str, Any] | None) -> str:
    """How 8 bits were calibrated, whether they paid off, what stayed out of them, and accuracy against their share."""
    if quantised is None:
        return ""
    codes = quantised["precision"]
    parts = [f"## {codes.upper()}", table(["", ""], [list(fact) for fact in quantised_facts(quantised).items()])]
    measured = (quantised.get("worth") or {}).get("backends", {})
    if measured:
        rows = [
            [name, *(f"{row['median_ms'][precision]:.2f}" for precision in (codes, "fp16", "fp32"))]
            for name, row in measured.items()
        ]
        batch = quantised["worth"]["batch"]
        parts += [f"Median latency at batch {batch}, in milliseconds, taking turns on this machine:"]
        parts.append(table(["backend", f"{codes.upper()}:", "FP16:", "FP32:"], rows))
    skipped = (quantised.get("worth") or {}).get("not_measured", {})
    if skipped:
        parts.append("Not measured:\n\n" + items(f"{name}: {why}" for name, why in skipped.items()))
    if quantised["curve"]:
        rows = [[point["kept"], f"{point['quantised_macs']:.1%}", *_point(point)] for point in quantised["curve"]]
        head = [f"kept from {codes.upper()}:", f"MACs in {codes.upper()}:", "output SQNR:", "top-1:"]
        parts += ["What accuracy costs, each row measured:", table(head, rows)]
        drawn = any(point["sqnr_db"] is not None for point in quantised["curve"])
        parts += ["![accuracy and cost](curve.svg)"] if drawn else []
    if stayed := [left_out(one["module"], one["reason"]) for one in (*quantised["kept"], *quantised["refused"])]:
        parts += [f"Products that stayed out of {codes.upper()}:", items(stayed)]
    return "\n\n".join(parts)


def left_out(name: str, reason: str) -> Markdown:
    return Markdown(f"{where(name)}: {text(reason)}")


def _point(point: Mapping[str, Any]) -> tuple[str, str]:
    db, top1 = point["sqnr_db"], point["top1"]
    return "no noise" if db is None else f"{db:.1f} dB", "" if top1 is None else f"{top1:.2%}"


def where(name: str) -> Markdown:
    return code(name) if name else Markdown("the network itself")
