"""Minimal transformers: reducing the transformer architecture to a minimum, Bermeitinger et al. 2024, arXiv 2410.13732.

Notation: `b` batch, `t` tokens (a class token, then patches), `c` channels, `h` heads of `d` channels. Encoders of
attention, x = norm_1(x + attention(x)), and where there is a feed-forward layer x = norm_2(x + mlp(x)), norms after the
sum. With weights = softmax(scores / sqrt d) over the tokens:

    unchanged     scores = (W_q x)(W_k x)^T       attention = W_o (weights (W_v x))
    wqk           scores = (W_qk x) x^T           attention = W_o (weights (W_v x))       one head
    wqk_nowvwo    scores = (W_qk x) x^T           attention = weights x                   one head
    symmetry      scores = x_h L_h L_h^T x_h^T    attention = W_o (weights (W_v x))       L_h lower triangular, packed

Every layer has a norm_2; without a feed-forward layer it is in the checkpoint and does nothing. The number of heads of
`unchanged` is in no checkpoint. The names of the parameters are those of the public implementation by A. Badaoui, whose
CIFAR-10 settings these are; the paper's authors published none.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["unchanged", "wqk", "wqk_nowvwo", "symmetry"]


class SelfAttention(nn.Module):
    """One of the four attentions; (b, t, c) to the same."""

    def __init__(self, dim: int, heads: int, kind: Kind) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        if kind == "unchanged":
            self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        elif kind == "symmetry":
            size = dim // heads
            self.trainable_params = nn.Parameter(torch.zeros(heads, size * (size + 1) // 2))
        else:
            self.qk = nn.Linear(dim, dim)
        if kind != "wqk_nowvwo":
            self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        queries, keys = self.compared(x)
        weights = (queries @ keys.transpose(-2, -1) / (c // self.heads) ** 0.5).softmax(-1)
        values = x.unsqueeze(1) if self.kind == "wqk_nowvwo" else self.split(self.value(x))
        mixed = (weights @ values).transpose(1, 2).reshape(b, t, c)
        return mixed if self.kind == "wqk_nowvwo" else self.out(mixed)

    def compared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is multiplied to the scores, each (b, h, t, d)."""
        if self.kind == "unchanged":
            return self.split(self.query(x)), self.split(self.key(x))
        if self.kind == "symmetry":
            heads = self.split(x)
            return heads @ self.metric(), heads
        return self.split(self.qk(x)), x.unsqueeze(1)

    def metric(self) -> Tensor:
        """L L^T of each head, (h, d, d); L holds its packed numbers row by row."""
        size = round((2 * self.trainable_params.shape[1]) ** 0.5 - 0.5)
        rows, columns = torch.tril_indices(size, size).unbind(0)
        lower = self.trainable_params.new_zeros(self.heads, size, size)
        lower = lower.index_put((torch.arange(self.heads)[:, None], rows, columns), self.trainable_params)
        return lower @ lower.transpose(1, 2)

    def split(self, x: Tensor) -> Tensor:
        """(b, t, c) to heads (b, h, t, d)."""
        b, t, c = x.shape
        return x.reshape(b, t, self.heads, c // self.heads).transpose(1, 2)


class Mlp(nn.Sequential):
    """Two linear layers as wide as what they read, a GELU between them; (b, t, c) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))


class EncoderLayer(nn.Module):
    """norm1(x + attention(x)), and norm2(x + mlp(x)) of it where there is an MLP; (b, t, c) to the same."""

    def __init__(self, dim: int, heads: int, kind: Kind, with_mlp: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads, kind)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim) if with_mlp else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x))
        return x if self.mlp is None else self.norm2(x + self.mlp(x))


class PatchEmbedding(nn.Module):
    """Images (b, in_chans, height, width) to tokens (b, 1 + patches, c), the class token first, positions added."""

    def __init__(self, dim: int, patch_size: int, patches: int, in_chans: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embeddings = nn.Parameter(torch.zeros(1, patches + 1, dim))
        self.patcher = nn.Sequential(nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patcher(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches], dim=1)
        return self.position_embeddings + tokens


class Encoder(nn.Module):
    """Layers one after the other; (b, t, c) to the same."""

    def __init__(self, depth: int, dim: int, heads: int, kind: Kind, with_mlp: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, kind, with_mlp) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MinimalTransformer(nn.Module):
    """The classifier: images (b, in_chans, image_size, image_size) to logits (b, num_classes), by the class token.

    Raises ValueError where the patches do not cover the image, or where the kind of attention has another number of
    heads.
    """

    def __init__(
        self,
        kind: Kind,
        heads: int = 1,
        with_mlp: bool = False,
        depth: int = 6,
        dim: int = 64,
        patch_size: int = 8,
        image_size: int = 32,
        in_chans: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"image size {image_size} is no multiple of the patch size {patch_size}")
        if dim % heads or (heads != 1 and kind in ("wqk", "wqk_nowvwo")):
            raise ValueError(f"{heads} heads do not fit {kind} attention over {dim} channels")
        self.embedding = PatchEmbedding(dim, patch_size, (image_size // patch_size) ** 2, in_chans)
        self.transformer_encoder = Encoder(depth, dim, heads, kind, with_mlp)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.transformer_encoder(self.embedding(x))[:, 0])


SIZE = 32


def mint_unchanged(num_classes: int = 10, image_size: int = SIZE) -> MinimalTransformer:
    """Attention as it was, four heads, without feed-forward layers: 0.12 M parameters."""
    return _fixed("unchanged", 4, image_size, num_classes)


def mint_unchanged_1_head(num_classes: int = 10, image_size: int = SIZE) -> MinimalTransformer:
    """Attention as it was, one head, without feed-forward layers: 0.12 M parameters."""
    return _fixed("unchanged", 1, image_size, num_classes)


def mint_unchanged_mlp(num_classes: int = 10, image_size: int = SIZE) -> MinimalTransformer:
    """Attention as it was, four heads, and feed-forward layers: 0.17 M parameters."""
    return _fixed("unchanged", 4, image_size, num_classes, with_mlp=True)


def mint_unchanged_mlp_1_head(num_classes: int = 10, image_size: int = SIZE) -> MinimalTransformer:
    """Attention as it was, one head, and feed-forward layers: 0.17 M parameters."""
    return _fixed("unchanged", 1, image_size, num_classes, with_mlp=True)


def mint_wqk(num_classes: int = 10, image_size: int = SIZE) -> MinimalTransformer:
    """Query and key as one matrix: 0.09 M parameters."""
    return _fixed("wqk", 1, image_size, num_classes)


def mint_wqk_nowvwo(num_classes: int = 10, image_size: int = SIZE) -> MinimalTransformer:
    """Query and key as one matrix, no value and output matrices: 0.04 M parameters."""
    return _fixed("wqk_nowvwo", 1, image_size, num_classes)


def mint_wqk_nowvwo_mlp(num_classes: int = 10, image_size: int = SIZE) -> MinimalTransformer:
    """Query and key as one matrix, no value and output matrices, and feed-forward layers: 0.09 M parameters."""
    return _fixed("wqk_nowvwo", 1, image_size, num_classes, with_mlp=True)


def mint_symmetry(num_classes: int = 10, image_size: int = SIZE) -> MinimalTransformer:
    """Query and key as one symmetric matrix for each of four heads: 0.07 M parameters."""
    return _fixed("symmetry", 4, image_size, num_classes)


def mint_symmetry_1_head(num_classes: int = 10, image_size: int = SIZE) -> MinimalTransformer:
    """Query and key as one symmetric matrix: 0.08 M parameters."""
    return _fixed("symmetry", 1, image_size, num_classes)


def _fixed(kind: Kind, heads: int, image_size: int, num_classes: int, with_mlp: bool = False) -> MinimalTransformer:
    if image_size != SIZE:
        raise ValueError(f"its weights depend on the position: {image_size} was asked for, only {SIZE} fits")
    return MinimalTransformer(kind, heads, with_mlp, image_size=image_size, num_classes=num_classes)
