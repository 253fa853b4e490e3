"""How much sooner a plan's jobs are built by two workers of a Ray cluster than by one.

    python -m benchmarks.matrix [RECIPE ...] [--jobs 8] [--workers 2] [--rounds 8]

The jobs are equal but for their seeds. Each round builds them once with one worker and once with several, one after the
other in an order that alternates, on a cluster of this machine that begins and ends with the run, both of which count.
What is told of the ratios of the rounds is their median, the least and the most. Nothing else may run meanwhile: `load`
is what the system said just before. The machine must have a core for each worker.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from mlpdeploy.artifact.depot import Folder
from mlpdeploy.engine.host import cores
from mlpdeploy.evidence.documents.matrix import BUILT, Row
from mlpdeploy.matrix import plan
from mlpdeploy.matrix.executor import Order, Running
from mlpdeploy.matrix.on_ray import OnRay

CHOSEN = ("mixer_s32",)


def run(name: str, jobs: int, workers: int, seed: int) -> dict[str, float]:
    """Build all jobs once, into an empty folder: seconds of the run, and until its first job began; the load before."""
    with tempfile.TemporaryDirectory() as folder:
        out, file = Path(folder) / "artifacts", Path(folder) / "plan.toml"
        seeds = list(range(seed, seed + jobs))
        file.write_text(f'network = "{name}"\nprecision = "fp32"\nbackend = "onnxruntime"\nseed = {seeds}\n')
        load = os.getloadavg()[0]
        found, first, began = plan.read(file, out), 0.0, time.perf_counter()
        states = []
        for event in OnRay(Folder(out), out, cpus=workers).run(found.jobs, Order(logs=out / "logs")):
            if isinstance(event, Running) and not first:
                first = time.perf_counter() - began
            states += [event.state] if isinstance(event, Row) else []
        seconds = time.perf_counter() - began
    if states != [BUILT] * jobs:
        raise ValueError(f"{name}: of {jobs} jobs ended {states}")
    return {"seconds": round(seconds, 2), "until_first": round(first, 2), "load": round(load, 2)}


def measure(name: str, arguments: Any) -> dict[str, Any]:
    """Every round's runs, and the ratio of one worker to several with its interval."""
    sides = {1: list[dict[str, float]](), arguments.workers: list[dict[str, float]]()}
    for round_ in range(arguments.rounds):
        order = list(sides) if round_ % 2 == 0 else list(sides)[::-1]
        for workers in order:
            sides[workers].append(run(name, arguments.jobs, workers, arguments.seed))
            print(f"  round {round_ + 1}, {workers} worker(s): {sides[workers][-1]['seconds']:.1f} s", flush=True)
    return {"ratio": ratio(*sides.values()), "one": sides[1], "several": sides[arguments.workers]}


def ratio(one: Sequence[Mapping[str, float]], several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How many times as fast several workers were: the median of the rounds, the least and the most."""
    ratios = [round(slow["seconds"] / fast["seconds"], 3) for slow, fast in zip(one, several, strict=True)]
    return {"value": median(ratios), "low": min(ratios), "high": max(ratios)}


def main() -> None:
    parser = common.parser(__doc__, CHOSEN)
    parser.add_argument("--jobs", type=int, default=8, help="equal builds (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="held against one (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="of both (default: %(default)s)")
    arguments = parser.parse_args()
    if not 2 <= arguments.workers <= cores():
        parser.error(f"--workers {arguments.workers}: give from 2 to the {cores()} cores of this machine")
    results = {}
    for name in arguments.recipes:
        results[name] = row = measure(name, arguments)
        value, low, high = row["ratio"].values()
        print(f"{name:12s} {value:.2f} times as fast ({low:.2f} to {high:.2f})")
    settings = {"jobs": arguments.jobs, "workers": arguments.workers, "rounds": arguments.rounds, "threads": 1}
    print(common.write("matrix", results, settings, arguments.out))


if __name__ == "__main__":
    main()
