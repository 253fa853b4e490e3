"""The kernel: is it right, and how fast is it against permute + linear + permute, a plain GEMM, and the hardware?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import timer
from mlpdeploy import kernels
from mlpdeploy.graph.custom_ops import by_permuting

ALLOWED = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 4e-6}
"""Largest error, relative to the largest result, that rounding the result and its products explains."""

TF32 = 3e-3


@dataclass(frozen=True)
class Case:
    """A projection of a network: x (batch * entries, p, q, s, o) to (batch * entries, k, q, t, o)."""

    name: str
    entries: int
    p: int
    q: int
    s: int
    o: int
    k: int
    t: int

    def tensors(self, batch: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
        """An input and a weight: results of about 1."""
        generator = torch.Generator(device).manual_seed(0)
        shape = (batch * self.entries, self.p, self.q, self.s, *([self.o] if self.o > 1 else []))
        x, w = (
            torch.randn(size, generator=generator, device=device) for size in (shape, (self.k * self.t, self.depth))
        )
        return x.to(dtype), (w / self.depth**0.5).to(dtype)

    @property
    def depth(self) -> int:
        """Length of the contraction."""
        return self.p * self.s

    def gemm(self, batch: int) -> tuple[int, int, int]:
        """M, N and K of the same work as a plain matrix product."""
        return batch * self.entries * self.q * self.o, self.k * self.t, self.depth


def _vip(name: str, grid: int, s: int) -> list[Case]:
    return [
        Case(f"{name} height {grid}x{grid}, s={s}", 1, grid, grid * grid, s, 1, grid, s),
        Case(f"{name} width {grid}x{grid}, s={s}", grid, grid, grid, s, 1, grid, s),
    ]


def _patches(name: str, grid: int, channels: int) -> Case:
    """Two rows of pairs of patches become one."""
    return Case(f"{name} patches {grid}x{grid}, c={channels}", grid, 2, grid, channels, 1, 1, channels)


def _raft(name: str, grid: int, o: int, rafts: int = 2) -> list[Case]:
    """The two projections of a vertical mixer; those of a horizontal one are plain batched products."""
    hidden, where = 2 * rafts * grid, f"{name} {grid}x{grid}, r={rafts}, o={o}"
    return [
        Case(f"{where} in", 1, grid, grid, rafts, o, 1, hidden),
        Case(f"{where} out", 1, 1, grid, hidden, o, grid, rafts),
    ]


CASES = (
    *_vip("vip_s7", 32, 6),
    *_vip("vip_s14, vip_s7", 16, 24),
    *_vip("vip_m7, vip_l7", 32, 8),
    *_vip("vip_m7, vip_l7", 16, 32),
    _patches("vip_s7", 16, 384),
    _patches("vip_m7, vip_l7", 16, 512),
    *_raft("raft_mlp_s", 56, 32),
    *_raft("raft_mlp_s", 28, 64),
    *_raft("raft_mlp_s", 14, 128),
    *_raft("raft_mlp_s", 7, 256),
    _patches("raft_mlp_s", 7, 512),
)
"""Every segment-grouped projection in ViP, and in the smallest RaftMLP."""

OTHERS = (
    *_raft("raft_mlp_m", 56, 48),
    *_raft("raft_mlp_m, raft_mlp_l", 28, 96),
    *_raft("raft_mlp_m", 14, 192),
    *_raft("raft_mlp_m", 7, 384),
    _patches("raft_mlp_m", 7, 768),
    *_raft("raft_mlp_l", 56, 64),
    *_raft("raft_mlp_l", 14, 256),
    *_raft("raft_mlp_l", 7, 512),
    _patches("raft_mlp_l", 7, 1024),
    _patches("raft_mlp_hierarchy_m", 28, 192),
    _patches("raft_mlp_hierarchy_m", 14, 384),
    *_raft("raft_mlp_r2", 14, 384),
    *_raft("raft_mlp_r4", 14, 192, rafts=4),
)
"""Those of the other RaftMLPs."""

TINY = (Case("tiny height", 1, 4, 8, 3, 1, 4, 3), Case("tiny raft", 1, 4, 2, 2, 5, 1, 9))


def correctness(case: Case, device: str) -> dict[str, Any]:
    """Errors against float64 in every precision, without and with everything that the epilogue can do, at batch 2."""
    found: dict[str, Any] = {}
    # Triton's interpreter, which plays the GPU in a dry run, has no BF16 and no TF32.
    precisions = [(torch.float16, False), (torch.float32, False)]
    precisions += [(torch.bfloat16, False), (torch.float32, True)] if device == "cuda" else []
    for dtype, tf32 in precisions:
        x, w = case.tensors(2, dtype, device)
        wanted = _contraction(x, w, case)
        plain = _project(x, w, case, tf32=tf32)
        options, changed = _epilogue(case, wanted, dtype)
        full = _project(x, w, case, tf32=tf32, **options)
        error = max(_error(plain, wanted), _error(full, changed))
        name = "tf32" if tf32 else str(dtype).removeprefix("torch.")
        found[name] = {"error": error, "allowed": TF32 if tf32 else ALLOWED[dtype]}
    return {"errors": found, "passed": all(one["error"] <= one["allowed"] for one in found.values())}


def speed(case: Case, batch: int, device: str, dry: bool, seconds: float) -> dict[str, Any]:
    """Times of the kernel, of permute + linear + permute eager and compiled, and of a plain GEMM of the same size."""
    compiled = torch.compile(by_permuting, backend="eager" if dry else "inductor", dynamic=False)
    dtype = torch.float16 if device == "cuda" else torch.float32
    x, w = case.tensors(batch, dtype, device)
    m, n, k = case.gemm(batch)
    rows, out = torch.randn((m, k), device=device, dtype=dtype), torch.empty((m, n), device=device, dtype=dtype)
    config, chosen = _tuned(x, w, case, device)
    contenders: dict[str, timer.Run] = {
        "kernel": lambda: _launch().project(x, w, case.k, config),
        "eager": lambda: by_permuting(x, w, case.k),
        "compile": lambda: compiled(x, w, case.k),
        "gemm": lambda: torch.mm(rows, w.t(), out=out),
    }
    with torch.inference_mode():
        # As CUDA graphs: a launch from Python takes longer than a small projection.
        runs = {name: timer.graphed(run) for name, run in contenders.items()}
        taken = timer.measure(runs, seconds=seconds, cold=True)
    size = x.element_size()
    return {
        "gemm": [m, n, k],
        "bytes": size * (m * k + m * n + n * k),
        "operations": 2 * m * n * k,
        "config": str(config),
        "operation_uses": chosen,
        "times": timer.row(taken, "kernel"),
    }


def roofline(device: str) -> dict[str, float]:
    """Bytes a second of a large copy, and operations a second of a large FP16 product, on this machine in this run."""
    size = 1 << 30 if device == "cuda" else 1 << 16
    source, target = (torch.empty(size // 2, dtype=torch.float16, device=device) for _ in range(2))
    edge = 8192 if device == "cuda" else 64
    dtype = torch.float16 if device == "cuda" else torch.float32
    a, b = (torch.randn((edge, edge), device=device, dtype=dtype) for _ in range(2))
    taken = timer.measure({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, seconds=3, cold=True)
    return {
        "bytes_per_second": 2 * size / taken.latency("copy").median,
        "operations_per_second": 2 * edge**3 / taken.latency("product").median,
    }


def _launch() -> Any:
    return kernels.load("segment_grouped_projection.launch")


def _tuned(x: Tensor, w: Tensor, case: Case, device: str) -> tuple[Any, str]:
    """The fastest configuration of the kernel, measured now, and what the operation will use: that, or the library."""
    if device != "cuda":
        return kernels.load("common.configurations").Config(16, 16, 16, 4, 2), "the kernel"
    with timer.tuned_alone():
        taken = _launch().tune((x, w, case.k), by_permuting)
    own = {choice: time for choice, time in taken.items() if not isinstance(choice, str)}
    best = min(own, key=lambda choice: own[choice])
    return best, "the kernel" if own[best] == min(taken.values()) else "the library"


def _project(x: Tensor, w: Tensor, case: Case, **options: Any) -> Tensor:
    sm = _launch().compute_capability(x.device) if x.is_cuda else 80
    config = _launch().describe(x, w, case.k, **options).default(x.shape[0], sm)
    result: Tensor = _launch().project(x, w, case.k, config, **options)
    return result


def _contraction(x: Tensor, w: Tensor, case: Case) -> Tensor:
    return by_permuting(x.double(), w.double(), case.k)


def _epilogue(case: Case, wanted: Tensor, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """Bias, GELU, a scale for each image and channel, and accumulation; and what they make of the result."""
    generator = torch.Generator(wanted.device).manual_seed(1)
    entries, k, q, t, *trailing = wanted.shape
    o = trailing[0] if trailing else 1
    images, channels = entries // case.entries, case.q * t * o
    sizes = {"bias": (k * t,), "scale": (images, channels), "accumulate": tuple(wanted.shape)}
    made = {
        name: torch.randn(size, generator=generator, device=wanted.device, dtype=torch.float64).to(dtype)
        for name, size in sizes.items()
    }
    changed = torch.nn.functional.gelu(wanted + made["bias"].double().reshape(k, 1, t, *([1] * len(trailing))))
    factor = made["scale"].double().reshape(images, 1, 1, q, t, *trailing)
    changed = (changed.reshape(images, case.entries, *wanted.shape[1:]) * factor).reshape(wanted.shape)
    return {**made, "gelu": "erf"}, changed + made["accumulate"].double()


def _error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).abs().max() / wanted.abs().max())
