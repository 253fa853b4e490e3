"""RepMLPNet (arXiv 2112.11081, section 3) and RepMLP-ResNet-50 (arXiv 2105.01883, section 3), as they are trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, relu

PARTITION = 7


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    return _net(keys, image) if name.startswith("repmlpnet") else _resnet(keys, image)


def _conv_bn(at: Keys, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    return (at / "bn").batch_norm((at / "conv").conv(x, stride, padding, groups))


def _net(keys: Keys, image: Tensor) -> Tensor:
    x = relu(_conv_bn(keys / "conv_embedding", image, 4))
    embeds = (keys / "embeds").each()
    for place, stage in enumerate((keys / "stages").each()):
        for unit in stage.each():
            x = x + _shared(unit / "repmlp_block", (unit / "prebn1").batch_norm(x))
            z = gelu(_conv_bn(unit / "ffn_block" / "ffn_fc1", (unit / "prebn2").batch_norm(x)))
            x = x + _conv_bn(unit / "ffn_block" / "ffn_fc2", z)
        if place < len(embeds):
            x = relu(_conv_bn(embeds[place], x, 2))
    return (keys / "head").linear((keys / "head_norm").batch_norm(x).mean((2, 3)))


def _shared(at: Keys, x: Tensor) -> Tensor:
    """Channels are (g s): one matrix over all tokens for every s, and depthwise kernels of 1x1 and 3x3."""
    h, w = x.shape[2:]
    hidden = relu((at / "gp" / "fc1").conv(x.mean((2, 3), keepdim=True)))
    gate = torch.sigmoid((at / "gp" / "fc2").conv(hidden))
    sets = (at / "fc3_bn")["weight"].shape[0]
    parts = x.reshape(-1, sets, h, w)
    matrices = (at / "fc3")["weight"].reshape(sets, h * w, h * w)
    y = torch.einsum("gsq,spq->gsp", parts.flatten(2), matrices).reshape(parts.shape)
    y = (at / "fc3_bn").batch_norm(y)
    for side in (1, 3):
        y = y + _conv_bn(at / f"repconv{side}", parts, 1, side // 2, sets)
    return y.reshape(x.shape) * gate


def _resnet(keys: Keys, image: Tensor) -> Tensor:
    x = relu(_conv_bn(keys / "stage0" / 0, image, 2, 3))
    x = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))  # of what a ReLU gave: zeros change nothing
    for number in (1, 2, 3, 4):
        for place, block in enumerate((keys / f"stage{number}").each()):
            stride = 2 if number > 1 and place == 0 else 1
            kept = _conv_bn(block / "shortcut", x, stride) if "shortcut" in block else x
            x = relu(_branch(block, x, stride) + kept)
    return (keys / "linear").linear(x.mean((2, 3)))


def _branch(at: Keys, x: Tensor, stride: int) -> Tensor:
    if "light_repmlp" in at:
        z = relu(_perceptrons(at / "light_repmlp", relu(_conv_bn(at / "light_conv1", x))))
        return _conv_bn(at / "light_conv3", z)
    if "btnk_repmlp" in at:
        z = relu(_conv_bn(at / "btnk_conv2", relu(_conv_bn(at / "btnk_conv1", x)), 1, 1))
        z = relu(_conv_bn(at / "btnk_conv4", relu(_perceptrons(at / "btnk_repmlp", z)), 1, 1))
        return _conv_bn(at / "btnk_conv5", z)
    z = relu(_conv_bn(at / "conv2", relu(_conv_bn(at / "conv1", x)), stride, 1))
    return _conv_bn(at / "conv3", z)


def _perceptrons(at: Keys, x: Tensor) -> Tensor:
    """Partitions of 7x7 tokens: all of them move by what their means say, then each is mixed by itself."""
    b, c, h, w = x.shape
    rows, columns = h // PARTITION, w // PARTITION
    parts = x.reshape(b, c, rows, PARTITION, columns, PARTITION)
    means = (at / "avg" / "bn").batch_norm(parts.mean((3, 5)))
    moved = (at / "fc1_fc2" / "fc2").linear(relu((at / "fc1_fc2" / "fc1").linear(means.flatten(1))))
    parts = parts + moved.reshape(b, c, rows, 1, columns, 1)
    parts = parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, PARTITION, PARTITION)
    kernel = (at / "fc3")["weight"][:, :, 0, 0]
    groups = parts[0].numel() // kernel.shape[1]
    y = torch.einsum("ngi,goi->ngo", parts.reshape(len(parts), groups, -1), kernel.reshape(groups, -1, kernel.shape[1]))
    y = (at / "fc3_bn").batch_norm(y.flatten(1)).reshape(parts.shape)
    for side in (1, 3, 5):
        y = y + _conv_bn(at / f"repconv{side}", parts, 1, side // 2, groups)
    return y.reshape(b, rows, columns, c, PARTITION, PARTITION).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
