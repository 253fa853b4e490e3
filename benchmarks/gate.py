"""How often the gate errs: the command again and again, recorded pairs of loads, and simulated runs on their noise.

    python -m benchmarks.gate [RECIPE ...] [--backends onnxruntime,openvino] [--runs 25] [--slower 10] [--time 300]
    python -m benchmarks.gate [RECIPE ...] [--backends onnxruntime,openvino] --runs 0 [--pairs 400] [--seconds 0.5]

The command is `mlpdeploy regress` as it is used, with its defaults, an artifact held against itself; and held against
itself with every call of the candidate made 5 % longer, since no network is slower than another by exactly that.

Pairs are taken as `mlpdeploy regress` takes them, of the same engine on both sides (A/A), and of the same engine
against itself with every call of the candidate made 5 % longer. Real runs are cut out of either sequence in the order
in which it was recorded: a run ends at the look that decides it, and the next begins with the next pair, which is what
running the command again and again does. Simulated runs draw from the A/A pairs, each with a random sign, moved by a
slowdown.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from mlpdeploy import pipeline
from mlpdeploy.commands import gating
from mlpdeploy.commands.measuring import thread_count
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.evidence.latency import contenders, load_pairs, machine, sequential_test, timing
from mlpdeploy.graph.tracing.trace import trace
from mlpdeploy.selection import Selection

CHOSEN = ("mixer_s32",)
LIMIT, SLOWDOWN, RUNS = 0.03, 0.05, 10_000
VERDICTS = (sequential_test.PASSED, sequential_test.REGRESSED, sequential_test.UNDECIDED)


def slowed(one: contenders.Contender, factor: float) -> contenders.Contender:
    """The same contender, each of whose calls lasts `factor` as long: it waits, busy, for what is missing."""

    @contextlib.contextmanager
    def load() -> Iterator[Callable[[Any], object]]:
        with one.load() as call:

            def longer(value: Any) -> object:
                began = time.perf_counter()
                result = call(value)
                until = began + factor * (time.perf_counter() - began)
                while time.perf_counter() < until:
                    pass
                return result

            yield longer

    return dataclasses.replace(one, load=load)


def command(selection: Selection, folder: Path, budget: float, factor: float = 1.0) -> dict[str, Any]:
    """One run of `regress` against the artifact at `folder`, the candidate's calls lasting `factor` as long."""
    engine = contenders.engine

    def candidate_slowed(name: str, *arguments: Any) -> contenders.Contender:
        made = engine(name, *arguments)
        return slowed(made, factor) if name == "candidate" and factor != 1 else made

    with unittest.mock.patch.object(contenders, "engine", candidate_slowed):
        began = time.monotonic()
        found = gating.regress(selection, str(folder), seconds=budget)
    gate_of, (measured,) = found.gates[0], found.measurements
    print(f"  x{factor:g}: {gate_of.verdict}, {measured.seconds:.1f} s", flush=True)
    return {
        "verdict": gate_of.verdict,
        "pairs": len(measured.medians_ms) // 2,
        "seconds": measured.seconds,
        "whole": round(time.monotonic() - began, 1),
        "change": gate_of.change,
        "interval": [gate_of.low, gate_of.high],
        "median_ms": round(float(np.median(measured.baseline_ms)), 4),
    }


def commands(name: str, backend: str, runs: int, slower: int, budget: float, seed: int) -> dict[str, Any]:
    """The command `runs` times on the same engine, and `slower` times on one whose calls last longer."""
    with tempfile.TemporaryDirectory() as out:
        selection = Selection(name, "fp32", backend, seed=seed, out=Path(out))
        folder = pipeline.build(selection).folder
        pipeline.verify(selection)
        before = machine.conditions()
        taken = {
            "same": [command(selection, folder, budget) for _ in range(runs)],
            "slowed": [command(selection, folder, budget, 1 + SLOWDOWN) for _ in range(slower)],
        }
    return {
        "budget": budget,
        "threads": thread_count(None, gating.LEFT),
        "load_average": {"before": before["load"], "after": machine.conditions()["load"]},
        "counts": {what: _verdicts(one) for what, one in taken.items()},
        "runs": taken,
    }


