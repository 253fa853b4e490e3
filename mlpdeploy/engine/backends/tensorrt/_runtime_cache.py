"""The kernels that TensorRT-RTX compiled where an engine ran, kept in the user's cache folder for its next start.

TensorRT-RTX itself refuses what was kept on another GPU, or with another version or driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backends.tensorrt._polygraphy import cache_folder
from mlpdeploy.system.leftovers import temporary

KEPT = 64
"""Engines whose kernels are kept; those that ran longest ago go first."""


@contextmanager
def kernels(trt: Any, engine: Any, sha256: str) -> Iterator[Any | None]:
    """An IRuntimeCache for the contexts of an engine, whose file has that hash; None with plain TensorRT.

    What is compiled meanwhile is kept where the body ends well and the folder can be written.
    """
    if not hasattr(trt, "IRuntimeCache"):
        yield None
        return
    cache, path, before = engine.create_runtime_config().create_runtime_cache(), _path(sha256), b""
    with suppress(OSError):
        before = path.read_bytes()
        cache.deserialize(before)
    yield cache
    after = bytes(cache.serialize())
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if after != before:
            with temporary(path) as made:
                made.write_bytes(after)
                made.replace(path)
        path.touch()
        for old in sorted(path.parent.glob("kernels-*.cache"), key=lambda one: one.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)


def _path(sha256: str) -> Path:
    gpu = nvidia.probe()
    here = "no-gpu" if isinstance(gpu, str) else f"{gpu.capability}-{gpu.slug()}"
    return cache_folder() / f"kernels-{sha256[:16]}-{here}.cache"
