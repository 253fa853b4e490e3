"""What every test can use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    # The key that artifacts are sealed with belongs to these tests alone.
    os.environ.setdefault("XDG_STATE_HOME", tempfile.mkdtemp(prefix="mlpdeploy-tests-"))
    # A run that was started in the background ignores Ctrl-C and hang-ups, and so would the processes that tests end.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    # Two cores are usual; results must not depend on how many there are.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The networks' own tests are no part of the short loop, `python -m pytest -m "not slow"`."""
    for item in items:
        if item.path.is_relative_to(REPOSITORY / "tests" / "zoo"):
            item.add_marker("slow")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `mlpdeploy` with these arguments as a user would: another process, another folder, 80 columns."""

    def run(*arguments: str | Path, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        found = subprocess.run(
            [sys.executable, "-m", "mlpdeploy", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "80", "NO_COLOR": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        if code is not None:
            assert found.returncode == code, found.stdout + found.stderr
        assert "Traceback" not in found.stderr
        return found

    return run
