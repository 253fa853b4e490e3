"""What the documents of mlpdeploy hold, as `documents` reads them: all that some command uses, no more.

What a kind here allows, every command can print, compare and compute with.
"""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mlpdeploy.selection import LOCATIONS, Selection
from mlpdeploy.system.documents import Kind, Number

COUNT, SIZE, WHOLE = Number(whole=True, least=0), Number(whole=True, least=1), Number(whole=True)
AMOUNT, POSITIVE, ANY = Number(least=0), Number(least=0, above=True), Number()


def _field(hint: Any) -> Kind:
    """The kind that a field of a selection has in JSON."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple(map(_field, typing.get_args(hint)))
    if origin is tuple:
        return [_field(typing.get_args(hint)[0])]
    return {Path: str, int: WHOLE, float: ANY, type(None): None}.get(hint, hint)


def _selection() -> dict[str, Kind]:
    hints, always = typing.get_type_hints(Selection), ("precision", "backend", "batch")
    given = {one.name for one in fields(Selection) if one.default is MISSING or one.name in always}
    names = (one.name for one in fields(Selection) if one.name not in LOCATIONS)
    return {name if name in given else f"{name}?": _field(hints[name]) for name in names}


SELECTION = _selection()
PORT = {"name": str, "shape": [(COUNT, str)], "dtype": str, "low?": (ANY, None), "high?": (ANY, None)}
PLACES = [{"where": str, "reason": str}]
KEPT = [{"node": str, "module": str, "reason": str}]
DTYPES = {str: {str: COUNT}}
LAYERS = {"layers": COUNT, "transposes": COUNT}
PARSED = {"total": LAYERS, "outside": LAYERS, "bodies": [{"function": str, "counts": LAYERS}], "dtypes": DTYPES}
OPTIMISATION = [SIZE]
BATCHES = {"min": SIZE, "opt": SIZE, "max": SIZE, "profiles?": [OPTIMISATION]}
FACTS = {
    "backend": str, "precision": str, "inputs": [PORT, ...], "outputs": [PORT, ...], "batch": [SIZE],
    "profiles?": [OPTIMISATION], "features?": [str], "structure?": str, "build_route?": str,
    "versions": {str: str}, "engine_sha256": str, "build_seconds": AMOUNT, "threads?": (SIZE, None), "device?": str,
    "cpu?": str, "gpu?": (str, None), "gpus?": [str], "parsed?": PARSED, "executed?": str,
    "launches?": ({
        "total": COUNT, "by_kind": {str: COUNT}, "source_bytes": COUNT, "copies?": COUNT, "normalisations?": COUNT,
        "pointwise?": COUNT, "transposes?": COUNT, "bytes_moved?": (COUNT, None),
        "where?": {str: {str: COUNT}}, "by_profile?": {str: COUNT},
    }, None),
    "plugin?": {"used": bool, "reason": (str, None), "milliseconds": {str: AMOUNT}},
}  # fmt: skip
"""What a backend says of the engine that it built."""

POINT = {"kept": COUNT, "quantised_macs": AMOUNT, "sqnr_db": (ANY, None), "top1": (ANY, None)}
SITE = {"node": str, "module": str, "macs": COUNT, "sqnr_db": (ANY, None), "top1": (ANY, None)}
WORTH = {
    "batch": SIZE, "backends": {str: {"median_ms": {str: POSITIVE}}},
    "not_measured": {str: str}, "verdicts": [str],
}  # fmt: skip
QUANTISED = {
    "precision": str, "calibrator": str, "sqnr_db": {str: ANY}, "data": str, "rows": COUNT, "random": bool,
    "warning": (str, None), "equalised": COUNT, "beside": str, "sites": COUNT, "of_sites": COUNT, "residuals?": COUNT,
    "share_of_macs": AMOUNT, "kept": KEPT, "refused": KEPT, "curve": [POINT], "ranked": [SITE], "worth?": (WORTH, None),
}  # fmt: skip

CODED_WEIGHTS = {
    "precision": str, "beside": str, "blocks": [SIZE], "sites": COUNT, "of_products": COUNT, "share_of_weights": AMOUNT,
    "refused": KEPT,
}  # fmt: skip

TRIAL = {
    "name": str, "change": str, "verdict": str, "pairs": COUNT, "why": str,
    "ratio": ({"value": POSITIVE, "low": (AMOUNT, None), "high": (POSITIVE, None)}, None),
}  # fmt: skip
CASE = {"graph": str, "backend": str, "versions": {str: str}, "device": str, "precision": str, "batch": str}
DECISION = {
    "network": str, "created": str, "judged_by": str, "batch": SIZE, "seconds": AMOUNT, "tactics?": AMOUNT,
    "trials": [TRIAL], "beside?": [str],
}  # fmt: skip
DECISIONS = {"schema": COUNT, "decisions": [{"case": CASE, "decision": DECISION}]}
"""What searches decided, for later builds."""

IMAGES = {
    "crop": POSITIVE, "crop_mode?": str, "interpolation": str, "mean": [ANY, ...], "std": [ANY, ...], "pixels?": str,
}  # fmt: skip
MANIFEST = {
    "key": (str, None), "created": str, "selection": SELECTION, "network?": (str, None),
    "recipe": {"name": str, "family": str, "source": str, "parameters": COUNT, "images?": (IMAGES, None),
               "inputs?": [PORT, ...], "classes?": (COUNT, None), "labels?": ([str], None)},
    "weights": {"text": str, "random": bool, "sha256?": str, "repository?": str, "commit?": (str, None)},
    "precision": str, "batch": BATCHES, "inputs": [PORT, ...], "outputs": [PORT, ...],
    "mapping?": bool, "backend": str, "engine": str, "versions": {str: str}, "gpus": [str], "facts": FACTS,
    "rules": [{"name": str, "fired": COUNT, "refused": PLACES, "seconds": AMOUNT}],
    "forms?": [{"name": str, "fired": COUNT, "seconds": AMOUNT}],
    "transposes": [{"where": str, "reason": str, "permutation": str}], "kept_fp32": KEPT,
    "quantised": (QUANTISED, None), "coded_weights?": (CODED_WEIGHTS, None),
    "ops": {"before": {str: COUNT}, "after": {str: COUNT}}, "dtypes": DTYPES,
    "seconds": {str: AMOUNT}, "files": {str: {"bytes": COUNT, "sha256": str}}, "notes?": [str], "seal?": str,
    "decided?": {"case": CASE, "decision": (DECISION, None)},
}  # fmt: skip

OPERATION = {"name": str, "op": str, "module": str, "dtype": str, "shape": [(COUNT, str)], "inputs": [str]}
GRAPH = {"before": [OPERATION], "after": [OPERATION]}

COMPARISON = {"max_relative": (AMOUNT, None)}
AGREEMENT = ({"images": COUNT, "top1": AMOUNT}, None)
EXTREME = {"row": str, "output": str, "error": (AMOUNT, None), "allowed": (AMOUNT, None), "passed": bool}
STAGE = {
    "name": str, "status": str, "reason": str, "max_relative": (AMOUNT, None), "seconds": AMOUNT,
    "budget": {"max_relative_error": AMOUNT, "min_top1_agreement": AMOUNT}, "extremes?": [EXTREME],
    "checks": [{
        "batch": SIZE, "output": str, "reference": COMPARISON, "permuted": (COMPARISON, None), "agreement": AGREEMENT,
    }],
    "images": ({"reference": COMPARISON, "agreement": AGREEMENT, "accuracy": (AMOUNT, None)}, None),
}  # fmt: skip
VERIFICATION = {
    "created": str, "files": {str: str}, "passed": bool, "verdict": str, "sizes": [SIZE], "rows": COUNT, "inputs": str,
    "seed": WHOLE, "data?": [str], "notes": [str], "stages": [STAGE, ...],
}  # fmt: skip

SHARE = {"right": COUNT, "share": AMOUNT, "low": AMOUNT, "high": AMOUNT}
EVALUATION = {
    "created": str, "files": {str: str}, "passed": bool, "verdict": str, "images": SIZE, "data": [str],
    "contenders": [{"name": str, "top1": SHARE, "top5": SHARE, "not_finite": COUNT}, ...],
    "agreement": (AMOUNT, None), "unread": COUNT, "skipped": [{"file": str, "reason": str}],
    "paired": ({"engine_only": COUNT, "pytorch_only": COUNT, "p_value": AMOUNT}, None),
}  # fmt: skip
TALLY = {"about": {str: object}, "done": COUNT, "skipped": {str: str}, "marks": str}
"""What an evaluation that is under way has counted."""

RATIO = {"value": POSITIVE, "low": POSITIVE, "high": POSITIVE, "verdict": str}
PHASES = {name: AMOUNT for name in ("host_to_device_ms", "compute_ms", "device_to_host_ms", "end_to_end_ms")}
CONTENDER = {
    "name": str, "kind": str, "what": str, "median_ms": POSITIVE, "p90_ms": POSITIVE, "p99_ms": POSITIVE,
    "images_per_second": POSITIVE, "medians_ms": [POSITIVE], "ratios": [RATIO | {"baseline": str}],
    "phases?": (PHASES | {"uncaptured": str}, None),
}  # fmt: skip
LIMIT = {
    "batch": SIZE, "macs": COUNT, "bytes": SIZE, "limit_ms": POSITIVE, "bound": str, "percent_of_limit": {str: AMOUNT},
}  # fmt: skip
ROOFLINE = {
    "dtype": str, "threads": SIZE, "peak_gmacs_per_second": POSITIVE, "copy_gbytes_per_second": POSITIVE,
    "limits": [LIMIT],
}  # fmt: skip
PROFILE = {
    "batch": SIZE, "profiler": str, "milliseconds": AMOUNT,
    "modules": [{"path": str, "milliseconds": AMOUNT, "share": AMOUNT}],
}  # fmt: skip
BENCH = {
    "created": str, "network": {"model_sha256?": str}, "machine": {"cpu": str, "cores": SIZE},
    "conditions": {"before": {str: object}, "after": {str: object}}, "settings": {"threads": SIZE},
    "measurements": [{"batch": SIZE, "contenders": [CONTENDER, ...], "host_clock?": str}], "roofline": (ROOFLINE, None),
    "layers": {"before": (PROFILE, None), "after": (PROFILE, None), "reason": str}, "left_out": {str: str},
    "credit": ([RATIO | {"rule": str, "fired": COUNT, "batch": SIZE}], None),
}  # fmt: skip
"""bench.json, as a report reads it."""

SAVED = {
    "created": str, "selection": SELECTION, "settings": {"threads": SIZE},
    "network": {"name": str, "weights": str, "weights_sha256?": (str, None)},
    "machine": {"cpu": str, "cores": SIZE, "versions": {str: str}, "gpu": ({str: object}, None)},
    "facts": {
        "engine_bytes": COUNT, "build_seconds": (AMOUNT, None), "layers": (COUNT, None), "transposes": (COUNT, None),
        "memory_bytes": (COUNT, None), "memory_batch?": (SIZE, None), "reasons": {str: str},
        "failed_stages?": (COUNT, None), "launches?": (COUNT, None), "copies?": (COUNT, None),
        "launched_transposes?": (COUNT, None),
        "accuracy": ({"measure": str, "value": AMOUNT, "stage": str, "inputs": str, "rows": COUNT}, None),
    },
}  # fmt: skip
TIMED = {"medians_ms": [POSITIVE, ...]}
SAVED_BENCH = SAVED | {
    "settings": {"threads": SIZE, "seconds": POSITIVE, "sittings": SIZE},
    "measurements": [{"batch": SIZE, "contenders": [TIMED, ...]}, ...],
}
SAVED_REGRESS = SAVED | {"measurements": [TIMED | {"batch": SIZE, "seconds": AMOUNT}]}
"""Results to hold a later run against."""
