"""MAXIM: the port's keys, and the arithmetic of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.errors import InputError
from mlpdeploy.network import random_weights
from mlpdeploy.selection import Selection
from mlpdeploy.zoo import maxim
from mlpdeploy.zoo import maxim_blocks as blocks
from tests.graph.proof import prove as prove_rewrite
from tests.zoo.official import official
from tests.zoo.proof import climb

DEAD = 514
"""Tensors of the port that nothing depends on."""


def randomised(module: nn.Module) -> Any:
    random_weights.randomise(module, 3)
    return module.double().eval()


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def gated(layer: blocks.SpatialGate, x: Tensor, contraction: str, size: int) -> Tensor:
    """The gMLP gate of the paper: x is (b, g, k, f, e, 2c)."""
    u, v = x.chunk(2, -1)
    v = F.layer_norm(v, v.shape[-1:], layer.intermediate_layernorm.gamma, layer.intermediate_layernorm.beta, 1e-6)
    mixed = torch.einsum(contraction, v, layer.Dense_0.weight.reshape([size] * 4))
    bias = layer.Dense_0.bias.reshape(size, size)
    over_grid = contraction.endswith("bpqfec")
    return u * (mixed + (bias[:, :, None, None, None] if over_grid else bias[:, :, None]) + 1)


@pytest.mark.parametrize("kind", ["grid", "block"])
def test_gated_mlp_is_the_contraction_of_the_paper(kind: str) -> None:
    b, h, w, c, size = 2, 12, 8, 6, 4
    grid = kind == "grid"
    layer = randomised(blocks.GridGmlp(c, size) if grid else blocks.BlockGmlp(c, size))
    x = image(b, h, w, c)
    y = F.gelu(layer.in_project(layer.LayerNorm(x)), approximate="tanh")
    if grid:
        y = y.reshape(b, size, h // size, size, w // size, 2 * c).transpose(2, 3)
        y = gated(layer.GridGatingUnit, y, "bgkfec,pqgk->bpqfec", size)
    else:
        y = y.reshape(b, h // size, size, w // size, size, 2 * c).transpose(2, 3)
        y = gated(layer.BlockGatingUnit, y, "bgkfec,pqfe->bgkpqc", size)
    assert_equal(layer(x), x + layer.out_project(y.transpose(2, 3).reshape(b, h, w, c)))


def test_cross_gating_weighs_each_by_the_other() -> None:
    b, h, w, c, size = 2, 8, 4, 4, 2
    layer = randomised(blocks.CrossGating(6, c, size, below=5))
    x, y = layer.Conv_0(image(b, 6, h, w)), layer.Conv_1(layer.ConvTranspose_0(image(b, 5, h // 2, w // 2)))

    def inner(z: Tensor, norm: nn.Module, project: nn.Module) -> Tensor:
        return F.gelu(project(norm(z.permute(0, 2, 3, 1))), approximate="tanh")

    def spatial(z: Tensor, part: blocks.SpatialWeights) -> Tensor:
        z = F.gelu(part.in_project(part.LayerNorm_in(z)), approximate="tanh")
        u, v = z[..., :c], z[..., c:]
        u = u.reshape(b, size, h // size, size, w // size, c)
        u = torch.einsum("bgfkec,pqgk->bpfqec", u, part.Dense_0.weight.reshape([size] * 4))
        u = u + part.Dense_0.bias.reshape(size, 1, size, 1, 1)
        v = v.reshape(b, h // size, size, w // size, size, c)
        v = torch.einsum("bgfkec,pqfe->bgpkqc", v, part.Dense_1.weight.reshape([size] * 4))
        v = v + part.Dense_1.bias.reshape(size, 1, size, 1)
        return part.out_project(torch.cat([u.reshape(b, h, w, c), v.reshape(b, h, w, c)], -1))

    from_x, from_y = inner(x, layer.LayerNorm_x, layer.in_project_x), inner(y, layer.LayerNorm_y, layer.in_project_y)
    new_y = y.permute(0, 2, 3, 1) + layer.out_project_y(from_y * spatial(from_x, layer.SplitHeadMultiAxisGating_x))
    new_x = layer.out_project_x(from_x * spatial(from_y, layer.SplitHeadMultiAxisGating_y))
    new_x = new_x + new_y + x.permute(0, 2, 3, 1)
    found_x, found_y = layer(image(b, 6, h, w), image(b, 5, h // 2, w // 2))
    assert_equal(found_x, new_x.permute(0, 3, 1, 2))
    assert_equal(found_y, new_y.permute(0, 3, 1, 2))


@pytest.mark.parametrize("ratio", [2, 4])
def test_resampling_is_antialiased_on_the_way_down(ratio: int) -> None:
    x = image(2, 3, 24, 16)
    down = F.interpolate(x, size=(24 // ratio, 16 // ratio), mode="bilinear", antialias=True)
    assert_equal(maxim.shrink(x, ratio), down)
    level = {2: 1, 4: 2}[ratio]
    shrinking, enlarging = maxim.Resample(1, 0, level), maxim.Resample(1, level, 0)
    assert (shrinking.Conv_0.out_channels, enlarging.Conv_0.out_channels) == (ratio, 1)
    up = F.interpolate(image(2, ratio, 6, 4), size=(6 * ratio, 4 * ratio), mode="bilinear", antialias=True)
    assert_equal(randomised(enlarging)(image(2, ratio, 6, 4)), enlarging.Conv_0(up))


def test_images_of_lower_levels_are_picked_below_the_middle() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(maxim.pick(x, 0), x)
    assert torch.equal(maxim.pick(x, 1), x[:, :, [1, 3, 5, 7]][:, :, :, [1, 3, 5, 7]])
    assert torch.equal(maxim.pick(x, 2), x[:, :, [2, 6]][:, :, :, [2, 6]])


@pytest.mark.parametrize(("make", "stages"), [(maxim.maxim_1s, 1), (maxim.maxim_2s, 2)])
def test_every_u_net_restores_three_sizes(make: Any, stages: int) -> None:
    with torch.device("meta"):
        restored = make(image_size=192)(torch.zeros(2, 3, 192, 192))
    assert [[tuple(x.shape[1:]) for x in level] for level in restored] == [
        [(3, 48, 48), (3, 96, 96), (3, 192, 192)]
    ] * stages


@pytest.mark.parametrize("size", [0, 32, 96, 288, -64])
def test_sizes_that_no_grid_divides_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 64"), torch.device("meta"):
        maxim.maxim_1s(image_size=size)


def test_images_that_no_grid_divides_are_refused() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="got 64x96"):
        maxim.maxim_1s()(torch.zeros(1, 3, 64, 96))


def test_there_are_no_classes() -> None:
    assert mlpdeploy.find("maxim_3s").num_classes is None
    with pytest.raises(InputError, match="maxim_3s does not classify: drop --num-classes"):
        mlpdeploy.reference("maxim_3s", num_classes=10)


def test_a_checkpoint_of_the_port_loads(tmp_path: Path) -> None:
    state = official("maxim_3s_torch").random()
    torch.save(state, tmp_path / "maxim.pth")
    network = mlpdeploy.reference("maxim_3s", tmp_path / "maxim.pth")
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def gradients(network: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters that matter to the result at full size, and to any result."""
    restored = network(torch.randn(1, 3, 64, 64))
    last, found = restored[-1][-1].square().sum(), []
    for loss in (last, sum(x.square().sum() for results in restored for x in results)):
        network.zero_grad()
        loss.backward(retain_graph=True)
        found.append({name for name, p in network.named_parameters() if p.grad is not None and bool(p.grad.any())})
    return found[0], found[1]


