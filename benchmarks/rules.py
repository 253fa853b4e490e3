"""What each rule is worth on each CPU engine: the default rules against all but one, or one more, in one run.

    python -m benchmarks.rules [RECIPE ...] [--backends openvino,onnxruntime] [--batch 1,8] [--seconds 20]

A ratio above 1 says that the engine is slower than with the default rules; an interval that holds 1 decides nothing.
Each variant is loaded several times, because two loads of one file differ as well (where its weights lie in memory):
an interval covers every pair of loads, and `default rules` has the ratio of its own loads, which should hold 1.
`with` names a rule that is off by default, `bare` is the graph with no rule at all.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.recorded import ALL
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.errors import BuildError
from mlpdeploy.evidence.latency import timing
from mlpdeploy.graph.rewrite import all_rules, on_by_default, rewrite
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced, trace

CHOSEN = (
    "vip_s7", "mixer_s32", "resmlp_12", "gmlp_s16", "raft_mlp_s", "strip_mlp_t_light", "ms_mlp_t", "swin_t",
    "poolformer_s12", "repmlpnet_t224", "hire_mlp_tiny", "cyclemlp_b1", "finalmlp", "cam_image_cam", "transtee_dosage",
)  # fmt: skip
"""Small networks in which every rule fires somewhere."""
BARE = "bare"


Variant = tuple[tuple[str, ...], tuple[str, ...]]
"""What is disabled, and what is enabled."""


def variants(fired: dict[str, int], off: Collection[str] = (), kernel: bool = False) -> dict[str, Variant]:
    """By contender: the default rules, each rule left out that `fired`, each that is off by default put in, no rule.

    By default for an engine that has these `off`, and carries our kernels or not.
    """
    on = on_by_default(off, kernel)
    extra = [name for name in all_rules() if name not in on and fired.get(name)]
    named: dict[str, Variant] = {ALL: ((), ())}
    named |= {f"without {name}": ((name,), ()) for name, count in fired.items() if count and name not in extra}
    named |= {f"with {name}": ((), (name,)) for name in extra}
    return named | {BARE: ((*all_rules(), LAYOUT), ())}


def compile_variants(traced: Traced, fired: dict[str, int], backend: str) -> dict[str, Emitted]:
    """The file of each variant, rewritten for a backend."""
    off = backends()[backend].off
    named = variants(fired, off)
    return {label: common.ours(traced, "fp32", *one, off)[0] for label, one in named.items()}


def measure(
    graphs: dict[str, Emitted],
    specs: Sequence[TensorSpec],
    backend: str,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """By batch size: the latency of each variant and its ratio to the default rules."""
    sizes = [int(size) for size in arguments.batch.split(",")]
    batch = Batch(min(sizes), sizes[0], max(sizes))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines, refused = {}, {}
        for (index, (label, graph)), load in itertools.product(enumerate(graphs.items()), range(arguments.loads)):
            where = folder / f"{index}-{load}"
            built = common.engine(backends()[backend], graph, "fp32", batch, arguments.threads, where)
            try:
                engines[f"{label} #{load}"] = stack.enter_context(built)
            except BuildError as error:
                refused[label] = str(error).splitlines()[0]
        graphs = {label: graph for label, graph in graphs.items() if label not in refused}
        found: dict[str, Any] = {"refused": refused} if refused else {}
        common.check_alike(engines, common.inputs(specs, sizes[-1], arguments.seed, 1)[0])
        for size in sizes:
            inputs = common.inputs(specs, size, arguments.seed)
            taken = timing.measure(engines, inputs, rounds=200, seconds=arguments.seconds, seed=arguments.seed)
            found[f"batch {size}"] = {label: row(taken, label, arguments.loads) for label in graphs}
    return found


def row(taken: timing.Timings, label: str, loads: int) -> dict[str, Any]:
    """One variant: the latency of its first load, and the ratio to the default rules over all pairs of loads."""
    pairs = itertools.permutations(range(loads), 2) if label == ALL else itertools.product(range(loads), repeat=2)
    ratios = [taken.ratio(f"{label} #{mine}", f"{ALL} #{other}") for mine, other in pairs]
    middle = math.exp(sum(math.log(ratio.value) for ratio in ratios) / len(ratios))
    hull = timing.Ratio(middle, min(ratio.low for ratio in ratios), max(ratio.high for ratio in ratios))
    latency = taken.to_json()[f"{label} #0"]
    return latency | {"ratio": {**asdict(hull), "baseline": ALL, "verdict": hull.verdict}}


def main() -> None:
    parser = common.parser(__doc__, CHOSEN)
    parser.add_argument("--backends", default="openvino,onnxruntime")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--seconds", type=float, default=20, help="budget of one measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loads", type=int, default=2, help="how often each file is loaded (default: %(default)s)")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    chosen = {key: getattr(arguments, key) for key in ("threads", "seconds", "loads")}
    settings = {"precision": "fp32", **chosen, "baseline": ALL}
    with timing.pinned(arguments.threads):
        torch.set_num_threads(arguments.threads)
        for name in arguments.recipes:
            network, specs = common.load(name, arguments.seed)
            traced = trace(network, specs)
            fired = {report.name: report.fired for report in rewrite(traced, enabled=all_rules()).report}
            results[name] = {"fired": fired}
            for backend in arguments.backends.split(","):
                graphs = compile_variants(traced, fired, backend)
                results[name][backend] = measure(graphs, specs, backend, arguments)
                for label, reason in results[name][backend].get("refused", {}).items():
                    print(f"{name:12s} {backend:12s} {label}: {reason}", flush=True)
                for batch, found in results[name][backend].items():
                    if batch == "refused":
                        continue
                    for label, times in found.items():
                        ratio = times["ratio"]
                        interval = f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] {ratio['verdict']}"
                        latency = f"{times['median_ms']:9.2f} ms"
                        print(f"{name:12s} {backend:12s} {batch:8s} {label:40s} {latency} {interval}", flush=True)
            # Written after each recipe, so that a long run that is stopped keeps what it has.
            path = common.write("rules", results, settings, arguments.out)
    print(path)


if __name__ == "__main__":
    main()
