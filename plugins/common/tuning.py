"""Which configuration runs a kernel: measured where there is a GPU, remembered on disk, else the default.

Measurements are kept by compute capability and shape class. What the operation means, as libraries compute it, competes
too: where that was faster, or where the kernel fits no block, the answer is LIBRARY, and the caller uses them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from .configurations import Config, Problem

LIBRARY = "library"
"""The answer where the library's matrix products and what is around them are faster than the kernel."""

Choice = Config | str

CODE = ("kernel", "problem", "configurations")
"""Files that say what a measurement was of."""


def choose(problem: Problem, batch: int, sm: int) -> Choice:
    """What was measured for this shape class on this compute capability, else the default."""
    found = remembered(problem, batch, sm)
    return (problem.default(batch, sm) or LIBRARY) if found is None else found


def remembered(problem: Problem, batch: int, sm: int) -> Choice | None:
    """What was measured for this shape class on this compute capability."""
    return _remembered(sm).get(problem.shape_class(batch))


def timings(
    problem: Problem, batch: int, sm: int, run: Callable[[Choice], Callable[[], Any]], time: Callable[..., float]
) -> dict[Choice, float]:
    """Seconds of each configuration worth measuring, and of LIBRARY; the fastest is remembered.

    `run(choice)` makes a function without arguments, `time(function)` says how many seconds it takes. A candidate that
    the GPU refuses (shared memory, registers) is left out.
    """
    taken: dict[Choice, float] = {}
    competing: list[Choice] = [LIBRARY, *problem.shortlist(batch, sm)]
    for choice in competing:
        with contextlib.suppress(RuntimeError):  # CUDA's and Triton's launch errors
            taken[choice] = time(run(choice))
    remember({problem.shape_class(batch): fastest(taken)}, sm)
    return taken


def fastest(taken: Mapping[Choice, float]) -> Choice:
    """The choice that took least time."""
    return min(taken, key=lambda choice: taken[choice])


def seconds(function: Callable[[], Any]) -> float:
    """The median time of a function on the GPU, its cache emptied before each run."""
    from triton.testing import do_bench

    return 1e-3 * float(do_bench(function, warmup=10, rep=40, return_mode="median"))


def remember(choices: Mapping[str, Choice], sm: int) -> None:
    """Add choices by shape class to the file of this compute capability, in one step; nothing where it is read-only."""
    path = file(sm)
    merged = {**_read(path), **choices}
    document = {name: choice if isinstance(choice, str) else asdict(choice) for name, choice in sorted(merged.items())}
    temporary = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    _remembered.cache_clear()


def file(sm: int) -> Path:
    """Where the choices for a compute capability lie: a name of its own for each version of the kernels and Triton."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlpdeploy"
    return root / f"kernels-sm{sm}-{_version()}.json"


@cache
def _version() -> str:
    import triton

    digest = hashlib.sha256(triton.__version__.encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        if path.stem in CODE:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def _remembered(sm: int) -> dict[str, Choice]:
    return _read(file(sm))


def _read(path: Path) -> dict[str, Choice]:
    """The choices of a file; none where there is no such file or it is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {name: LIBRARY if choice == LIBRARY else Config(**choice) for name, choice in document.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