@pytest.mark.large
def test_every_parameter_matters_but_those_the_port_never_uses() -> None:
    network = maxim.maxim_3s(64).eval()
    random_weights.randomise(network, 0)
    to_last, to_any = gradients(network)
    names = {name for name, _ in network.named_parameters()}
    used = {name for name, _ in maxim.Maxim(3).named_parameters()}
    assert to_any == used
    assert len(names - to_last) == DEAD


class Two(nn.Module):
    """A multi-axis gMLP between convolutions, then cross gating: what MAXIM is made of, small."""

    def __init__(self, dim: int = 4, size: int = 2) -> None:
        super().__init__()
        self.encoder = maxim.EncoderBlock(3, dim, size, crossed=True)
        self.up = maxim.Resample(dim // 2, 1, 0)
        self.down = maxim.Resample(dim, 0, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder(x, y)
        return self.up(x), self.down(x)


def test_rewriting_is_exact_for_every_batch() -> None:
    prove_rewrite(Two(), (3, 8, 12), (4, 8, 12))


@pytest.mark.large
def test_smallest_climbs_the_ladder() -> None:
    found = climb(Selection("maxim_1s", image_size=64, batch="1:2:5"))
    assert found.passed, found.verdict()
    assert {check.output for check in found.stages[-1].checks} == {"output_0", "output_1", "output_2"}
    assert all(check.agreement is None for stage in found.stages for check in stage.checks)


@pytest.mark.large
@pytest.mark.parametrize("name", ["maxim_2s", "maxim_3s"])
def test_larger_ones_climb_the_ladder(name: str) -> None:
    found = climb(Selection(name, image_size=64, batch="1:2:5"))
    assert found.passed, found.verdict()
