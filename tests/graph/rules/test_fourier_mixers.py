"""FNet (Lee-Thorp et al. 2021), GFNet (Rao et al. 2021) at 224 pixels: token mixing by transforms, as by products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.graph.layout.remaining import transposes
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from tests.graph.proof import prove, rewritten, targets

CHANNELS, GRID, BLOCKS, IMAGE = 16, 14, 2, (3, 224, 224)


class Fourier(nn.Module):
    """The real part of a transform of the channels and of the tokens, which has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real


class GlobalFilter(nn.Module):
    """The grid's frequencies, each channel's multiplied with a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(GRID, GRID // 2 + 1, CHANNELS, 2))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        x = torch.fft.rfft2(x.view(batch, GRID, GRID, channels), dim=(1, 2), norm="ortho")
        x = x * torch.view_as_complex(self.weight)
        return torch.fft.irfft2(x, s=(GRID, GRID), dim=(1, 2), norm="ortho").reshape(batch, tokens, channels)


class Block(nn.Module):
    def __init__(self, mixing: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.mixing = mixing
        self.mlp = nn.Sequential(nn.Linear(CHANNELS, 2 * CHANNELS), nn.GELU(), nn.Linear(2 * CHANNELS, CHANNELS))


class FNetBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x + self.mixing(x))
        return self.second(x + self.mlp(x))


class GFNetBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.second(self.mixing(self.first(x))))


class Network(nn.Module):
    """Patches of 16, blocks, the mean of all tokens, a head."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, CHANNELS, 16, 16)
        self.positions = nn.Parameter(torch.zeros(1, GRID * GRID, CHANNELS))
        self.blocks = nn.Sequential(*(block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


BLOCK = {"fnet": lambda: FNetBlock(Fourier()), "gfnet": lambda: GFNetBlock(GlobalFilter())}


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCK)
def test_a_fourier_mixer_is_a_mixer_without_a_complex_number(name: str) -> None:
    found = prove(Network(BLOCK[name]), IMAGE, batches=(1, 3))
    values = [node.meta["val"] for node in found.module.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert not any(value.is_complex() for value in values)
    assert not any("fft" in str(target) for target in targets(found))
    mixer = MlpMixer(num_classes=10, img_size=224, patch_size=16, num_blocks=BLOCKS, embed_dim=CHANNELS)
    assert len(transposes(found.module.graph)) <= len(transposes(rewritten(mixer, IMAGE).module.graph))
    emit(apply(found, plan(found, "fp16")))
