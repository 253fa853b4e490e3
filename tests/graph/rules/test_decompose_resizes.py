"""Resizing with antialiasing is two projections; against PyTorch, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.proof import prove, targets
from tests.graph.rules.examples import Example, NearMiss, Pyramid

EXAMPLE = Example(Pyramid, (4, 6, 8), fires=1)

SMOOTH: dict[str, dict[str, object]] = {
    "smaller": {"size": (5, 7)},
    "larger": {"size": (15, 17)},
    "mixed": {"size": (15, 4)},
    "same": {"size": (11, 9)},
    "one": {"size": 1},
    "scaled": {"scale_factor": 0.6},
    "scaled by two": {"scale_factor": (0.37, 1.9)},
    "recomputed": {"scale_factor": 0.6, "recompute_scale_factor": True},
}


class Resized(nn.Module):
    def __init__(self, **how: object) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, **self.how)


NEAR_MISSES = {
    "not smoothed": NearMiss(lambda: Resized(size=(5, 7), mode="bilinear"), (2, 11, 9)),
    "not smoothed, bicubic": NearMiss(lambda: Resized(scale_factor=2, mode="bicubic"), (2, 11, 9)),
    "of the nearest": NearMiss(lambda: Resized(size=(22, 18), mode="nearest"), (2, 11, 9)),
}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_resizes_are_projected(name: str, mode: str, align_corners: bool) -> None:
    result = prove(Resized(**SMOOTH[name], mode=mode, antialias=True, align_corners=align_corners), (2, 11, 9))
    assert {report.name: report.fired for report in result.report}["decompose_resizes"] == 1
    assert not any("upsample" in str(target) for target in targets(result))


def test_a_flat_image_stays_flat() -> None:
    result = prove(Resized(size=(5, 7), mode="bicubic", antialias=True), (2, 11, 9))
    flat = torch.full((1, 2, 11, 9), 3.0, dtype=torch.float64)
    torch.testing.assert_close(result.module(flat)[0], torch.full((1, 2, 5, 7), 3.0, dtype=torch.float64))
