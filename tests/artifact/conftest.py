"""What the tests of artifacts can use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where an artifact is to be, which is not there yet."""
    return tmp_path / "out" / "net" / "fp16" / "backend"
