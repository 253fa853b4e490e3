"""Activator: tokens are gated, never mixed; norms are shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import activator
from mlpdeploy.zoo.activator import Activator, ActivatorBlock
from tests.graph.proof import moves, prove
from tests.zoo import proof
from tests.zoo.official import official

VARIANTS = ("activator", "activator_only_geglu")


def tiny(feed_forward: bool) -> Activator:
    return Activator(feed_forward, depth=2, dim=8, hidden=12, patch_size=2, image_size=8, num_classes=5)


def normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def test_block_is_the_equation_with_its_shared_norms() -> None:
    block = ActivatorBlock(6, 10, feed_forward=True).double()
    random_weights.randomise(block, 1)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    unit, ffn = block.actgu, block.ffn
    assert ffn is not None
    z = normalised(x, block.norm)
    first = torch.einsum("btc,hc->bth", z, unit.proj_1.weight) + unit.proj_1.bias
    second = torch.einsum("btc,hc->bth", z, unit.proj_2.weight) + unit.proj_2.bias
    gelu = first * 0.5 * (1 + torch.erf(first / 2**0.5))
    gated = normalised(gelu, unit.norm) * normalised(second, unit.norm)
    x1 = x + torch.einsum("bth,ch->btc", gated, unit.proj_3.weight) + unit.proj_3.bias
    expected = x1 + ffn.net["3"](F.gelu(ffn.net["0"](normalised(x1, block.norm))))
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_logits_do_not_depend_on_where_a_patch_is() -> None:
    network = tiny(True).double().eval()
    random_weights.randomise(network, 0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    patches = x.reshape(2, 3, 4, 2, 4, 2)
    moved = patches[:, :, torch.tensor([2, 0, 3, 1])][:, :, :, :, torch.tensor([1, 3, 0, 2])].reshape(x.shape)
    torch.testing.assert_close(network(x), network(moved), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("feed_forward", [True, False])
def test_rewritten_graph_is_equal_with_one_transpose(feed_forward: bool) -> None:
    assert moves(prove(tiny(feed_forward), (3, 8, 8))) == 1


def test_sizes_are_multiples_of_the_patch() -> None:
    assert activator.activator(image_size=64, num_classes=7)(torch.randn(1, 3, 64, 40)).shape == (1, 7)
    for size in (0, 30):
        with pytest.raises(ValueError, match="no multiple of the patch size 4"):
            activator.activator_only_geglu(image_size=size)


def test_every_parameter_matters() -> None:
    network = tiny(True).double().eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_official_checkpoint_loads_strictly(tmp_path: Path) -> None:
    state = official("activator").random()
    torch.save(state, tmp_path / "activator.pth")
    network = mlpdeploy.reference("activator", checkpoint=tmp_path / "activator.pth")
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["activator_only_geglu", pytest.param("activator", marks=pytest.mark.large)])
def test_recipe_is_proved(name: str) -> None:
    proof.prove(name)
