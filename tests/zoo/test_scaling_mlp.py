"""Scaling MLPs: the authors' keys, and the arithmetic of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mlpdeploy import reference
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import scaling_mlp
from tests.graph.proof import prove as prove_rewrite
from tests.graph.proof import randomised
from tests.zoo.official import official
from tests.zoo.proof import prove

SMALL = "scaling_mlp_standard_6x1024"
OTHERS = (
    "scaling_mlp_b_6_wi_512",
    "scaling_mlp_b_12_wi_512",
    "scaling_mlp_b_6_wi_1024",
    "scaling_mlp_b_12_wi_1024",
    "scaling_mlp_b_12_wi_1024_in1k",
)
NETWORKS = (scaling_mlp.BottleneckMLP, scaling_mlp.StandardMLP)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def norm(x: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, dtype=torch.float64)


def test_bottlenecks_are_residual_with_the_norm_inside() -> None:
    network = scaling_mlp.BottleneckMLP(8, 2, 5)
    randomised(network, 3)
    x = images()
    y = torch.einsum("bchw,kchw->bk", x, network.linear_in.weight.reshape(8, 3, 64, 64)) + network.linear_in.bias
    for part, layer in zip(network.blocks, network.layernorms, strict=True):
        wide, _, thin = part.block
        y = y + gelu(norm(y, layer) @ wide.weight.T + wide.bias) @ thin.weight.T + thin.bias
    expected = y @ network.linear_out.weight.T + network.linear_out.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_plain_layers_have_norm_then_gelu_then_linear() -> None:
    network = scaling_mlp.StandardMLP(8, 3, 5)
    randomised(network, 3)
    x = images()
    y = x.reshape(3, -1) @ network.linear_in.weight.T + network.linear_in.bias
    for part, layer in zip(network.layers, network.layernorms, strict=True):
        y = gelu(norm(y, layer)) @ part.weight.T + part.bias
    expected = y @ network.linear_out.weight.T + network.linear_out.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
def test_vectors_are_taken_like_images(kind: type[scaling_mlp.ScalingMLP]) -> None:
    network = kind(8, 2, 5)
    randomised(network, 3)
    x = images()
    torch.testing.assert_close(network(x), network(x.reshape(3, -1)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_rewritten_network_is_the_same(kind: type[scaling_mlp.ScalingMLP]) -> None:
    prove_rewrite(kind(8, 2, 5), (3, 64, 64))


@pytest.mark.parametrize("variant", [SMALL, *OTHERS])
def test_factories_refuse_other_image_sizes(variant: str) -> None:
    with pytest.raises(ValueError, match="64x64 images only, 224 was asked for"):
        getattr(scaling_mlp, variant)(image_size=224)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 12288 numbers, got 3072"):
        scaling_mlp.BottleneckMLP(8, 1, 5)(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_matters(kind: type[scaling_mlp.ScalingMLP]) -> None:
    network = kind(8, 2, 5).eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_official_checkpoint_loads_strictly(tmp_path: Path) -> None:
    state = official("scaling_mlp_b_6_wi_512").random()
    torch.save(state, tmp_path / "B_6-Wi_512")
    loaded = reference("scaling_mlp_b_6_wi_512", tmp_path / "B_6-Wi_512").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("variant", [SMALL, *(pytest.param(n, marks=pytest.mark.large) for n in OTHERS)])
def test_ladder_passes(variant: str) -> None:
    prove(variant)
