"""Swin-MLP computes the mixing of its definition, windows and padding included, and takes the authors' checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import swin_mlp
from tests.graph.proof import prove as prove_graph
from tests.zoo.official import official
from tests.zoo.proof import prove, ready


def tiny(**options: Any) -> swin_mlp.SwinMLP:
    given: dict[str, Any] = dict(dim=8, depths=(2, 2, 1), heads=(2, 4, 4), window=4, patch_size=2)
    return swin_mlp.SwinMLP(**(given | dict(image_size=32, num_classes=5) | options))


@pytest.mark.parametrize(("shift", "grid"), [(0, 8), (2, 8), (1, 6)])
def test_mixing_is_one_matrix_per_head_in_every_window(shift: int, grid: int) -> None:
    b, c, n, s = 2, 12, 3, 4 if grid == 8 else 3
    block = swin_mlp.SwinMLPBlock(c, n, s, shift, 2).double().eval()
    random_weights.randomise(block, 1)
    x = torch.randn(b, grid, grid, c, dtype=torch.float64)
    # W[n, token, token of the same window]; window (-1, -1) begins in front of a displaced grid.
    matrix = block.spatial_mlp.weight.reshape(n, s, s, s, s)
    assert block.spatial_mlp.bias is not None
    bias = block.spatial_mlp.bias.reshape(n, s, s)
    z = block.norm1(x).reshape(b, grid, grid, n, c // n)
    mixed = torch.zeros_like(z)
    for row in range(grid):
        for column in range(grid):
            top, left = (
                (place + s - shift) // s * s - s + shift if shift else place // s * s for place in (row, column)
            )
            p, q = row - top, column - left
            total = bias[:, p, q, None].expand(b, n, c // n).clone()
            for i in range(s):
                for j in range(s):
                    if 0 <= top + i < grid and 0 <= left + j < grid:
                        total += matrix[:, p, q, i, j, None] * z[:, top + i, left + j]
            mixed[:, row, column] = total
    y = x + mixed.reshape(b, grid, grid, c)
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)), rtol=1e-11, atol=1e-11)


def test_merging_stacks_columns_slower_than_rows() -> None:
    merge = swin_mlp.PatchMerging(3).double()
    random_weights.randomise(merge, 2)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    corners = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    torch.testing.assert_close(merge(x), merge.reduction(merge.norm(corners)), rtol=1e-12, atol=1e-12)


def test_every_second_block_is_displaced_unless_one_window_is_the_grid() -> None:
    network = swin_mlp.swin_mlp_t_c24()
    blocks = [module for module in network.modules() if isinstance(module, swin_mlp.SwinMLPBlock)]
    assert [block.shift for block in blocks] == [0, 4] * 5 + [0, 0]
    assert {block.window for block in blocks} == {8}


def test_rules_change_no_number() -> None:
    prove_graph(tiny(), (3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_size=30), "which windows of 4x4 do not cover"),
        (dict(image_size=31), "do not split into patches of 2"),
        (dict(image_size=6, window=3), "odd grid in stage 0"),
        (dict(heads=(3, 4, 4)), "8 channels do not split into 3 heads"),
        (dict(heads=(2, 4)), "one entry per stage"),
    ],
)
def test_networks_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_factories_take_sizes_that_windows_cover() -> None:
    assert swin_mlp.swin_mlp_t_c24(image_size=512).image_size == 512
    with pytest.raises(ValueError, match="which windows of 8x8 do not cover; multiples of 256 fit"):
        swin_mlp.swin_mlp_t_c24(image_size=224)
    with pytest.raises(ValueError, match="which windows of 7x7 do not cover; multiples of 224 fit"):
        swin_mlp.swin_mlp_b(image_size=256)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 32x32 images, got 32x64"):
        tiny()(torch.randn(1, 3, 32, 64))


def test_an_official_checkpoint_loads_from_its_file(tmp_path: Path) -> None:
    state = official("swin_mlp_t_c24").random()
    torch.save({"model": state}, tmp_path / "model.pth")
    network = mlpdeploy.reference("swin_mlp_t_c24", checkpoint=tmp_path / "model.pth")
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_every_parameter_matters() -> None:
    network = tiny().eval()
    random_weights.randomise(network, 0)
    loss: Tensor = network(torch.randn(2, 3, 32, 32)).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert isinstance(network, nn.Module)


@pytest.mark.large
@pytest.mark.parametrize("variant", ["swin_mlp_t_c24", "swin_mlp_t_c12", "swin_mlp_t_c6", "swin_mlp_b"])
def test_recipes_pass_the_ladder(variant: str) -> None:
    prove(variant)


def test_the_ladder_of_a_small_one() -> None:
    """Those of the published ones are as slow as their float64."""
    prove("tests.zoo.test_swin_mlp:small")


def small() -> nn.Module:
    return ready(tiny(), 3, 32, 32)
