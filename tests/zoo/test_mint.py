"""Minimal transformers: four attentions against their formulas, and norms that do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.network.source import source_of
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.zoo import mint
from mlpdeploy.zoo.mint import Kind, MinimalTransformer, SelfAttention
from tests.graph.proof import moves, prove
from tests.zoo import proof
from tests.zoo.official import official

VARIANTS = (
    "mint_wqk_nowvwo", "mint_wqk", "mint_symmetry", "mint_symmetry_1_head", "mint_unchanged", "mint_unchanged_1_head",
    "mint_wqk_nowvwo_mlp", "mint_unchanged_mlp", "mint_unchanged_mlp_1_head",
)  # fmt: skip
HEADS: dict[Kind, int] = {"unchanged": 2, "symmetry": 2, "wqk": 1, "wqk_nowvwo": 1}
MOVES: dict[Kind, int] = {"unchanged": 9, "symmetry": 9, "wqk": 3, "wqk_nowvwo": 3}
"""Transposes of two layers and the patches: heads of queries, keys and values, and back; one head needs its keys."""


def tiny(kind: Kind, with_mlp: bool = False) -> MinimalTransformer:
    return MinimalTransformer(kind, HEADS[kind], with_mlp, depth=2, dim=8, patch_size=4, image_size=8, num_classes=5)


def lower(packed: Tensor, size: int) -> Tensor:
    """Row by row: element (i, j) is number i (i + 1) / 2 + j."""
    rows = [
        [packed[i * (i + 1) // 2 + j] if j <= i else packed.new_zeros(()) for j in range(size)] for i in range(size)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def scores(layer: SelfAttention, x: Tensor, head: int) -> Tensor:
    """Of one head, (b, queries, keys), before the scale."""
    size = x.shape[-1] // layer.heads
    part = slice(head * size, (head + 1) * size)
    if layer.kind == "unchanged":
        return torch.einsum("bqd,bkd->bqk", layer.query(x)[..., part], layer.key(x)[..., part])
    if layer.kind == "symmetry":
        factor = x[..., part] @ lower(layer.trainable_params[head], size)
        return torch.einsum("bqd,bkd->bqk", factor, factor)
    return torch.einsum("bqd,bkd->bqk", layer.qk(x), x)


@pytest.mark.parametrize("kind", HEADS)
def test_attention_is_its_formula(kind: Kind) -> None:
    layer = SelfAttention(8, HEADS[kind], kind).double()
    random_weights.randomise(layer, 1)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    size = 8 // layer.heads
    values = x if kind == "wqk_nowvwo" else layer.value(x)
    parts = [
        torch.softmax(scores(layer, x, head) / size**0.5, -1) @ values[..., head * size : (head + 1) * size]
        for head in range(layer.heads)
    ]
    expected = torch.cat(parts, -1)
    expected = expected if kind == "wqk_nowvwo" else layer.out(expected)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_class_token_comes_first_and_positions_are_added() -> None:
    embedding = tiny("wqk").embedding.double()
    random_weights.randomise(embedding, 1)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    tokens = embedding(x) - embedding.position_embeddings
    torch.testing.assert_close(tokens[:, :1], embedding.cls_token.expand(2, -1, -1))
    torch.testing.assert_close(tokens[:, 1:], embedding.patcher(x).flatten(2).mT)


@pytest.mark.parametrize("with_mlp", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_rewritten_graph_is_equal(kind: Kind, with_mlp: bool) -> None:
    assert moves(prove(tiny(kind, with_mlp), (3, 8, 8))) == MOVES[kind]


@pytest.mark.parametrize("with_mlp", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_every_parameter_matters_but_the_second_norm_of_layers_without_mlp(kind: Kind, with_mlp: bool) -> None:
    network = tiny(kind, with_mlp).double().eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    dead = {name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-12}
    # A shift of all keys adds the same to all scores of a query, which softmax forgets.
    forgotten = {name for name, _ in network.named_parameters() if name.endswith("self_attn.key.bias")}
    unused = {name for name, _ in network.named_parameters() if ".norm2." in name}
    assert dead == (forgotten if with_mlp else forgotten | unused)


def test_other_sizes_and_heads_are_refused() -> None:
    for name in VARIANTS:
        with pytest.raises(ValueError, match="only 32 fits"):
            getattr(mint, name)(image_size=64)
    with pytest.raises(ValueError, match="2 heads do not fit wqk attention"):
        MinimalTransformer("wqk", heads=2)
    with pytest.raises(ValueError, match="no multiple of the patch size 8"):
        MinimalTransformer("unchanged", image_size=30)


@pytest.mark.parametrize("name", ["mint_symmetry", "mint_unchanged"])
def test_official_checkpoint_loads_strictly(name: str, tmp_path: Path) -> None:
    state = official(name).random()
    torch.save(state, tmp_path / "checkpoint.pth")
    network = mlpdeploy.reference(name, checkpoint=tmp_path / "checkpoint.pth")
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_the_number_of_heads_is_in_no_checkpoint_and_a_build_says_so(tmp_path: Path) -> None:
    torch.save(official("mint_unchanged").random(), tmp_path / "checkpoint.pth")
    names = ("mint_unchanged", "mint_unchanged_1_head")
    found = [source_of(NetworkChoice(name, checkpoint=tmp_path / "checkpoint.pth")) for name in names]
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (found[0].network(x) - found[1].network(x)).abs().max() > 1e-3
    assert found[0].notes == (
        "checkpoints of mint_unchanged_1_head have the same keys and shapes: nothing tells that this is mint_unchanged",
    )
    assert "nothing tells that this is mint_unchanged_1_head" in found[1].notes[0]
    assert not source_of(NetworkChoice("mint_unchanged")).notes


@pytest.mark.parametrize("name", [VARIANTS[0], *(pytest.param(name, marks=pytest.mark.large) for name in VARIANTS[1:])])
def test_recipe_is_proved(name: str) -> None:
    proof.prove(name)
