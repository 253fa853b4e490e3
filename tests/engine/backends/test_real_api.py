"""Runs `real_api.py` beside TensorRT's own package, fetched without its libraries (`python -m pytest -m online`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.engine.backends.real_tensorrt import PACKAGES, installed

QUIET = "ignore:invalid escape"
"""Of TensorRT's own module."""


@pytest.mark.slow
@pytest.mark.online
@pytest.mark.parametrize("version", PACKAGES)
def test_names_types_and_signatures_are_those_of_tensorrt(version: str, tmp_path: Path) -> None:
    environment = installed(version, tmp_path)
    environment["PYTHONPATH"] += f"{os.pathsep}{REPOSITORY}"
    words = (
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-W",
        QUIET,
        str(Path(__file__).with_name("real_api.py")),
    )
    done = subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr
