"""Functions near zero and far from it, as they are emitted, against float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

SMALL = [sign * 10.0**power for power in range(-30, 0) for sign in (1, -1)]
LARGE = [0.0, 0.5, -0.5, 1.0, 3.0, 10.0, 80.0, 1e4, 1e30]

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "log1p": (torch.log1p, [*SMALL, *LARGE, -0.999]),
    "expm1": (torch.expm1, [*SMALL, *LARGE[:7], -10.0, -80.0, -1e4]),
    "logsigmoid": (nn.functional.logsigmoid, [*SMALL, *LARGE, -10.0, -80.0, -1e4, -1e30]),
    "logaddexp": (lambda x: torch.logaddexp(x, 3 - x), [*SMALL, *LARGE, -10.0, -80.0, -1e4]),
}


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_as_accurate_as_its_numbers(name: str) -> None:
    function, values = FUNCTIONS[name]
    x = np.array(values, np.float32)[None]
    network = Function(function).eval()
    rewritten = rewrite(trace(network, [TensorSpec("x", x.shape[1:], torch.float32)]))
    (found,) = onnx_run(emit(apply(rewritten, plan(rewritten, "fp32"))).model, 1)({"x": x}).values()
    expected = function(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-37)
