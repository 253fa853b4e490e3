"""The essentials of what the commands of a job print, and what is known of an engine from them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mlpdeploy.artifact import store
from mlpdeploy.errors import ArtifactError
from mlpdeploy.evidence.documents.evaluation import ENGINE as EVALUATED
from mlpdeploy.evidence.documents.matrix import Facts, Row, Step
from mlpdeploy.evidence.proof.ladder import ENGINE
from mlpdeploy.matrix.job import BENCH, BUILD, EVALUATE, REGRESS, VERIFY

Document = Mapping[str, Any]


def essentials(command: str, document: Document) -> dict[str, Any]:
    """What of a command's document a row keeps. Raises KeyError or TypeError where it is another document."""
    return _ESSENTIALS[command](document)


def facts_of(steps: Sequence[Step]) -> Facts:
    """What is known of an engine by what its commands found."""
    found = {step.name: step.found for step in steps}
    built, verified, evaluated = (found.get(name) or {} for name in (BUILD, VERIFY, EVALUATE))
    timed = found.get(BENCH) or found.get(REGRESS) or {}
    return Facts(
        engine_bytes=built.get("engine_bytes"),
        launches=built.get("launches"),
        layers=built.get("layers"),
        latency_ms=dict(timed.get("latency_ms") or {}),
        of_budget=verified.get("of_budget"),
        top1=evaluated.get("top1"),
    )


def stands(row: Row) -> bool:
    """Whether the artifact that a row tells of still lies where it says."""
    try:
        manifest = store.read_manifest(Path(row.folder or ""))
    except ArtifactError:
        return False
    hashes = {name: file["sha256"] for name, file in manifest["files"].items()}
    return row.key == manifest["key"] and dict(row.files) == hashes


def _built(document: Document) -> dict[str, Any]:
    manifest = document["manifest"]
    facts = manifest["facts"]
    files = manifest["files"].items()
    return {
        "cached": bool(document["cached"]),
        "backend": manifest["backend"],
        "engine_bytes": sum(file["bytes"] for name, file in files if name.startswith(manifest["engine"])),
        "launches": (facts.get("launches") or {}).get("total"),
        "layers": ((facts.get("parsed") or {}).get("total") or {}).get("layers"),
        "build_seconds": facts["build_seconds"],
    }


def _verified(document: Document) -> dict[str, Any]:
    compared = (
        (stage["max_relative"], stage["budget"]["max_relative_error"])
        for stage in document["stages"]
        if stage["max_relative"] is not None
    )
    worst = max((error / allowed for error, allowed in compared if allowed > 0), default=None)
    errors = [stage["max_relative"] for stage in document["stages"] if stage.get("name") == ENGINE]
    return {
        **{name: document[name] for name in ("passed", "verdict", "inputs", "sizes")},
        "of_budget": worst,
        "error": errors[0] if errors else None,
    }


def _evaluated(document: Document) -> dict[str, Any]:
    top1 = {one["name"]: one["top1"]["share"] for one in document["contenders"]}
    return {
        **{name: document[name] for name in ("passed", "verdict", "images")},
        "top1": top1.get(EVALUATED),
        "contenders": top1,
    }


def _timed(document: Document) -> dict[str, Any]:
    """The first contender is the engine."""
    times = {str(one["batch"]): one["contenders"] for one in document["measurements"]}
    return {
        "latency_ms": {batch: contenders[0]["median_ms"] for batch, contenders in times.items()},
        "contenders": {
            batch: {one["name"]: one["median_ms"] for one in contenders} for batch, contenders in times.items()
        },
        "threads": document["settings"]["threads"],
        "device": (document.get("network") or {}).get("device"),
        "left_out": document["left_out"],
    }


def _gated(document: Document) -> dict[str, Any]:
    return {
        **{name: document[name] for name in ("passed", "verdict")},
        "gates": {gate["label"]: gate["verdict"] for gate in document["gates"]},
        "latency_ms": {str(one["batch"]): median(one["medians_ms"]) for one in document["measurements"]},
        "threads": document["settings"]["threads"],
        "device": (document.get("network") or {}).get("device"),
    }


_ESSENTIALS = {BUILD: _built, VERIFY: _verified, EVALUATE: _evaluated, BENCH: _timed, REGRESS: _gated}
