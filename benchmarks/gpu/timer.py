"""Times on the GPU's own clock: contenders take turns, in an order drawn anew for each round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.gpu.crew import alone
from mlpdeploy import kernels
from mlpdeploy.evidence.latency.timing import Timings

Run = Callable[[], object]
CACHE = 256 << 20
"""Bytes that are written to empty the GPU's cache: more than any has."""


def measure(
    contenders: Mapping[str, Run], *, seconds: float, rounds: int = 100, cold: bool = False, seed: int = 0
) -> Timings:
    """Time each contender once a round, until `rounds` are full or `seconds` are spent, but never before five rounds;
    the GPU is theirs alone.

    `cold`: the GPU's cache is emptied before each call, which also lets the CPU run ahead, so that what is timed is the
    GPU's work alone. Otherwise the GPU is idle when a call begins, and its launches count.
    """
    one = _on_gpu if torch.cuda.is_available() else _on_cpu
    flush = torch.empty(CACHE if cold and torch.cuda.is_available() else 0, dtype=torch.int8, device=_device())
    with alone():
        return _rounds(contenders, one, flush if cold else None, seconds, rounds, seed)


def _rounds(
    contenders: Mapping[str, Run],
    one: Callable[[Run, torch.Tensor | None], float],
    flush: torch.Tensor | None,
    seconds: float,
    rounds: int,
    seed: int,
) -> Timings:
    for run in contenders.values():
        for _ in range(3):
            run()
    rng, names, began = np.random.default_rng(seed), list(contenders), time.perf_counter()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        if turn >= 5 and time.perf_counter() - began > seconds:
            break
        for name in rng.permutation(names):
            samples[name].append(one(contenders[name], flush))
    return Timings({name: np.array(values) for name, values in samples.items()}, dict.fromkeys(names, 1), seed)


@contextmanager
def tuned_alone() -> Iterator[None]:
    """Configurations of our kernels are timed on a GPU that nothing else uses, and compiled before.

    In turns in place of the lock that processes have otherwise: who stands still would hold it.
    """
    with patch.object(kernels.load("common.tuning"), "alone", alone):
        yield


def row(taken: Timings, baseline: str) -> dict[str, Any]:
    """By contender: median and tail in milliseconds, and the ratio of its time to the baseline's, with an interval."""
    found = {}
    for name in taken.seconds:
        latency, ratio = taken.latency(name), taken.ratio(name, baseline)
        found[name] = {
            "ms": 1e3 * latency.median,
            "p90_ms": 1e3 * latency.p90,
            "rounds": latency.samples,
            "ratio": {**asdict(ratio), "baseline": baseline, "verdict": ratio.verdict},
        }
    return found


def graphed(run: Run) -> Run:
    """The same work as one CUDA graph; on a CPU, the work itself."""
    if not torch.cuda.is_available():
        return run
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    return _Graphed(run, graph, kept)


@dataclass(frozen=True)
class _Graphed:
    """Replays what was captured of `run`, whose weights and inputs it keeps where they are."""

    run: Run
    graph: Any
    kept: object

    def __call__(self) -> object:
        self.graph.replay()
        return self.kept


def _on_gpu(run: Run, flush: torch.Tensor | None) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if flush is not None:
        flush.zero_()
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1e-3 * float(start.elapsed_time(end))


def _on_cpu(run: Run, flush: torch.Tensor | None) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
