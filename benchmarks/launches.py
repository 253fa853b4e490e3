"""Launches of TensorRT-RTX engines: the plain export's, ours, and what each rule adds or takes away.

    python -m benchmarks.launches [RECIPE ...]              plain export and ours
    python -m benchmarks.launches --rules [RECIPE ...]      and ours without each rule or form, or with one more

FP16 with inputs and outputs in FP32, dynamic batch. No GPU is needed: an engine holds its programme, and each line of
it is a launch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.recorded import ALL, PLAIN
from benchmarks.rules import CHOSEN, variants
from mlpdeploy.engine import form
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.graph.rewrite import all_rules, rewrite
from mlpdeploy.graph.tracing.trace import trace

BACKEND = "tensorrt-rtx"
SETTINGS = {"precision": "fp16", "batch": "1,8,32"}


def counted(emitted: Emitted, *disabled: str) -> dict[str, Any]:
    """The engine of a file: its launches, by kind, its size and how much of that is the source of kernels.

    `disabled` are forms to leave out.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = BuildRequest("fp16", Batch(1, 8, 32), disabled=disabled)
        facts = backends()[BACKEND].build(emitted, request, Path(folder), common.Silent()).facts
    return {**facts["launches"], "engine_bytes": facts["engine_bytes"]}


def measure(name: str, seed: int, rules: bool) -> dict[str, Any]:
    """By contender: the plain export, the default rules, and the default rules but one."""
    network, specs = common.load(name, seed)
    traced = trace(network, specs)
    fired = {report.name: report.fired for report in rewrite(traced, enabled=all_rules()).report} if rules else {}
    backend = backends()[BACKEND]
    serving = [one for one in backend.forms if not one.precisions or "fp16" in one.precisions]
    optional, off = form.saving(serving), backend.off
    found = {PLAIN: counted(common.plain(network, specs, "fp16", io="fp32"), *optional)}
    for label, (disabled, enabled) in variants(fired, off).items():
        if not rules and label != ALL:
            continue
        emitted = common.ours(traced, "fp16", disabled, enabled, off)[0]
        found[label] = counted(emitted)
        print(f"{name:24s} {label:40s} {found[label]['total']}", flush=True)
        if rules and label == ALL:
            found |= {f"without {one}": counted(emitted, one) for one in optional}
    print(f"{name:24s} {PLAIN} {found[PLAIN]['total']} -> ours {found[ALL]['total']}", flush=True)
    return found


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rules", action="store_true", help=f"with every rule's part; default: {' '.join(CHOSEN)}")
    arguments = parser.parse_args()
    everything = len(arguments.recipes) == len(parser.get_default("recipes"))
    results: dict[str, Any] = {}
    for name in CHOSEN if arguments.rules and everything else arguments.recipes:
        results[name] = measure(name, arguments.seed, arguments.rules)
        # Written after each recipe, so that a long run that is stopped keeps what it has.
        path = common.write("launches", results, SETTINGS, arguments.out, alone=True)
    print(path)


if __name__ == "__main__":
    main()
