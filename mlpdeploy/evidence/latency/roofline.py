"""What bounds a network on this machine: its multiply-accumulates and bytes, against rates measured here and now."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mlpdeploy.engine.onnx.plain import DTYPES
from mlpdeploy.evidence.documents.bench import Limit, Roofline
from mlpdeploy.evidence.latency import machine
from mlpdeploy.graph.tracing.rows import fixed_batch
from mlpdeploy.graph.tracing.trace import TensorSpec

SIZES = (512, 1024, 2048)
"""Sides of the square products whose best rate is the peak."""

_MOST_COPY = 1 << 29  # bytes; two such arrays are held
_TRIES = 5


def roofline(
    network: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    precision: str,
    executed: str,
    threads: int,
    device: str,
    medians_ms: Mapping[int, Mapping[str, float]],
) -> Roofline:
    """The limit at each batch of `medians_ms` (batch -> contender -> milliseconds), and how near each contender is.

    `executed` is the backend's own word for its arithmetic: where that is float32, so is the peak that counts. Rates
    are those of PyTorch on `device`, cpu or cuda.
    """
    dtype = torch.float32 if executed.lower().startswith(("f32", "fp32", "float")) else DTYPES[precision]
    peak, bandwidth = peak_macs(dtype, device), copy_bandwidth(device)
    macs, per_image = macs_of(network, inputs), _bytes([*inputs, *outputs])
    weights = sum(p.numel() for p in (*network.parameters(), *network.buffers())) * DTYPES[precision].itemsize
    limits = []
    for batch, medians in medians_ms.items():
        compute, memory = batch * macs / peak, (weights + batch * per_image) / bandwidth
        limit = 1e3 * max(compute, memory)
        percent = {name: 100 * limit / median for name, median in medians.items()}
        bound = "compute" if compute >= memory else "memory"
        limits.append(Limit(batch, batch * macs, weights + batch * per_image, limit, bound, percent))
    name = str(dtype).removeprefix("torch.")
    return Roofline(name, threads, peak / 1e9, bandwidth / 1e9, tuple(limits))


def macs_of(network: nn.Module, inputs: Sequence[TensorSpec]) -> int:
    """Multiply-accumulates of the products and convolutions for one image; nothing is computed but shapes."""
    batch = fixed_batch(inputs) or 2
    counter: Any = FlopCounterMode(display=False)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter:
        network(*(torch.zeros((batch, *spec.shape), dtype=spec.dtype) for spec in inputs))
    return int(counter.get_total_flops()) // 2 // batch


def peak_macs(dtype: torch.dtype = torch.float32, device: str = "cpu", sizes: Sequence[int] = SIZES) -> float:
    """The best rate of a matrix product here, in multiply-accumulates a second, on the threads that torch has now."""
    best = 0.0
    for size in sizes:
        a, b = (torch.ones(size, size).to(device, dtype) for _ in range(2))
        best = max(best, size**3 / _quickest(lambda a=a, b=b: torch.mm(a, b), device))  # type: ignore[misc]
    return best


def copy_bandwidth(device: str = "cpu") -> float:
    """Bytes a second that a copy reads and writes, of arrays that no cache holds (but of at most 512 MiB)."""
    count = min(4 * machine.cache_bytes(), _MOST_COPY) // 4
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    return 8 * count / _quickest(lambda: target.copy_(source), device)


def _quickest(work: Callable[[], object], device: str) -> float:
    """Seconds of the best of a few calls, after one that is not counted."""
    best = math.inf
    for turn in range(1 + _TRIES):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began if turn else math.inf)
    return best


def _bytes(specs: Sequence[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
