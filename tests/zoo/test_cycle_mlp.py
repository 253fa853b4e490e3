"""CycleMLP: the authors' keys, and the arithmetic of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import cycle_mlp
from tests.graph.proof import fired
from tests.graph.proof import prove as prove_graph
from tests.zoo.official import official
from tests.zoo.proof import prove

VARIANTS = ("cyclemlp_b1", "cyclemlp_b2", "cyclemlp_b3", "cyclemlp_b4", "cyclemlp_b5")


def tiny() -> cycle_mlp.CycleNet:
    return cycle_mlp.CycleNet((1, 1, 1, 1), (8, 12, 16, 20), (2, 2, 2, 2), image_size=64, num_classes=5)


def cycled(x: Tensor, layer: cycle_mlp.CycleFC) -> Tensor:
    """Channel by channel: i comes from (i + 1) mod 3 - 1 further along the dimension, zeros from beyond the border."""
    total = layer.bias[:, None, None].expand(x.shape[0], -1, *x.shape[2:]).clone()
    size = x.shape[layer.dim]
    for channel in range(x.shape[1]):
        distance = (channel + 1) % 3 - 1
        for to in range(size):
            if 0 <= to + distance < size:
                source = x[:, channel].select(layer.dim - 1, to + distance)
                column = layer.weight[:, channel, 0, 0, None]
                total.select(layer.dim, to).add_(column * source[:, None])
    return total


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("channels", [6, 7, 8])
def test_cycle_fc_is_that_of_the_paper(dim: int, channels: int) -> None:
    layer = cycle_mlp.CycleFC(channels, dim).double().requires_grad_(False)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, channels, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), cycled(x, layer), rtol=1e-12, atol=1e-12)


def test_mixing_weighs_the_three_branches() -> None:
    layer = cycle_mlp.CycleMLP(8).double().eval().requires_grad_(False)
    random_weights.randomise(layer, 3)
    x = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    grid = x.permute(0, 3, 1, 2)
    # The branch named after the height takes channels along the width.
    first, second = (cycled(grid, branch).permute(0, 2, 3, 1) for branch in (layer.sfc_h, layer.sfc_w))
    assert (layer.sfc_h.dim, layer.sfc_w.dim) == (3, 2)
    third = layer.mlp_c(x)
    logits = layer.reweight((first + second + third).mean((1, 2)))
    # Row 3*channel + branch of fc2.
    share = torch.stack([logits[:, branch::3] for branch in range(3)]).softmax(0)[:, :, None, None, :]
    expected = layer.proj(share[0] * first + share[1] * second + share[2] * third)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_other_sizes_are_taken() -> None:
    assert tiny().eval()(torch.randn(1, 3, 40, 75)).shape == (1, 5)
    with pytest.raises(ValueError, match="images of 2x64 are too small"):
        tiny()(torch.randn(1, 3, 2, 64))
    for variant in VARIANTS:
        with pytest.raises(ValueError, match="images of 2x2 are too small"):
            getattr(cycle_mlp, variant)(image_size=2)


def test_the_compiled_graph_is_the_same_function() -> None:
    result = prove_graph(tiny(), (3, 40, 28), batches=(1, 2, 5))
    assert fired(result)["convolve_shifts"] == 8


def test_every_parameter_matters() -> None:
    network = tiny().eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_an_official_checkpoint_loads_strictly_but_for_its_constant_offsets(tmp_path: Path) -> None:
    state = official("cyclemlp_b1").random()
    torch.save({"model": state}, tmp_path / "weights.pth")
    loaded = mlpdeploy.reference("cyclemlp_b1", checkpoint=tmp_path / "weights.pth").state_dict()
    assert {key for key in state if not key.endswith(".offset")} == loaded.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)


@pytest.mark.large
@pytest.mark.parametrize("variant", VARIANTS)
def test_recipe_is_proved(variant: str) -> None:
    prove(variant)
