"""Every recipe executed by the engines that need no GPU: ours in FP32, built, loaded and run, against the network.

    python -m benchmarks.executed [RECIPE ...] [--backends onnxruntime,openvino]

The graph is rewritten for each engine, as `mlpdeploy build` does it. A row has the worst relative error over batches of
one and three, which the engine must meet with one build.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.errors import MlpdeployError
from mlpdeploy.graph.rewrite import on_by_default
from mlpdeploy.graph.tracing.trace import trace
from mlpdeploy.network.finding import find

BATCHES = (1, 3)


def measure(name: str, engines: list[str], seed: int) -> dict[str, Any]:
    """By engine, its worst relative error, or why there is none."""
    network, specs = common.load(name, seed)
    traced = trace(network, specs)
    inputs = [common.inputs(specs, size, seed, 1)[0] for size in BATCHES]
    with torch.inference_mode():
        wanted = [network(*(torch.from_numpy(given[spec.name]) for spec in specs)) for given in inputs]
    expected = [common.outputs_of(one) for one in wanted]
    row: dict[str, Any] = {"family": find(name).family}
    files: dict[frozenset[str], Emitted] = {}
    for engine in engines:
        off = backends()[engine].off
        rules = frozenset(on_by_default(off))
        emitted = files[rules] = files.get(rules) or common.ours(traced, "fp32", off=off)[0]
        with tempfile.TemporaryDirectory() as folder:
            built = common.engine(backends()[engine], emitted, "fp32", Batch(1, 3, 3), 1, Path(folder) / "engine")
            try:
                with built as run:
                    found = [common.outputs_of(run(given)) for given in inputs]
            except MlpdeployError as error:
                row[engine] = {"passed": False, "reason": str(error).splitlines()[0]}
                continue
        worst = max(map(common.worst_error, found, expected))
        row[engine] = {"passed": worst <= common.FP32_BUDGET, "error": float(f"{worst:.2e}")}
    return row


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--backends", default="onnxruntime,openvino")
    arguments = parser.parse_args()
    engines, failed, path = arguments.backends.split(","), 0, None
    torch.set_num_threads(1)
    for name in arguments.recipes:
        row = measure(name, engines, arguments.seed)
        failed += not all(row[engine]["passed"] for engine in engines)
        shown = (f"{engine} {row[engine].get('error', row[engine].get('reason'))}" for engine in engines)
        print(f"{name:32s} {', '.join(shown)}", flush=True)
        # Written after each recipe, so that a long run that is stopped keeps what it has.
        settings = {"precision": "fp32", "batches": list(BATCHES), "backends": engines, "seed": arguments.seed}
        path = common.write("executed", {name: row}, settings, arguments.out, alone=True)
    print(path)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
