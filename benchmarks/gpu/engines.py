"""TensorRT's engines of whole networks, in FP16: the plain export's and ours."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import timer
from benchmarks.gpu.networks import CHECKED, deviation, exact
from mlpdeploy.engine.backend import backends
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace
from mlpdeploy.network.source import source_of
from mlpdeploy.selection.choice import NetworkChoice


def engines(name: str, batch: int, backend_name: str, gpus: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """TensorRT's engines, the plain export's and ours, built here for `gpus`; times where this GPU runs them."""
    from mlpdeploy.engine.backends.tensorrt import _polygraphy

    _polygraphy.bind(backend_name)  # before anything of Polygraphy is imported
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    from benchmarks import common
    from mlpdeploy.engine.backend import BuildRequest
    from mlpdeploy.engine.batch import Batch
    from mlpdeploy.engine.onnx.emit import emit

    backend, source = backends()[backend_name], source_of(NetworkChoice(name))
    rewritten = rewrite(trace(source.network, source.specs()), off=backend.off)
    ours = emit(apply(rewritten, plan(rewritten, "fp16", io="fp16")))
    graphs = {"ours": ours, "plain": common.plain(source.network, source.specs(), "fp16")}
    images = torch.randn((batch, *source.specs()[0].shape), device="cuda")
    wanted = exact(source.network.cuda(), images[:CHECKED])
    found: dict[str, Any] = {"built": {}}
    with tempfile.TemporaryDirectory() as folder:
        runners = {}
        for kind, graph in graphs.items():
            where = Path(folder) / kind
            where.mkdir()
            request = BuildRequest("fp16", Batch(1, batch, batch), gpus)
            built = backend.build(graph, request, where, common.Silent())
            found["built"][kind] = {key: built.facts.get(key) for key in ("build_seconds", "engine_bytes", "plugin")}
            runners[kind] = (TrtRunner(EngineFromBytes(built.engine.read_bytes())), graph.typed.inputs[0])
        found |= _run(runners, images, wanted, seconds)
    return found


def _run(runners: dict[str, Any], images: Tensor, wanted: Tensor, seconds: float) -> dict[str, Any]:
    runs: dict[str, timer.Run] = {}
    errors = {}
    for kind, (runner, port) in runners.items():
        runner.activate()
        feed = {port.name: images.to(port.dtype)}

        def run(runner: Any = runner, feed: dict[str, Tensor] = feed) -> Any:
            return next(iter(runner.infer(feed, check_inputs=False, copy_outputs_to_host=False).values()))

        runs[kind] = run
        errors[kind] = deviation(run(), wanted)
    taken = timer.measure(runs, seconds=seconds)
    for runner, _ in runners.values():
        runner.deactivate()
    return {"times": timer.row(taken, "ours"), "errors": errors}
