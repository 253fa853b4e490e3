"""What the measuring scripts share: the machine's fingerprint, result files, engines of our graph and of the plain."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.tables import RESULTS
from mlpdeploy import stages
from mlpdeploy.engine.backend import Backend, BuildRequest
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.engine.onnx.functions import OPSET as OPSET
from mlpdeploy.engine.onnx.plain import plain as plain
from mlpdeploy.engine.runner import Runner
from mlpdeploy.evidence.latency.machine import differences, fingerprint
from mlpdeploy.evidence.proof.compare import compare, usual
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.zoo.recipe import recipes

FP32_BUDGET = 1e-4
"""Largest relative error that another order of the same FP32 sums explains in the deepest networks."""


class Silent:
    """A Progress that shows nothing."""

    def step(self, phase: str, done: int, total: int) -> None:
        """Ignored."""


def write(
    name: str, results: dict[str, Any], settings: dict[str, Any], folder: Path = RESULTS, *, alone: bool = False
) -> Path:
    """Write `folder/<name>.json` whole or not at all: the machine, the settings, the results.

    Other rows of the file stay where machine and settings are the same, so that a file has one origin; a file of
    another origin is kept beside it, as `<name>.previous.json`, and this is said. Rows that stand `alone` are not
    compared with one another: where only the machine is another, each names its own and the others stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"{name}.json", folder / f".{name}.json.{os.getpid()}"
    machine, found = fingerprint(), json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = found.get("settings") == settings and not differences(machine, found["machine"])
    if alone and not same and found.get("settings") == settings and machine["versions"] == found["machine"]["versions"]:
        results = {row: {**values, "machine": machine} for row, values in results.items()}
        same, machine = True, found["machine"]
    date = time.strftime("%Y-%m-%d", time.gmtime())
    results = {**(found["results"] if same else {}), **results}
    own = [row.get("machine") for row in results.values()] if alone else [None]
    if own and own[0] is not None and all(one == own[0] for one in own):  # no row of the first machine is left
        machine, results = own[0], {row: {k: v for k, v in of.items() if k != "machine"} for row, of in results.items()}
    document = {"benchmark": name, "date": date, "machine": machine, "settings": settings, "results": results}
    temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if found and not same:
        path.replace(folder / f"{name}.previous.json")
        print(f"{path} has another machine or other settings: kept as {name}.previous.json, and begun anew", flush=True)
    temporary.replace(path)
    return path


def kept(name: str, settings: dict[str, Any], folder: Path = RESULTS) -> dict[str, Any]:
    """The results in `folder/<name>.json` where they were taken on this machine with these settings; none otherwise."""
    path = folder / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("settings") != settings or differences(fingerprint(), found["machine"]):
        return {}
    results: dict[str, Any] = found["results"]
    return results


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
    source = stages.load(Selection(name, seed=seed), Stages())
    return source.network, source.specs()


def ours(
    traced: Traced,
    precision: str,
    disabled: Collection[str] = (),
    enabled: Collection[str] = (),
    off: Collection[str] = (),
) -> tuple[Emitted, Rewritten]:
    """The graph after our rules, emitted; and the rewritten graph with its report."""
    rewritten = rewrite(traced, disabled, enabled, off)
    return emit(apply(rewritten, plan(rewritten, precision))), rewritten


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


def outputs_of(result: Any) -> list[np.ndarray]:
    """What a contender returned, a network or an engine, as arrays."""
    return [np.asarray(leaf) for leaf in pytree.tree_leaves(result)]


def worst_error(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest relative error among the outputs of one batch."""
    named = {str(index): output for index, output in enumerate(expected)}
    pairs = zip(found, named.items(), strict=True)
    return max(compare(one, other, usual(named, name)).max_relative for one, (name, other) in pairs)


def check_alike(runners: Mapping[str, Callable[[Any], object]], values: dict[str, np.ndarray]) -> None:
    """Raise ValueError where an FP32 contender computes something else than the first: its time would mean nothing."""
    (first, expected), *others = [(name, outputs_of(run(values))) for name, run in runners.items()]
    for name, found in others:
        if (error := worst_error(found, expected)) > FP32_BUDGET:
            raise ValueError(f"{name} is off by {error:.1e} from {first}: it computes something else")
