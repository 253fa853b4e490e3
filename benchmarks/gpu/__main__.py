"""Everything that a GPU can show, in one command without a network connection.

    python -m benchmarks.gpu [--budget 450] [--parts correctness,kernel,network,...] [--out DIR] [--again] [--dry-run]

Finds out what the machine has, checks the kernel, measures it, and measures whole networks in PyTorch, each beside
eager and torch.compile and without each of its rules, and in TensorRT where that is installed; and runs the command
line's build, verify, bench, regress and report. What compiles does so at once, a process each, and is timed one at a
time, alone: all others stand still meanwhile. Each row is written when it is done, most important first, to
`<gpu>.json` and `<gpu>.md`; a run that ends early leaves what it has, and the next one goes on where it ended, on
another machine with the same GPU, PyTorch and Triton too: two calls with `--budget 520` measure what counts most. What
failed is tried again where the code has changed since. In a folder of `--out` without a result the one in
benchmarks/results goes on. What was measured of our kernels' configurations lies in `plugins/common/measured.json`
afterwards, where builds on such a GPU find it, and in the folder of `--out`. `--dry-run` takes every path with tiny
sizes on a CPU. Where git does not tell the commit, MLPDEPLOY_COMMIT can.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("correctness", "kernel", "network", "commands", "rules", "engine")
ENDING = 3.0
"""Seconds of the budget in which processes are ended."""


def main(arguments: list[str] | None = None) -> int:
    """Measure until the budget is spent; 3 where there is no GPU, 1 where a check of correctness failed."""
    began = time.monotonic()
    given = _parsed(arguments)
    os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"  # it does not see which configuration of a kernel was measured
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on the CPU

    import torch

    from benchmarks.gpu.crew import ONE_CORE, Crew

    os.environ.update(dict.fromkeys(ONE_CORE, "1"))

    device = "cpu" if given.dry_run else "cuda"
    if not given.dry_run and not torch.cuda.is_available():
        print("no NVIDIA GPU that PyTorch can use; --dry-run tries the script without one", file=sys.stderr)
        return 3

    from benchmarks.gpu import machine, plan
    from benchmarks.gpu.book import Book

    def left() -> float:
        return float(given.budget) - ENDING - (time.monotonic() - began)

    book = Book(given.out, device, given.dry_run, given.parts.split(","), given.again)
    stale = sum(row.get("code") != book.code for row in book.results.values())
    if stale and not given.again:
        print(f"{stale} rows that other code measured are kept; --again measures them anew", flush=True)
    crew = Crew(plan.tasks(device, given.dry_run, given.seconds), machine.places(device), left, book.known)
    for task, row in crew.rows():
        book.add(task, row)
    book.write()
    print(f"{book.path} and {book.path.with_suffix('.md').name}")
    if device == "cuda":
        print(_shipped(given.out))
    if skipped := crew.left_out():
        print(f"no time for {len(skipped)} rows: {', '.join(skipped)}")
    return int(any(row.get("passed") is False for row in book.results.values()))


def _shipped(folder: Path) -> str:
    """The file that comes with the kernels, with what this machine has measured of them, and a copy in a `folder` that
    is not the repository's; why it is not written.
    """
    import torch

    from mlpdeploy import kernels

    tuning: Any = kernels.load("common.tuning")
    launching: Any = kernels.load("common.launching")
    try:
        path: Path = tuning.ship(launching.compute_capability(torch.device("cuda")))
        return str(path if folder.resolve() == RESULTS else shutil.copy(path, folder))
    except (OSError, ValueError) as error:
        return f"what was measured of our kernels is not shipped: {error}"


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=450, help="seconds for everything (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2, help="of measuring for a network (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure anew what other code measured")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, without a GPU")
    given = parser.parse_args(arguments)
    if unknown := sorted({*given.parts.split(",")} - {*PARTS}):
        parser.error(f"no part is called {unknown[0]}; the parts are {', '.join(PARTS)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
