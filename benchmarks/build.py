"""Time and memory of the command line, and of the rewriting alone.

    python -m benchmarks.build [RECIPE ...] [--repeat 3]

The commands `build vip_s --precision fp16 --force`, `--help` and `list` run as a user's do, each in its own process;
the memory is the peak resident size of it. The largest network, maxim_3s, is built once. The recipes named are
rewritten four times each; the best counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace

CHOSEN = ("vip_s14", "vip_s7", "vip_m7", "vip_l7")


# A process that forks starts out as large as its parent, torch and all, and its peak would include that; so a small
# process stands between, which times the command and reports its exit code and its own peak (KiB on Linux).
MEASURE = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(json.dumps([code, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def run(command: list[str]) -> dict[str, float]:
    """Wall seconds and peak resident MiB of one process. Raises CalledProcessError where it fails."""
    between = [sys.executable, "-S", "-c", MEASURE, *command]
    code, seconds, peak = json.loads(subprocess.run(between, stdout=subprocess.PIPE, check=True).stdout)
    if code:
        raise subprocess.CalledProcessError(code, command)
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": round(seconds, 3), "peak_mib": round(peak * unit / 2**20, 1)}


def best(command: list[str], repeat: int) -> dict[str, Any]:
    """Every run's seconds and the best, and the largest memory."""
    found = [run(command) for _ in range(repeat)]
    return {
        "command": " ".join(["mlpdeploy", *command[3:]]).partition(" --out ")[0],
        "best_seconds": min(one["seconds"] for one in found),
        "seconds": [one["seconds"] for one in found],
        "peak_mib": max(one["peak_mib"] for one in found),
    }


def rewriting(name: str, seed: int, repeat: int) -> dict[str, Any]:
    """Seconds of the rules alone, on a graph traced anew each time, and the size of the graph."""
    network, specs = common.load(name, seed)
    seconds = []
    for _ in range(repeat):
        traced = trace(network, specs)
        nodes = len(traced.module.graph.nodes)
        began = time.perf_counter()
        rewrite(traced)
        seconds.append(round(time.perf_counter() - began, 4))
    blocks = sum(1 for module in network.modules() if type(module).__name__ == "PermutatorBlock")
    return {"best_seconds": min(seconds), "seconds": seconds, "nodes": nodes, "blocks": blocks}


def main() -> None:
    parser = common.parser(__doc__, CHOSEN)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each command (default: %(default)s)")
    parser.add_argument("--only-rewriting", action="store_true", help="leave the commands out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rewriting": {}}
    for name in arguments.recipes:
        row = results["rewriting"][name] = rewriting(name, arguments.seed, 4)
        print(f"{name:12s} rewritten in {row['best_seconds']:.2f} s: {row['nodes']} nodes, {row['blocks']} blocks")
    if not arguments.only_rewriting:
        program = [sys.executable, "-m", "mlpdeploy"]
        with tempfile.TemporaryDirectory() as folder:
            commands = {
                "help": ["--help"],
                "list": ["list"],
                "build": ["build", "vip_s", "--precision", "fp16", "--force", "--out", str(Path(folder))],
            }
            commands["largest"] = ["build", "maxim_3s", *commands["build"][2:]]
            for label, command in commands.items():
                row = results[label] = best([*program, *command], 1 if label == "largest" else arguments.repeat)
                print(f"{label:12s} {row['best_seconds']:.2f} s, {row['peak_mib']:.0f} MiB")
    print(common.write("build", results, {"repeat": arguments.repeat}, arguments.out))


if __name__ == "__main__":
    main()
