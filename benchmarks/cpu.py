"""CPU engines in FP32: ours against the plain export through the same engine, eager PyTorch and torch.compile.

    python -m benchmarks.cpu [RECIPE ...] [--backends openvino,onnxruntime] [--batch 1,8] [--seconds 20]

All contenders take turns within one run; `ours` is judged by its ratio to `plain` of the same engine.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import common
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.latency import timing
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

EAGER, COMPILED = "eager", "torch.compile"


def torch_runner(network: Callable[..., Any], specs: Sequence[TensorSpec]) -> Callable[[Arrays], Any]:
    """A PyTorch network as a contender."""

    def run(arrays: Arrays) -> Any:
        with torch.inference_mode():
            return network(*(torch.from_numpy(arrays[spec.name]) for spec in specs))

    return run


def compiled(network: nn.Module) -> Callable[..., Any]:
    """torch.compile, one graph for each batch size."""
    return torch.compile(network, dynamic=False)


def against_plain(taken: timing.Timings, names: list[str]) -> dict[str, Any]:
    """Ratio of ours to plain, eager and torch.compile, by engine."""
    found: dict[str, Any] = {}
    for name in names:
        rivals = [f"{name} plain", *(rival for rival in (EAGER, COMPILED) if rival in taken.seconds)]
        ratios = {rival: taken.ratio(f"{name} ours", rival) for rival in rivals}
        found[name] = {rival: {**asdict(ratio), "verdict": ratio.verdict} for rival, ratio in ratios.items()}
    return found


def measure(
    name: str, engines: list[str], sizes: list[int], seconds: float, seed: int, threads: int, compile_too: bool
) -> dict[str, Any]:
    """By batch size: every contender's latency, and the ratios of ours."""
    network, specs = common.load(name, seed)
    traced, plain = trace(network, specs), common.plain(network, specs, "fp32")
    batch = Batch(min(sizes), sizes[0], max(sizes))
    results = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runners: dict[str, Callable[[Any], object]] = {EAGER: torch_runner(network, specs)}
        if compile_too:
            runners[COMPILED] = torch_runner(compiled(network), specs)
        for backend in engines:
            ours, _ = common.ours(traced, "fp32", off=backends()[backend].off)
            for kind, graph in {"ours": ours, "plain": plain}.items():
                where = folder / f"{backend}-{kind}"
                runners[f"{backend} {kind}"] = stack.enter_context(
                    common.engine(backends()[backend], graph, "fp32", batch, threads, where)
                )
        common.check_alike(runners, common.inputs(specs, 2, seed, 1)[0])
        for size in sizes:
            taken = timing.measure(runners, common.inputs(specs, size, seed), rounds=200, seconds=seconds, seed=seed)
            results[f"batch {size}"] = {"latency": taken.to_json(), "ours": against_plain(taken, engines)}
    return results


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--backends", default="openvino,onnxruntime")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--seconds", type=float, default=20, help="budget of one measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    engines, sizes = arguments.backends.split(","), [int(size) for size in arguments.batch.split(",")]
    results: dict[str, Any] = {}
    with timing.pinned(arguments.threads):
        torch.set_num_threads(arguments.threads)
        for name in arguments.recipes:
            row = measure(
                name, engines, sizes, arguments.seconds, arguments.seed, arguments.threads, not arguments.no_compile
            )
            results[name] = row
            for size in sizes:
                for engine, ratios in row[f"batch {size}"]["ours"].items():
                    shown = ", ".join(f"{rival} {r['value']:.3f} ({r['verdict']})" for rival, r in ratios.items())
                    print(f"{name:24s} batch {size} {engine}: ours / {shown}", flush=True)
            # Each network leaves its compiled code behind; the next one starts afresh.
            torch.compiler.reset()
            # Written after each recipe, so that a long run that is stopped keeps what it has.
            settings = {"precision": "fp32", "threads": arguments.threads, "seconds": arguments.seconds}
            path = common.write("cpu", results, settings, arguments.out)
    print(path)


if __name__ == "__main__":
    main()
