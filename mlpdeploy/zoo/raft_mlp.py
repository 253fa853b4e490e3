"""RaftMLP: how much can be done without attention and with less spatial locality?, Tatsunami and Taki 2021.

Source: arXiv 2108.04384. Notation: `b` batch, `h w` token grid, `c` channels, split as `c = (r o)` into `r` rafts of
`o` channels. A block mixes along the height, along the width and along the channels, each with a residual MLP:

    x[b,h,w,r,o] += sum over e of V_h[r,h,e] gelu(sum over r,h of W_h[e,r,h] norm(x)[b,h,w,r,o])
    x[b,h,w,r,o] += sum over e of V_w[r,w,e] gelu(sum over r,w of W_w[e,r,w] norm(x)[b,h,w,r,o])
    x            += V_c gelu(W_c norm(x))

The authors store the affine parameters of the first two norms in the order `(o r)`.

The mixing matrices fix the grid of each level. Where the image gives another, tokens are resized to that grid before
the mixing and back after it, by bicubic interpolation. The names of the parameters are those of the authors'
checkpoints, which therefore load strictly and unchanged; other numbers in them are places of layers without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRAINED = 224
"""The image size whose grids the mixing matrices have."""


@dataclass(frozen=True)
class Stage:
    """One level: blocks, channels, patch size, rafts (0: one matrix mixes all tokens), patch sizes of the embedding.

    Without `scales` the embedding has the columns of its linear in the order (height, width, channel); with them, one
    after another, (channel, height, width).
    """

    depth: int
    dim: int
    patch: int
    rafts: int = 2
    scales: tuple[int, ...] = ()


class Resize(nn.Module):
    """Bicubic interpolation from one square grid to another, (b, h, w, c) to (b, h', w', c).

    It is linear and separable: one constant matrix, which is what it makes of the identity, on either axis.
    """

    def __init__(self, size: int, target: int) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("identity", torch.eye(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        identity: Tensor = self.identity  # type: ignore[assignment]
        size = (self.target, identity.shape[0])
        matrix = F.interpolate(identity[None, None], size, mode="bicubic", align_corners=False)[0, 0]
        return torch.einsum("bhvc,wv->bhwc", torch.einsum("buvc,hu->bhvc", x, matrix), matrix)


def resize(size: int, target: int) -> nn.Module:
    """`Resize`, or nothing where there is nothing to do."""
    return nn.Identity() if size == target else Resize(size, target)


class PatchLinear(nn.Linear):
    """A linear on patches that do not overlap, (b, h, w, c) to (b, h/patch, w/patch, c')."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__(patch * patch * channels, dim)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.unflatten(1, (self.patch, self.patch, -1)).permute(0, 3, 1, 2)
        return F.conv2d(x.permute(0, 3, 1, 2), kernel, self.bias, self.patch).permute(0, 2, 3, 1)


class MultiScalePatches(nn.Module):
    """One linear on zero-padded patches of several sizes around each centre, (b, h, w, c) to (b, h/s, w/s, c')."""

    def __init__(self, channels: int, dim: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.fc = nn.Linear(channels * sum(scale * scale for scale in scales), dim)

    def forward(self, x: Tensor) -> Tensor:
        stride, x = min(self.scales), x.permute(0, 3, 1, 2)
        columns = [F.unfold(x, scale, padding=(scale - stride) // 2, stride=stride) for scale in self.scales]
        grid = (x.shape[2] // stride, x.shape[3] // stride)
        return self.fc(torch.cat(columns, 1).transpose(1, 2)).unflatten(1, grid)


class Mixing(nn.Module):
    """x + fc2(gelu(fc1(norm x))), where subclasses say what the linears contract; (b, h, w, c) to the same."""

    def __init__(self, size: int, expansion: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        hidden = size * expansion
        self.fn = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class ChannelMixing(Mixing):
    """Over the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 4, nn.LayerNorm(dim))


class TokenMixing(Mixing):
    """Over all tokens of a grid at once, as MLP-Mixer does."""

    def __init__(self, grid: int, dim: int) -> None:
        super().__init__(grid * grid, 2, nn.Sequential(nn.Identity(), nn.LayerNorm(dim)))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(1, 2).transpose(1, 2)
        return x + self.fn(tokens).transpose(1, 2).reshape(x.shape)


class RaftMixing(Mixing):
    """Over the rafts and one axis of the grid: "height" or "width"."""

    def __init__(self, grid: int, dim: int, rafts: int, axis: str) -> None:
        super().__init__(grid * rafts, 2, nn.Sequential(nn.Identity(), nn.LayerNorm(dim)))
        self.rafts = rafts
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        r, o = self.rafts, c // self.rafts
        y = self.norm(x.reshape(b, h, w, r, o).transpose(3, 4).reshape(b, h, w, c)).reshape(b, h, w, o, r)
        if self.axis == "height":
            y = self.fn(y.permute(0, 2, 3, 4, 1).reshape(b, w, o, r * h))
            return x + y.reshape(b, w, o, r, h).permute(0, 4, 1, 3, 2).reshape(b, h, w, c)
        y = self.fn(y.permute(0, 1, 3, 4, 2).reshape(b, h, o, r * w))
        return x + y.reshape(b, h, o, r, w).permute(0, 1, 4, 3, 2).reshape(b, h, w, c)


def block(stage: Stage, grid: int, trained: int) -> nn.Sequential:
    """The mixings of one block, at the grid that their matrices have; between them, changes of the grid."""
    mixings: list[nn.Module] = [TokenMixing(trained, stage.dim)]
    if stage.rafts:
        height, width = (RaftMixing(trained, stage.dim, stage.rafts, axis) for axis in ("height", "width"))
        mixings = [height, nn.Identity(), width]
    return nn.Sequential(resize(grid, trained), *mixings, resize(trained, grid), ChannelMixing(stage.dim))


class Level(nn.Module):
    """Embedding and blocks, (b, h, w, c) to (b, h/patch, w/patch, c'), rounded up.

    `size`: height and width of what comes in; `trained`: those for which the mixing matrices were made.
    """

    def __init__(self, stage: Stage, channels: int, size: int, trained: int) -> None:
        super().__init__()
        self.grid, self.trained = -(-size // stage.patch), -(-trained // stage.patch)
        self.fit = resize(size, self.grid * stage.patch)
        scales = MultiScalePatches(channels, stage.dim, stage.scales) if stage.scales else nn.Identity()
        linear = nn.Identity() if stage.scales else PatchLinear(channels, stage.dim, stage.patch)
        blocks = (block(stage, self.grid, self.trained) for _ in range(stage.depth))
        self.fn = nn.Sequential(scales, linear, *blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.fit(x))


class RaftMLP(nn.Module):
    """The classifier: images (b, in_chans, image_size, image_size) to logits (b, num_classes).

    Raises ValueError where a level's channels do not split into its rafts, where its patch sizes do not fit each
    other, or where the image size is not positive.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        image_size: int = TRAINED,
        num_classes: int = 1000,
        in_chans: int = 3,
        trained: int = TRAINED,
    ) -> None:
        super().__init__()
        _check(stages, image_size)
        self.image_size = size = image_size
        levels: list[Level] = []
        for stage, channels in zip(stages, (in_chans, *(stage.dim for stage in stages)), strict=False):
            levels.append(Level(stage, channels, size, trained))
            size, trained = levels[-1].grid, levels[-1].trained
        self.levels = nn.ModuleList(levels)
        dim = stages[-1].dim
        self.heads = nn.ModuleList([nn.Sequential(nn.Identity(), nn.LayerNorm(dim))])
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            raise ValueError(
                f"this RaftMLP takes {self.image_size}x{self.image_size} images, got {x.shape[2]}x{x.shape[3]}"
            )
        x = x.permute(0, 2, 3, 1)
        for level in self.levels:
            x = level(x)
        return self.classifier(self.heads[0](x).mean((1, 2)))


def _check(stages: Sequence[Stage], image_size: int) -> None:
    if image_size < 1:
        raise ValueError(f"RaftMLP takes images of any size from 1 on, {image_size} was asked for")
    for index, stage in enumerate(stages):
        if stage.rafts and stage.dim % stage.rafts:
            raise ValueError(f"level {index}: {stage.dim} channels do not split into {stage.rafts} rafts")
        odd = [scale for scale in stage.scales if (scale - stage.patch) % 2 or scale < stage.patch]
        if odd or (stage.scales and min(stage.scales) != stage.patch):
            raise ValueError(f"level {index}: patches of {stage.scales} do not share centres {stage.patch} apart")


def _pyramid(*dims: int, multi_scale: bool = True) -> list[Stage]:
    depths, sizes, scales = (2, 2, 6, 2), (4, 2, 2, 2), ((4, 8), (2, 4), (2, 4), (2,))
    found = zip(depths, dims, sizes, scales, strict=True)
    return [Stage(depth, dim, patch, 2, scale if multi_scale else ()) for depth, dim, patch, scale in found]


def raft_mlp_s(num_classes: int = 1000, image_size: int = TRAINED) -> RaftMLP:
    """RaftMLP-S: 9.9 M parameters."""
    return RaftMLP(_pyramid(64, 128, 256, 512), image_size, num_classes)


def raft_mlp_m(num_classes: int = 1000, image_size: int = TRAINED) -> RaftMLP:
    """RaftMLP-M: 21.4 M parameters."""
    return RaftMLP(_pyramid(96, 192, 384, 768), image_size, num_classes)


def raft_mlp_l(num_classes: int = 1000, image_size: int = TRAINED) -> RaftMLP:
    """RaftMLP-L: 36.2 M parameters; 192 channels in the second level."""
    return RaftMLP(_pyramid(128, 192, 512, 1024), image_size, num_classes)


def raft_mlp_hierarchy_m(num_classes: int = 1000, image_size: int = TRAINED) -> RaftMLP:
    """RaftMLP-M with patches that do not overlap: 19.9 M parameters."""
    return RaftMLP(_pyramid(96, 192, 384, 768, multi_scale=False), image_size, num_classes)


def raft_mlp_r1(num_classes: int = 1000, image_size: int = TRAINED) -> RaftMLP:
    """One level, one raft: 58.1 M parameters."""
    return RaftMLP([Stage(12, 768, 16, 1)], image_size, num_classes)


def raft_mlp_r2(num_classes: int = 1000, image_size: int = TRAINED) -> RaftMLP:
    """One level, two rafts: 58.2 M parameters."""
    return RaftMLP([Stage(12, 768, 16, 2)], image_size, num_classes)


def raft_mlp_r4(num_classes: int = 1000, image_size: int = TRAINED) -> RaftMLP:
    """One level, four rafts: 58.4 M parameters."""
    return RaftMLP([Stage(12, 768, 16, 4)], image_size, num_classes)


def raft_mlp_deep(num_classes: int = 1000, image_size: int = TRAINED) -> RaftMLP:
    """One level of 36 blocks, two rafts: 43.5 M parameters."""
    return RaftMLP([Stage(36, 384, 16, 2)], image_size, num_classes)


def raft_org_mixer(num_classes: int = 1000, image_size: int = TRAINED) -> RaftMLP:
    """The authors' MLP-Mixer-B/16, tokens expanded by 2: 59.9 M parameters."""
    return RaftMLP([Stage(12, 768, 16, 0)], image_size, num_classes)
