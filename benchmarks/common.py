"""What the measuring scripts share: the machine's fingerprint, result files, engines of our graph and of the plain."""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import json
import os
import platform
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.tables import RESULTS
from mlpdeploy import pipeline
from mlpdeploy.engine.backend import Backend, Batch, BuildRequest, Runner
from mlpdeploy.engine.emit import Emitted, emit
from mlpdeploy.graph import precision as precisions
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.trace import TensorSpec, Traced, trace
from mlpdeploy.progress import Stages
from mlpdeploy.recipe import recipes
from mlpdeploy.selection import Selection

PACKAGES = ("numpy", "onnx", "onnxruntime", "openvino", "tensorrt-rtx", "timm", "torch")
OPSET = 20


class Silent:
    """A Progress that shows nothing."""

    def step(self, phase: str, done: int, total: int) -> None:
        """Ignored."""


def fingerprint() -> dict[str, Any]:
    """The machine and the versions that a number belongs to."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "cuda": torch.cuda.is_available(),
    }


def cpu_model(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name, or what Python knows of it."""
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def write(name: str, results: dict[str, Any], settings: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `folder/<name>.json` whole or not at all: the machine, the settings, the results.

    Other rows of the file stay where machine and settings are the same, so that a file has one origin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"{name}.json", folder / f".{name}.json.{os.getpid()}"
    origin = {"machine": fingerprint(), "settings": settings}
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = found["results"] if {key: found.get(key) for key in origin} == origin else {}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    document = {"benchmark": name, "date": date, **origin, "results": {**kept, **results}}
    temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def parser(doc: str | None, chosen: Collection[str] | None = None) -> argparse.ArgumentParser:
    """A command line with what every script takes: recipes (by default `chosen`, or all), --out and --seed."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(recipes()) if chosen is None else list(chosen)
    made.add_argument("recipes", nargs="*", default=names, help=f"default: {' '.join(names)}")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the result (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0)
    return made


def load(name: str, seed: int) -> tuple[nn.Module, list[TensorSpec]]:
    """A recipe's network with random weights, and what it takes."""
    source = pipeline.load(Selection(name, seed=seed), Stages())
    return source.network, source.specs()


def ours(
    traced: Traced, precision: str, disabled: Collection[str] = (), enabled: Collection[str] = ()
) -> tuple[Emitted, Rewritten]:
    """The graph after our rules, emitted; and the rewritten graph with its report."""
    rewritten = rewrite(traced, disabled, enabled)
    return emit(precisions.apply(rewritten, precisions.plan(rewritten, precision))), rewritten


def plain(network: nn.Module, specs: Sequence[TensorSpec], precision: str) -> Emitted:
    """The plain export, with no rule of ours: PyTorch's own exporter on the network in fp32 or in `half()`."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    specs = [replace(spec, dtype=dtype) if spec.dtype.is_floating_point else spec for spec in specs]
    # Tracing moves no weights, so the typed form of the plain graph is the network's own graph in that dtype.
    network = copy.deepcopy(network).to(dtype)
    graph = trace(network, specs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, tuple(spec.example(2) for spec in specs), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[spec.name for spec in specs], output_names=[output.name for output in graph.outputs],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * len(specs),
        )  # fmt: skip
    assert program is not None
    return Emitted(program.model_proto, precisions.Typed(graph.module, precision, graph.inputs, graph.outputs))


@contextlib.contextmanager
def engine(
    backend: Backend, emitted: Emitted, precision: str, batch: Batch, threads: int, folder: Path
) -> Iterator[Runner]:
    """Build in `folder` (made for it) and load."""
    folder.mkdir(parents=True)
    built = backend.build(emitted, BuildRequest(precision, batch, threads=threads), folder, Silent())
    with backend.load(built.engine, built.facts) as runner:
        yield runner


def inputs(specs: Sequence[TensorSpec], batch: int, seed: int, count: int = 4) -> list[dict[str, np.ndarray]]:
    """Different random batches to rotate through."""
    rng = np.random.default_rng(seed)
    return [{spec.name: spec.draw(batch, rng) for spec in specs} for _ in range(count)]
