"""What every test can use."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from mlpdeploy.evidence.latency import worth
from mlpdeploy.evidence.latency.collector import settled
from tests.warm import Warm, warmed

REPOSITORY = Path(__file__).parent.parent
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    # The key that artifacts are sealed with, and what inductor compiles, belong to this run alone, workers included.
    if not hasattr(config, "workerinput"):
        kept = tempfile.mkdtemp(prefix="mlpdeploy-tests-")
        config.add_cleanup(partial(shutil.rmtree, kept, ignore_errors=True))
        os.environ["XDG_STATE_HOME"] = f"{kept}/state"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{kept}/inductor"
    # Of an inductor package, most of the time goes into what calls its kernels: it need not be fast here.
    os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
    # A run that was started in the background ignores Ctrl-C and hang-ups, and so would the processes that tests end.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    # Two cores are usual; results must not depend on how many there are.
    torch.set_num_threads(1)
    worth.ROUNDS = 5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The short loop, `python -m pytest -m "not slow"`, leaves out the networks' own tests and what is run apart.

    Tests of whole jobs, the longest, come first: so no worker has one left when the other one is done.
    """
    items.sort(key=lambda item: item.path.parent != REPOSITORY / "tests")
    for item in items:
        apart = any(item.get_closest_marker(name) for name in ("large", "online"))
        if apart or item.path.is_relative_to(REPOSITORY / "tests" / "zoo"):
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def _settled() -> Iterator[None]:
    """No measurement counts what is frozen here."""
    with settled():
        yield


@pytest.fixture(scope="module", autouse=True)
def _out_of_the_collectors_sight() -> None:
    """What lives already, for the most part code, is no garbage: to look at all of it takes half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """What runs programs without importing everything anew."""
    with warmed(REPOSITORY) as process:
        yield process


@pytest.fixture
def cli(tmp_path: Path, warm: Warm) -> Cli:
    """Run `mlpdeploy` with these arguments as a user would: another process, another folder, 80 columns."""

    def run(*arguments: str | Path, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        usual = {"COLUMNS": "80", "NO_COLOR": "1"}
        found = warm.run(["-m", "mlpdeploy", *map(str, arguments)], tmp_path, **(usual | environment))
        if code is not None:
            assert found.returncode == code, found.stdout + found.stderr
        assert "Traceback" not in found.stderr
        return found

    return run
