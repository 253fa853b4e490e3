"""project_patches: a strided convolution on channels-last activations as a segment-grouped projection."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlpdeploy.graph.rewrite import RuleReport, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.graph.rules.examples import Example, NearMiss, Net


class Stages(nn.Module):
    """Patch merging on channels-last activations (ViP's Downsample)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.merge, self.last = nn.LayerNorm(3), nn.Conv2d(3, 4, 2, 2), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.merge(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


EXAMPLE = Example(Stages, (4, 6, 3), fires=1)


class Downsample(nn.Module):
    """LayerNorm, a convolution seen channels first, LayerNorm; the activations are channels last."""

    def __init__(self, convolution: nn.Conv2d, back: bool = True, flat: bool = False) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(convolution.in_channels), nn.LayerNorm(convolution.out_channels)
        self.convolution, self.back, self.flat = convolution, back, flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolution(self.before(x).permute(0, 3, 1, 2))
        if not self.back:
            return x.softmax(1)
        return self.after(x.flatten(2).transpose(1, 2) if self.flat else x.permute(0, 2, 3, 1))


def near_miss(*sizes: int, why: tuple[str, ...] = (), back: bool = True, **options: int) -> NearMiss:
    return NearMiss(lambda: Downsample(nn.Conv2d(6, *sizes, **options), back=back), (8, 12, 6), why)


OVERLAP = ("its patches overlap, are padded, dilated or grouped",)
COVER = ("its patches do not cover the activations",)
NEAR_MISSES = {
    "overlapping": near_miss(10, 3, stride=2, why=OVERLAP),
    "padded": near_miss(10, 2, stride=2, padding=1, why=OVERLAP),
    "dilated": near_miss(10, 2, stride=2, dilation=2, why=OVERLAP),
    "grouped": near_miss(12, 2, stride=2, groups=2, why=OVERLAP),
    "a rest at the edge": near_miss(10, 5, stride=5, why=COVER),
    "a result that is wanted channels first": near_miss(10, 2, stride=2, back=False),
    "a map without a batch": NearMiss(
        lambda: Net(lambda net, x: net.one(x.t()[..., None])[..., 0].t(), one=nn.Conv2d(4, 4, 1)), (4,)
    ),
}


def _report(network: nn.Module, size: tuple[int, int]) -> tuple[RuleReport, int]:
    network = network.double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    spec = TensorSpec("x", (*size, 6), torch.float64)
    rewritten = rewrite(trace(network, [spec]))
    for batch in (1, 2, 5):
        x = torch.randn(batch, *size, 6, dtype=torch.float64)
        with torch.no_grad():
            expected, found = network(x), rewritten.module(x)[0]
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    permutes = sum(node.target is torch.ops.aten.permute.default for node in rewritten.module.graph.nodes)
    return next(report for report in rewritten.report if report.name == "project_patches"), permutes


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kernel", [2, (2, 3), (1, 2), 4])
@pytest.mark.parametrize("bias", [False, True])
def test_patches_are_contracted_as_they_lie(kernel: int | tuple[int, int], bias: bool, flat: bool) -> None:
    convolution = nn.Conv2d(6, 10, kernel, stride=kernel, bias=bias)
    report, permutes = _report(Downsample(convolution, flat=flat), (8, 12))
    assert (report.fired, permutes) == (1, 0)
