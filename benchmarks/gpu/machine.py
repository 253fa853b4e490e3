"""What this machine has: its GPU, the libraries, and the clocks while it measured."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "triton", "numpy", "timm", "onnx", "onnxscript", "onnxruntime", "polygraphy",
    "tensorrt", "tensorrt-rtx", "torch-tensorrt", "torch-tensorrt-rtx",
)  # fmt: skip
MEMORY = 5 << 30
"""Bytes of the GPU's memory for each process."""
ROOT = Path(__file__).parents[2]
CODE = ("mlpdeploy", "plugins", "benchmarks/gpu")
"""Folders whose code decides what a row says."""
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw")


def fingerprint(device: str) -> dict[str, Any]:
    """The machine and the versions that a number belongs to."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    found: dict[str, Any] = {"python": platform.python_version(), "cuda": torch.version.cuda, "versions": versions}
    if device != "cuda":
        return {"gpu": "none", **found}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": (query("driver_version") or {}).get("driver_version"),
        **found,
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether numbers of two machines belong together: the same GPU, and the same compilers of what it runs."""
    return _decisive(one) == _decisive(other)


def _decisive(found: dict[str, Any]) -> list[Any]:
    return [found["gpu"], found["cuda"], *(found["versions"].get(name) for name in ("torch", "triton"))]


def places(device: str) -> int:
    """How many processes work at once: one a core, as far as the GPU's memory goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device != "cuda":
        return cores
    return max(1, min(cores, torch.cuda.get_device_properties(0).total_memory // MEMORY))


def clocks() -> dict[str, str] | None:
    """Clocks, temperature and power of the GPU now; None where they cannot be asked."""
    return query(*CLOCKS)


def code() -> str:
    """Twelve hexadecimal digits that change with the code that measures and what it measures."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str | None:
    """The commit of this repository whose code measures; None where git does not tell."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def query(*names: str) -> dict[str, str] | None:
    """What nvidia-smi says about the first GPU; None without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(names, (part.strip() for part in told.split(",")), strict=False))
