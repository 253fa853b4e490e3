"""A loaded engine that several threads call, and that one of them may let go of while others are calling."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlpdeploy.engine import forks
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.runner import AS_CALLED, Loading
from mlpdeploy.errors import MachineLacks

if TYPE_CHECKING:
    import numpy as np

    from mlpdeploy.engine.backend import Backend
    from mlpdeploy.engine.runner import Arrays, Runner


@dataclass
class _Loaded:
    """A runner, what ends it, and how many calls of it are in progress."""

    runner: Runner
    end: ExitStack
    calls: int = 0


_HELD: weakref.WeakSet[Held] = weakref.WeakSet()
_BEHIND: list[_Loaded | None] = []
"""Engines of the process that this one was forked from: to let go of one waits for threads that are not here."""


class Held:
    """The engine of a backend: loaded once, by whichever thread calls first, and anew by a call after `close`."""

    def __init__(
        self,
        backend: str,
        engine: Path,
        facts: Mapping[str, Any],
        check: Callable[[Backend], None] | None = None,
        loading: Loading = AS_CALLED,
    ) -> None:
        """`check` is called before the engine is loaded, and raises where it must not be."""
        self._backend, self._engine, self._facts, self._check, self._loading = backend, engine, facts, check, loading
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        _HELD.add(self)
        self._loaded: _Loaded | None = None

    def __call__(self, inputs: Arrays, out: Arrays | None = None) -> dict[str, np.ndarray]:
        """See `Runner`. Raises MachineLacks where this machine cannot run it, and what `Backend.load` raises."""
        with self._lock:
            loaded = self._loaded or self._load()
            loaded.calls += 1
        try:
            return loaded.runner(inputs, out)
        finally:
            with self._lock:
                loaded.calls -= 1
                if loaded is not self._loaded:
                    self._changed.notify_all()

    def load(self) -> None:
        """Load it now, where that is not done yet. Raises what a call does."""
        with self._lock:
            if self._loaded is None:
                self._load()

    @cached_property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        backend = backends().get(self._backend)
        return backend is not None and backend.device(self._facts) == "cuda"

    def close(self) -> None:
        """Let go of the engine as soon as the calls in progress have their answers."""
        with self._changed:
            loaded, self._loaded = self._loaded, None
            if loaded is not None:
                self._changed.wait_for(lambda: loaded.calls == 0)
                loaded.end.close()

    def cannot_run(self) -> str | None:
        """None where this machine can run the engine, else one line: why not."""
        backend = backends().get(self._backend)
        if backend is None:
            return f"this mlpdeploy has no backend {self._backend}"
        return backend.available() or backend.executable()

    def _load(self) -> _Loaded:
        forks.require()
        if (reason := self.cannot_run()) is not None:
            raise MachineLacks(f"the {self._backend} engine cannot run on this machine: {reason}")
        backend = backends()[self._backend]
        if self._check is not None:
            self._check(backend)
        end = ExitStack()
        runner = end.enter_context(backend.load(self._engine, self._facts, self._loading))
        self._loaded = _Loaded(runner, end)
        return self._loaded


class Holding:
    """What holds a loaded engine until it is closed, as a context manager too."""

    _held: Held

    def close(self) -> None:
        """Let go of the loaded engine, once calls in progress are done; a later call loads it again."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _forked() -> None:
    for one in _HELD:
        _BEHIND.append(one._loaded)
        one._loaded, one._lock = None, threading.Lock()
        one._changed = threading.Condition(one._lock)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
