"""ViP: the authors' keys, and the arithmetic of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.network import random_weights
from mlpdeploy.zoo import vip

VARIANTS = ("vip_s14", "vip_s7", "vip_m7", "vip_l7")


def tiny(**options: Any) -> vip.VisionPermutator:
    given = dict(layers=(1, 1), dims=(16, 24), segments=(8, 4), transitions=(True, False), patch_size=2)
    return vip.VisionPermutator(**(given | dict(image_size=16, num_classes=5) | options))


def test_mixing_is_the_contraction_of_the_paper() -> None:
    b, h, w, n, s = 2, 4, 4, 4, 3
    c = n * s
    layer = vip.WeightedPermuteMLP(c, n).double().eval()
    random_weights.randomise(layer, 3)
    x = torch.randn(b, h, w, c, dtype=torch.float64)
    blocks = x.reshape(b, h, w, n, s)

    y_h = torch.einsum("bhwns,kuhs->bkwnu", blocks, layer.mlp_h.weight.reshape(h, s, h, s)).reshape(b, h, w, c)
    y_w = torch.einsum("bhwns,kuws->bhknu", blocks, layer.mlp_w.weight.reshape(w, s, w, s)).reshape(b, h, w, c)
    y_c = torch.einsum("bhwi,oi->bhwo", x, layer.mlp_c.weight)
    logits = layer.reweight((y_h + y_w + y_c).mean((1, 2)))
    # Row 3*channel + branch of fc2.
    share = torch.stack([logits[:, branch::3] for branch in range(3)]).softmax(0)[:, :, None, None, :]
    expected = layer.proj(share[0] * y_h + share[1] * y_w + share[2] * y_c)

    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_grid_is_halved_by_a_transition_only() -> None:
    grids: list[tuple[int, ...]] = []
    network = tiny(layers=(1, 1, 1), dims=(16, 16, 24), segments=(8, 4, 4), transitions=(True, False, False)).eval()
    for module in network.modules():
        if isinstance(module, vip.PermutatorBlock):
            module.register_forward_hook(lambda _, inputs, out: grids.append(tuple(out.shape[1:])))
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    assert grids == [(8, 8, 16), (4, 4, 16), (4, 4, 24)]
    assert [type(stage).__name__ for stage in network.network] == [
        "Sequential", "Downsample", "Sequential", "Downsample", "Sequential",
    ]  # fmt: skip


def test_batch_stays_symbolic_under_export() -> None:
    network = tiny().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(3, 3, 16, 16),), dynamic_shapes=({0: batch},))
    for size in (1, 7):
        x = torch.randn(size, 3, 16, 16)
        torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_factories_refuse_other_image_sizes(variant: str) -> None:
    with pytest.raises(ValueError, match="only 224 fits"):
        getattr(vip, variant)(image_size=256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(segments=(8, 8)), "stage 1 has 8 segments on a 4x4 grid"),
        (dict(dims=(17, 24)), "17 channels do not split into 8 segments"),
        (dict(layers=(1,)), "one entry per stage"),
        (dict(segments=(7, 3), image_size=14, dims=(14, 24)), "cannot be halved"),
    ],
)
def test_stages_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 16x16 images, got 16x24"):
        tiny()(torch.randn(1, 3, 16, 24))


def test_every_parameter_matters() -> None:
    network = tiny().eval()
    random_weights.randomise(network, 0)
    x = torch.randn(2, 3, 16, 16)
    loss: Tensor = network(x).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    dead = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not dead
    assert isinstance(network, nn.Module)
