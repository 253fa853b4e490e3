"""Strip-MLP: the authors' keys, and the arithmetic of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mlpdeploy
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import strip_mlp
from tests.graph import proof as graph
from tests.zoo.official import official
from tests.zoo.proof import prove


def tiny(**options: Any) -> strip_mlp.StripMLP:
    return strip_mlp.StripMLP(**(dict(dim=16, layers=(1, 1, 1, 1), image_size=68, num_classes=5) | options))


def block(channels: int, size: int) -> strip_mlp.StripBlock:
    layer = strip_mlp.StripBlock(channels, size).double().eval()
    random_weights.randomise(layer, 3)
    return layer


def shifted(x: Tensor, dim: int) -> Tensor:
    """(3, ...): x[i - 1], x[i], x[i + 1] along `dim`, zero outside."""
    zero = torch.zeros_like(x.narrow(dim, 0, 1))
    size = x.shape[dim]
    padded = torch.cat([zero, x, zero], dim)
    return torch.stack([padded.narrow(dim, start, size) for start in range(3)])


@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (80, 2)])
def test_strips_are_the_contractions_of_the_paper(channels: int, groups: int) -> None:
    n, half = 5, channels // 2
    layer = block(channels, n)
    c = half // groups
    x = torch.randn(2, half, n, n, dtype=torch.float64)
    distance = torch.arange(n) - torch.arange(n)[:, None] + n
    pos_h, pos_w = (
        torch.stack([table.embeddings_table[row] for row in distance]).movedim(2, 0)
        for table in (layer.relate_pos_h, layer.relate_pos_w)
    )
    kernel_h = layer.proj_h.weight.reshape(c, n, n, 3)
    kernel_w = layer.proj_w.weight.reshape(c, n, n, 3)

    rows = (x + pos_h).reshape(2, groups, c, n, n)
    y = torch.einsum("cvwk,kbpchw->bpchv", kernel_h, shifted(rows, 3)) + layer.proj_h.bias.reshape(c, 1, n)
    x_h = F.gelu(layer.BN(layer.fuse_h(torch.cat([y.flatten(1, 2), x], 1)))) + pos_w
    columns = x_h.reshape(2, groups, c, n, n)
    z = torch.einsum("cvhk,kbpchw->bpcvw", kernel_w, shifted(columns, 4)) + layer.proj_w.bias.reshape(c, n, 1)

    torch.testing.assert_close(
        layer.strips(x), layer.fuse_w(torch.cat([x, z.flatten(1, 2)], 1)), rtol=1e-12, atol=1e-12
    )


def test_the_branch_is_the_fastest_axis_of_the_weights_of_split_attention() -> None:
    layer = block(16, 6)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    high, wide = layer.fc_w(x), layer.fc_h(x)
    assert layer.fc_h.kernel_size == (3, 7) and layer.fc_w.kernel_size == (7, 3)
    logits = layer.reweight((high + wide + x).mean((2, 3), keepdim=True))
    a, b, c = torch.stack([logits[:, branch::3] for branch in range(3)]).softmax(0)
    torch.testing.assert_close(layer.local(x), a * high + b * wide + c * x, rtol=1e-12, atol=1e-12)


def test_response_norm_is_over_the_grid_and_divided_by_its_mean() -> None:
    layer = strip_mlp.GlobalResponseNorm(6).double()
    random_weights.randomise(layer, 1)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    norm = torch.linalg.vector_norm(x.flatten(1, 2), dim=1)
    share = torch.einsum("bc,b->bc", norm, 1 / (norm.mean(1) + 1e-6))
    expected = x + torch.einsum("c,bhwc,bc->bhwc", layer.gamma.flatten(), x, share) + layer.beta
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("image_size", [32, 68, 100])
def test_grids_that_cannot_be_halved_lose_a_row(image_size: int) -> None:
    network = tiny(image_size=image_size).eval()
    sizes: list[int] = []
    for module in network.modules():
        if isinstance(module, strip_mlp.Block):
            module.register_forward_hook(lambda _, inputs, out: sizes.append(out.shape[2]))
    assert network(torch.randn(2, 3, image_size, image_size)).shape == (2, 5)
    assert sizes == [image_size // 4 // 2**stage for stage in range(4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layers=(1, 1)), "4 stages, got 2"),
        (dict(dim=12), "12 is not a multiple of 8"),
        (dict(image_size=31), "at least 32x32, got 31"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 68x68 images, got 68x72"):
        tiny()(torch.randn(1, 3, 68, 72))


def test_a_checkpoint_loads_strictly(tmp_path: Path) -> None:
    state = official("strip_mlp_t_light").random()
    path = tmp_path / "strip_mlp.pth"
    torch.save({"model": state}, path)
    network = mlpdeploy.reference("strip_mlp_t_light", checkpoint=path)
    ours = network.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[key], value) for key, value in state.items())


def test_every_parameter_matters() -> None:
    network = tiny().double().eval()
    random_weights.randomise(network, 0)
    network(torch.randn(2, 3, 68, 68, dtype=torch.float64)).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not dead


def test_the_compiled_network_is_the_same() -> None:
    graph.prove(tiny(), (3, 68, 68))


@pytest.mark.large
@pytest.mark.parametrize("variant", ["strip_mlp_t_light", "strip_mlp_t", "strip_mlp_s", "strip_mlp_b"])
def test_variants_work(variant: str) -> None:
    prove(variant)
