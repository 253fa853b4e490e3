"""Strip-MLP: arXiv 2307.11458, section 3: half of the channels mixed by strips of three rows and of three columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, shares


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    x = _blocks(keys / "blocks1", keys / "patch_embed", image)
    x = (keys / "merging1").conv(x, 2)
    from_1_to_3 = _halved(keys / "conv_s1_28", x)
    from_1_to_4 = _halved(keys / "conv_s1_14", from_1_to_3)
    x = (keys / "merging2").conv(_blocks(keys / "blocks2", None, x), 2)
    from_2_to_4 = _halved(keys / "conv_s2_14", x)
    x = (keys / "merging3").conv(_blocks(keys / "blocks3", None, x + from_1_to_3), 2)
    x = _blocks(keys / "blocks4", None, x + from_1_to_4 + from_2_to_4)
    return (keys / "head").linear((keys / "norm").batch_norm(x).mean((2, 3)))


def _halved(at: Keys, x: Tensor) -> Tensor:
    return at.conv(x, 2, 0, x.shape[1])


def _blocks(at: Keys, embed: Keys | None, x: Tensor) -> Tensor:
    x = x if embed is None else embed.conv(x, 4)
    for block in at.each():
        merge = block / "token_mixing" / "dwsc" / "conv_merge"
        z = (merge / "Conv").conv(gelu((merge / "BN").batch_norm(x)), 1, 1, x.shape[1])
        x = x + _tokens(block / "token_mixing" / "smlp_block", z)
        x = x + _channels(block / "channel_mixing", x)
    return x


def _tokens(at: Keys, x: Tensor) -> Tensor:
    x = gelu((at / "mlp" / 1).batch_norm((at / "mlp" / 0).conv(x)))
    half = x.shape[1] // 2
    return (at / "fuse").conv(torch.cat([_strips(at, x[:, :half]), _nearby(at, x[:, half:])], 1))


def _nearby(at: Keys, x: Tensor) -> Tensor:
    wide, high = (at / "fc_h").conv(x, 1, (1, 3), x.shape[1]), (at / "fc_w").conv(x, 1, (3, 1), x.shape[1])
    branches = [high, wide, x]
    hidden = gelu((at / "reweight" / "fc1").conv(sum(branches).mean((2, 3), keepdim=True)))
    weights = shares((at / "reweight" / "fc2").conv(hidden).flatten(1))
    return sum(one[:, :, None, None] * y for one, y in zip(weights, branches, strict=True))


def _strips(at: Keys, x: Tensor) -> Tensor:
    """Channels are (p c): the matrices of c serve every p. Rows are mixed first, whose result mixes with columns."""
    full = 2 * x.shape[1]
    groups = 2 if full % 80 == 0 else 4
    y = _strip(at / "proj_h", x + _places(at / "relate_pos_h", x), groups)
    y = gelu((at / "BN").batch_norm((at / "fuse_h").conv(torch.cat([y, x], 1)))) + _places(at / "relate_pos_w", x)
    return (at / "fuse_w").conv(torch.cat([x, _strip(at / "proj_w", y.mT, groups).mT], 1))


def _strip(at: Keys, x: Tensor, groups: int) -> Tensor:
    """y[h, v] = sum over k in -1..1 and w of W[c, v, w, k] x[h + k, w]: of three rows, zeros around the image."""
    b, channels, height, width = x.shape
    own = channels // groups
    kernel = at["weight"].reshape(own, width, width, 3)
    rows = F.pad(x, (0, 0, 1, 1)).reshape(b, groups, own, height + 2, width)
    windows = torch.stack([rows[:, :, :, k : k + height] for k in range(3)], -1)
    result = torch.einsum("bpchwk,cvwk->bpchv", windows, kernel) + at["bias"].reshape(own, 1, width)
    return result.reshape(x.shape)


def _places(at: Keys, x: Tensor) -> Tensor:
    """A vector for each distance of column and row, (c, h, w)."""
    height, width = x.shape[2:]
    table = at["embeddings_table"]
    middle = table.shape[0] // 2
    return torch.stack([table[[j - i + middle for j in range(width)]] for i in range(height)]).permute(2, 0, 1)


def _channels(at: Keys, x: Tensor) -> Tensor:
    z = (at / "conv_77").conv(x, 1, 3, x.shape[1]).permute(0, 2, 3, 1)
    z = gelu((at / "fc1").linear((at / "layer_norm").layer_norm(z, 1e-5)))
    length = z.square().sum((1, 2), keepdim=True).sqrt()
    grn = at / "grn"
    z = grn["gamma"] * z * (length / (length.mean(3, keepdim=True) + 1e-6)) + grn["beta"] + z
    return (at / "fc2").linear(z).permute(0, 3, 1, 2)
