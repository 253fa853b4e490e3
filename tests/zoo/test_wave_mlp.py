"""Wave-MLP: the authors' keys, and the arithmetic of the paper."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import wave_mlp
from tests.graph.proof import assert_same, specs
from tests.zoo.official import official
from tests.zoo.proof import prove

VARIANTS = ("wavemlp_t_dw", "wavemlp_t", "wavemlp_s", "wavemlp_m", "wavemlp_b")


def tiny(norm: wave_mlp.Norm = nn.BatchNorm2d, depthwise: bool = False) -> wave_mlp.WaveNet:
    return wave_mlp.WaveNet((1, 1, 2, 1), (8, 12, 16, 20), (2, 2, 2, 2), norm, depthwise, image_size=64, num_classes=5)


def phase(branch: nn.Sequential, x: Tensor) -> Tensor:
    """What no key of a checkpoint tells: the ReLU behind the BatchNorm."""
    norm = branch[1]
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
    z = (branch[0](x) - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    return z.clamp(min=0)


@pytest.mark.parametrize("depthwise", [False, True])
def test_mixing_is_the_sum_of_waves_of_the_paper(depthwise: bool) -> None:
    c = 6
    layer = wave_mlp.PATM(c, depthwise).double().eval()
    random_weights.randomise(layer, 3)
    x = torch.randn(2, c, 5, 9, dtype=torch.float64)

    def along_columns(x: Tensor, amplitude: Tensor, phase: Tensor, kernel: Tensor) -> Tensor:
        """y[k, i, j] = sum over r, t of W[k, r, t] u[2k + r, i, j + t - 3]; u: real parts, then imaginary ones."""
        u = torch.cat([amplitude * phase.cos(), amplitude * phase.sin()], 1)
        windows = F.pad(u, (3, 3)).unfold(3, 7, 1).reshape(2, c, 2, x.shape[2], x.shape[3], 7)
        return torch.einsum("bkrijt,krt->bkij", windows, kernel.reshape(c, 2, 7))

    theta_h, theta_w = phase(layer.theta_h_conv, x), phase(layer.theta_w_conv, x)
    y_h = along_columns(x, layer.fc_h(x), theta_h, layer.tfc_h.weight)
    y_w = along_columns(x.mT, layer.fc_w(x).mT, theta_w.mT, layer.tfc_w.weight).mT
    y_c = torch.einsum("bihw,oi->bohw", x, layer.fc_c.weight.flatten(1))
    logits = layer.reweight((y_h + y_w + y_c).mean((2, 3), keepdim=True))
    # Row 3*channel + branch of fc2.
    share = torch.stack([logits[:, branch::3] for branch in range(3)]).softmax(0)
    expected = layer.proj(share[0] * y_h + share[1] * y_w + share[2] * y_c)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_m_and_b_alone_embed_without_normalisation(variant: str) -> None:
    with torch.device("meta"):
        keys = set(getattr(wave_mlp, variant)().state_dict())
    behind = {key for key in keys if key.startswith("patch_embed.norm") or re.match(r"network\.[135]\.norm", key)}
    assert bool(behind) == (variant not in ("wavemlp_m", "wavemlp_b"))
    assert ("patch_embed.norm.running_mean" in behind) == (variant in ("wavemlp_t", "wavemlp_t_dw"))
    assert "network.0.0.attn.theta_h_conv.1.running_mean" in keys


def test_other_sizes_are_taken() -> None:
    assert tiny().eval()(torch.randn(1, 3, 40, 75)).shape == (1, 5)
    with pytest.raises(ValueError, match="images of 2x64 are too small"):
        tiny()(torch.randn(1, 3, 2, 64))
    for variant in VARIANTS:
        with pytest.raises(ValueError, match="images of 2x2 are too small"):
            getattr(wave_mlp, variant)(image_size=2)


@pytest.mark.parametrize(
    ("norm", "depthwise"), [(nn.BatchNorm2d, False), (nn.BatchNorm2d, True), (wave_mlp.group_norm, False)]
)
def test_the_compiled_graph_is_the_same_function(norm: wave_mlp.Norm, depthwise: bool) -> None:
    network = tiny(norm, depthwise).double().eval()
    random_weights.randomise(network, 0)  # phases of the order of 1: a cosine of a large one has no correct digits
    result = rewrite(trace(network, specs([(3, 40, 28)])))
    assert_same(network, result, [(3, 40, 28)], batches=(1, 2, 5))


@pytest.mark.parametrize("depthwise", [False, True])
def test_every_parameter_matters(depthwise: bool) -> None:
    network = tiny(depthwise=depthwise).eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_an_official_checkpoint_loads_strictly(tmp_path: Path) -> None:
    state = official("wavemlp_t").random()
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    loaded = mlpdeploy.reference("wavemlp_t", checkpoint=tmp_path / "weights.pth").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.large
@pytest.mark.parametrize("variant", VARIANTS)
def test_recipe_is_proved(variant: str) -> None:
    prove(variant)
