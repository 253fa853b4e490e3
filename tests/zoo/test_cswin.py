"""CSWin: cross-shaped windows and LePE against their definitions, and the authors' checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import cswin
from mlpdeploy.zoo.recipe import recipes
from tests.graph.proof import prove as prove_graph
from tests.zoo.official import official
from tests.zoo.proof import prove

VARIANTS = ("cswin_t", "cswin_s", "cswin_b", "cswin_l", "cswin_b_384", "cswin_l_384")


def tiny(**options: Any) -> cswin.CSWinTransformer:
    given: dict[str, Any] = dict(dim=8, depths=(1, 1, 1, 1), heads=(2, 2, 4, 4), stripes=(1, 2, 2, 2), mlp_ratio=2)
    return cswin.CSWinTransformer(**(given | dict(image_size=64, num_classes=5) | options))


@pytest.mark.parametrize(("rows", "columns"), [(6, 1), (6, 2), (3, 6), (6, 6)])
def test_tokens_attend_inside_their_stripe_and_lepe_ends_there(rows: int, columns: int) -> None:
    b, grid, c, n = 2, 6, 8, 2
    attention = cswin.LePEAttention(c, n, rows, columns).double()
    random_weights.randomise(attention, 1)
    qkv = torch.randn(b, grid, grid, 3, c, dtype=torch.float64)
    expected = torch.zeros(b, grid, grid, c, dtype=torch.float64)
    for top in range(0, grid, rows):
        for left in range(0, grid, columns):
            stripe = qkv[:, top : top + rows, left : left + columns]
            q, k, v = stripe.reshape(b, rows * columns, 3, n, c // n).unbind(2)
            share = torch.einsum("btnd,bund->bntu", q, k).div((c // n) ** 0.5).softmax(-1)
            y = torch.einsum("bntu,bund->btnd", share, v).reshape(b, rows, columns, c)
            image = stripe[..., 2, :].permute(0, 3, 1, 2)
            lepe = F.conv2d(image, attention.get_v.weight, attention.get_v.bias, padding=1, groups=c)
            expected[:, top : top + rows, left : left + columns] = y + lepe.permute(0, 2, 3, 1)
    torch.testing.assert_close(attention(qkv), expected, rtol=1e-11, atol=1e-11)


def test_the_first_half_of_the_channels_attends_in_vertical_stripes() -> None:
    block = cswin.CSWinBlock(8, 6, 4, 2, 2).double().eval()
    assert [(attention.rows, attention.columns) for attention in block.attns] == [(6, 2), (2, 6)]
    random_weights.randomise(block, 2)
    x = torch.randn(2, 6, 6, 8, dtype=torch.float64)
    q, k, v = block.qkv(block.norm1(x)).chunk(3, -1)
    halves = [
        attention(torch.stack([part[..., half] for part in (q, k, v)], 3))
        for attention, half in zip(block.attns, (slice(4), slice(4, 8)), strict=True)
    ]
    mixed = x + block.proj(torch.cat(halves, -1))
    torch.testing.assert_close(block(x), mixed + block.mlp(block.norm2(mixed)), rtol=1e-12, atol=1e-12)


def test_all_channels_share_one_window_where_a_stripe_would_be_the_grid() -> None:
    network = tiny(stripes=(1, 2, 4, 1))
    shapes = [
        [(attention.rows, attention.columns, len(attention.get_v.weight)) for attention in module.attns]  # type: ignore[union-attr, arg-type]
        for module in network.modules()
        if isinstance(module, cswin.CSWinBlock)
    ]
    assert shapes == [[(16, 1, 4), (1, 16, 4)], [(8, 2, 8), (2, 8, 8)], [(4, 4, 32)], [(2, 2, 64)]]


def test_rules_change_no_number() -> None:
    prove_graph(tiny(), (3, 64, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_size=80), "image size 80 is no multiple of 32"),
        (dict(image_size=96, stripes=(1, 2, 4, 1)), "a 6x6 grid in stage 2, which stripes of 4 do not cover"),
        (dict(heads=(2, 3, 4, 4)), "16 channels do not split into two halves of 3 heads in all"),
        (dict(depths=(1, 1, 1)), "one entry for each of the four stages"),
    ],
)
def test_networks_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_factories_refuse_sizes_that_stripes_do_not_cover() -> None:
    with pytest.raises(ValueError, match="a 24x24 grid in stage 2, which stripes of 7 do not cover"):
        cswin.cswin_t(image_size=384)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 64x64 images, got 64x96"):
        tiny()(torch.randn(1, 3, 64, 96))


def test_an_official_checkpoint_loads_from_its_file(tmp_path: Path) -> None:
    state = official("cswin_t").random()
    torch.save({"state_dict_ema": state}, tmp_path / "model.pth")
    network = mlpdeploy.reference("cswin_t", checkpoint=tmp_path / "model.pth")
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_every_parameter_matters() -> None:
    network = tiny().eval()
    random_weights.randomise(network, 0)
    loss: Tensor = network(torch.randn(2, 3, 64, 64)).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    dead = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not dead


def test_variants_are_those_of_the_authors() -> None:
    assert [recipe.name for recipe in recipes().values() if recipe.family == "cswin"] == list(VARIANTS)


@pytest.mark.large
@pytest.mark.parametrize("variant", VARIANTS)
def test_recipes_pass_the_ladder(variant: str) -> None:
    prove(variant)
