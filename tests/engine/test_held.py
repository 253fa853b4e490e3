"""An engine that several threads hold: loaded once, closed behind the calls in progress, and pools of contexts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpdeploy.engine import held
from mlpdeploy.engine.runner import Contexts, Loading
from mlpdeploy.errors import ArtifactError, MachineLacks
from tests.engine.backends.test_threads import CALLS, THREADS, Arrays, Plain, doubled, right_answers, rows, stored


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Plain:
    """`plain` as the only backend."""
    backend = Plain()
    monkeypatch.setattr(held, "backends", lambda: {"plain": backend})
    return backend


def test_threads_that_call_first_load_once(table: Plain, tmp_path: Path) -> None:
    engine = held.Held("plain", *stored(tmp_path, "plain"))
    assert right_answers(lambda arrays: list(engine(arrays).values()), doubled) == THREADS * CALLS
    assert table.loads == 1


def test_closing_while_others_call_spoils_no_answer(table: Plain, tmp_path: Path) -> None:
    engine, done = held.Held("plain", *stored(tmp_path, "plain")), threading.Event()

    def close() -> None:
        while not done.is_set():
            engine.close()

    closer = threading.Thread(target=close)
    closer.start()
    try:
        assert right_answers(lambda arrays: list(engine(arrays).values()), doubled) == THREADS * CALLS
    finally:
        done.set()
        closer.join()
    assert table.loads > 1


def test_closing_waits_for_the_call_in_progress(table: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    computing = threading.Event()

    @contextlib.contextmanager
    def load(self: Plain, *given: Any) -> Iterator[Contexts]:
        def compute(inputs: Arrays, outputs: Arrays) -> None:
            computing.set()
            time.sleep(0.05)
            happened.append("answered")

        yield Contexts(lambda: compute)
        happened.append("released")

    monkeypatch.setattr(Plain, "_load", load)
    engine = held.Held("plain", *stored(tmp_path, "plain"))
    caller = threading.Thread(target=engine, args=({"x": rows(1, 0)},))
    caller.start()
    computing.wait()
    engine.close()
    assert happened == ["answered", "released"]
    caller.join()


def test_what_cannot_be_loaded_is_said_to_every_caller(table: Plain, tmp_path: Path) -> None:
    path, facts = stored(tmp_path, "plain")
    engine = held.Held("plain", path, facts)
    path.write_bytes(b"altered")
    for _ in range(2):
        with pytest.raises(ArtifactError, match="altered"):
            engine({"x": rows(1, 0)})
    path.write_bytes(b"engine")
    assert (engine({"x": rows(1, 0)})["y"] == 2 * rows(1, 0)).all()
    with pytest.raises(MachineLacks, match="has no backend gone"):
        held.Held("gone", path, facts)({"x": rows(1, 0)})


class Counting(Plain):
    """A backend whose contexts compute at once, and know how many of them do."""

    concurrent = True

    def __init__(self) -> None:
        super().__init__()
        self.contexts, self.busy, self.most = 0, 0, 0
        self.lock, self.all_in = threading.Lock(), threading.Barrier(3, timeout=20)

    @contextlib.contextmanager
    def _load(self, *given: Any) -> Iterator[Contexts]:
        yield Contexts(self.make)

    def make(self) -> Any:
        self.contexts += 1
        mine = threading.Lock()

        def compute(inputs: Arrays, outputs: Arrays) -> None:
            assert mine.acquire(blocking=False), "one context for two calls"
            with self.lock:
                self.busy += 1
                self.most = max(self.most, self.busy)
            self.all_in.wait()  # three at once, or none goes on
            outputs["y"][...] = 2 * inputs["x"]
            with self.lock:
                self.busy -= 1
            mine.release()

        return compute


@pytest.mark.parametrize("contexts", [3, None])
def test_a_pool_has_its_contexts_ahead_and_a_call_waits_for_one(
    contexts: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Counting()
    monkeypatch.setattr(held, "backends", lambda: {"plain": backend})
    engine = held.Held("plain", *stored(tmp_path, "plain"), loading=Loading(contexts))
    engine.load()
    engine.load()
    assert backend.contexts == (contexts or 0)
    x = rows(2, 0)
    with ThreadPoolExecutor(9 if contexts else 3) as threads:
        found = list(threads.map(lambda _: engine({"x": x})["y"], range(9)))
    assert all((one == 2 * x).all() for one in found) and backend.contexts == backend.most == 3


def test_a_context_that_fails_is_not_lost_to_its_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = iter((True, False, True, False))

    def make() -> Any:
        def compute(inputs: Arrays, outputs: Arrays) -> None:
            if next(failing):
                raise ArtifactError("it broke")
            np.copyto(outputs["y"], 2 * inputs["x"])

        return compute

    backend = Plain()
    monkeypatch.setattr(Plain, "_load", lambda *given: contextlib.nullcontext(Contexts(make)))
    monkeypatch.setattr(held, "backends", lambda: {"plain": backend})
    engine = held.Held("plain", *stored(tmp_path, "plain"), loading=Loading(1))
    for _ in range(2):
        with pytest.raises(ArtifactError, match="it broke"):
            engine({"x": rows(1, 0)})
        assert (engine({"x": rows(1, 0)})["y"] == 2 * rows(1, 0)).all()
