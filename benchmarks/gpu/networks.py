"""Whole networks in FP16 and BF16: eager, torch.compile, ours with and without the kernel, and TensorRT's engines.

Ours is the graph of an `inductor` package, its weights laid in the same way, and compiled as the plain network is: for
one batch. A package's batch is free, so its kernels know less; `pipeline` builds one, and does not time it.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.gpu import timer
from mlpdeploy.engine import programs
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import Traced, trace
from mlpdeploy.network.source import Source, source_of
from mlpdeploy.selection.choice import NetworkChoice

NAMES = (
    "vip_s7", "cyclemlp_b1", "hire_mlp_tiny", "wavemlp_t", "strip_mlp_t_light", "vip_s14", "raft_mlp_s", "mixer_b16",
    "resmlp_24", "gmlp_s16", "ms_mlp_t", "swin_t", "gmixer_24", "vip_m7", "as_mlp_t", "repmlpnet_t224",
)  # fmt: skip
"""In order of worth."""
BATCHES = (128, 8, 1)
Row = dict[str, Any]
TINY = "benchmarks.gpu.networks:tiny"
FORMATS = {"": torch.contiguous_format, ", channels last": torch.channels_last}
DEFAULT, TUNED = "default", "max-autotune-no-cudagraphs"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CHECKED = 8
"""Images on which accuracy is measured."""


def tiny() -> nn.Module:
    """A Vision Permutator of two blocks, for dry runs."""
    from mlpdeploy.zoo.vip import VisionPermutator

    return VisionPermutator((1, 1), (12, 24), (4, 2), (True, False), patch_size=4, image_size=16, num_classes=10).eval()


@dataclass(frozen=True)
class Network:
    """A network on the device in FP32, its graph after our rules in a low precision, how often each of them fired, and
    the shape of an image.
    """

    name: str
    plain: nn.Module
    ours: fx.GraphModule
    rules: dict[str, int]
    shape: tuple[int, ...]

    def images(self, batch: int, device: str) -> Tensor:
        """Random images."""
        return torch.randn((batch, *self.shape), generator=torch.Generator(device).manual_seed(0), device=device)


@functools.cache
def load(
    name: str, device: str, enabled: tuple[str, ...] = (), disabled: tuple[str, ...] = (), precision: str = "fp16"
) -> Network:
    """The network with random weights, rewritten (with the rules `enabled` too, without those `disabled`) and typed;
    nothing is fetched.
    """
    source, traced = _traced(name)
    off = backends()["inductor"].off_for((CURRENT,) if device == "cuda" else ())
    rewritten = rewrite(traced, disabled, enabled, off)
    precision = precision if device == "cuda" else "fp32"
    typed = programs.for_gpu(apply(rewritten, plan(rewritten, precision, io=precision)))
    fired = {report.name: report.fired for report in rewritten.report}
    # Copies: what is traced stays on the CPU, where it is rewritten again.
    plain, ours = copy.deepcopy(source.network).to(device), copy.deepcopy(typed.module).to(device)
    return Network(name, plain, ours, fired, source.specs()[0].shape)


@functools.cache
def _traced(name: str) -> tuple[Source, Traced]:
    source = source_of(NetworkChoice(name, input_shape=(3, 16, 16) if ":" in name else None))
    return source, trace(source.network, source.specs())


def without_kernel(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph, in which our operation is permute, linear, permute."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        node.target = programs.meanings().get(node.target, node.target)
    return fx.GraphModule(module, graph)


def prepare(
    name: str, batch: int, device: str, dry: bool, seconds: float, precision: str, mode: str
) -> Callable[[], Row]:
    """Compiles a network for all contenders, in one mode of torch.compile, and captures each as a CUDA graph; what
    measures them. The plain network is compiled in the memory format in which eager is faster.
    """
    network = load(name, device, precision=precision)
    tune(network, batch, device)
    images = network.images(max(batch, CHECKED), device).to(low(device, precision))
    with torch.inference_mode():
        plain = {form: _formed(network.plain, images, form) for form in FORMATS}
        found: dict[str, Callable[[Tensor], Any]] = {f"eager{form}": one for form, one in plain.items()}
        runs = {kind: captured(module, images[:batch]) for kind, module in found.items()}
        better = min(FORMATS, key=lambda form: _once(runs[f"eager{form}"]))
        compiled = compiler(dry, mode)
        found |= {
            "compile": compiled(plain[better]),
            "ours": compiled(network.ours),
            "ours without kernel": compiled(without_kernel(network.ours)),
        }
        runs |= {kind: captured(found[kind], images[:batch]) for kind in found if kind not in runs}
        launched = plain[better]
        wanted = exact(network.plain, images[:CHECKED].float())
        errors = {kind: deviation(first(run()), wanted) for kind, run in runs.items()}

    def measure() -> Row:
        given = images[:batch].contiguous()
        with torch.inference_mode():
            taken = timer.measure({"eager, launched": lambda: launched(given), **runs}, seconds=seconds)
        speed = throughput(taken, batch)
        return {"times": timer.row(taken, "ours"), "errors": errors, "images_per_second": speed, "format": better}

    return measure


def low(device: str, precision: str = "fp16") -> torch.dtype:
    """The dtype of a precision on a GPU; a CPU has FP32."""
    return DTYPES[precision] if device == "cuda" else torch.float32


def _formed(network: nn.Module, images: Tensor, form: str) -> nn.Module:
    """A copy in the dtype of `images`, its kernels in a memory format."""
    return copy.deepcopy(network).to(images.dtype).to(memory_format=FORMATS[form])


def captured(module: Callable[[Tensor], Any], images: Tensor) -> timer.Run:
    """A network on these images, as one CUDA graph."""
    given = images.contiguous()
    return timer.graphed(lambda: module(given))


def _once(run: timer.Run) -> float:
    return timer.measure({"": run}, seconds=0.2, rounds=20).latency("").median


def tune(network: Network, batch: int, device: str) -> None:
    """On a GPU, measure the kernel's configurations for each projection that was not measured yet."""
    if device == "cuda":
        programs.tune(network.ours, batch)


