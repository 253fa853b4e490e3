"""Hire-MLP: the authors' keys, and the arithmetic of the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import hire_mlp
from tests.graph.proof import fired
from tests.graph.proof import prove as prove_graph
from tests.zoo.official import official
from tests.zoo.proof import prove

VARIANTS = ("hire_mlp_tiny", "hire_mlp_small", "hire_mlp_base", "hire_mlp_large")


def tiny(image_size: int = 64) -> hire_mlp.HireMLPNet:
    return hire_mlp.HireMLPNet((2, 1, 2, 1), (8, 12, 16, 20), image_size=image_size, num_classes=5)


@pytest.mark.parametrize(("height", "width", "pixel", "step"), [(6, 9, 3, 0), (7, 5, 3, 2), (4, 6, 4, 1), (3, 3, 2, 1)])
def test_mixing_is_the_contraction_of_the_paper(height: int, width: int, pixel: int, step: int) -> None:
    layer = hire_mlp.HireMLP(8, pixel, step).double().eval()
    random_weights.randomise(layer, 3)
    x = torch.randn(2, 8, height, width, dtype=torch.float64)

    def along_rows(x: Tensor, branch: str) -> Tensor:
        """Regions gathered and scattered by their indices: region a holds the rows (a p + i - step) mod H."""
        rows, c = x.shape[2], x.shape[1]
        regions = -(-rows // pixel)
        # The rows that fill the last region are the first ones of the rolled map.
        index = (torch.arange(regions * pixel) % rows - step) % rows
        first, norm, second = (getattr(layer, f"mlp_{branch}{name}") for name in ("1", "1_norm", "2"))
        grouped = x[:, :, index].reshape(2, c, regions, pixel, -1)
        hidden = torch.einsum("bcapw,ocp->boaw", grouped, first.weight.reshape(-1, c, pixel))
        hidden = torch.relu(norm(hidden))
        out = torch.einsum("boaw,cpo->bcapw", hidden, second.weight.reshape(c, pixel, -1))
        out = out + second.bias.reshape(c, 1, pixel, 1)
        result = torch.empty_like(x)
        result[:, :, index[:rows]] = out.reshape(2, c, regions * pixel, -1)[:, :, :rows]
        return result

    y_h, y_w, y_c = along_rows(x, "h"), along_rows(x.mT, "w").mT, layer.mlp_c(x)
    logits = layer.reweight((y_h + y_w + y_c).mean((2, 3), keepdim=True))
    # Row 3*channel + branch of fc2.
    share = torch.stack([logits[:, branch::3] for branch in range(3)]).softmax(0)
    expected = layer.proj(share[0] * y_h + share[1] * y_w + share[2] * y_c)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_steps_take_turns_as_published() -> None:
    network = hire_mlp.hire_mlp_tiny()
    steps = [
        [block.attn.step for block in stage] for stage in network.network if isinstance(stage, torch.nn.Sequential)
    ]
    assert steps == [[0, 2], [0, 2], [0, 1, 2, 0], [0, 1]]


def test_other_sizes_are_taken_where_regions_can_be_continued() -> None:
    network = tiny().eval()
    assert network(torch.randn(1, 3, 40, 75)).shape == (1, 5)
    with pytest.raises(ValueError, match="images of 8x64 are too small"):
        network(torch.randn(1, 3, 8, 64))
    for variant in VARIANTS:
        with pytest.raises(ValueError, match="images of 8x8 are too small: stage 1 mixes 3 rows"):
            getattr(hire_mlp, variant)(image_size=8)


def test_the_compiled_graph_is_the_same_function() -> None:
    result = prove_graph(tiny(), (3, 52, 84), batches=(1, 2, 5))
    assert fired(result)["convolve_regions"] == 24


def test_every_parameter_matters() -> None:
    network = tiny().eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_an_official_checkpoint_loads_strictly(tmp_path: Path) -> None:
    state = official("hire_mlp_tiny").random()
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    loaded = mlpdeploy.reference("hire_mlp_tiny", checkpoint=tmp_path / "weights.pth").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.large
@pytest.mark.parametrize("variant", VARIANTS)
def test_recipe_is_proved(variant: str) -> None:
    prove(variant)
