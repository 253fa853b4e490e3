"""The page about a matrix: one HTML file with everything in it, made as the page about an engine is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlpdeploy._version import __version__
from mlpdeploy.evidence.documents.matrix import DONE, FAILED, Row
from mlpdeploy.evidence.latency.machine import differences
from mlpdeploy.evidence.report.charts import SMALLEST
from mlpdeploy.evidence.report.matrix.changes import ALIKE, BETTER, KINDS, WORSE
from mlpdeploy.evidence.report.matrix.engines import Engine, Network, Overview
from mlpdeploy.evidence.report.matrix.result import Result
from mlpdeploy.evidence.report.matrix.scatter import Mark, scatter
from mlpdeploy.evidence.report.matrix.words import (
    failures,
    pick,
    table,
    timed_at,
    title,
    unfinished,
    verdicts,
    where,
)
from mlpdeploy.evidence.report.page.rendering import markup, rendered, require

MOST = 120
"""Charts that a page draws, those of the first networks."""


@dataclass(frozen=True)
class Picture:
    """A chart under its heading."""

    heading: str
    chart: Any


@dataclass(frozen=True)
class Shown:
    """A network as the page has it: a table of its engines, charts, and what is not in them."""

    name: str
    header: list[str]
    rows: list[tuple[Engine, list[str]]]
    pictures: list[Picture]
    notes: list[str]


def needed() -> None:
    """Raises MachineLacks where a library that draws the page is missing."""
    require("jinja2", "matplotlib")


def page(result: Result) -> str:
    """HTML about a matrix. The page needs no network and no other file. Raises MachineLacks as `needed` does."""
    needed()
    document, seen = result.document, result.seen
    values: dict[str, Any] = dict(
        matrix=document,
        title=title(document),
        verdicts=verdicts(result),
        failures=failures(document),
        unfinished=unfinished(document),
        networks=_networks(result),
        best=result.best,
        limits=result.limits,
        pick=pick,
        timed_at=lambda one: timed_at(seen, one),
        since=result.since,
        kinds=KINDS,
        alike=ALIKE,
        tones={**dict.fromkeys(WORSE, "bad"), **dict.fromkeys(BETTER, "good")},
        states={**dict.fromkeys(DONE, "good"), FAILED: "bad"},
        machines=list(_machines(seen, document.rows)),
        version=__version__,
    )
    return rendered("matrix.html.j2", values)


def _networks(result: Result) -> list[Shown]:
    found, left = [], MOST
    for network in result.seen.networks:
        pictures = list(_pictures(result.seen, network, left))
        notes = list(_notes(network, len(pictures)))
        if left <= 0 and network.bases():
            notes = [f"Its charts are not drawn: this page has {MOST}, those of the networks above"]
        left -= len(pictures)
        header, rows = table(result.seen, network.engines)
        found.append(Shown(network.name, header, list(zip(network.engines, rows, strict=True)), pictures, notes))
    return found


def _pictures(seen: Overview, network: Network, most: int) -> Iterator[Picture]:
    """Accuracy against time at each place and batch size, and against size, of two engines at least."""
    charts = [
        (f"Batch {batch}, {where(seen, place)}", f"ms at batch {batch}", basis, _timed(network, basis, place, batch))
        for basis in network.bases()
        for place, batch in network.places()
    ]
    charts += [("Size", "MB of the engine", basis, _sized(network, basis)) for basis in network.bases()]
    drawn = [(heading, cost, basis, marks) for heading, cost, basis, marks in charts if len(marks) > 1]
    for place, (heading, cost, basis, marks) in enumerate(drawn[: max(0, most)]):
        about = f"{network.name}: {basis}, {cost}"
        label = "top-1, %" if network.shares else "largest relative error"
        chart = scatter(marks, cost, label, about, f"{network.name}/{place}", share=network.shares)
        yield Picture(heading if len(network.bases()) == 1 else f"{heading}; {basis}", markup(chart))


def _timed(network: Network, basis: str, place: object, batch: str) -> list[Mark]:
    return [
        Mark(one.short, one.times[batch], one.accuracy.value, one.row.state == FAILED)
        for one in network.engines
        if one.accuracy is not None and one.accuracy.of == basis and one.place == place and batch in one.times
    ]


def _sized(network: Network, basis: str) -> list[Mark]:
    return [
        Mark(one.short, one.row.facts.engine_bytes / 1e6, one.accuracy.value, one.row.state == FAILED)
        for one in network.engines
        if one.accuracy is not None and one.accuracy.of == basis and one.row.facts.engine_bytes is not None
    ]


def _notes(network: Network, pictures: int) -> Iterator[str]:
    """What the charts of a network are of, and why engines are not in them."""
    bases = network.bases()
    if not bases:
        yield "Its accuracy is not known: neither evaluate nor verify measured an engine of it, so there is no chart"
        return
    points = max(one.accuracy.points for one in network.engines if one.accuracy is not None)
    sure = f"; the 95 % interval of each reaches {points:.2g} points to either side at most" if points else ""
    exact = any(one.accuracy is not None and not one.accuracy.value for one in network.engines)
    none = f"; an error of 0 is drawn at {SMALLEST:.0e}" if exact and not network.shares else ""
    yield f"Accuracy is {'; '.join(bases)}{sure}{none}"
    if not pictures:
        yield "There is no chart: no two engines of it compare"
        return
    unknown = [one.label for one in network.engines if one.accuracy is None or one.accuracy.of not in bases]
    if unknown:
        yield f"In no chart, since no accuracy of theirs compares: {', '.join(unknown)}"
    untimed = [one.label for one in network.engines if one.place is None and one.label not in unknown]
    if untimed:
        yield f"In no chart of times, since they were not timed: {', '.join(untimed)}"


def _machines(seen: Overview, rows: tuple[Row, ...]) -> Iterator[dict[str, Any]]:
    """The machines that did jobs, which jobs and hosts, and what tells each from the first."""
    for machine in seen.machines:
        own = [row for row in rows if row.machine == machine]
        hosts = dict.fromkeys(row.worker.rpartition("/")[0] or row.worker for row in own if row.worker is not None)
        gpu = machine.get("gpu") or {}
        told_of = {
            "processor": f"{machine['cpu']}, {machine['cores']} cores",
            "GPU": gpu.get("name", "none"),
            "system": " ".join(str(machine.get(name, "")) for name in ("system", "architecture")).strip(),
            "jobs": len(own),
            "hosts": ", ".join(hosts),
            "versions": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        }
        facts = {name: value for name, value in told_of.items() if value}
        yield {"facts": facts, "differs": differences(machine, seen.machines[0])}
