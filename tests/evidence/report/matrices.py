"""Documents of a matrix for the tests of its page: numbers of machines and engines that are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlpdeploy.evidence.documents.matrix import BUILT, CACHED, FAILED, PASSED, SKIPPED, Facts, Matrix, Row, Step
from mlpdeploy.selection import Selection

NETWORKS = ("mixer_s16", "mixer_b16", "vip_s7", "resmlp_s24", "wave_mlp_t", "strip_mlp_t")
PRECISIONS = {"fp32": (9.0, 74.0, 0.7812, 2e-6), "bf16": (6.0, 37.5, 0.7808, 3e-3), "fp16": (5.5, 37.0, 0.7810, 4e-4),
              "int8": (2.5, 19.25, 0.7731, 4e-2)}  # fmt: skip
"""By precision: milliseconds at batch 1, megabytes, top-1, the largest relative error."""
MACHINE: dict[str, Any] = {
    "cpu": "Example 9000", "cores": 4, "architecture": "x86_64", "system": "Linux", "python": "3.11.7",
    "versions": {"openvino": "2026.4.1", "torch": "2.14.1"}, "gpu": None, "gpu_clock": None,
}  # fmt: skip
OTHER_MACHINE = {**MACHINE, "cpu": "Example 100"}
ON_GPU = {
    **MACHINE,
    "gpu": {"name": "Example L4", "capability": "sm89", "driver": "13.0"},
    "gpu_clock": "device events",
}
PLAN = {"path": "plan.toml", "sha256": "ab" * 32}
CREATED = "2030-01-02T03:04:05+00:00"


def document(*rows: Row, **changes: Any) -> Matrix:
    """A document of these rows."""
    return Matrix(**{"created": CREATED, "plan": PLAN, "shard": None, "machine": MACHINE, "rows": rows} | changes)


def whole(networks: tuple[str, ...] = NETWORKS, **changes: Any) -> Matrix:
    """Each network in each precision, all done; the further a network is down the list, the slower it is."""
    names = [(name, precision) for name in networks for precision in PRECISIONS]
    rows = (row(name, precision, 1 + place // 4 / 4) for place, (name, precision) in enumerate(names))
    return document(*rows, **changes)


def row(name: str = "mixer_s16", precision: str = "fp32", factor: float = 1.0, **changes: Any) -> Row:
    """A job that was built, verified, evaluated and timed on two threads of MACHINE."""
    ms, megabytes, top1, error = PRECISIONS[precision]
    facts = Facts(int(factor * megabytes * 1e6), None, None, latency(factor * ms), 0.25, top1)
    calibration = "random" if precision == "int8" else None
    selection = Selection("mixer_s16", precision, "openvino", calibration=calibration).to_json() | {"name": name}
    steps = (
        Step("build", {}, PASSED, 0, 9.5, None, {"backend": "openvino"}),
        Step("verify", {}, PASSED, 0, 1.5, None, {"passed": True, "inputs": "random", "error": error}),
        Step("evaluate", {"data": "val"}, PASSED, 0, 8.0, None, {"passed": True, "images": 1000}),
        Step("bench", {}, PASSED, 0, 21.0, None, {"threads": 2, "device": None}),
    )
    files = {"engine.xml": f"{name}{precision}"[:8].ljust(64, "0"), "model.onnx": "cd" * 32}
    job, log = f"{name} {precision} openvino 1:8:32", f"artifacts/matrix/plan/{name}-{precision}.log"
    made = Row(
        job, selection, state=BUILT, key="k", folder=f"artifacts/{name}", files=files, seconds=40.0, attempts=1,
        worker="host-a/17", machine=MACHINE, log=log, steps=steps, facts=facts,
    )  # fmt: skip
    return replace(made, **changes)


def latency(ms: float) -> dict[str, float]:
    """Milliseconds at batch 1 and 8 of an engine that takes so many at batch 1."""
    return {"1": ms, "8": 6 * ms}


def failed(one: Row, step: str = "build", error: str = "the compiler gave up") -> Row:
    """A row whose job failed at a command: what was found by the commands before it is there."""
    names = [each.name for each in one.steps]
    place = names.index(step)
    steps = (
        *one.steps[:place],
        replace(one.steps[place], outcome=FAILED, exit_code=1, error=error, found={}),
        *(replace(each, outcome=SKIPPED, exit_code=None, seconds=0.0, found={}) for each in one.steps[place + 1 :]),
    )
    kept = replace(
        one.facts,
        engine_bytes=one.facts.engine_bytes if place else None,
        of_budget=one.facts.of_budget if place > 1 else None,
        top1=one.facts.top1 if place > 2 else None,
        latency_ms={},
    )
    return replace(one, state=FAILED, error=f"{step}: {error}", steps=steps, facts=kept)


def without(one: Row, *steps: str) -> Row:
    """A row of a plan that asks for none of these commands."""
    left = tuple(each for each in one.steps if each.name not in steps)
    facts = replace(
        one.facts,
        latency_ms={} if "bench" in steps else one.facts.latency_ms,
        of_budget=None if "verify" in steps else one.facts.of_budget,
        top1=None if "evaluate" in steps else one.facts.top1,
    )
    return replace(one, steps=left, facts=facts)


def threads(one: Row, count: int | None, device: str | None = None) -> Row:
    """A row that was timed on so many threads, or on a device."""
    found = {"threads": count, "device": device}
    return replace(one, steps=tuple(replace(each, found=found) if each.name == "bench" else each for each in one.steps))


def cached(one: Row) -> Row:
    """A row whose artifact was there before."""
    return replace(one, state=CACHED)
