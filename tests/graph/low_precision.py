"""Small networks in FP16 and BF16: what their plans keep in FP32, and how far off they are, judged by ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.extremes import extremes
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

POINTS = TensorSpec("x", (8,), torch.float32)
ALLOWED = {"fp16": 5e-3, "bf16": 4e-2}
"""Of the largest value of a row, what a few roundings are."""


class Net(nn.Module):
    """`forward_` on rows (b, 8): two projections, a table of 1000 rows, edges of buckets."""

    def __init__(self, forward_: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.forward_ = forward_
        self.first, self.second, self.table = nn.Linear(8, 8), nn.Linear(8, 8), nn.Embedding(1000, 8)
        self.edges = nn.Buffer(torch.linspace(-3, 3, 700))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_(self, x)


Forward = Callable[[Net, Tensor], Tensor]


def traced(forward: Forward) -> tuple[Net, Rewritten]:
    """A network with known weights, and its graph."""
    torch.manual_seed(0)
    network = Net(forward).eval()
    return network, rewrite(trace(network, [POINTS]))


def kept(forward: Forward, precision: str = "fp16") -> dict[str, str]:
    """What the plan keeps in FP32: the operation and the reason, in order."""
    rewritten = traced(forward)[1]
    nodes = {node.name: str(getattr(node.target, "overloadpacket", "")) for node in rewritten.module.graph.nodes}
    return {nodes[found.node].removeprefix("aten."): found.reason for found in plan(rewritten, precision).kept}


def rows() -> np.ndarray:
    """Random rows, flat ones of several heights, the extreme ones: `(n, 8)`."""
    rng = np.random.default_rng(3)
    flat = [np.full((1, 8), height, np.float32) for height in (-1.0, 2.5)]
    return np.concatenate([rng.standard_normal((32, 8), dtype=np.float32), *flat, extremes([POINTS], rng).arrays["x"]])


def off(forward: Forward, precision: str = "fp16", everything: bool = False) -> float:
    """How far off the file is for the worst row, as a share of the row's largest value; infinite where it has a value
    that is no finite number and the network in float64 has one. With `everything`, nothing is kept in FP32."""
    network, rewritten = traced(forward)
    planned = plan(rewritten, precision)
    if everything:
        low = torch.float16 if precision == "fp16" else torch.bfloat16
        planned = type(planned)(precision, dict.fromkeys(planned.dtypes, low), torch.float32, ())
    x = rows()
    (outputs,) = onnx_run(emit(apply(rewritten, planned)).model, 1)({"x": x}).values()
    found = outputs.astype(np.float64)
    with torch.no_grad():
        wanted = copy.deepcopy(network).double()(torch.from_numpy(x).double()).numpy()
    there = np.isfinite(wanted)
    if not np.isfinite(found[there]).all():
        return np.inf
    size = np.abs(np.where(there, wanted, 0)).max(1, keepdims=True).clip(1e-3)
    return float((np.abs(np.where(there, found - wanted, 0)) / size).max())
