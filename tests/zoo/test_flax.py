"""Checkpoints of JAX code: the network that reads one computes what Flax's layers compute, written out in NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mlpdeploy
from mlpdeploy.errors import CheckpointError
from mlpdeploy.network import checkpoint, random_weights
from mlpdeploy.zoo import flax, maxim

Tree = dict[str, np.ndarray]
RNG = np.random.default_rng(0)
# Numbers of an encoder block's layers: over all kinds in the published files, by kind in later ones.
PUBLISHED = {"attention": "MultiHeadDotProductAttention_1", "norm": "LayerNorm_2", "mlp": "MlpBlock_3"}
LATER = {"attention": "MultiHeadDotProductAttention_0", "norm": "LayerNorm_1", "mlp": "MlpBlock_0"}


def dense(tree: Tree, path: str, into: tuple[int, ...], out: tuple[int, ...]) -> None:
    scale = 0.5 / math.sqrt(math.prod(into))
    tree[f"{path}/kernel"] = (RNG.standard_normal((*into, *out)) * scale).astype(np.float32)
    tree[f"{path}/bias"] = (RNG.standard_normal(out) * 0.1).astype(np.float32)


def norm(tree: Tree, path: str, dim: int) -> None:
    tree[f"{path}/scale"] = RNG.uniform(0.5, 1.5, dim).astype(np.float32)
    tree[f"{path}/bias"] = (RNG.standard_normal(dim) * 0.1).astype(np.float32)


def linear(x: np.ndarray, tree: Tree, path: str, axes: int = 1) -> np.ndarray:
    return np.tensordot(x, tree[f"{path}/kernel"].astype(np.float64), axes) + tree[f"{path}/bias"]


def normalised(x: np.ndarray, tree: Tree, path: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
    return centred / deviation * tree[f"{path}/scale"] + tree[f"{path}/bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(x: np.ndarray, tree: Tree, path: str) -> np.ndarray:
    return linear(gelu(linear(x, tree, f"{path}/Dense_0")), tree, f"{path}/Dense_1")


def patches(images: np.ndarray, tree: Tree, path: str, size: int) -> np.ndarray:
    b, h, w, c = images.shape
    cut = images.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return linear(cut.reshape(b, -1, size, size, c), tree, path, axes=3)


def mixer() -> Tree:
    tree: Tree = {}
    dense(tree, "stem", (32, 32, 3), (512,))
    for index in range(8):
        block = f"MixerBlock_{index}"
        for place in (0, 1):
            norm(tree, f"{block}/LayerNorm_{place}", 512)
        for name, dim, hidden in (("token_mixing", 49, 256), ("channel_mixing", 512, 2048)):
            dense(tree, f"{block}/{name}/Dense_0", (dim,), (hidden,))
            dense(tree, f"{block}/{name}/Dense_1", (hidden,), (dim,))
    norm(tree, "pre_head_layer_norm", 512)
    dense(tree, "head", (512,), (1000,))
    return tree


def run_mixer(tree: Tree, images: np.ndarray) -> np.ndarray:
    x = patches(images, tree, "stem", 32)
    for index in range(8):
        block = f"MixerBlock_{index}"
        y = normalised(x, tree, f"{block}/LayerNorm_0").swapaxes(1, 2)
        x = x + mlp(y, tree, f"{block}/token_mixing").swapaxes(1, 2)
        x = x + mlp(normalised(x, tree, f"{block}/LayerNorm_1"), tree, f"{block}/channel_mixing")
    return linear(normalised(x, tree, "pre_head_layer_norm").mean(1), tree, "head")


def vit(names: Mapping[str, str]) -> Tree:
    tree: Tree = {"cls": RNG.standard_normal((1, 1, 384)).astype(np.float32)}
    dense(tree, "embedding", (16, 16, 3), (384,))
    tree["Transformer/posembed_input/pos_embedding"] = RNG.standard_normal((1, 197, 384)).astype(np.float32)
    for index in range(12):
        block = f"Transformer/encoderblock_{index}"
        for name in ("LayerNorm_0", names["norm"]):
            norm(tree, f"{block}/{name}", 384)
        for name in ("query", "key", "value"):
            dense(tree, f"{block}/{names['attention']}/{name}", (384,), (6, 64))
        dense(tree, f"{block}/{names['attention']}/out", (6, 64), (384,))
        dense(tree, f"{block}/{names['mlp']}/Dense_0", (384,), (1536,))
        dense(tree, f"{block}/{names['mlp']}/Dense_1", (1536,), (384,))
    norm(tree, "Transformer/encoder_norm", 384)
    dense(tree, "head", (384,), (1000,))
    return tree


def attention(x: np.ndarray, tree: Tree, path: str) -> np.ndarray:
    q, k, v = (linear(x, tree, f"{path}/{name}") for name in ("query", "key", "value"))
    scores = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1]))
    mixed = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), v)
    return linear(mixed, tree, f"{path}/out", axes=2)


def run_vit(tree: Tree, images: np.ndarray, names: Mapping[str, str]) -> np.ndarray:
    x = patches(images, tree, "embedding", 16)
    x = np.concatenate([np.tile(tree["cls"], (len(x), 1, 1)), x], 1)
    x = x + tree["Transformer/posembed_input/pos_embedding"]
    for index in range(12):
        block = f"Transformer/encoderblock_{index}"
        x = x + attention(normalised(x, tree, f"{block}/LayerNorm_0"), tree, f"{block}/{names['attention']}")
        x = x + mlp(normalised(x, tree, f"{block}/{names['norm']}"), tree, f"{block}/{names['mlp']}")
    return linear(normalised(x, tree, "Transformer/encoder_norm")[:, 0], tree, "head")


def loaded(name: str, tree: Tree, folder: Path) -> nn.Module:
    np.savez(folder / "flax.npz", **tree)  # type: ignore[arg-type]
    return mlpdeploy.reference(name, folder / "flax.npz").double()


def assert_computes(network: nn.Module, images: np.ndarray, wanted: np.ndarray) -> None:
    found = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert abs(found - wanted).max() <= 1e-12 * abs(wanted).max()


def test_mixer(tmp_path: Path) -> None:
    tree, images = mixer(), RNG.standard_normal((2, 224, 224, 3))
    assert_computes(loaded("mixer_s32", tree, tmp_path), images, run_mixer(tree, images))


@pytest.mark.parametrize("names", [PUBLISHED, LATER], ids=["published", "later"])
def test_vit(tmp_path: Path, names: Mapping[str, str]) -> None:
    tree, images = vit(names), RNG.standard_normal((2, 224, 224, 3))
    assert_computes(loaded("vit_small_patch16_224", tree, tmp_path), images, run_vit(tree, images, names))


@pytest.mark.parametrize("reader", [flax.read_mixer, flax.read_vit, maxim.read])
def test_keys_of_pytorch_stay_as_they_are(reader: checkpoint.Reader) -> None:
    state = {"stem.proj.weight": torch.zeros(2, 3, 4, 4)}
    assert reader(state) == (state, {})


def test_timms_weights_keep_the_exact_gelu(tmp_path: Path) -> None:
    network = mlpdeploy.reference("mixer_s32")
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    forms = {module.approximate for module in mlpdeploy.reference("mixer_s32", tmp_path / "timm.pth").modules()
             if isinstance(module, nn.GELU)}  # fmt: skip
    assert forms == {"none"}


def test_a_mixer_of_another_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this looks like mixer_s32"):
        loaded("mixer_b16", mixer(), tmp_path)


def as_flax(key: str, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """A parameter of the port as the original has it."""
    module, _, leaf = key.rpartition(".")
    if weight.ndim == 4:
        transposed = "ConvTranspose" in key
        weight = weight[..., ::-1, ::-1].transpose(2, 3, 0, 1) if transposed else weight.transpose(2, 3, 1, 0)
    elif weight.ndim == 2:
        weight = weight.T
    name = {"gamma": "scale", "beta": "bias", "weight": "kernel"}.get(leaf, leaf)
    return f"{module.replace('.', '/')}/{name}", weight


@pytest.mark.parametrize("name", ["maxim_1s", pytest.param("maxim_3s", marks=pytest.mark.large)])
@pytest.mark.parametrize("prefix", ["opt/target/", ""])
def test_maxim(tmp_path: Path, name: str, prefix: str) -> None:
    stages = int(name[-2])
    port = maxim.Maxim(stages)
    random_weights.randomise(port, 0)
    ours = {key: value.numpy() for key, value in port.state_dict().items()}
    tree = {f"{prefix}{path}": value for path, value in (as_flax(*item) for item in ours.items())}
    if prefix:
        tree["opt/state/step"] = np.array(7)
    network = loaded(name, tree, tmp_path)
    assert {key: value.shape for key, value in network.state_dict().items()} == {k: v.shape for k, v in ours.items()}
    assert all(np.array_equal(value.numpy(), ours[key]) for key, value in network.state_dict().items())


def test_flax_and_pytorch_spread_an_image_out_alike() -> None:
    """Flax's transposed convolution of stride 2: every pixel adds its value times the kernel, as it lies, turned."""
    kernel, x = RNG.standard_normal((2, 2, 3, 5)), RNG.standard_normal((1, 4, 4, 3))
    wanted = np.einsum("bhwc,ijcd->bhiwjd", x, kernel[::-1, ::-1]).reshape(1, 8, 8, 5)
    weight = flax.layout("ConvTranspose_0/kernel", torch.from_numpy(kernel))
    found = nn.functional.conv_transpose2d(torch.from_numpy(x).permute(0, 3, 1, 2), weight, stride=2)
    assert np.allclose(found.permute(0, 2, 3, 1).numpy(), wanted, rtol=0, atol=1e-12)
