"""Whole networks in FP16 and BF16: eager, torch.compile, and ours with and without the kernel.

Ours is the graph of an `inductor` package, its weights laid in the same way, and compiled as the plain network is: for
one batch. A package's batch is free, so its kernels know less: `commands` builds and times one.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.gpu import timer
from mlpdeploy.engine import programs
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import Rewritten, copied, rewrite
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
AUTOTUNE = "max-autotune"
WITHOUT = "ours without kernel"
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
    """The network with random weights, rewritten as for a GPU (with the rules `enabled` too, without those `disabled`)
    and typed; nothing is fetched.
    """
    source, _ = _traced(name)
    rewritten = by_rules(name, enabled, disabled)
    precision = precision if device == "cuda" else "fp32"
    typed = programs.for_gpu(apply(rewritten, plan(rewritten, precision, io=precision)))
    # Copies: what is traced stays on the CPU, where it is rewritten again.
    plain, ours = copy.deepcopy(source.network).to(device), copy.deepcopy(typed.module).to(device)
    return Network(name, plain, ours, fired(rewritten), source.specs()[0].shape)


def by_rules(name: str, enabled: tuple[str, ...] = (), disabled: tuple[str, ...] = ()) -> Rewritten:
    """The network rewritten as for a GPU, before a precision is planned, which takes most of `load`."""
    backend, gpus = backends()["inductor"], (CURRENT,)
    return rewrite(_traced(name)[1], disabled, enabled, backend.off_for(gpus), backend.carries_kernel(gpus))


def fired(rewritten: Rewritten) -> dict[str, int]:
    """How often each rule fired."""
    return {report.name: report.fired for report in rewritten.report}


@functools.cache
def _traced(name: str) -> tuple[Source, Traced]:
    source = source_of(NetworkChoice(name, input_shape=(3, 16, 16) if ":" in name else None))
    return source, trace(source.network, source.specs())


def without_kernel(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph, in which our operation is permute, linear, permute."""
    spelled, meanings = copied(module), programs.meanings()
    for node in spelled.graph.nodes:
        node.target = meanings.get(node.target, node.target)
    spelled.recompile()
    return spelled


def measure(known: Row, name: str, batch: int, device: str, dry: bool, seconds: float, precision: str) -> Iterator[Row]:
    """Compiles a network and ours, captures all contenders as CUDA graphs and times them; then ours without the kernel.

    The plain network is compiled in the memory format in which eager is faster.
    """
    network, images = ready(name, batch, device, precision)
    compiled, given = compiler(dry), images[:batch].contiguous()
    with torch.inference_mode():
        plain, eager, better = _eager(network, images, batch)
        runs = eager | {
            "compile": captured(compiled(plain[better]), given),
            "ours": captured(compiled(network.ours), given),
        }
        wanted = exact(network.plain, images[:CHECKED].float())
        row = timed(runs, wanted, batch, seconds, {"eager, launched": lambda: plain[better](given)})
        row |= {"format": better}
        if not has_kernel(network.ours):
            yield row
            return
        yield row | {"left": [WITHOUT]}
        last = {"ours": runs["ours"], WITHOUT: captured(compiled(without_kernel(network.ours)), given)}
        yield joined(row, timed(last, wanted, batch, seconds / 3))


def measure_tuned(
    known: Row, name: str, batch: int, device: str, dry: bool, seconds: float, precision: str
) -> Iterator[Row]:
    """The plain network in max-autotune beside ours as it is by default; then ours in max-autotune."""
    network, images = ready(name, batch, device, precision)
    compiled, given = compiler(dry, TUNED), images[:batch].contiguous()
    with torch.inference_mode():
        plain, _, better = _eager(network, images, batch)
        runs = {
            "ours": captured(compiler(dry)(network.ours), given),
            f"compile {AUTOTUNE}": captured(compiled(plain[better]), given),
        }
        wanted = exact(network.plain, images[:CHECKED].float())
        row = timed(runs, wanted, batch, seconds) | {"format": better}
        yield row | {"left": [f"ours {AUTOTUNE}"]}
        last = {"ours": runs["ours"], f"ours {AUTOTUNE}": captured(compiled(network.ours), given)}
        yield joined(row, timed(last, wanted, batch, seconds / 3))


def ready(name: str, batch: int, device: str, precision: str = "fp16") -> tuple[Network, Tensor]:
    """A network whose kernels are tuned, and images: as many as are checked, or more."""
    network = load(name, device, precision=precision)
    tune(network, batch, device)
    return network, network.images(max(batch, CHECKED), device).to(low(device, precision))


def _eager(network: Network, images: Tensor, batch: int) -> tuple[dict[str, nn.Module], dict[str, timer.Run], str]:
    """The plain network by memory format, what runs each, and the format in which it is faster."""
    plain = {form: _formed(network.plain, images, form) for form in FORMATS}
    runs = {f"eager{form}": captured(one, images[:batch]) for form, one in plain.items()}
    return plain, runs, min(FORMATS, key=lambda form: _once(runs[f"eager{form}"]))


def timed(
    runs: Mapping[str, timer.Run], wanted: Tensor, batch: int, seconds: float, more: Mapping[str, timer.Run] = {}
) -> Row:
    """Times of all, and errors of the `runs`."""
    errors = {kind: deviation(first(run()), wanted) for kind, run in runs.items()}
    taken = timer.measure({**more, **runs}, seconds=seconds)
    return {"times": timer.row(taken, "ours"), "errors": errors, "images_per_second": throughput(taken, batch)}


def joined(row: Row, last: Row) -> Row:
    """A row with contenders that were timed later, beside ours again; what it says of ours stays."""
    return row | {part: last[part] | row[part] for part in ("times", "errors", "images_per_second")}


def has_kernel(module: fx.GraphModule) -> bool:
    """Whether any of our operations is in a graph."""
    return any(node.target in programs.meanings() for node in module.graph.nodes)


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
        with timer.tuned_alone():
            programs.tune(network.ours, batch)


def compiler(dry: bool, mode: str = DEFAULT) -> Callable[[nn.Module], Callable[[Tensor], Any]]:
    """torch.compile in a mode; in a dry run it only traces."""
    if dry:
        return lambda module: torch.compile(module, backend="eager", dynamic=False)
    return lambda module: torch.compile(module, mode=mode, dynamic=False)


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
