"""What each rule is worth on each CPU engine: the default rules against all but one, or one more, in one run.

    python -m benchmarks.rules [RECIPE ...] [--backends openvino,onnxruntime] [--batch 1,8] [--seconds 20]

A ratio above 1 says that the engine is slower than with the default rules; an interval that holds 1 decides nothing.
`with` names a rule that is off by default, `bare` is the graph with no rule at all.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from mlpdeploy.engine.backend import Batch, backends
from mlpdeploy.engine.emit import Emitted
from mlpdeploy.evidence import timing
from mlpdeploy.graph.rewrite import LAYOUT, all_rules, rewrite
from mlpdeploy.graph.trace import TensorSpec, trace

CHOSEN = ("vip_s7", "mixer_s32", "resmlp_12", "gmlp_s16")
ALL, BARE = "default rules", "bare"


Variant = tuple[tuple[str, ...], tuple[str, ...]]
"""What is disabled, and what is enabled."""


def variants(fired: dict[str, int]) -> dict[str, Variant]:
    """By contender: the default rules, each rule left out that `fired`, each that is off by default put in, no rule."""
    extra = [name for name, rule in all_rules().items() if not rule.default and fired.get(name)]
    named: dict[str, Variant] = {ALL: ((), ())}
    named |= {f"without {name}": ((name,), ()) for name, count in fired.items() if count and name not in extra}
    named |= {f"with {name}": ((), (name,)) for name in extra}
    return named | {BARE: ((*all_rules(), LAYOUT), ())}


def compile_variants(name: str, seed: int) -> tuple[list[TensorSpec], dict[str, int], dict[str, Emitted]]:
    """What a recipe takes, how often each rule fires there, and the file of each variant."""
    network, specs = common.load(name, seed)
    traced = trace(network, specs)
    everything = rewrite(traced, enabled=[rule.name for rule in all_rules().values() if not rule.default])
    fired = {report.name: report.fired for report in everything.report}
    return specs, fired, {label: common.ours(traced, "fp32", *one)[0] for label, one in variants(fired).items()}


def measure(
    graphs: dict[str, Emitted],
    specs: Sequence[TensorSpec],
    backend: str,
    sizes: list[int],
    seconds: float,
    seed: int,
    threads: int,
) -> dict[str, Any]:
    """By batch size: the latency of each variant and its ratio to the default rules."""
    batch = Batch(min(sizes), sizes[0], max(sizes))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = {
            label: stack.enter_context(
                common.engine(backends()[backend], graph, "fp32", batch, threads, folder / str(index))
            )
            for index, (label, graph) in enumerate(graphs.items())
        }
        found = {}
        for size in sizes:
            taken = timing.measure(engines, common.inputs(specs, size, seed), rounds=200, seconds=seconds, seed=seed)
            found[f"batch {size}"] = taken.to_json(ALL)
    return found


def main() -> None:
    parser = common.parser(__doc__, CHOSEN)
    parser.add_argument("--backends", default="openvino,onnxruntime")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--seconds", type=float, default=20, help="budget of one measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.batch.split(",")]
    results: dict[str, Any] = {}
    settings = {"precision": "fp32", "threads": arguments.threads, "seconds": arguments.seconds, "baseline": ALL}
    with timing.pinned(arguments.threads):
        torch.set_num_threads(arguments.threads)
        for name in arguments.recipes:
            specs, fired, graphs = compile_variants(name, arguments.seed)
            results[name] = {"fired": fired}
            for backend in arguments.backends.split(","):
                row = measure(graphs, specs, backend, sizes, arguments.seconds, arguments.seed, arguments.threads)
                results[name][backend] = row
                for size in sizes:
                    for label, times in row[f"batch {size}"].items():
                        ratio = times.get("ratio")
                        verdict = "" if ratio is None else f"{ratio['value']:.3f} {ratio['verdict']}"
                        line = f"{name:12s} {backend:12s} {size:3d} {label:40s} {times['median_ms']:9.2f} ms {verdict}"
                        print(line, flush=True)
            # Written after each recipe, so that a long run that is stopped keeps what it has.
            path = common.write("rules", results, settings, arguments.out)
    print(path)


if __name__ == "__main__":
    main()
