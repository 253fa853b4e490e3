"""The examples compile, with the vendors' own headers where they are at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PLAN = REPOSITORY / "examples" / "plan.cpp"
STAND_INS = Path(__file__).parent / "data" / "headers"
"""Declarations of what the examples call, by NVIDIA's documentation, for machines without its headers."""
PREFIXES = ("/usr", "/usr/local", "/usr/local/cuda", "/usr/local/tensorrt", "/opt/tensorrt")


def folder_of(header: str) -> Path | None:
    """Where a header lies: where compilers look, where NVIDIA's packages and wheels put it; None without one."""
    told = [Path(path) for path in os.environ.get("CPLUS_INCLUDE_PATH", "").split(os.pathsep) if path]
    system = [Path(prefix) / "include" for prefix in PREFIXES]
    system += [folder / f"{os.uname().machine}-linux-gnu" for folder in system]
    wheels = sorted((Path(sysconfig.get_paths()["purelib"]) / "nvidia").glob("*/include"))
    return next((folder for folder in (*told, *system, *wheels) if (folder / header).is_file()), None)


def compiled(*headers: Path) -> subprocess.CompletedProcess[str]:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    strict = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    places = [word for folder in headers for word in ("-isystem", str(folder))]
    return subprocess.run([compiler, *strict, *places, PLAN], capture_output=True, text=True)


def test_the_plan_example_compiles_against_the_declarations_of_what_it_calls() -> None:
    done = compiled(STAND_INS)
    assert done.returncode == 0, done.stderr


def test_the_plan_example_compiles_against_nvidias_headers() -> None:
    tensorrt, cuda = folder_of("NvInfer.h"), folder_of("cuda_runtime_api.h")
    if tensorrt is None or cuda is None:
        pytest.skip("needs NvInfer.h and cuda_runtime_api.h")
    done = compiled(tensorrt, cuda)
    assert done.returncode == 0, done.stderr


def test_the_plan_example_compiles_against_the_cuda_headers_that_are_here() -> None:
    cuda = folder_of("cuda_runtime_api.h")
    if cuda is None:
        pytest.skip("needs cuda_runtime_api.h")
    done = compiled(cuda, STAND_INS)  # whose own is found after the real one
    assert done.returncode == 0, done.stderr
