"""A small network with all of the stages that the ladder climbs, each of which a test can break."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.proof.ladder import Budget, Stage, Verification
from mlpdeploy.evidence.proof.verify import verify
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.rewrite import Rewritten
from mlpdeploy.graph.tracing.trace import TensorSpec

BATCH = Batch(1, 4, 11)
FP16 = Budget(3e-3, 0.99)
X = TensorSpec("x", (6, 8), torch.float32)


class Net(nn.Module):
    """A Mixer in miniature: (b, 6, 8) to (b, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.tokens, self.head = nn.LayerNorm(8), nn.Linear(6, 6), nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head(x.mean(1))


class Half(nn.Module):
    """Its FP16 form, casts at the border."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.half()).float()


class Silent:
    def step(self, phase: str, done: int, total: int) -> None:
        assert 0 <= done <= total


@dataclass(frozen=True)
class Case:
    """One network and all of its stages; `replace` breaks one."""

    network: nn.Module
    rewritten: Rewritten
    typed: Typed
    model: onnx.ModelProto
    engine: Callable[[Arrays], dict[str, np.ndarray]] | None

    def verify(self, *, budget: Budget = FP16, samples: Arrays | None = None, **more: Any) -> Verification:
        reason = None if self.engine else "no NVIDIA GPU"
        return verify(
            self.network, self.rewritten, self.typed, self.model, self.engine, reason, BATCH, budget, samples, 0,
            Silent(), **more,
        )  # fmt: skip


def run_with(function: Callable[[Tensor], Tensor]) -> Callable[[Arrays], dict[str, np.ndarray]]:
    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"y": function(torch.from_numpy(inputs["x"])).numpy()}

    return run


def make_onnx(module: nn.Module) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.randn(2, 6, 8),), buffer, dynamo=False, opset_version=20,
            input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "b"}, "y": {0: "b"}},
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def by_name(found: Verification, name: str) -> Stage:
    return next(stage for stage in found.stages if stage.name == name)
