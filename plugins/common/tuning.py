"""Which configuration runs a kernel: measured where there is a GPU, remembered on disk, else the default.

Measurements are kept by GPU and shape class: this machine's in a file of the user's cache, a line each, so that
processes that measure at once, or end meanwhile, cost one another nothing; and those of GPUs that were measured before
in SHIPPED, which comes with the code. What the operation means, as libraries compute it, competes too: where that was
faster, or where the kernel fits no block, the answer is LIBRARY, and the caller uses them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from .configurations import Choice, Config, Problem

LIBRARY = "library"
"""The answer where the library's matrix products and what is around them are faster than the kernel."""

SHIPPED = Path(__file__).with_name("measured.json")
"""By GPU, what was measured there: of which code of the kernels, and the choices by shape class. `ship` writes it."""

CODE = ("kernel", "problem", "configurations")
"""Files that say what a measurement was of."""


def choose(problem: Problem, batch: int, sm: int) -> Choice:
    """What was measured for this shape class on this compute capability, else the default."""
    found = remembered(problem, batch, sm)
    return (problem.default(batch, sm) or LIBRARY) if found is None else found


def remembered(problem: Problem, batch: int, sm: int) -> Choice | None:
    """What was measured for this shape class on this machine, or on a GPU like it, where it is still a candidate."""
    choice = _remembered(sm).get(problem.shape_class(batch))
    return choice if choice == LIBRARY or choice in problem.candidates(sm) else None


def timings(
    problem: Problem, batch: int, sm: int, run: Callable[[Choice], Callable[[], Any]], time: Callable[..., float]
) -> dict[Choice, float]:
    """Seconds of each configuration worth measuring, and of LIBRARY; the fastest is remembered.

    `run(choice)` makes a function without arguments, `time(function)` says how many seconds it takes. Tiles compete
    first, each in one configuration, and then the other configurations of the best. A candidate that the GPU or the
    compiler refuses (shared memory, registers) is left out.
    """
    from triton import TritonError

    taken: dict[Choice, float] = {}

    def measure(choices: Sequence[Choice]) -> None:
        for choice in choices:
            with contextlib.suppress(RuntimeError, TritonError):  # CUDA's errors, and Triton's, which are of their own
                taken[choice] = time(run(choice))

    measure([LIBRARY, *problem.shortlist(batch, sm)])
    if own := {choice: seconds for choice, seconds in taken.items() if isinstance(choice, Config)}:
        measure(problem.variants(min(own, key=lambda config: own[config]), sm))
    if taken:
        remember({problem.shape_class(batch): fastest(taken)}, sm)
    return taken


def fastest(taken: Mapping[Choice, float]) -> Choice:
    """The choice that took least time."""
    return min(taken, key=lambda choice: taken[choice])


def seconds(function: Callable[[], Any]) -> float:
    """The median time of a function on the GPU, its cache emptied before each run, while no other process measures."""
    from triton.testing import do_bench

    function()  # compiles, beside the others
    with alone():
        return 1e-3 * float(do_bench(function, warmup=10, rep=40, return_mode="median"))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One process of a user at a time; all at once where there is no such lock, or no place for its file."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            folder().mkdir(parents=True, exist_ok=True)
            held = stack.enter_context((folder() / "measuring.lock").open("w"))
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def remember(choices: Mapping[str, Choice], sm: int) -> None:
    """Add choices by shape class to this machine's file; nothing where it is read-only."""
    lines = [json.dumps({"shape": name, "choice": _written(choice)}) for name, choice in choices.items()]
    path = file(sm)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write to the end of a file is whole; what an ended process left of its own stays on a line by itself.
        with path.open("a", encoding="utf-8") as opened:
            opened.write("".join(f"\n{line}\n" for line in lines))
    _remembered.cache_clear()


def ship(sm: int, path: Path | None = None) -> Path:
    """Put what this machine has measured into the file that comes with the code, under the name of its GPU.

    What another version of the kernels measured there goes. Raises ValueError where there is no such GPU.
    """
    import triton

    name, path = gpu(sm), path or SHIPPED
    if not name:
        raise ValueError(f"this machine has no GPU of compute capability {sm // 10}.{sm % 10}")
    document = _document(path)
    choices = {**shipped(sm, path), **_read(file(sm))}
    kept = {shape: _written(choice) for shape, choice in sorted(choices.items())}
    document[name] = {"code": _code(), "triton": triton.__version__, "choices": kept}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)
    _remembered.cache_clear()
    return path


def file(sm: int) -> Path:
    """Where this machine's choices lie: a name of its own for each GPU, and version of the kernels and Triton."""
    import triton

    name = re.sub(r"[^a-z0-9]+", "-", gpu(sm).lower()) or f"sm{sm}"
    version = hashlib.sha256(f"{triton.__version__} {_code()}".encode()).hexdigest()[:12]
    return folder() / f"kernels-{name}-{version}.jsonl"


def folder() -> Path:
    """Where this user's measurements lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlpdeploy"


@cache
def gpu(sm: int) -> str:
    """The name of this machine's GPU of a compute capability, as its driver tells it; empty where there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = map(torch.cuda.get_device_properties, range(count))
    return next((str(one.name) for one in found if 10 * one.major + one.minor == sm), "")


@cache
def _code() -> str:
    """Twelve hexadecimal digits that change with what a measurement is of."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        if path.stem in CODE:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def _remembered(sm: int) -> dict[str, Choice]:
    return {**shipped(sm, SHIPPED), **_read(file(sm))}


def shipped(sm: int, path: Path) -> dict[str, Choice]:
    """The choices that come with the code for this machine's GPU, where they are of the kernels as they are."""
    entry = _document(path).get(gpu(sm), {})
    if entry.get("code") != _code():
        return {}
    return {name: _choice(choice) for name, choice in entry["choices"].items()}


def _document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _read(path: Path) -> dict[str, Choice]:
    """The choices of this machine's file, the last of each: none where there is no file, damaged lines left out."""
    found: dict[str, Choice] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
                record = json.loads(line)
                found[record["shape"]] = _choice(record["choice"])
    return found


def _written(choice: Choice) -> Any:
    return choice if isinstance(choice, str) else asdict(choice)


def _choice(written: Any) -> Choice:
    return written if isinstance(written, str) else Config(**written)
