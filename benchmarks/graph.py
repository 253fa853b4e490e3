"""Layers, activation transposes and reshapes that TensorRT parses, before and after our rules.

    python -m benchmarks.graph [RECIPE ...]

Before: PyTorch's own export of network.half(). After: our graph in FP16. Nothing is built, no GPU is needed. `reasons`
says why each transpose outside of the custom operations is left.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import common
from mlpdeploy.engine.backends.tensorrt import parse, parse_emitted
from mlpdeploy.engine.parsed import Counts, ParsedNetwork
from mlpdeploy.graph.remaining import transposes
from mlpdeploy.graph.trace import trace


def counts(parsed: ParsedNetwork) -> dict[str, Any]:
    """In all, outside of the bodies of our custom operations, and the distinct kinds of body."""
    bodies: dict[str, dict[str, Any]] = {}
    for body in parsed.bodies:
        kind = bodies.setdefault(body.function, {"calls": 0, "most_transposes": 0, "most_reshapes": 0})
        kind["calls"] += 1
        kind["most_transposes"] = max(kind["most_transposes"], body.counts.transposes)
        kind["most_reshapes"] = max(kind["most_reshapes"], body.counts.reshapes)
    return {"total": asdict(parsed.total), "outside": asdict(parsed.outside), "bodies": bodies}


def saved(before: Counts, after: Counts) -> float:
    """The share of layers that went."""
    return round(1 - after.layers / before.layers, 4)


def measure(name: str, seed: int) -> dict[str, Any]:
    """Both counts of one recipe."""
    network, specs = common.load(name, seed)
    before = parse(common.plain(network, specs, "fp16").model)
    emitted, rewritten = common.ours(trace(network, specs), "fp16")
    after = parse_emitted(emitted)
    reasons = Counter(left.reason for left in transposes(rewritten.module.graph))
    return {
        "before": counts(before),
        "after": counts(after),
        "layers_saved": saved(before.total, after.total),
        "rules": {report.name: report.fired for report in rewritten.report},
        "reasons": dict(reasons.most_common()),
    }


def main() -> None:
    arguments = common.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in arguments.recipes:
        results[name] = measure(name, arguments.seed)
        before, after = results[name]["before"]["total"], results[name]["after"]
        print(
            f"{name:24s} layers {before['layers']} -> {after['total']['layers']}, transposes {before['transposes']} -> "
            f"{after['outside']['transposes']} (+{after['total']['transposes'] - after['outside']['transposes']} in "
            f"bodies), reshapes {before['reshapes']} -> {after['total']['reshapes']}",
            flush=True,
        )
        # Written after each recipe, so that a long run that is stopped keeps what it has.
        path = common.write("graph", results, {"precision": "fp16", "opset": common.OPSET}, arguments.out)
    print(path)


if __name__ == "__main__":
    main()
