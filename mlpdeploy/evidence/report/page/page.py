"""The page: what the documents say, arranged for the template beside this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlpdeploy.evidence.report import charts, charts_quantised
from mlpdeploy.evidence.report.blocks import Block, block
from mlpdeploy.evidence.report.page.rendering import markup, rendered, require
from mlpdeploy.evidence.report.search_words import HEADER, search_rows, search_text
from mlpdeploy.evidence.report.summary import REFUSALS, reproduction
from mlpdeploy.evidence.report.time_by_module import Times, kind_of, times
from mlpdeploy.evidence.report.verdicts import command, speedup, title, verdicts
from mlpdeploy.evidence.report.words import (
    EVALUATED,
    EXTREME,
    PHASES,
    clock_notes,
    coded_facts,
    device_rows,
    evaluated_lines,
    evaluated_rows,
    extreme_rows,
    quantised_facts,
)
from mlpdeploy.system.documents import Document


def page(
    manifest: Document,
    verification: Document | None = None,
    bench: Document | None = None,
    evaluation: Document | None = None,
    outlines: Mapping[str, Sequence[Document]] | None = None,
) -> str:
    """HTML about an artifact, from its manifest and, where they are there, its other documents.

    `outlines` is graph.json. The page needs no network and no other file. Raises MachineLacks where a library that
    draws is missing, KeyError where a document lacks something.
    """
    require("jinja2", "matplotlib", "pygraphviz")
    from mlpdeploy.evidence.report.drawing import lacking

    seen = block(outlines) if outlines else None
    undrawn = None if seen is None else lacking()
    values: dict[str, Any] = dict(
        m=manifest,
        v=verification,
        bench=bench,
        evaluation=evaluation,
        evaluated=(EVALUATED, evaluated_rows(evaluation), evaluated_lines(evaluation)) if evaluation else None,
        title=title(manifest),
        verdicts=verdicts(manifest, verification, bench, evaluation),
        pictures=_pictures(manifest, verification, bench, seen if undrawn is None else None),
        block=seen,
        undrawn=undrawn,
        rules=_rules(manifest),
        refusals=REFUSALS,
        credit={one["rule"]: one for one in (bench or {}).get("credit") or ()},
        searched=search_text(manifest.get("decided")),
        tried=(HEADER, search_rows(manifest.get("decided"))),
        times=_times(bench),
        coded_facts=coded_facts(manifest["coded_weights"]) if manifest.get("coded_weights") else {},
        quantised_facts=quantised_facts(manifest["quantised"]) if manifest.get("quantised") else {},
        precisions=precisions(outlines["after"]) if outlines else [],
        speedup=speedup,
        phases=PHASES,
        extremes=extreme_rows(verification["stages"]) if verification else ([], []),
        extreme_words=EXTREME,
        device_rows=device_rows(bench["measurements"]) if bench else [],
        clock_notes=clock_notes(bench["measurements"]) if bench else [],
        command=lambda verb: command(manifest, verb),
        reproduce="\n".join(reproduction(manifest)[1]),
    )
    return rendered("page.html.j2", values)


def precisions(operations: Sequence[Document]) -> list[dict[str, Any]]:
    """By kind of module (numbers in its path left out), how many operations give which dtype, in order."""
    found: dict[str, dict[str, Any]] = {}
    for one in operations:
        row = found.setdefault(kind_of(one["module"]), {"modules": set(), "dtypes": {}})
        row["modules"].add(one["module"])
        row["dtypes"][one["dtype"]] = row["dtypes"].get(one["dtype"], 0) + 1
    return [{"path": path, "modules": len(row["modules"]), "dtypes": row["dtypes"]} for path, row in found.items()]


def _pictures(
    manifest: Document, verification: Document | None, bench: Document | None, seen: Block | None
) -> dict[str, Any]:
    from mlpdeploy.evidence.report.drawing import draw

    found: dict[str, Any] = {"operations": charts.operations(manifest["ops"]["before"], manifest["ops"]["after"])}
    if verification is not None and any(stage["checks"] for stage in verification["stages"]):
        found["accuracy"] = charts.accuracy(verification["stages"])
    if bench is not None:
        found["latency"] = [markup(charts.latency(measurement)) for measurement in bench["measurements"]]
        if bench["roofline"] is not None and bench["roofline"]["limits"]:
            found["roofline"] = charts.roofline(bench)
    quantised = manifest.get("quantised") or {}
    if quantised.get("curve"):
        found["tradeoff"] = charts_quantised.tradeoff(quantised["curve"], quantised["precision"])
    if quantised.get("ranked"):
        found["noise"] = charts_quantised.noise(quantised["ranked"], quantised["precision"])
    if seen is not None:
        name = seen.module or "the network"
        found["before"] = draw(seen.before, f"{name} before the rules")
        found["after"] = draw(seen.after, f"{name} after the rules")
    return {name: markup(value) if isinstance(value, str) else value for name, value in found.items()}


def _rules(manifest: Document) -> dict[str, list[Document]]:
    """The rules and forms that fired, those that refused somewhere, and the names of those that found nothing to do."""
    forms = [{**form, "refused": [], "form": True} for form in manifest.get("forms", ())]
    rules = [*({**rule, "form": False} for rule in manifest["rules"]), *forms]
    return {
        "fired": [rule for rule in rules if rule["fired"]],
        "refused": [rule for rule in rules if rule["refused"]],
        "idle": [rule["name"] for rule in rules if not rule["fired"] and not rule["refused"]],
    }


def _times(bench: Document | None) -> Times | None:
    layers = None if bench is None else bench["layers"]
    return None if layers is None or layers["after"] is None else times(layers["before"], layers["after"])