def compiler(dry: bool, mode: str = DEFAULT) -> Callable[[nn.Module], Callable[[Tensor], Any]]:
    """torch.compile in a mode; in a dry run it only traces."""
    if dry:
        return lambda module: torch.compile(module, backend="eager", dynamic=False)
    return lambda module: torch.compile(module, mode=mode, dynamic=False)


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


def pipeline(name: str, backend_name: str, gpus: tuple[str, ...]) -> dict[str, Any]:
    """`mlpdeploy build` and `mlpdeploy verify`, the engine executed: the verdict of each stage."""
    from mlpdeploy import Selection, build, verify

    with tempfile.TemporaryDirectory() as folder:
        selection = Selection(name, backend=backend_name, batch="1:8:32", gpus=gpus, out=Path(folder))
        artifact = build(selection)
        verification = verify(selection).to_json()
        facts = json.loads(json.dumps(artifact.manifest["facts"]))
    return {
        "facts": {key: facts.get(key) for key in ("gpu", "gpus", "executed", "plugin")},
        "verification": verification,
    }


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


def exact(network: nn.Module, images: Tensor) -> Tensor:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            return first(network.float()(images)).double()
    finally:
        torch.set_float32_matmul_precision(before)


def first(result: Any) -> Tensor:
    first: Tensor = result[0] if isinstance(result, tuple | list) else result
    return first


def deviation(got: Tensor, wanted: Tensor) -> float | None:
    """The largest error of the checked images, relative to the largest logit; None where a logit is not finite."""
    rows = min(len(got), len(wanted))
    found = float((got[:rows].double() - wanted[:rows]).abs().max() / wanted.abs().max())
    return found if math.isfinite(found) else None


def throughput(taken: Any, batch: int) -> dict[str, float]:
    return {name: batch / taken.latency(name).median for name in taken.seconds}
