"""TransTEE: transformers as treatment effect estimators, Zhang et al. 2022, arXiv 2202.01336.

The authors' variant for a treatment with a dosage. `b` rows, `f` covariates x, a treatment t, a dosage d:

    z = embed(relu(x W_1 + b_1))           25 numbers, each a token: z_i = u_i w + v
    z = norm1(z + attention(z, z));  z = norm2(z + mlp(z))
    q = relu([embed t, embed d] W_2 + b_2)                                    one token
    q = q + attention(q, q);  q = q + attention(q, z);  y = (q + mlp(q)) W_Q + b_Q

The norms are BatchNorms whose channels are the tokens. Those of the decoder have weights in the checkpoints and are
not used. The names of the parameters are those of the authors' checkpoints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.zoo.recipe import Input


class Columns(nn.Module):
    """x W + b with W stored as (width, out), on the last axis."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, out) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Embedding(nn.Module):
    """A number becomes a token: (...) to (..., dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.treat_weight = nn.Linear(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.treat_weight(x.unsqueeze(-1))


class Attention(nn.Module):
    """Multi-head attention of tokens (b, n, dim) to others (b, m, dim), with one matrix for all three projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) / math.sqrt(dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        parts = zip((x, memory, memory), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        query, key, value = (
            F.linear(tokens, weight, bias).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for tokens, weight, bias in parts
        )
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        return self.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention and an MLP, each with its BatchNorm over the tokens: (b, tokens, dim) to the same."""

    def __init__(self, dim: int, heads: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.BatchNorm1d(tokens), nn.BatchNorm1d(tokens)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x, x))
        return self.norm2(x + self.linear2(torch.relu(self.linear1(x))))


class DecoderLayer(nn.Module):
    """Attention to itself, attention to the memory (b, m, dim), and an MLP: (b, 1, dim) to the same.

    `norm1`, `norm2` and `norm3` are in the authors' checkpoints and in none of their equations.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = Attention(dim, heads), Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm1d(1), nn.BatchNorm1d(1), nn.BatchNorm1d(1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.self_attn(x, x)
        x = x + self.multihead_attn(x, memory)
        return x + self.linear2(torch.relu(self.linear1(x)))


class Layers(nn.Module):
    """The module that holds the layers of the encoder, or of the decoder."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, *memory: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, *memory)
        return x


class TransTEE(nn.Module):
    """Covariates (b, covariates), treatments (b) and dosages (b) to outcomes (b, 1)."""

    def __init__(self, covariates: int, tokens: int, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.inputs = (
            Input("covariates", (covariates,), low=0, high=1),
            Input("treatment", (), low=0, high=3),
            Input("dosage", (), low=0, high=1),
        )
        self.linear1 = Columns(covariates, tokens)
        self.feature_weight, self.treat_emb, self.dosage_emb = Embedding(dim), Embedding(dim), Embedding(dim)
        self.linear2 = Columns(2 * dim, dim)
        self.encoder = Layers(EncoderLayer(dim, heads, hidden, tokens))
        self.decoder = Layers(DecoderLayer(dim, heads, hidden))
        self.Q = Columns(dim, 1)

    def forward(self, covariates: Tensor, treatment: Tensor, dosage: Tensor) -> Tensor:
        memory = self.encoder(self.feature_weight(torch.relu(self.linear1(covariates))))
        asked = torch.cat([self.treat_emb(treatment), self.dosage_emb(dosage)], -1)
        query = torch.relu(self.linear2(asked)).unsqueeze(1)
        return self.Q(self.decoder(query, memory).squeeze(1))


def transtee_dosage() -> TransTEE:
    """TransTEE for dosages, on the 4000 covariates of News: 0.14 M parameters."""
    return TransTEE(covariates=4000, tokens=25, dim=48, heads=2, hidden=50)
