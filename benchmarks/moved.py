"""Bytes that an inference with a TensorRT-RTX engine reads and writes, by precision, and without each form.

    python -m benchmarks.moved [RECIPE ...]

A batch of 8 alone, for SM 8.9: of engines for several sizes the bytes are not told. No GPU is needed: an engine holds
its programme, with the size and type of every tensor. What caches keep is counted too, so this is no time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.quantisation import calibrated, coded
from mlpdeploy.engine import form
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace
from mlpdeploy.precisions import EIGHT_BIT

BACKEND = "tensorrt-rtx"
BATCH, GPU = 8, "sm89"
SETTINGS = {"batch": BATCH, "gpu": GPU}
NETWORKS = (
    "mixer_b16",
    "resmlp_24",
    "gmlp_s16",
    "vip_s14",
    "ff_linear_base",
    "raft_mlp_s",
    "cyclemlp_b1",
    "ms_mlp_t",
    "as_mlp_t",
    "hire_mlp_tiny",
    "poolformer_s12",
    "wavemlp_t",
    "strip_mlp_t",
)
EVERY = "fp8, every product"
"""FP8 with codes for those products too that are cheaper in FP16 (`quantisation.unfused`)."""


def files(name: str, seed: int) -> Iterator[tuple[str, str, Emitted]]:
    """The files of a recipe: what each is called, its precision, and itself."""
    network, specs = common.load(name, seed)
    rows = common.inputs(specs, 2, seed, 1)[0]
    graph = rewrite(trace(network, specs), off=backends()[BACKEND].off)
    yield "fp16", "fp16", emit(apply(graph, plan(graph, "fp16")))
    for precision in EIGHT_BIT:
        quantisation = calibrated(graph, rows, precision)
        yield precision, precision, coded(graph, quantisation, "fp16")
        if quantisation.kept:
            yield EVERY, precision, coded(graph, calibrate(graph, rows, "max", precision), "fp16")


def moved(emitted: Emitted, precision: str, *disabled: str) -> tuple[dict[str, Any], tuple[form.FormReport, ...]]:
    """Launches, copies and megabytes moved by the engine of a file without the forms `disabled`; what forms did."""
    request = BuildRequest(precision, Batch(BATCH, BATCH, BATCH), (GPU,), disabled=disabled)
    with tempfile.TemporaryDirectory() as folder:
        built = backends()[BACKEND].build(emitted, request, Path(folder), common.Silent())
    launched = built.facts["launches"]
    found = {"launches": launched["total"], "copies": launched["copies"], "megabytes": launched["bytes_moved"] / 1e6}
    return found, built.prepared.forms


def measure(name: str, seed: int) -> dict[str, Any]:
    """By file: what its engine moves, and what it does without each form that fired."""
    found: dict[str, Any] = {}
    optional = form.saving(backends()[BACKEND].forms)
    for label, precision, emitted in files(name, seed):
        found[label], forms = moved(emitted, precision)
        print(f"{name} {label}: {found[label]}", flush=True)
        fired = [] if label == EVERY else [one.name for one in forms if one.fired and one.name in optional]
        found |= {f"{label}, without {one}": moved(emitted, precision, one)[0] for one in fired}
    return found


def main() -> None:
    arguments = common.parser(__doc__, NETWORKS).parse_args()
    for name in arguments.recipes:
        path = common.write("moved", {name: measure(name, arguments.seed)}, SETTINGS, arguments.out, alone=True)
    print(path)


if __name__ == "__main__":
    main()
