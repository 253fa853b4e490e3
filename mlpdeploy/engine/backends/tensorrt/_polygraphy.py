"""Polygraphy, bound to one flavour of TensorRT, silent, with TensorRT's own errors collected.

Polygraphy reads POLYGRAPHY_USE_TENSORRT_RTX once, when it is imported, and every module of it keeps the TensorRT that
was chosen then. So a process serves one flavour: the first that it binds. Modules of Polygraphy that another backend
imported before that (ONNX Runtime's) hold a TensorRT that nothing has used yet, and are pointed at the right one.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.base import one_line
from mlpdeploy.errors import InputError, MlpdeployError

_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"
# Without a driver TensorRT reports this beside every real error; it says nothing about the network.
_NOISE = ("CUDA driver version is insufficient", "Begin node", "End node", "While parsing node number", "Node name: ")


def bind(flavour: str) -> Any:
    """Bind Polygraphy to `flavour` ("tensorrt" or "tensorrt-rtx") and return that TensorRT module.

    Raises InputError where this process has already bound the other flavour.
    """
    wanted = flavour == "tensorrt-rtx"
    os.environ[_SWITCH] = "1" if wanted else "0"
    config: Any = importlib.import_module("polygraphy.config")
    if wanted != config.USE_TENSORRT_RTX:
        if "polygraphy.backend.trt" in sys.modules:
            other = "tensorrt-rtx" if config.USE_TENSORRT_RTX else "tensorrt"
            os.environ[_SWITCH] = "1" if config.USE_TENSORRT_RTX else "0"
            raise InputError(f"this process already uses {other} and can use one flavour only; run {flavour} apart")
        config.USE_TENSORRT_RTX = wanted
        importer = importlib.import_module("polygraphy.mod.trt_importer")
        for name, module in list(sys.modules.items()):
            if name.startswith("polygraphy.") and hasattr(module, "trt"):
                vars(module)["trt"] = importer.lazy_import_trt()
    importlib.import_module("polygraphy.backend.trt")
    return importlib.import_module("tensorrt_rtx" if wanted else "tensorrt")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Polygraphy from printing: its messages come back in exceptions."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield


@contextmanager
def collected_errors(trt: Any) -> Iterator[list[str]]:
    """Send TensorRT's log to the list that is yielded: the lines of its errors, in order.

    Where several lists are open, each has all lines: TensorRT does not tell whose they are.
    """
    from polygraphy.backend.trt import util

    errors: list[str] = []
    _open.append(errors)
    util.TRT_LOGGER = _logger(trt)
    try:
        with quiet():
            yield errors
    finally:
        _open[:] = [one for one in _open if one is not errors]


_open: list[list[str]] = []
"""The lists that TensorRT's errors go to now."""


@functools.cache
def _logger(trt: Any) -> Any:
    """The one logger of this process: TensorRT keeps the first that it is given, and complains about others."""
    severities = (trt.Logger.ERROR, trt.Logger.INTERNAL_ERROR)

    class Collector(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in severities:
                for errors in tuple(_open):
                    errors.extend(message.splitlines())

    return Collector()


@contextmanager
def refusals(error_type: type[MlpdeployError], what: str, errors: list[str]) -> Iterator[None]:
    """Polygraphy's exceptions become `error_type`, told by `message`."""
    from polygraphy.exception import PolygraphyException

    try:
        yield
    except PolygraphyException as error:
        raise error_type(message(what, errors, error)) from error


def message(what: str, errors: Sequence[str], error: BaseException) -> str:
    """One readable line with the reason, then TensorRT's own lines."""
    told = [line for line in errors if not any(noise in line for noise in _NOISE)]
    reasons = [line for line in told if re.search(r"Assertion failed|Error Code", line)] or told or [str(error)]
    reason = re.sub(r"^\[\d+\] ", "", one_line(reasons[0]))
    return "\n".join([f"{what}: {reason}", *errors])


@contextmanager
def timing_cache(engine: str) -> Iterator[str | None]:
    """A private copy of this GPU's timing cache, put back in one step after a build that succeeded.

    None without a GPU, where nothing is timed, and where the user's cache folder cannot be written, which is no
    reason to fail a build. `engine` names the flavour, its version, and that of our kernels, whose times it has too;
    each GPU has a file.
    """
    gpu = nvidia.probe()
    root = cache_folder()
    if isinstance(gpu, str) or not _writable(root):
        yield None
        return
    shared = root / f"timing-{engine}-{gpu.capability}-{gpu.slug()}.cache"
    with tempfile.TemporaryDirectory(dir=root, prefix="timing-") as folder:
        private = Path(folder) / "cache"
        if shared.is_file():
            shutil.copyfile(shared, private)
        else:
            private.touch()
        yield str(private)
        os.replace(private, shared)


@contextmanager
def named_cache(path: Path) -> Iterator[str]:
    """A timing cache that the user named, for one who shares it with others: Polygraphy adds to it under a lock.

    Raises InputError where it cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        path.read_bytes()
    except OSError as error:
        raise InputError(f"--timing-cache {path}: cannot be used ({error.strerror or error})") from error
    yield str(path)


def cache_folder() -> Path:
    """The user's own, for what is only kept to save time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlpdeploy"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def monitor(trt: Any, step: Callable[[str, int, int], None]) -> Any:
    """An IProgressMonitor that calls `step(phase, done, total)`.

    TensorRT calls it from C++, where an exception would end the process. So the first one, a KeyboardInterrupt too,
    is kept as `raised` and cancels the build, for the caller to raise afterwards.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps

        def step_complete(self, phase_name: str, step_number: int) -> bool:
            try:
                total = self.totals.get(phase_name, step_number + 1)
                step(phase_name, step_number + 1, total)
            except BaseException as error:
                self.raised = self.raised or error
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

    return Monitor()
