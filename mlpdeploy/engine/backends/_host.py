"""What of a machine an engine may depend on, beside the versions of libraries."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path


def cpu() -> str:
    """The processor's name and what it can do: code is compiled, and operations are chosen, for these."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags") or facts.get("Features") or ""
    return f"{facts.get('model name') or platform.machine()}: {' '.join(sorted(flags.split()))}"


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
