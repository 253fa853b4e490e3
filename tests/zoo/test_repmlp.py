"""RepMLPNet and RepMLP-Res50: the authors' keys, and the arithmetic of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.errors import CheckpointError, InputError
from mlpdeploy.network import random_weights
from mlpdeploy.zoo import repmlp_net, repmlp_res50
from tests.zoo import proof
from tests.zoo.official import official

NETS = ("t224", "t256", "b224", "b256", "d256", "l256")
RES50 = ("repmlp_res50_light_224", "repmlp_res50_bottleneck_224")
FORMS = pytest.mark.parametrize("deploy", [False, True], ids=["train", "deploy"])


def tiny(**options: Any) -> repmlp_net.RepMLPNet:
    given: dict[str, Any] = dict(
        blocks=(1, 1), channels=(16, 32), sharesets=(1, 4), grid=4, patch_size=2, image_size=8, num_classes=5
    )
    return repmlp_net.RepMLPNet(**(given | options))


def matrix(block: nn.Module, shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
    """W and bias of a deployed matrix (float64), W in the axes of `shape`, the bias in the first `rows` of these."""
    layer: Any = block.fc3
    return layer.weight.reshape(shape), layer.bias.reshape(shape[:rows])


def test_a_block_mixes_the_grid_with_the_matrix_of_channel_modulo_share_sets() -> None:
    b, g, s, h = 2, 3, 2, 4
    block = repmlp_net.RepMLPBlock(g * s, h, s, deploy=True).double().eval()
    random_weights.randomise(block, 3)
    x = torch.randn(b, g * s, h, h, dtype=torch.float64)
    mixing, bias = matrix(block, (s, h, h, h, h), 3)
    y = torch.stack([torch.einsum("ijpq,bpq->bij", mixing[c % s], x[:, c]) + bias[c % s] for c in range(g * s)], 1)
    pooled = x.mean((2, 3))
    hidden = F.relu(F.linear(pooled, block.gp.fc1.weight.flatten(1), block.gp.fc1.bias))
    gate = torch.sigmoid(F.linear(hidden, block.gp.fc2.weight.flatten(1), block.gp.fc2.bias))
    torch.testing.assert_close(block(x), y * gate[:, :, None, None], rtol=1e-12, atol=1e-12)


def test_a_train_time_block_sums_matrix_and_convolutions() -> None:
    b, g, s, h = 2, 3, 2, 4
    block = repmlp_net.RepMLPBlock(g * s, h, s, deploy=False).double().eval()
    random_weights.randomise(block, 3)
    x = torch.randn(b, g * s, h, h, dtype=torch.float64)
    mixing = block.fc3.weight.reshape(s, h, h, h, h)
    expected = []
    for c in range(g * s):
        share = c % s
        total = normalised(torch.einsum("ijpq,bpq->bij", mixing[share], x[:, c]), block.fc3_bn, share)
        branches: list[Any] = [block.repconv1, block.repconv3]
        for pair in branches:
            kernel = pair.conv.weight[share : share + 1]
            local = F.conv2d(x[:, c : c + 1], kernel, padding=kernel.shape[-1] // 2)[:, 0]
            total = total + normalised(local, pair.bn, share)
        expected.append(total)
    y = torch.stack(expected, 1) * block.gp(x)
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)


def normalised(x: Tensor, norm: Any, channel: int) -> Tensor:
    scaled = (x - norm.running_mean[channel]) / (norm.running_var[channel] + 1e-5).sqrt()
    return scaled * norm.weight[channel] + norm.bias[channel]


def test_a_partition_is_mixed_with_its_channels_in_groups() -> None:
    b, n, k, a, p = 2, 4, 2, 2, 7
    c = n * k
    block = repmlp_res50.RepMLP(c, a * p, n, deploy=True).double().eval()
    random_weights.randomise(block, 3)
    x = torch.randn(b, c, a * p, a * p, dtype=torch.float64)
    means = x.reshape(b, c, a, p, a, p).mean((3, 5)).flatten(1)
    moved = block.fc1_fc2(means).reshape(b, c, a, 1, a, 1)
    parts = (x.reshape(b, c, a, p, a, p) + moved).reshape(b, n, k, a, p, a, p)
    mixing, bias = matrix(block, (n, k, p, p, k, p, p), 4)
    y = torch.einsum("noijcpq,bncapeq->bnoaiej", mixing, parts) + bias.reshape(1, n, k, 1, p, 1, p)
    torch.testing.assert_close(block(x), y.reshape(x.shape), rtol=1e-12, atol=1e-12)


@FORMS
@pytest.mark.parametrize("name", [*(f"repmlpnet_{net}" for net in NETS), *RES50])
def test_factories_refuse_other_image_sizes(name: str, deploy: bool) -> None:
    module = repmlp_net if "net" in name else repmlp_res50
    size = 224 if "224" in name else 256
    with pytest.raises(ValueError, match=f"only {size} fits"), torch.device("meta"):
        getattr(module, name)(image_size=2 * size, deploy=deploy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(blocks=(1,)), "one entry per stage"),
        (dict(grid=5, image_size=10), "cannot be halved 1 times"),
        (dict(channels=(4, 6)), "6 channels do not split into 4 share-sets"),
    ],
)
def test_stages_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 8x8 images, got 16x8"):
        tiny()(torch.randn(1, 3, 16, 8))
    with torch.device("meta"), pytest.raises(ValueError, match="takes 224x224 images, got 224x448"):
        repmlp_res50.repmlp_res50_bottleneck_224()(torch.empty(1, 3, 224, 448))


@FORMS
@pytest.mark.parametrize("kind", ["net", "res50"])
def test_every_parameter_matters(kind: str, deploy: bool) -> None:
    network: nn.Module = tiny(deploy=deploy) if kind == "net" else repmlp_res50.RepMLP(8, 14, 4, deploy)
    network.eval()
    random_weights.randomise(network, 0)
    loss: Tensor = network(torch.randn(2, 3, 8, 8) if kind == "net" else torch.randn(2, 8, 14, 14)).square().sum()
    loss.backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not dead


@FORMS
def test_batch_stays_symbolic_under_export(deploy: bool) -> None:
    network = tiny(deploy=deploy).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(3, 3, 8, 8),), dynamic_shapes=({0: batch},))
    for size in (1, 7):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(program.module()(x), network(x))


@FORMS
def test_both_forms_of_a_checkpoint_load(tmp_path: Path, deploy: bool) -> None:
    state = official(f"repmlpnet_t224_{'deploy' if deploy else 'train'}").random()
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, path)
    network = mlpdeploy.reference("repmlpnet_t224", checkpoint=path)
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(bool((loaded[key] == state[key]).all()) for key in state)


def test_a_checkpoint_of_another_network_and_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save(tiny().state_dict(), path)
    with pytest.raises(CheckpointError, match="another network"):
        mlpdeploy.reference("repmlpnet_t224", checkpoint=path)
    with pytest.raises(InputError, match="only 224 fits"):
        mlpdeploy.reference("repmlpnet_t224", image_size=448)


@pytest.mark.large
@pytest.mark.parametrize("name", [*(f"repmlpnet_{net}" for net in NETS), *RES50])
def test_the_compiled_network_computes_the_same(name: str) -> None:
    proof.prove(name)


def test_the_compiled_blocks_compute_the_same_in_half_precision() -> None:
    """The ladder of whole networks is slow: theirs has a matrix of 3136 x 3136."""
    proof.prove("tests.zoo.test_repmlp:small")


def small() -> nn.Module:
    """Both blocks at train time, in one small network."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), repmlp_net.RepMLPNetUnit(8, 14, 2, False), repmlp_res50.RepMLP(8, 14, 4, False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    return proof.ready(network, 3, 56, 56)
