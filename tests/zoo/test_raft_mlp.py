"""RaftMLP: the authors' keys, and the arithmetic of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy import reference
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import raft_mlp
from tests.graph.proof import moves, randomised
from tests.graph.proof import prove as prove_rewrite
from tests.zoo.official import official
from tests.zoo.proof import prove, ready

SMALL = "raft_mlp_s"
OTHERS = (
    *("raft_mlp_m", "raft_mlp_l", "raft_mlp_hierarchy_m", "raft_mlp_r1", "raft_mlp_r2", "raft_mlp_r4"),
    *("raft_mlp_deep", "raft_org_mixer"),
)
MULTI_SCALE = (raft_mlp.Stage(1, 6, 2, 2, (2, 4)), raft_mlp.Stage(1, 8, 2, 2, (2,)))
PLAIN = (raft_mlp.Stage(1, 6, 2, 2), raft_mlp.Stage(1, 8, 2, 4))
MIXER = (raft_mlp.Stage(2, 6, 4, 0),)


def tiny(stages: tuple[raft_mlp.Stage, ...] = MULTI_SCALE, **options: Any) -> raft_mlp.RaftMLP:
    return raft_mlp.RaftMLP(stages, **(dict(image_size=16, trained=16, num_classes=5) | options))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


@pytest.mark.parametrize("axis", ["height", "width"])
def test_rafts_are_mixed_with_one_axis(axis: str) -> None:
    b, n, r, o = 2, 4, 3, 5
    layer = raft_mlp.RaftMixing(n, r * o, r, axis)
    randomised(layer, 3)
    x = torch.randn(b, n, n, r, o, dtype=torch.float64)
    affine = layer.norm[1]
    centred = x - x.mean((3, 4), keepdim=True)
    y = centred / (centred.square().mean((3, 4), keepdim=True) + 1e-5).sqrt()
    # The affine parameters are stored as (o r).
    y = y * affine.weight.reshape(o, r).T + affine.bias.reshape(o, r).T
    first, second = layer.fn[0], layer.fn[3]
    contract, expand = {
        "height": ("bpwro,erp->bwoe", "bwoe,rpe->bpwro"),
        "width": ("bhpro,erp->bhoe", "bhoe,rpe->bhpro"),
    }[axis]
    hidden = gelu(torch.einsum(contract, y, first.weight.reshape(-1, r, n)) + first.bias)
    out = torch.einsum(expand, hidden, second.weight.reshape(r, n, -1))
    bias = second.bias.reshape(r, n).T
    out = out + (bias[:, None, :, None] if axis == "height" else bias[None, :, :, None])
    expected = (x + out).reshape(b, n, n, r * o)
    torch.testing.assert_close(layer(x.reshape(b, n, n, r * o)), expected, rtol=1e-12, atol=1e-12)


def test_multi_scale_patches_are_one_convolution_with_centred_kernels() -> None:
    layer = raft_mlp.MultiScalePatches(3, 6, (2, 4))
    randomised(layer, 3)
    x = torch.randn(2, 8, 8, 3, dtype=torch.float64)
    small, large = layer.fc.weight[:, :12].reshape(6, 3, 2, 2), layer.fc.weight[:, 12:].reshape(6, 3, 4, 4)
    expected = F.conv2d(x.permute(0, 3, 1, 2), F.pad(small, [1] * 4) + large, layer.fc.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected.permute(0, 2, 3, 1), rtol=1e-12, atol=1e-12)


def test_plain_patches_have_their_columns_in_the_order_height_width_channel() -> None:
    layer = raft_mlp.PatchLinear(3, 6, 2)
    randomised(layer, 3)
    x = torch.randn(2, 8, 8, 3, dtype=torch.float64)
    expected = torch.einsum("bhpwqc,kpqc->bhwk", x.reshape(2, 4, 2, 4, 2, 3), layer.weight.reshape(6, 2, 2, 3))
    torch.testing.assert_close(layer(x), expected + layer.bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "target"), [(7, 7), (5, 8), (9, 4), (1, 3)])
def test_resizing_is_bicubic(size: int, target: int) -> None:
    x = torch.randn(2, size, size, 3, dtype=torch.float64)
    expected = F.interpolate(x.permute(0, 3, 1, 2), (target, target), mode="bicubic", align_corners=False)
    result = raft_mlp.resize(size, target).double()(x)
    torch.testing.assert_close(result, expected.permute(0, 2, 3, 1), rtol=1e-12, atol=1e-12)


def test_other_image_sizes_change_the_grids_around_the_mixing_only() -> None:
    grids: list[tuple[int, ...]] = []
    network = tiny(image_size=19).eval()
    for module in network.modules():
        if isinstance(module, raft_mlp.Mixing):
            module.register_forward_hook(lambda _, inputs, out: grids.append(tuple(out.shape[1:3])))
    assert network(torch.randn(2, 3, 19, 19)).shape == (2, 5)
    assert grids == [(8, 8), (8, 8), (10, 10), (4, 4), (4, 4), (5, 5)]
    assert network.state_dict().keys() == tiny().state_dict().keys()


@pytest.mark.parametrize(("stages", "transposes"), [(MULTI_SCALE, 1), (PLAIN, 1), (MIXER, 1)])
def test_rewritten_network_is_the_same(stages: tuple[raft_mlp.Stage, ...], transposes: int) -> None:
    # The one behind the first patches.
    assert moves(prove_rewrite(tiny(stages), (3, 16, 16))) == transposes


@pytest.mark.parametrize("stages", [MULTI_SCALE, PLAIN, MIXER])
def test_rewritten_network_is_the_same_at_another_size(stages: tuple[raft_mlp.Stage, ...]) -> None:
    prove_rewrite(tiny(stages, image_size=21), (3, 21, 21))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (raft_mlp.Stage(1, 7, 4, 2), "7 channels do not split into 2 rafts"),
        (raft_mlp.Stage(1, 8, 4, 2, (4, 7)), "do not share centres 4 apart"),
        (raft_mlp.Stage(1, 8, 4, 2, (2, 4)), "do not share centres 4 apart"),
    ],
)
def test_levels_that_do_not_fit_are_refused(stage: raft_mlp.Stage, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny((stage,))


def test_image_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1 on, 0 was asked for"):
        raft_mlp.raft_mlp_s(image_size=0)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 16x16 images, got 16x24"):
        tiny()(torch.randn(1, 3, 16, 24))


@pytest.mark.parametrize("stages", [MULTI_SCALE, PLAIN, MIXER])
def test_every_parameter_matters(stages: tuple[raft_mlp.Stage, ...]) -> None:
    network = tiny(stages).eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_official_checkpoint_loads_strictly_at_another_size(tmp_path: Path) -> None:
    state = official(SMALL).random()
    torch.save({"model": state}, tmp_path / "raft_mlp_s.pt")
    loaded = reference(SMALL, tmp_path / "raft_mlp_s.pt", image_size=256).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.large
@pytest.mark.parametrize("variant", [SMALL, *OTHERS])
def test_ladder_passes(variant: str) -> None:
    prove(variant)


def test_the_ladder_of_a_small_one() -> None:
    """Those of the published ones are as slow as their float64."""
    prove("tests.zoo.test_raft_mlp:small")


def small() -> nn.Module:
    return ready(tiny(), 3, 16, 16)
