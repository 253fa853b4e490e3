"""A result of bench or regress as github-action-benchmark reads it, which draws a chart for each name.

The form is its `customSmallerIsBetter`: a list of objects with name, unit and value, and range and extra as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, stdev
from typing import Any

from mlpdeploy.evidence.documents.bench import BENCH
from mlpdeploy.evidence.documents.outcome import title
from mlpdeploy.evidence.latency.machine import GPU, computed_on
from mlpdeploy.system.text import plain


def benchmarks(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The engine's median latency in milliseconds at each batch size; none where nothing was timed.

    `range` is the standard deviation of the medians of the loads, where there are two at least.
    """
    return [_benchmark(document, one["batch"], _loads(document, one)) for one in document["measurements"]]


def _loads(document: Mapping[str, Any], measurement: Mapping[str, Any]) -> Sequence[float]:
    """The median of each load of the engine; in bench it is the first contender, in regress the candidate."""
    found: Sequence[float] = (measurement["contenders"][0] if document["kind"] == BENCH else measurement)["medians_ms"]
    return found


def _benchmark(document: Mapping[str, Any], batch: int, loads: Sequence[float]) -> dict[str, Any]:
    network, threads = document["network"], document["settings"]["threads"]
    device = network.get("device")
    on = "" if device == GPU else f", {threads} thread{'s'[: threads > 1]}"
    lines = [
        computed_on(document["machine"], device),
        network["weights"],
        f"{len(loads)} load{'s'[: len(loads) > 1]}",
        document["created"],
    ]
    entry = {
        "name": plain(f"{title(document)}, batch {batch}{on}"),
        "unit": "ms",
        "value": median(loads),
        "extra": "\n".join(map(plain, lines)),
    }
    return entry if len(loads) < 2 else entry | {"range": f"± {stdev(loads):.3g}"}
