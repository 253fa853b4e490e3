"""SwinCheX: windowed attention against its definition and against timm's Swin, and the findings' MLPs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.network.source import source_of
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.zoo import swin, swinchex
from mlpdeploy.zoo.recipe import recipes
from tests.graph.proof import prove as prove_graph
from tests.zoo.official import official
from tests.zoo.proof import prove

VARIANTS = tuple(f"swinchex_{size}_head{layers}" for size in "tl" for layers in range(4))


def tiny(**options: Any) -> swinchex.SwinCheX:
    given: dict[str, Any] = dict(dim=8, depths=(2, 1), heads=(2, 4), hidden=(6, 5), window=4, patch_size=2)
    return swinchex.SwinCheX(**(given | dict(image_size=32, num_classes=3) | options))


def test_attention_in_displaced_windows_is_that_of_the_definition() -> None:
    b, grid, c, n, s, shift = 2, 6, 8, 2, 3, 1
    block = swinchex.SwinBlock(c, grid, n, s, shift, 2).double().eval()
    random_weights.randomise(block, 1)
    attn, d = block.attn, c // n
    x = torch.randn(b, grid, grid, c, dtype=torch.float64)
    q, k, v = attn.qkv(block.norm1(x)).reshape(b, grid, grid, 3, n, d).unbind(3)
    y = torch.zeros(b, grid, grid, n, d, dtype=torch.float64)
    places = [(row, column) for row in range(grid) for column in range(grid)]

    def window(place: tuple[int, int]) -> tuple[int, int, bool, bool]:
        """The window, in the rolled grid, of a token, and whether it went around an edge to be there."""
        row, column = ((along - shift) % grid for along in place)
        return row // s, column // s, place[0] < shift, place[1] < shift

    for one in places:
        for head in range(n):
            # Tokens that the roll made neighbours count as good as not: exp(-100).
            others = [other for other in places if window(other)[:2] == window(one)[:2]]
            logits = []
            for other in others:
                offset = [((a - shift) % grid) - ((e - shift) % grid) + s - 1 for a, e in zip(one, other, strict=True)]
                bias = attn.relative_position_bias_table[offset[0] * (2 * s - 1) + offset[1], head]
                apart = 0.0 if window(one) == window(other) else -100.0
                logits.append((q[:, *one, head] * k[:, *other, head]).sum(-1) / d**0.5 + bias + apart)
            share = torch.stack(logits).softmax(0)
            for weight, other in zip(share, others, strict=True):
                y[:, *one, head] += weight[:, None] * v[:, *other, head]
    mixed = x + attn.proj(y.reshape(b, grid, grid, c))
    torch.testing.assert_close(block(x), mixed + block.mlp(block.norm2(mixed)), rtol=1e-11, atol=1e-11)


def test_the_backbone_is_timms_swin() -> None:
    network = tiny(hidden=(), num_classes=2).double().eval()
    random_weights.randomise(network, 2)
    state = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith("heads")}
    theirs = SwinTransformer(
        img_size=32, patch_size=2, embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=4, num_classes=0
    )  # fmt: skip
    theirs.double().eval().load_state_dict(swin.read(state)[0])
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    features = theirs(x)
    for logits, head in zip(network(x), network.heads, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(logits, head(features), rtol=1e-10, atol=1e-10)


def test_a_finding_has_relu_between_its_layers() -> None:
    network = tiny().double()
    random_weights.randomise(network, 3)
    x = torch.randn(4, 16, dtype=torch.float64)
    hidden = network.heads2[1](network.heads[1](x).clamp_min(0))  # type: ignore[index, operator]
    expected = network.heads3[1](hidden.clamp_min(0))  # type: ignore[index, operator]
    got = network.finding(x, [network.heads[1], network.heads2[1], network.heads3[1]])  # type: ignore[index, list-item]
    torch.testing.assert_close(got, expected)


def test_there_is_one_output_for_each_finding() -> None:
    outputs = tiny(num_classes=6)(torch.randn(2, 3, 32, 32))
    assert [tuple(output.shape) for output in outputs] == [(2, 2)] * 6


def test_rules_change_no_number() -> None:
    prove_graph(tiny(), (3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_size=36), "which windows of 4x4 do not cover"),
        (dict(heads=(3, 4)), "8 channels do not split into 3 heads"),
    ],
)
def test_networks_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 32x32 images, got 32x64"):
        tiny()(torch.randn(1, 3, 32, 64))


@pytest.mark.large
def test_an_official_checkpoint_loads_from_its_file(tmp_path: Path) -> None:
    state = official("swinchex_l_head3").random()
    torch.save({"model": state}, tmp_path / "model.pth")
    network = mlpdeploy.reference("swinchex_l_head3", checkpoint=tmp_path / "model.pth")
    loaded = network.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.items())
    assert {key for key in state if key not in loaded} == {key for key in state if key.endswith(swin.CACHES)}


def test_every_parameter_matters() -> None:
    network = tiny().eval()
    random_weights.randomise(network, 0)
    # Some ReLUs of so small a head are zero for every image; a few more images wake them.
    loss: Tensor = torch.cat(network(torch.randn(8, 3, 32, 32))).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_variants_are_those_of_the_authors() -> None:
    assert {recipe.name for recipe in recipes().values() if recipe.family == "swinchex"} == set(VARIANTS)


@pytest.mark.large
@pytest.mark.parametrize("variant", VARIANTS)
def test_recipes_pass_the_ladder(variant: str) -> None:
    prove(variant)


def test_a_checkpoint_decides_the_number_of_findings(tmp_path: Path) -> None:
    network = swinchex.swinchex_t_head1(num_classes=5)
    random_weights.randomise(network, 3)
    torch.save({"model": network.state_dict()}, tmp_path / "findings.pth")
    found = source_of(NetworkChoice("swinchex_t_head1", checkpoint=tmp_path / "findings.pth"))
    assert found.recipe.num_classes == 5
    assert found.notes == ("5 classes, as in the checkpoint",)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in found.network.state_dict().items())
