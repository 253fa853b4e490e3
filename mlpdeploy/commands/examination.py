"""What this machine has, and what it lacks to build and to run engines. Nothing heavy is imported."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import cache
from mlpdeploy.engine import host
from mlpdeploy.engine.backend import backends
from mlpdeploy.precisions import PRECISIONS

CPU_FLAGS = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "asimddp")


def examine() -> dict[str, Any]:
    """The machine, the libraries' versions, and for each backend whether it builds and runs, or why not.

    `cannot_use_gpu` is of a backend that builds for the CPU or, where it is asked for, for a GPU.
    """
    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "cpu": _cpu(),
            "gpus": _gpus(),
        },
        "versions": cache.versions() | _engines(),
        "backends": [
            {
                "name": backend.name,
                "versions": backend.versions(),
                "cannot_build": backend.available(),
                "cannot_run": backend.executable(),
                "cannot_use_gpu": backend.without_gpu(),
                "precisions": [precision for precision in PRECISIONS if backend.supports(precision) is None],
            }
            for backend in backends().values()
        ],
    }


def _engines() -> dict[str, str | None]:
    """The versions of what the backends need, None where it is not installed."""
    found = {name: version for backend in backends().values() for name, version in backend.versions().items()}
    return {name: None if version == "none" else version for name, version in sorted(found.items())}


def _cpu() -> dict[str, Any]:
    """The model, the cores this process may use, and the features that engines profit from (Linux only)."""
    facts = {"model": platform.processor() or platform.machine(), "cores": host.cores(), "features": None}
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return facts
    lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    values = {name.strip(): value.strip() for name, _, value in lines}
    flags = set(values.get("flags", values.get("Features", "")).split())
    return facts | {
        "model": values.get("model name", facts["model"]),
        "features": [flag for flag in CPU_FLAGS if flag in flags],
    }


def _gpus() -> list[dict[str, str]] | str:
    """The NVIDIA GPUs, in the order of `--device`, or why none can be used."""
    from dataclasses import asdict

    from mlpdeploy.engine import nvidia

    found = nvidia.gpus()
    return found if isinstance(found, str) else [asdict(gpu) for gpu in found]
