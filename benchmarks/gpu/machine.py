"""What this machine has: its GPU, the libraries, and the clocks while it measured."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "triton", "numpy", "timm", "onnx", "onnxscript", "onnxruntime", "polygraphy",
    "tensorrt", "tensorrt-rtx", "torch-tensorrt", "torch-tensorrt-rtx",
)  # fmt: skip
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


def clocks() -> dict[str, str] | None:
    """Clocks, temperature and power of the GPU now; None where they cannot be asked."""
    return query(*CLOCKS)


def commit() -> str | None:
    """The commit of this repository whose code measures; None where git does not tell."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
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
