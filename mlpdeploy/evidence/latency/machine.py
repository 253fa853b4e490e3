"""The machine that a number belongs to: what stays (the fingerprint), and what changes while it is measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.base import installed_version
from mlpdeploy.engine.host import cpu_model, cpuinfo

PACKAGES = ("numpy", "onnx", "timm", "torch")
"""What every number depends on, beside the engines' own packages."""
GPU = "cuda"
"""The device of an engine that does not compute on the CPU."""

_CPU = Path("/sys/devices/system/cpu/cpu0")


def fingerprint() -> dict[str, Any]:
    """The machine and the versions that a number belongs to: two numbers compare only where these are the same.

    `gpu_clock` is what times a GPU's work there, None where that is the host's clock (see `evidence.latency.clocks`).
    """
    engines = (package for backend in backends().values() for package in backend.packages)
    found = {package: installed_version(package) for package in sorted({*PACKAGES, *engines})}
    versions = {package: version for package, version in found.items() if version is not None}
    gpu = nvidia.probe()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "gpu": None if isinstance(gpu, str) else asdict(gpu),
        "gpu_clock": None if isinstance(gpu, str) else _gpu_clock(),
    }


def computed_on(machine: Mapping[str, Any], device: str | None) -> str:
    """What of a machine an engine computes on that runs on `device`, by name."""
    gpu = machine.get("gpu") if device == GPU else None
    return str(gpu["name"] if gpu else machine["cpu"])


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, each in words: `torch 2.15.0 (was 2.14.1)`."""
    flat = [{**one, **dict(one.get("versions") or {})} for one in (here, there)]
    names = [name for name in dict.fromkeys([*flat[0], *flat[1]]) if name != "versions"]
    return [f"{n} {flat[0].get(n)} (was {flat[1].get(n)})" for n in names if flat[0].get(n) != flat[1].get(n)]


def conditions() -> dict[str, Any]:
    """What may disturb a measurement, now; None for what this system does not tell.

    `load` is the number of runnable processes averaged over a minute, `mhz` the clock of the first core, `celsius` the
    hottest sensor; `gpu` has clock, temperature and use as the NVIDIA driver reports them.
    """
    return {
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "governor": _text(_CPU / "cpufreq/scaling_governor"),
        "mhz": _clock(),
        "celsius": _hottest(),
        "gpu": _gpu(),
    }


def cache_bytes() -> int:
    """The size of the largest cache of the first core; 32 MiB where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [_text(path) or "" for path in _CPU.glob("cache/index*/size")]
    return max((int(s[:-1]) * units[s[-1]] for s in sizes if s[:-1].isdigit() and s[-1] in units), default=32 << 20)


def _clock() -> float | None:
    khz = _text(_CPU / "cpufreq/scaling_cur_freq")
    if khz is not None and khz.isdigit():
        return int(khz) / 1e3
    mhz = cpuinfo("cpu MHz")
    return None if mhz is None else float(mhz)


def _hottest() -> float | None:
    readings = [_text(path) or "" for path in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    return max((int(reading) / 1e3 for reading in readings if reading.lstrip("-").isdigit()), default=None)


def _gpu_clock() -> str | None:
    import torch

    return "device events" if torch.cuda.is_available() else None


def _gpu() -> dict[str, str] | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = ("clocks.sm", "clocks.mem", "temperature.gpu", "utilization.gpu", "power.draw")
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    values = [value.strip() for value in found.stdout.split(",")]
    return dict(zip(fields, values, strict=True)) if found.returncode == 0 and len(values) == len(fields) else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
