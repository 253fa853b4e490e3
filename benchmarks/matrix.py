"""How much sooner a plan's jobs are built by two workers of a Ray cluster than by one.

    python -m benchmarks.matrix [RECIPE ...] [--jobs 8] [--workers 2] [--rounds 8]

The jobs are equal but for their seeds. Each round builds them once with one worker and once with several, one after the
other in an order that alternates, on a cluster of this machine that begins and ends with the run, both of which count.
A ratio's interval is that of the signed-rank test over the rounds (`evidence.latency.sequential_test`). Nothing else
may run meanwhile: `load` is what the system said just before. The machine must have a core for each worker.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from mlpdeploy.artifact.depot import Folder
from mlpdeploy.engine.host import cores
from mlpdeploy.evidence.documents.matrix import BUILT, Row
from mlpdeploy.evidence.latency.sequential_test import judge
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
    pairs = zip(sides[1], sides[arguments.workers], strict=True)
    found = judge([math.log(one["seconds"] / several["seconds"]) for one, several in pairs], 0.0, looks=1)
    ratio = {"value": 1 + found.value, "low": 1 + found.low, "high": None if math.isinf(found.high) else 1 + found.high}
    return {"ratio": ratio, "one": sides[1], "several": sides[arguments.workers]}


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
        ratio = row["ratio"]
        low, high = ratio["low"], ratio["high"] or math.inf
        print(f"{name:12s} {ratio['value']:.2f} times as fast (from {low:.2f} to {high:.2f})")
    settings = {"jobs": arguments.jobs, "workers": arguments.workers, "rounds": arguments.rounds, "threads": 1}
    print(common.write("matrix", results, settings, arguments.out))


if __name__ == "__main__":
    main()
