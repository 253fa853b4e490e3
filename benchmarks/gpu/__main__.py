"""Everything that a GPU can show, in one command without a network connection.

    python -m benchmarks.gpu [--budget 450] [--parts correctness,kernel,network,engine,choices] [--out DIR] [--dry-run]

Finds out what the machine has, checks the kernel, measures it, and measures whole networks in PyTorch, each beside
eager and torch.compile and without each of its rules, and in TensorRT where that is installed. Networks compile at
once, a process each, and are measured one at a time. Each row is written when it is done, most important first, to
`<gpu>.json` and `<gpu>.md`; a run that ends early leaves what it has, and the next one on the same machine goes on
where it ended. The last part, `choices`, measures our kernels' configurations for each shape of the networks and puts
them beside the kernels (`plugins/common/measured.json`). `--dry-run` takes every path with tiny sizes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("correctness", "kernel", "network", "engine", "choices")
QUICK = "mixer_s32"
"""The network whose engines say whether TensorRT accepts this GPU."""

Job = tuple[str, str, float, Callable[[], dict[str, Any]]]
"""A row: its part, its name, how many seconds it will take at most, and what measures it."""


@dataclass(frozen=True)
class Session:
    """Where and how long is measured, and what."""

    device: str
    dry: bool
    seconds: float
    """Of measuring for a network."""
    wanted: Callable[[str, str], bool]
    """Whether a row is to be measured, by its part and name."""
    left: Callable[[], float]
    """Seconds of the budget that are not spent."""


def jobs(session: Session) -> Iterator[Job]:
    """All rows, most important first."""
    from benchmarks.gpu import choices, fused, kernels, networks

    device, dry, seconds = session.device, session.dry, session.seconds
    cases, others = (kernels.TINY, ()) if dry else (kernels.CASES, kernels.OTHERS)
    first = cases if dry else (*cases[:4], cases[10])
    names, batches = ((networks.TINY,), (2,)) if dry else (networks.NAMES, networks.BATCHES)
    epilogues, mlps = (names, (fused.TINY_MIXER,)) if dry else (fused.EPILOGUES, fused.MLPS)
    yield from _correctness_jobs(first, device)
    yield "kernel", "roofline", 10, lambda: kernels.roofline(device)
    yield from _engine_jobs(dry, seconds, quick=True)
    yield from _network_jobs(session, names, batches[0])
    yield from _kernel_jobs(cases[:4], (128, 8), device, dry, seconds)
    yield from _rule_jobs(session, names, batches[0])
    for batch in batches[1:]:
        yield from _network_jobs(session, names, batch)
    yield from _fused_jobs(session, epilogues, batches[0])
    for batch in batches:
        yield from _fused_jobs(session, mlps, batch)
    for other in () if dry else ({"tuned": True}, {"precision": "bf16"}):
        yield from _network_jobs(session, names, batches[0], **other)
    yield from _kernel_jobs(cases, (128, 8, 1), device, dry, seconds)
    yield from _engine_jobs(dry, seconds, quick=False)
    yield from _correctness_jobs(cases, device)
    yield from _kernel_jobs(others, (128, 8, 1), device, dry, seconds)
    yield from choices.jobs([*dict.fromkeys((*names, *mlps))], (2,) if dry else batches, device)


def _correctness_jobs(cases: Any, device: str) -> Iterator[Job]:
    from benchmarks.gpu import kernels

    for case in cases:
        yield "correctness", f"correctness {case.name}", 20, lambda case=case: kernels.correctness(case, device)  # type: ignore[misc]


def _kernel_jobs(cases: Any, batches: Any, device: str, dry: bool, seconds: float) -> Iterator[Job]:
    from benchmarks.gpu import kernels

    for case in cases:
        with kernels.compiler(dry) as compiled:
            for batch in (2,) if dry else batches:

                def run(case: Any = case, batch: int = batch, compiled: Any = compiled) -> dict[str, Any]:
                    return kernels.speed(case, batch, device, compiled, seconds / 10)

                yield "kernel", f"kernel {case.name} batch {batch}", 40, run


def _network_jobs(
    session: Session, names: Sequence[str], batch: int, *, precision: str = "fp16", tuned: bool = False
) -> Iterator[Job]:
    """Each network with all contenders, in a process of its own; all compile at once."""
    from benchmarks.gpu import networks

    marks = ("" if precision == "fp16" else f" {precision}") + " max-autotune" * tuned
    mode = networks.TUNED if tuned else networks.DEFAULT
    given = (batch, session.device, session.dry, session.seconds, precision, mode)
    tasks = {f"network {_short(name)} batch {batch}{marks}": (networks.prepare, (name, *given)) for name in names}
    yield from _crewed(session, tasks)


def _rule_jobs(session: Session, names: Sequence[str], batch: int) -> Iterator[Job]:
    """Each network without each rule that fired, and with each that is off, in a process of its own."""
    from benchmarks.gpu import rules

    given = (batch, session.device, session.dry, session.seconds)
    tasks = {f"rules {_short(name)} batch {batch}": (rules.prepare, (name, *given)) for name in names}
    yield from _crewed(session, tasks)


def _fused_jobs(session: Session, names: Sequence[str], batch: int) -> Iterator[Job]:
    """Each network with and without what follows its products in them, in a process of its own."""
    from benchmarks.gpu import fused

    given = (batch, session.device, session.dry, session.seconds)
    tasks = {f"epilogues {_short(name)} batch {batch}": (fused.prepare, (name, *given)) for name in names}
    yield from _crewed(session, tasks)


def _crewed(session: Session, tasks: Mapping[str, Any]) -> Iterator[Job]:
    """A row for each task, in the order in which their processes get ready; those that do not in time come last."""
    from benchmarks.gpu.crew import Crew

    measuring = 4 * session.seconds
    waiting = {name: task for name, task in tasks.items() if session.wanted("network", name)}
    with Crew(waiting) as crew:
        for name in crew.ready(lambda: session.left() - measuring / 2):
            del waiting[name]
            yield "network", name, measuring, partial(crew.row, name)
        for name in waiting:
            yield "network", name, math.inf, partial(crew.row, name)


def _short(name: str) -> str:
    return name.rpartition(":")[2]


def _engine_jobs(dry: bool, seconds: float, quick: bool) -> Iterator[Job]:
    """TensorRT's engines, where a flavour is there: one network first, which says whether this GPU is accepted."""
    from benchmarks.gpu import networks
    from mlpdeploy.engine.backend import backends

    for flavour in () if dry else ("tensorrt", "tensorrt-rtx"):
        if (reason := backends()[flavour].available()) is not None:
            if quick:
                yield "engine", f"engine {flavour}", 1, lambda reason=reason: {"failed": reason}  # type: ignore[misc]
            continue
        # TensorRT-RTX builds for RTX GPUs unless it is told to build for the one that is here.
        targets = {"": ()} if flavour == "tensorrt" else {" for this GPU": ("current",), " for RTX GPUs": ()}
        for target, gpus in targets.items() if quick else [*targets.items()][:1]:
            for name in (QUICK,) if quick else networks.NAMES:
                for batch in (8,) if quick else networks.BATCHES:

                    def run(name: str = name, batch: int = batch, flavour: str = flavour, gpus: Any = gpus) -> Any:
                        return networks.engines(name, batch, flavour, gpus, seconds)

                    yield "engine", f"engine {flavour}{target} {name} batch {batch}", 60, run
            if not quick:

                def whole(flavour: str = flavour, gpus: Any = gpus) -> dict[str, Any]:
                    return networks.pipeline("vip_s7", flavour, gpus)

                yield "engine", f"pipeline {flavour}{target} vip_s7", 120, whole
    if not dry and not quick:
        yield "engine", "pipeline inductor vip_s7", 120, lambda: networks.pipeline("vip_s7", "inductor", ("current",))


