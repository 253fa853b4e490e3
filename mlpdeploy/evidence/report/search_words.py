"""What a search decided about an engine, in words that every report has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mlpdeploy.artifact.decisions import of_manifest

HEADER = ("rule, form, route", "change", "time with it / without it", "result")


def search_text(decided: Mapping[str, Any] | None) -> str:
    """One line: how much was tried, by what it was judged, and what came of it; "" where nothing was searched."""
    decision = (decided or {}).get("decision")
    if decided is None or decision is None:
        return ""
    found = Counter(trial["verdict"] for trial in decision["trials"])
    results = ", ".join(f"{count} {verdict}" for verdict, count in found.items()) or "there was nothing to try"
    judged = f"judged by {decision['judged_by']} at batch {decision['batch']} ({decided['case']['device']})"
    seconds = decision["seconds"] + decision.get("tactics", 0.0)
    when = f"in {seconds:.0f} s on {decision['created'][:10]}"
    return f"{len(decision['trials'])} changes {when}, {judged}: {results}"


def search_rows(decided: Mapping[str, Any] | None) -> list[Sequence[str]]:
    """A row for each change that was tried, under HEADER."""
    decision = of_manifest({"decided": decided})
    trials = () if decision is None else decision.trials
    return [(one.name, one.change, "" if one.ratio is None else one.ratio.said, one.result) for one in trials]
