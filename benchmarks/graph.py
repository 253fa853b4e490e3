"""Layers, activation transposes and reshapes that TensorRT parses, before and after our rules.

    python -m benchmarks.graph [RECIPE ...]

Before: PyTorch's own export of network.half(). After: our graph in FP16, without LEFT_OUT. Nothing is built, no GPU is
needed. `reasons` says why each transpose outside of the custom operations is left. The tests hold the compiler to these
numbers; after a change that is meant, measure again, then `python -m benchmarks.tables` takes them into the pages and
the recipes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from benchmarks import common
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.backends.tensorrt import parse, parse_prepared
from mlpdeploy.engine.backends.tensorrt.parsed import ParsedNetwork
from mlpdeploy.graph.layout.remaining import transposes
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

BACKEND = "tensorrt-rtx"
LEFT_OUT = ("stage_norms", "flatten_rows", "transpose_last")
"""Forms of more layers that launch nothing or less, and would hide what the rules do: they spell a norm, reshape, or
turn what a product turns by itself. `benchmarks.launches` has what they are worth.
"""
PARTS = (("before", "total"), ("after", "total"), ("after", "outside"))


def counts(parsed: ParsedNetwork) -> dict[str, Any]:
    """In all, outside of the bodies of our custom operations, and the distinct kinds of body."""
    bodies: dict[str, dict[str, Any]] = {}
    for body in parsed.bodies:
        kind = bodies.setdefault(body.function, {"calls": 0, "most_transposes": 0, "most_reshapes": 0})
        kind["calls"] += 1
        kind["most_transposes"] = max(kind["most_transposes"], body.counts.transposes)
        kind["most_reshapes"] = max(kind["most_reshapes"], body.counts.reshapes)
    return {"total": asdict(parsed.total), "outside": asdict(parsed.outside), "bodies": bodies}


def before(network: nn.Module, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The counts of the plain export."""
    return {"before": counts(parse(common.plain(network, specs, "fp16").model))}


def after(network: nn.Module, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The counts of our graph, how often each rule that fires does, and why the transposes that are left are."""
    emitted, rewritten = common.ours(trace(network, specs), "fp16", off=backends()[BACKEND].off)
    reasons = Counter(left.reason for left in transposes(rewritten.module.graph))
    return {
        "after": counts(parse_prepared(emitted.model, BACKEND, LEFT_OUT)),
        "rules": {report.name: report.fired for report in rewritten.report if report.fired},
        "reasons": dict(reasons.most_common()),
    }


def measure(name: str, seed: int) -> dict[str, Any]:
    """Both counts of one recipe."""
    network, specs = common.load(name, seed)
    return before(network, specs) | after(network, specs)


def main() -> None:
    arguments = common.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in arguments.recipes:
        results[name] = measure(name, arguments.seed)
        plain, ours, outside = (results[name][key][part] for key, part in PARTS)
        print(
            f"{name:24s} layers {plain['layers']} -> {ours['layers']}, transposes {plain['transposes']} -> "
            f"{outside['transposes']} (+{ours['transposes'] - outside['transposes']} in bodies), "
            f"reshapes {plain['reshapes']} -> {ours['reshapes']}",
            flush=True,
        )
        # Written after each recipe, so that a long run that is stopped keeps what it has.
        settings = {"precision": "fp16", "opset": common.OPSET}
        path = common.write("graph", results, settings, arguments.out, alone=True)
    print(path)


if __name__ == "__main__":
    main()
