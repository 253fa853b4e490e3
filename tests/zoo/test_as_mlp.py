"""AS-MLP: the authors' keys, and the arithmetic of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import as_mlp
from tests.graph.proof import fired
from tests.graph.proof import prove as prove_graph
from tests.zoo.official import official
from tests.zoo.proof import prove

VARIANTS = ("as_mlp_t", "as_mlp_s", "as_mlp_b")


def tiny() -> as_mlp.ASMLP:
    return as_mlp.ASMLP(8, (1, 1, 1, 1), image_size=64, num_classes=5)


def shifted(x: Tensor, groups: int, dim: int) -> Tensor:
    """Element by element: channel c at i is that of `x` at i - (c // ceil(C / groups) - groups // 2), or 0."""
    result = torch.zeros_like(x)
    size = -(-x.shape[1] // groups)
    for channel in range(x.shape[1]):
        distance = channel // size - groups // 2
        for to in range(x.shape[dim]):
            if 0 <= to - distance < x.shape[dim]:
                result[:, channel].select(dim - 1, to).copy_(x[:, channel].select(dim - 1, to - distance))
    return result


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(("channels", "groups"), [(10, 5), (8, 3), (12, 5), (7, 7)])
def test_shifts_are_those_of_the_paper(dim: int, channels: int, groups: int) -> None:
    x = torch.randn(2, channels, 6, 7)
    assert torch.equal(as_mlp.axial_shift(x, groups, dim), shifted(x, groups, dim))


def test_mixing_is_that_of_the_paper() -> None:
    layer = as_mlp.AxialShift(10, 5).double().eval()
    random_weights.randomise(layer, 3)
    x = torch.randn(2, 10, 6, 7, dtype=torch.float64)

    def project(x: Tensor, name: str) -> Tensor:
        conv = getattr(layer, name)
        return torch.einsum("bihw,oi->bohw", x, conv.weight.flatten(1)) + conv.bias[:, None, None]

    def norm(x: Tensor, name: str) -> Tensor:
        module = getattr(layer, name)
        mean, variance = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * module.weight[:, None, None] + module.bias[:, None, None]

    def gelu(x: Tensor) -> Tensor:
        return x / 2 * (1 + torch.erf(x / 2**0.5))

    z = gelu(norm(project(x, "conv1"), "norm1"))
    sides = gelu(project(shifted(z, 5, 3), "conv2_1")) + gelu(project(shifted(z, 5, 2), "conv2_2"))
    torch.testing.assert_close(layer(x), project(norm(sides, "norm2"), "conv3"), rtol=1e-12, atol=1e-12)


def test_merged_patches_have_their_columns_slowest() -> None:
    layer = as_mlp.PatchMerging(3).double().eval()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    expected = layer.reduction(layer.norm(torch.cat(corners, 1)))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    assert as_mlp.as_mlp_t(image_size=64).image_size == 64
    for variant in VARIANTS:
        with pytest.raises(ValueError, match="240 is no multiple of 32"):
            getattr(as_mlp, variant)(image_size=240)
    with pytest.raises(ValueError, match="takes 64x64 images, got 64x96"):
        tiny()(torch.randn(1, 3, 64, 96))


def test_the_compiled_graph_is_the_same_function() -> None:
    result = prove_graph(tiny(), (3, 64, 64), batches=(1, 2, 5))
    assert fired(result)["convolve_shifts"] == 8


def test_every_parameter_matters() -> None:
    network = tiny().eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_an_official_checkpoint_loads_strictly(tmp_path: Path) -> None:
    state = official("as_mlp_t").random()
    torch.save({"model": state}, tmp_path / "weights.pth")
    loaded = mlpdeploy.reference("as_mlp_t", checkpoint=tmp_path / "weights.pth").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.large
@pytest.mark.parametrize("variant", VARIANTS)
def test_recipe_is_proved(variant: str) -> None:
    prove(variant)