def _verdicts(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many runs of the command said what, and what they took."""
    counts = {verdict: sum(one["verdict"] == verdict for one in runs) for verdict in VERDICTS}
    middle = {f"median_{what}": float(np.median([one[what] for one in runs] or [0])) for what in ("pairs", "seconds")}
    return {"runs": len(runs), **counts, **middle, "most_seconds": max((one["seconds"] for one in runs), default=0.0)}


def record(
    baseline: contenders.Contender, candidate: contenders.Contender, count: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Pairs at batch 1: their log ratios and those of their two loads, and the median latency."""
    taken = [one for (one,) in itertools.islice(load_pairs.pairs(baseline, candidate, {1: seconds}, seed), count)]
    loads = [one.log_ratios for one in taken]
    return {
        "median_ms": round(1e3 * float(np.median([load.median for one in taken for load in one.baseline])), 4),
        "logs": [round(one.log_ratio, 5) for one in taken],
        "deviation_of_pairs": _deviation([one.log_ratio for one in taken]),
        "deviation_of_loads": _deviation([log for two in loads for log in two]),
        "effect_of_order": round(float(np.mean([(first - second) / 2 for first, second in loads])), 5),
    }


def real(logs: Sequence[float]) -> dict[str, Any]:
    """The runs that the recorded pairs make, one after the other; the last one, which may lack pairs, is left out."""
    runs, start = [], 0
    while start < len(logs):
        found = sequential_test.run(logs[start : start + sequential_test.LOOKS[-1]], LIMIT)
        if found.verdict == sequential_test.UNDECIDED and start + sequential_test.LOOKS[-1] > len(logs):
            break
        runs.append(found)
        start += found.pairs
    return _counted(runs)


def simulated(logs: Sequence[float], slowdown: float, seed: int, runs: int = RUNS) -> dict[str, Any]:
    """Runs on noise drawn from recorded A/A pairs, each with a random sign, and a true slowdown on top."""
    rng = np.random.default_rng(seed)
    shape = (runs, sequential_test.LOOKS[-1])
    noise = rng.choice(np.asarray(logs), shape) * rng.choice([-1.0, 1.0], shape)
    return _counted([sequential_test.run(one, LIMIT) for one in noise + math.log1p(slowdown)])


def measure(name: str, backend: str, count: int, seconds: float, seed: int) -> dict[str, Any]:
    """Everything about one network with one engine."""
    network, specs = common.load(name, seed)
    emitted, _ = common.ours(trace(network, specs), "fp32")
    with tempfile.TemporaryDirectory() as folder:
        silent = common.Silent()
        request = BuildRequest("fp32", Batch(1, 1, 4))
        built = contenders.build(backends()[backend], emitted, request, Path(folder) / "x", silent).on(1)
        sides = [contenders.engine(side, "engine", "", built, specs) for side in ("baseline", "candidate")]
        before = machine.conditions()
        same = record(sides[0], sides[1], count, seconds, seed)
        slower = record(sides[0], slowed(sides[1], 1 + SLOWDOWN), count, seconds, seed + 1)
    return {
        "seconds": seconds,
        "load_average": {"before": before["load"], "after": machine.conditions()["load"]},
        "recorded": {"same": same, "slowed": slower},
        "real": {"same": real(same["logs"]), "slowed": real(slower["logs"])},
        "simulated": {
            "same": simulated(same["logs"], 0.0, seed),
            "at_the_limit": simulated(same["logs"], LIMIT, seed),
            "slowed": simulated(same["logs"], SLOWDOWN, seed),
        },
    }


def _counted(runs: Sequence[sequential_test.Slowdown]) -> dict[str, Any]:
    """How many runs said what, and after how many pairs."""
    verdicts = [one.verdict for one in runs]
    counts = {verdict: verdicts.count(verdict) for verdict in VERDICTS}
    spent = [one.pairs for one in runs] or [0]
    return {"runs": len(runs), **counts, "median_pairs": float(np.median(spent)), "most_pairs": max(spent)}


def _deviation(values: Sequence[float]) -> float:
    return round(float(np.std(values, ddof=1)), 5)


def main() -> None:
    parser = common.parser(__doc__, CHOSEN)
    parser.add_argument("--backends", default="onnxruntime,openvino")
    parser.add_argument("--runs", type=int, default=25, help="of the command on one engine (default: %(default)s)")
    parser.add_argument("--slower", type=int, default=10, help="of the command on a slower one (default: %(default)s)")
    parser.add_argument("--time", type=float, default=gating.SECONDS, help="of a command (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=0, help="of loads of each kind to record (default: none)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each load (default: %(default)s)")
    arguments = parser.parse_args()
    for name in arguments.recipes:
        for backend in arguments.backends.split(","):
            if arguments.runs or arguments.slower:
                _command_rows(name, backend, arguments)
            if arguments.pairs:
                _recorded_rows(name, backend, arguments)


def _command_rows(name: str, backend: str, arguments: argparse.Namespace) -> None:
    row = commands(name, backend, arguments.runs, arguments.slower, arguments.time, arguments.seed)
    label = f"{name} {backend}, --time {arguments.time:g}"
    print(f"{label}: load {row['load_average']}")
    for what, counts in row["counts"].items():
        print(f"  {what:14s} {counts}", flush=True)
    _write({label: row}, arguments.out)


def _recorded_rows(name: str, backend: str, arguments: argparse.Namespace) -> None:
    with timing.pinned(1):
        torch.set_num_threads(1)
        row = measure(name, backend, arguments.pairs, arguments.seconds, arguments.seed)
    print(f"{name} {backend}: {row['recorded']['same']['median_ms']:.3f} ms, load {row['load_average']}")
    for kind, found in (("real", row["real"]), ("simulated", row["simulated"])):
        for what, counts in found.items():
            print(f"  {kind:10s} {what:14s} {counts}", flush=True)
    _write({f"{name} {backend}": row}, arguments.out)


def _write(rows: dict[str, Any], folder: Path) -> None:
    """Each row as soon as it is there, so that a long run that is stopped keeps what it has."""
    settings = {
        "precision": "fp32", "threads": 1, "batch": 1, "limit": LIMIT, "slowdown": SLOWDOWN,
        "looks": list(sequential_test.LOOKS),
    }  # fmt: skip
    print(common.write("gate", rows, settings, folder, alone=True))


if __name__ == "__main__":
    main()
