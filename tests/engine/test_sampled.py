"""Maps that are sampled at places, in packages for a GPU: by what compilers know, not by cuDNN's operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.engine import programs
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

aten = torch.ops.aten


class Samples(nn.Module):
    def __init__(self, axes: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.map, self.axes, self.options = nn.Parameter(torch.randn(1, 3, *[5] * axes)), axes, options

    def forward(self, x: Tensor) -> Tensor:
        places = x.reshape(x.shape[0], *[1] * (self.axes - 1), -1, self.axes)
        return F.grid_sample(self.map.expand(x.shape[0], *[-1] * (self.axes + 1)), places, **self.options)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_a_map_is_sampled_the_same_by_no_operation_that_becomes_cudnns(
    mode: str, padding_mode: str, align_corners: bool
) -> None:
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    rewritten = rewrite(trace(Samples(2, options).eval(), [TensorSpec("x", (7, 2), torch.float32)]))
    typed = apply(rewritten, plan(rewritten, "fp32"))
    before = str(typed.module.graph)
    sampled = programs.for_gpu(typed).module
    targets = [node.target for node in sampled.graph.nodes]
    assert aten.grid_sampler_2d.default in targets and aten.grid_sampler.default not in targets
    x = torch.rand(3, 7, 2) * 3 - 1.5
    assert torch.equal(sampled(x)[0], typed.module(x)[0]) and str(typed.module.graph) == before


def test_volumes_which_cudnn_does_not_sample_stay_as_they_are() -> None:
    rewritten = rewrite(trace(Samples(3, {"align_corners": True}).eval(), [TensorSpec("x", (7, 3), torch.float32)]))
    typed = apply(rewritten, plan(rewritten, "fp32"))
    assert aten.grid_sampler.default in [node.target for node in programs.for_gpu(typed).module.graph.nodes]
