"""PoolFormer and the MetaFormer baselines: their mathematics, the order of the head, timm's keys, the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.graph.rewrite import Rewritten
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import metaformer
from mlpdeploy.zoo.metaformer import Attention, LayerNormChannel, MetaFormer, Pooling, Same, SpatialFc
from tests.graph.proof import fired, moves, prove
from tests.zoo import proof
from tests.zoo.official import official

aten = torch.ops.aten


def tiny(mixers: Any, norm: Any = metaformer.GroupNorm, size: int = 40) -> MetaFormer:
    return MetaFormer((1, 2), (32, 64), mixers, norm, size, num_classes=5)


TINY = {
    "pooling": (Pooling, Pooling),
    "identity": (Same, Same),
    "spatial": (Pooling, SpatialFc),
    "attention": (Pooling, Attention),
}


def built(kind: str) -> MetaFormer:
    return tiny(TINY[kind], LayerNormChannel if kind == "attention" else metaformer.GroupNorm)


def test_pooling_is_the_mean_of_the_neighbours_inside_the_image_less_the_token() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = torch.empty_like(x)
    for row in range(4):
        for column in range(5):
            window = x[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            expected[:, :, row, column] = window.mean((2, 3)) - x[:, :, row, column]
    torch.testing.assert_close(Pooling(3, 4)(x), expected, rtol=1e-12, atol=1e-12)


def test_attention_is_the_contraction_of_the_paper() -> None:
    layer = Attention(64, 3).double()
    random_weights.randomise(layer, 1)
    x = torch.randn(2, 64, 3, 3, dtype=torch.float64)
    q, k, v = torch.einsum("khdc,bcn->kbhnd", layer.qkv.weight.reshape(3, 2, 32, 64), x.flatten(2))
    mixed = torch.einsum("bhnm,bhmd->bnhd", torch.softmax(torch.einsum("bhnd,bhmd->bhnm", q, k) / 32**0.5, -1), v)
    expected = F.linear(mixed.flatten(2), layer.proj.weight, layer.proj.bias).mT.reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_norm_is_over_channels_alone_where_tokens_attend() -> None:
    layer = LayerNormChannel(6).double()
    random_weights.randomise(layer, 1)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), [6], layer.weight, layer.bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_head_normalises_before_it_averages() -> None:
    network = built("pooling").double().eval()
    random_weights.randomise(network, 0)
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    seen: list[Tensor] = []
    network.network[-1].register_forward_hook(lambda *given: seen.append(given[2]))
    logits = network(x)
    flat = seen[0].flatten(1)
    normalised = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    mean = normalised.reshape(seen[0].shape).mean((2, 3)) * network.norm.weight + network.norm.bias
    torch.testing.assert_close(logits, mean @ network.head.weight.T + network.head.bias, rtol=1e-12, atol=1e-12)


def test_positions_come_before_the_first_attention_alone() -> None:
    names = [type(part).__name__ for part in metaformer.metaformer_ppaa_s12_224().network]
    assert names.count("AddPosition") == 1
    assert names.index("AddPosition") == 4


@pytest.mark.parametrize("kind", TINY)
def test_rewritten_graph_is_equal_and_moves_only_what_attention_needs(kind: str) -> None:
    result: Rewritten = prove(built(kind), (3, 40, 40))
    assert fired(result)["fold_affine"] >= 3
    assert moves(result) == (6 if kind == "attention" else 0)


@pytest.mark.parametrize("kind", TINY)
def test_every_parameter_matters_but_shifts_that_pooling_forgets(kind: str) -> None:
    network = built(kind).double().eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 40, 40, dtype=torch.float64)).square().sum().backward()
    dead = {name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-12}
    blocks = {name: part for name, part in network.named_modules() if isinstance(part, metaformer.MetaFormerBlock)}
    assert dead == {f"{name}.norm1.bias" for name, block in blocks.items() if isinstance(block.token_mixer, Pooling)}


def test_other_sizes_are_taken_where_no_weight_depends_on_the_position() -> None:
    network = metaformer.poolformer_s12(image_size=64).eval()
    assert network(torch.randn(1, 3, 64, 96)).shape == (1, 1000)
    with pytest.raises(ValueError, match="3x3 is the least"):
        metaformer.poolformer_s12(image_size=2)
    for name in ("pppf", "ppff", "pppa", "ppaa"):
        with pytest.raises(ValueError, match="only 224 fits"):
            getattr(metaformer, f"metaformer_{name}_s12_224")(image_size=256)
    with pytest.raises(ValueError, match="takes 40x40 images, got 40x48"):
        built("spatial")(torch.randn(1, 3, 40, 48))


def test_official_and_timm_checkpoints_give_the_same_network(tmp_path: Path) -> None:
    """Features are timm's; logits are the authors', whose head is another one."""
    theirs = timm.create_model("poolformer_s12").eval()
    random_weights.randomise(theirs, 3)
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    network = mlpdeploy.reference("poolformer_s12", checkpoint=tmp_path / "timm.safetensors")
    assert isinstance(network, MetaFormer)
    save_file(network.state_dict(), tmp_path / "official.safetensors")
    again = mlpdeploy.reference("poolformer_s12", checkpoint=tmp_path / "official.safetensors")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = network.patch_embed(x)
        for part in network.network:
            features = part(features)
        torch.testing.assert_close(features, theirs.forward_features(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x), again(x), rtol=0, atol=0)
        assert not torch.allclose(network(x), theirs(x), rtol=1e-3)


@pytest.mark.parametrize("name", ["metaformer_pppa_s12_224", "metaformer_ppff_s12_224"])
def test_official_checkpoint_loads_strictly(name: str, tmp_path: Path) -> None:
    state = official(name).random()
    torch.save(state, tmp_path / "checkpoint.pth.tar")
    network: nn.Module = mlpdeploy.reference(name, checkpoint=tmp_path / "checkpoint.pth.tar")
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.large
@pytest.mark.parametrize(
    "name", [name for name, r in mlpdeploy.zoo.recipe.recipes().items() if r.family == "metaformer"]
)
def test_recipe_is_proved(name: str) -> None:
    proof.prove(name)
