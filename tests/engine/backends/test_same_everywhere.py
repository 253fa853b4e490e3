"""What engines leave out, or read in another way, where it is handed to them as PyTorch writes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mlpdeploy


class Odd(nn.Module):
    """Every output is one operation that some engine or exporter has computed differently, without a word."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            F.interpolate(x, size=(5, 7), mode="bilinear", antialias=True),
            F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.avg_pool2d(x, (2, 3), (3, 2), (1, 1), ceil_mode=True, count_include_pad=False),
            F.avg_pool2d(x, 3, 2, 1, divisor_override=2),
            F.max_pool2d(-1 - x.square(), 3, 2, 1, ceil_mode=True),
            torch.fft.rfft(x, dim=2).abs(),
            x.contiguous().as_strided((x.shape[0], 2, 4, 3, 10), (200, 100, 20, 10, 1), 10),
        )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_each_engine_computes_what_pytorch_does(backend: str, tmp_path: object) -> None:
    x = torch.randn(3, 2, 10, 10, generator=torch.Generator().manual_seed(0))
    engine = mlpdeploy.compile(Odd(), x, precision="fp32", backend=backend, batch="1:3:4", out=str(tmp_path))
    expected = Odd()(x)
    for place, found in enumerate(engine(x)):
        torch.testing.assert_close(torch.as_tensor(found), expected[place], rtol=1e-4, atol=1e-4)
    assert engine.verify().passed