def main(arguments: list[str] | None = None) -> int:
    """Measure until the budget is spent; 3 where there is no GPU, 1 where a check of correctness failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=450, help="seconds for everything (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3, help="of measuring for a network (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, without a GPU")
    given = parser.parse_args(arguments)
    parts = given.parts.split(",")
    if unknown := sorted({*parts} - {*PARTS}):
        parser.error(f"no part is called {unknown[0]}; the parts are {', '.join(PARTS)}")
    began = time.monotonic()
    os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"  # it does not see which configuration of a kernel was measured
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on the CPU

    import torch

    device = "cpu" if given.dry_run else "cuda"
    if not given.dry_run and not torch.cuda.is_available():
        print("no NVIDIA GPU that PyTorch can use; --dry-run tries the script without one", file=sys.stderr)
        return 3
    book = Book(given.out, device, given.dry_run, {"seconds": given.seconds}, given.again)
    session = Session(
        device,
        given.dry_run,
        given.seconds,
        wanted=lambda part, name: part in parts and name not in book,
        left=lambda: given.budget - (time.monotonic() - began),
    )
    for part, name, estimate, run in jobs(session):
        if not session.wanted(part, name):
            continue
        if session.left() < estimate / 2:
            book.skipped.append(name)
            continue
        book.add(name, run)
    print(book.finish())
    return int(any(row.get("passed") is False for row in book.document["results"].values()))


class Book:
    """The results, written after each row: a killed run leaves what it measured."""

    def __init__(self, folder: Path, device: str, dry: bool, settings: dict[str, Any], again: bool) -> None:
        from benchmarks.gpu import machine

        self.clocks, self.commit = machine.clocks, machine.commit()
        self.folder, self.skipped = folder, list[str]()
        found = machine.fingerprint(device)
        slug = "dry-run" if dry else re.sub(r"[^a-z0-9]+", "-", found["gpu"].lower()).strip("-")
        self.path = folder / f"{slug}.json"
        self.document: dict[str, Any] = {
            "benchmark": "gpu",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": found,
            "settings": settings,
            "results": {},
        }
        if self.path.exists() and not again:
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
            if (earlier["machine"], earlier["settings"]) == (found, settings):
                self.document["results"] = earlier["results"]

    def __contains__(self, name: str) -> bool:
        return name in self.document["results"]

    def add(self, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Measure a row and write it; what it raises becomes the row, in one line, and the run goes on."""
        before, began = self.clocks(), time.monotonic()
        try:
            row = run()
            json.dumps(row, allow_nan=False)
        except Exception as error:  # one row's failure must not cost the others
            traceback.print_exc()
            row = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        spent = round(time.monotonic() - began, 1)
        self.document["results"][name] = {
            **row,
            "commit": self.commit,
            "took_s": spent,
            "clocks": [before, self.clocks()],
        }
        print(f"{name}: {row.get('failed') or 'done'} ({spent} s)", flush=True)
        self._write()

    def finish(self) -> str:
        """What is where, and what is left for the next run."""
        self._write()
        left = f"; not measured for lack of time: {', '.join(self.skipped)}" if self.skipped else ""
        return f"{self.path} and {self.path.with_suffix('.md').name}{left}"

    def _write(self) -> None:
        from benchmarks.gpu.report import markdown

        self.folder.mkdir(parents=True, exist_ok=True)
        texts = {
            self.path: json.dumps(self.document, indent=2, allow_nan=False) + "\n",
            self.path.with_suffix(".md"): markdown(self.document),
        }
        for path, text in texts.items():
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
