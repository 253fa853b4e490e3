"""What a search may expect of a change before it tries it: the ratios of time that are known of it.

    search/worth.json         what each rule alone is worth to a network in an engine, where that was decided
                              (`python -m benchmarks.rules`, then `python -m benchmarks.tables`)
    artifact/decided.json     what searches have found for other cases

Only the order in which changes are tried follows from it, and nothing that is kept: they were measured on other
machines, perhaps of other versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlpdeploy.artifact import decisions
from mlpdeploy.artifact.decisions import LEFT_OUT, PUT_IN

WORTH = Path(__file__).with_name("worth.json")

Ratios = dict[tuple[str, str], float]
"""By name and change, the time with the change over that without."""


def measured(backend: str, network: str) -> Ratios:
    """What was measured for that network in that backend, either way round."""
    return _both_ways(_worth(backend).get(network, {}))


def elsewhere(backend: str) -> Ratios:
    """The best that each change did for any network in that backend."""
    found: Ratios = {}
    for change, ratio in _anywhere(backend):
        found[change] = min(found.get(change, 1.0), ratio)
    return found


def _anywhere(backend: str) -> Iterator[tuple[tuple[str, str], float]]:
    for network in _worth(backend).values():
        yield from _both_ways(network).items()
    for entry in decisions.read(decisions.SHIPPED):
        for trial in entry["decision"]["trials"] if entry["case"]["backend"] == backend else ():
            if trial["ratio"] is not None:
                yield (trial["name"], trial["change"]), trial["ratio"]["value"]


def _both_ways(worth: Mapping[str, float]) -> Ratios:
    left_out = {(name, LEFT_OUT): ratio for name, ratio in worth.items()}
    return left_out | {(name, PUT_IN): 1 / ratio for name, ratio in worth.items()}


def _worth(backend: str) -> dict[str, dict[str, float]]:
    """By network and rule, the time without the rule over that with it."""
    known: dict[str, dict[str, dict[str, float]]] = json.loads(WORTH.read_text(encoding="utf-8"))
    return known.get(backend, {})
