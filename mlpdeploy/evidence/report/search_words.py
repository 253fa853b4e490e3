"""What a search decided about an engine, in words that every report has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mlpdeploy.artifact.decisions import Ratio

HEADER = ("rule or form", "change", "time with it / without it", "result")


def search_text(decided: Mapping[str, Any] | None) -> str:
    """One line: how much was tried, by what it was judged, and what came of it; "" where nothing was searched."""
    decision = (decided or {}).get("decision")
    if decided is None or decision is None:
        return ""
    found = Counter(trial["verdict"] for trial in decision["trials"])
    results = ", ".join(f"{count} {verdict}" for verdict, count in found.items()) or "there was nothing to try"
    judged = f"judged by {decision['judged_by']} at batch {decision['batch']} ({decided['case']['device']})"
    return f"{len(decision['trials'])} changes in {decision['seconds']:.0f} s, {judged}: {results}"


def search_rows(decided: Mapping[str, Any] | None) -> list[Sequence[str]]:
    """A row for each change that was tried, under HEADER."""
    decision = (decided or {}).get("decision") or {"trials": []}
    return [(one["name"], one["change"], _ratio(one), _result(one)) for one in decision["trials"]]


def _ratio(trial: Mapping[str, Any]) -> str:
    return "" if trial["ratio"] is None else Ratio(**trial["ratio"]).said


def _result(trial: Mapping[str, Any]) -> str:
    return f"{trial['verdict']}: {trial['why']}" if trial["why"] else str(trial["verdict"])
