"""A regress result for others to read: JUnit XML for a CI's test page, Markdown for its summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from mlpdeploy.evidence.documents.regress import ACCEPTED, ACCURACY, FAILED_STAGES, NOT_MEASURED, VERIFICATION
from mlpdeploy.evidence.latency.machine import GPU, computed_on
from mlpdeploy.evidence.latency.sequential_test import PASSED, REGRESSED, UNDECIDED
from mlpdeploy.evidence.report.markdown import items, table, text
from mlpdeploy.system.text import megabytes, plain

MARKS = {PASSED: "✅", REGRESSED: "❌", UNDECIDED: "⚠️", ACCEPTED: "☑️", NOT_MEASURED: "⏭️"}


def junit(document: Mapping[str, Any]) -> str:
    """One test case a gate: failed where it regressed, or is undecided and that fails; skipped where not measured."""
    gates, settings = document["gates"], document["settings"]
    failing = {REGRESSED} | ({UNDECIDED} if settings["undecided"] == "fail" else set())
    skipped = {NOT_MEASURED, ACCEPTED, UNDECIDED} - failing
    counts: dict[str, Any] = {
        "tests": str(len(gates)),
        "failures": str(sum(gate["verdict"] in failing for gate in gates)),
        "skipped": str(sum(gate["verdict"] in skipped for gate in gates)),
    }
    name = plain(title(document))
    suite = ElementTree.Element("testsuite", name=name, timestamp=document["created"], errors="0", **counts)
    known = ElementTree.SubElement(suite, "properties")
    differs = [plain(line) for line in document["baseline"].get("differs", ())]
    said = [("baseline", plain(described(document["baseline"]))), *(("not alike", line) for line in differs)]
    for what, value in said:
        ElementTree.SubElement(known, "property", name=what, value=value)
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=plain(gate["label"]))
        if gate["verdict"] in failing:
            ElementTree.SubElement(case, "failure", message=plain(sentence(gate)), type=gate["verdict"])
        elif gate["verdict"] in skipped:
            ElementTree.SubElement(case, "skipped", message=plain(sentence(gate)))
    if differs:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(f"not alike: {line}" for line in differs)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(document: Mapping[str, Any]) -> str:
    """A table with one row a gate, the verdict above it, and what it was measured with below."""
    machine, baseline = document["machine"], document["baseline"]
    differs = [f"not alike: {line}" for line in baseline.get("differs", ())]
    header = ["", "gate", "baseline:", "candidate:", "change:", "interval", "limit:"]
    rows = [
        [MARKS[gate["verdict"]], f"{gate['label']}: {gate['verdict']}", *numbers(gate)] for gate in document["gates"]
    ]
    lines = [
        f"### {MARKS[document['verdict']]} {text(title(document))}: {document['verdict']}",
        "",
        f"Held against {text(described(baseline))}.",
        "",
        *([items(differs), ""] if differs else []),
        table(header, rows),
    ]
    reasons = [f"{gate['label']}: {gate['reason']}" for gate in document["gates"] if gate["reason"]]
    device = document["network"].get("device")
    threads = "" if device == GPU else f", {document['settings']['threads']} of {machine['cores']} cores"
    lines += ["", *([items(reasons), ""] if reasons else [])]
    lines.append(
        text(f"{computed_on(machine, device)}{threads}; {document['network']['weights']}; {document['created']}")
    )
    return "\n".join(lines) + "\n"


def title(document: Mapping[str, Any]) -> str:
    """What was held against the baseline: `vip_s7 fp32 with openvino`."""
    network = document["network"]
    return f"{network['name']} {network['precision']} with {network['backend']}"


def described(baseline: Mapping[str, Any]) -> str:
    """The baseline in words: `git:main (3f2a91c0de)`, `/opt/old/bin/python (openvino 2025.2.0, mlpdeploy 0.1.0)`."""
    commit = baseline.get("commit")
    return f"{baseline['reference']} ({commit[:10] if commit else baseline.get('engine') or baseline['created']})"


def sentence(gate: Mapping[str, Any]) -> str:
    """One gate in words."""
    if gate["verdict"] == NOT_MEASURED:
        return f"{gate['label']}: not measured: {gate['reason']}"
    if gate["name"] == VERIFICATION:
        return f"{gate['label']}: {gate['verdict']}{gate['reason'] and ': '}{gate['reason']}"
    before, after, change, interval, limit = numbers(gate)
    found = f"{change} {interval}".strip() or "no interval yet"
    return f"{gate['label']}: {gate['verdict']}: {before} -> {after}, {found}, limit {limit}"


def numbers(gate: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Baseline, candidate, change, its interval and the limit, as a table shows them."""
    if gate["verdict"] == NOT_MEASURED:
        return "", "", "", "", _percent(gate["limit"])
    interval, bounds, unit = "", (gate["low"], gate["high"]), gate["unit"]
    known = gate["batch"] is not None and None not in bounds
    if known or (bounds != (None, None) and gate["verdict"] != UNDECIDED):
        low, high = ("?" if bound is None else _percent(bound, sign=True) for bound in bounds)
        interval = f"[{low}, {high}]"
    change = "new" if gate["change"] is None else _percent(gate["change"], sign=True)
    if gate["batch"] is not None and not known:  # without an interval a change says nothing
        change = ""
    if gate["name"] == ACCURACY:
        change = f"{_percent(gate['change'])} lost" if gate["change"] > 0 else "nothing lost"
    if gate["name"] == VERIFICATION:
        change = ""
    before = "" if gate["baseline"] is None else amount(gate["baseline"], unit)
    return before, amount(gate["candidate"], unit), change, interval, _percent(gate["limit"])


def amount(value: float, unit: str) -> str:
    """A number as people write it: 12.3 ms, 66.4 MB, 205."""
    if unit == "bytes":
        return f"{megabytes(value)} MB"
    if unit == "ms":
        return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
    if unit == "s":
        return f"{value:.1f} s"
    if unit == FAILED_STAGES:
        return f"{value} {unit}"
    if unit.startswith("top-1"):
        return f"{value:.2%} {unit}"
    return f"{value:.1e} {unit}" if unit else f"{value:.0f}"


def _percent(value: float, sign: bool = False) -> str:
    shown = f"{100 * value:{'+' if sign else ''}.2g}" if abs(value) < 0.1 else f"{100 * value:{'+' if sign else ''}.0f}"
    return "0%" if math.isclose(value, 0, abs_tol=5e-6) else f"{shown}%"
