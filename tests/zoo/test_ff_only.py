"""FF-only: the authors' keys, and the arithmetic of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy import reference
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import ff_only
from tests.graph.proof import moves, randomised
from tests.graph.proof import prove as prove_rewrite
from tests.zoo.official import official
from tests.zoo.proof import prove, ready


def tiny(**options: Any) -> ff_only.FFOnly:
    given = dict(dim=6, depth=2, patch_size=4, learned=3, trained=16, image_size=16, num_classes=5)
    return ff_only.FFOnly(**(given | options))


def norm(x: Tensor, layer: nn.LayerNorm, dim: int) -> Tensor:
    """Layer normalisation along any dimension, from its definition."""
    shape = [-1 if d == dim % x.dim() else 1 for d in range(x.dim())]
    centred = x - x.mean(dim, keepdim=True)
    scaled = centred / (centred.square().mean(dim, keepdim=True) + 1e-6).sqrt()
    return scaled * layer.weight.reshape(shape) + layer.bias.reshape(shape)


def test_channels_are_mixed_first_then_tokens() -> None:
    block = ff_only.Block(6, 5)
    randomised(block, 3)
    x = torch.randn(2, 5, 6, dtype=torch.float64)

    def gelu(y: Tensor) -> Tensor:
        return y * 0.5 * (1 + torch.erf(y / 2**0.5))

    first, second = block.mlp1, block.mlp2
    hidden = gelu(torch.einsum("btc,kc->btk", norm(x, block.norm1, -1), first.fc1.weight) + first.fc1.bias)
    y = x + torch.einsum("btk,ck->btc", hidden, first.fc2.weight) + first.fc2.bias
    mixed = torch.einsum("btc,kt->bkc", norm(y, block.norm2, 1), second.fc1.weight) + second.fc1.bias[:, None]
    y = y + torch.einsum("bkc,tk->btc", gelu(mixed), second.fc2.weight) + second.fc2.bias[:, None]
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)


def test_class_token_is_first_and_alone_classified() -> None:
    network = tiny(depth=0, learned=4)
    randomised(network, 3)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    token = network.cls_token + network.pos_encoding.cls_pos_embed
    expected = network.head(network.norm(token[:, 0])).expand(3, -1)
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_positions_are_resized_bilinearly_where_the_grid_is_another() -> None:
    network = tiny(learned=8)
    randomised(network, 3)
    embedding = network.pos_encoding.pos_embed
    # From 8 to 4, the samples lie half-way between two neighbours on either axis.
    expected = F.avg_pool2d(embedding, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network.pos_encoding()[:, 1:], expected, rtol=1e-12, atol=1e-12)


def test_rewritten_network_is_the_same() -> None:
    # The norm over tokens reads them last: one transpose there and one back in each block, one behind the patches.
    assert moves(prove_rewrite(tiny(), (3, 16, 16))) == 1 + 2 * 2


@pytest.mark.parametrize(("variant", "fit"), [("ff_linear_tiny", "224 to 239"), ("ff_linear_large", "224 to 255")])
def test_factories_refuse_other_image_sizes(variant: str, fit: str) -> None:
    with pytest.raises(ValueError, match=f"{fit} fit"):
        getattr(ff_only, variant)(image_size=256)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 16x16 images, got 16x24"):
        tiny()(torch.randn(1, 3, 16, 24))


def test_every_parameter_matters() -> None:
    network = tiny().eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 16, 16)).square().sum().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())}
    # The last one shifts all channels of a token alike, and the last LayerNorm takes that away again, up to rounding.
    assert without <= {"blocks.1.mlp2.fc2.bias"}


def test_official_checkpoint_loads_strictly(tmp_path: Path) -> None:
    state = official("ff_linear_tiny").random()
    torch.save({"model": state}, tmp_path / "linear-tiny-checkpoint.pth")
    loaded = reference("ff_linear_tiny", tmp_path / "linear-tiny-checkpoint.pth").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.large
@pytest.mark.parametrize("variant", ["ff_linear_tiny", "ff_linear_base", "ff_linear_large"])
def test_ladder_passes(variant: str) -> None:
    prove(variant)


def test_the_ladder_of_a_small_one() -> None:
    """Those of the published ones are as slow as their float64."""
    prove("tests.zoo.test_ff_only:small")


def small() -> nn.Module:
    return ready(tiny(), 3, 16, 16)
