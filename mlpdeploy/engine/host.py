"""What of a machine an engine may depend on, beside the versions of libraries."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu() -> str:
    """The processor's name and what it can do: code is compiled, and operations are chosen, for these."""
    flags = cpuinfo("flags") or cpuinfo("Features") or ""
    return f"{cpu_model()}: {' '.join(sorted(flags.split()))}"


def cpu_model(info: Path = CPUINFO) -> str:
    """The processor's own name, or what Python knows of it."""
    return cpuinfo("model name", info) or platform.processor() or platform.machine()


def cpuinfo(wanted: str, info: Path = CPUINFO) -> str | None:
    """What the system tells of its first processor under a name."""
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == wanted:
                return value.strip()
    return None


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(*prefixes: str) -> dict[str, str]:
    """The variables whose names begin so, from which libraries take options; not where they keep a cache."""
    found = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    return {name: found[name] for name in sorted(found) if not name.endswith("_CACHE_DIR")}


def compiler() -> str | None:
    """The C++ compiler and its version, as it says so itself; None where there is none."""
    names = [os.environ.get("CXX"), "g++", "clang++", "cl"]
    program = next((found for name in names if name and (found := shutil.which(name))), None)
    if program is None:
        return None
    told = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace", check=False)
    return next(iter(told.stdout.splitlines()), program)
