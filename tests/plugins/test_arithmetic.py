"""Runs what has Triton's interpreter compute with a kernel, each file in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(("file", "passed"), [("arithmetic.py", 31), ("token_mlps.py", 44)])
def test_a_kernel_by_the_interpreter(file: str, passed: int) -> None:
    here, root = Path(__file__).parent, Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(here / file)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and f"{passed} passed" in done.stdout, done.stdout + done.stderr
