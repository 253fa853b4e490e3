"""Documents for the tests of reports: a small network's own, and a measurement made up beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlpdeploy.artifact.manifest import evidence
from mlpdeploy.evidence.documents.evaluation import Contender, Evaluation
from mlpdeploy.evidence.proof.accuracy import Paired, Share

PORT: dict[str, Any] = {"name": "input", "shape": [8], "dtype": "float32"}
FACTS: dict[str, Any] = {
    "backend": "onnxruntime", "precision": "fp32", "inputs": [PORT], "outputs": [PORT], "batch": [1, 2, 4],
    "versions": {"onnxruntime": "9"}, "engine_bytes": 1, "engine_sha256": "ab" * 32, "build_seconds": 1.0,
}  # fmt: skip
MILLISECONDS = {
    1: {"engine": 1.5, "eager": 3.25, "compile": 1.53, "export": 1.375},
    8: {"engine": 11.75, "eager": 23.5, "compile": 12.875, "export": 12.125},
}
PATHS = ("stem", "blocks.0.tokens", "blocks.0.channels", "blocks.1.tokens", "blocks.1.channels", "head")


def whole(**changes: Any) -> dict[str, Any]:
    """A manifest that has all that one must have but files, which the store adds."""
    port, engine = PORT | {"shape": ["batch", 8]}, {"precision": "fp32", "backend": "onnxruntime"}
    found = {
        "key": None, "quantised": None, "created": "2030-01-02T03:04:05+00:00", "engine": "engine.onnx", **engine,
        "selection": {"name": "mixer_s32", "batch": "1:2:4", **engine},
        "recipe": {"name": "mixer_s32", "family": "mixer", "source": "", "parameters": 1},
        "weights": {"text": "random weights from seed 0", "random": True}, "batch": {"min": 1, "opt": 2, "max": 4},
        "inputs": [port], "outputs": [port], "versions": {"mlpdeploy": "9"}, "gpus": [], "facts": FACTS, "rules": [],
        "transposes": [], "kept_fp32": [], "ops": {"before": {}, "after": {}}, "dtypes": {}, "seconds": {},
    }  # fmt: skip
    return found | changes


def ratio(value: float, spread: float = 0.03) -> dict[str, Any]:
    low, high = value * (1 - spread), value * (1 + spread)
    verdict = "faster" if high < 1 else "slower" if low > 1 else "undecided"
    return {"value": value, "low": low, "high": high, "verdict": verdict}


def bench(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What `mlpdeploy bench` would have found about the artifact of that manifest, on a machine that is none."""
    return {
        "kind": "bench",
        "schema": 1,
        "created": "2030-01-02T03:04:05+00:00",
        "network": {"name": manifest["recipe"]["name"], "model_sha256": manifest["files"]["model.onnx"]["sha256"]},
        "selection": manifest["selection"],
        "machine": {"cpu": "Example 9000", "cores": 4, "gpu": None, "versions": {"torch": "9.9"}},
        "conditions": {"before": {"load": 0.25, "celsius": None}, "after": {"load": 0.5, "celsius": None}},
        "settings": {"threads": 2, "seconds": 5, "sittings": 8, "seed": 0},
        "facts": {},
        "measurements": [{"batch": size, "contenders": _contenders(size)} for size in MILLISECONDS],
        "roofline": {
            "dtype": "float32",
            "threads": 2,
            "peak_gmacs_per_second": 71.5,
            "copy_gbytes_per_second": 8.25,
            "limits": [
                {
                    "batch": size, "macs": 5_500_000 * size, "bytes": 640_000 + 31_000 * size, "limit_ms": 0.125 * size,
                    "bound": "memory", "percent_of_limit": {n: 12.5 * size / ms for n, ms in times.items()},
                }
                for size, times in MILLISECONDS.items()
            ],
        },
        "layers": {"before": _profile(1.25), "after": _profile(1.0), "reason": ""},
        "credit": [{"rule": "project_tokens", "fired": 2, "batch": 1, **ratio(1.125), "verdict": "pays"}],
        "left_out": {"tensorrt": "no NVIDIA GPU"},
    }  # fmt: skip


def evaluation(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What `mlpdeploy evaluate` would have found about the artifact of that manifest: an engine that is worse."""
    right = {"engine": (70, 90), "typed graph": (80, 95), "PyTorch": (81, 95)}
    contenders = tuple(Contender(name, Share(one, 100), Share(five, 100), 0) for name, (one, five) in right.items())
    skipped = {"val/3/<b>.png": "is not a readable image: <cut>"}
    data = ("101 images of 10 classes below val", "images resized bilinear")
    found = Evaluation(contenders, 100, 1, skipped, data, Paired(2, 13), Share(83, 100))
    return evidence({"backend": "any", "files": {}, "weights": {"text": ""}, **manifest}, found)


def on_gpu(document: dict[str, Any]) -> dict[str, Any]:
    """The document as a GPU would give it: at batch 1 `eager` was no graph, at batch 8 the host's clock had to do."""
    first, second = document["measurements"]
    for one in first["contenders"]:
        parts = {"host_to_device_ms": 0.0625, "compute_ms": one["median_ms"], "device_to_host_ms": 0.015625}
        why = "it waits while it computes" if one["name"] == "eager" else ""
        one["phases"] = {**parts, "end_to_end_ms": sum(parts.values()), "uncaptured": why}
    second["host_clock"] = "PyTorch cannot use the GPU"
    return document


def _contenders(size: int) -> list[dict[str, Any]]:
    times = MILLISECONDS[size]
    return [
        {
            "name": name, "kind": name, "what": f"{name}, as it was run", "median_ms": ms, "p90_ms": ms * 1.125,
            "p99_ms": ms * 1.375, "images_per_second": 1e3 * size / ms, "samples": 40, "calls_a_sample": 2,
            "medians_ms": [ms, ms],
            "ratios": [{"baseline": other, **ratio(ms / theirs)} for other, theirs in times.items() if other != name],
        }
        for name, ms in times.items()
    ]  # fmt: skip


def _profile(factor: float) -> dict[str, Any]:
    times = [factor * (0.1 + 0.05 * index) for index in range(len(PATHS))]
    modules = [
        {"path": path, "milliseconds": ms, "share": ms / sum(times), "layers": {"MatMul": ms}}
        for path, ms in zip(PATHS, times, strict=True)
    ]
    return {"batch": 1, "profiler": "example", "milliseconds": sum(times), "modules": modules}
