"""MS-MLP: the authors' keys, and the arithmetic of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import ms_mlp
from tests.graph import proof as graph
from tests.zoo.official import official
from tests.zoo.proof import prove


def tiny(**options: Any) -> ms_mlp.MSMLP:
    given = dict(dim=9, depths=(1, 1, 1), mixes=((1, 1, 3, 5, 7), (1, 3, 3, 5, 7), (1, 7, 7, 7, 7)))
    return ms_mlp.MSMLP(**(given | dict(image_size=36, num_classes=5) | options))


def mixed(x: Tensor, kernel: Tensor, bias: Tensor, distance: int, dim: int) -> Tensor:
    """One group, by the definition: every output is a sum over a window of the moved map, zero outside the map."""
    b, c, h, w = x.shape
    m = kernel.shape[-1]
    out = bias[:, None, None].expand(b, c, h, w).clone()
    for i in range(h):
        for j in range(w):
            for u in range(m):
                for v in range(m):
                    row, column = i + u - m // 2, j + v - m // 2
                    if 0 <= row < h and 0 <= column < w:
                        source = ((row - distance) % h, column) if dim == 2 else (row, (column - distance) % w)
                        out[:, :, i, j] += kernel[:, 0, u, v] * x[:, :, source[0], source[1]]
    return out


def test_a_block_moves_first_and_mixes_then() -> None:
    block = ms_mlp.MixShiftBlock(9, (1, 1, 3, 5, 7), 4).double().eval()
    random_weights.randomise(block, 3)
    x = torch.randn(2, 9, 4, 5, dtype=torch.float64)
    z = torch.cat(
        [
            mixed(part, lr.weight, lr.bias, distance, 3) + mixed(part, td.weight, td.bias, distance, 2)
            for part, lr, td, distance in zip(
                x.chunk(5, 1), block.dwconv_lr, block.dwconv_td, (-2, -1, 0, 1, 2), strict=True
            )
        ],
        1,
    )
    z = F.layer_norm(z.movedim(1, 3), (9,), block.norm.weight, block.norm.bias, 1e-6)
    z = block.pwconv2(F.gelu(block.pwconv1(z))) * block.gamma
    torch.testing.assert_close(block(x), x + z.movedim(3, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [96, 128, 192, 256, 384, 512, 768, 1024])
def test_groups_are_as_wide_as_torch_makes_chunks(dim: int) -> None:
    block = ms_mlp.MixShiftBlock(dim, (1, 1, 1, 1, 1), 1)
    assert block.widths == [len(part) for part in torch.zeros(dim).chunk(5)]


def test_the_patch_embedding_normalises_behind_the_convolution() -> None:
    layer = ms_mlp.PatchEmbed(3, 6, 2).double()
    random_weights.randomise(layer, 2)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    patches = torch.einsum("bcisjt,ocst->bijo", x.reshape(2, 3, 3, 2, 3, 2), layer.proj.weight) + layer.proj.bias
    centred = patches - patches.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.norm.weight + layer.norm.bias
    torch.testing.assert_close(layer(x), expected.movedim(-1, 1), rtol=1e-10, atol=1e-10)


def test_the_norm_of_the_tail_stands_behind_the_mean() -> None:
    network = tiny().double().eval()
    random_weights.randomise(network, 4)
    x = torch.randn(2, 3, 36, 36, dtype=torch.float64)
    pooled = network.layers(network.patch_embed(x)).flatten(2).mean(2)
    torch.testing.assert_close(network(x), network.head(network.norm(pooled)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depths=(1, 1)), "2 stages, 3 lists of kernels"),
        (dict(dim=6), "5 groups of channels: 6 make fewer"),
        (dict(image_size=31), "at least 32x32, got 31"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 36x36 images, got 40x36"):
        tiny()(torch.randn(1, 3, 40, 36))


def test_a_checkpoint_loads_strictly_at_any_size(tmp_path: Path) -> None:
    state = official("ms_mlp_t").random()
    path = tmp_path / "ms_mlp.pth"
    torch.save({"model": state}, path)
    network = mlpdeploy.reference("ms_mlp_t", checkpoint=path, image_size=64)
    ours = network.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[key], value) for key, value in state.items())
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_every_parameter_matters() -> None:
    network = tiny().double().eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 36, 36, dtype=torch.float64)).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not dead


def test_the_compiled_network_is_the_same() -> None:
    graph.prove(tiny(), (3, 36, 36))


@pytest.mark.large
@pytest.mark.parametrize("variant", ["ms_mlp_t", "ms_mlp_s", "ms_mlp_b"])
def test_variants_work(variant: str) -> None:
    prove(variant)
