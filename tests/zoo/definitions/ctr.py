"""DualMLP and FinalMLP: arXiv 2304.00902, equations 4 to 11."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, relu


def outputs(name: str, keys: Keys, ids: Tensor) -> Tensor:
    """Ids (b, fields) to probabilities (b, 1)."""
    e = torch.cat(_embedded(keys / "embedding_layer", ids), 1)
    if name == "dualmlp":
        return torch.sigmoid(_stream(keys / "mlp1", e) + _stream(keys / "mlp2", e))
    select = keys / "fs_module"
    context = torch.cat(_embedded(select / "fs2_ctx_emb", ids), 1)
    first = 2 * torch.sigmoid(_stream(select / "fs1_gate", select["fs1_ctx_bias"])) * e
    second = 2 * torch.sigmoid(_stream(select / "fs2_gate", context)) * e
    x, y, fusion = _hidden(keys / "mlp1", first), _hidden(keys / "mlp2", second), keys / "fusion_module"
    heads = x.shape[1] * y.shape[1] // fusion["w_xy"].shape[0]
    matrices = fusion["w_xy"].reshape(heads, x.shape[1] // heads, y.shape[1] // heads)
    parts = (x.reshape(len(x), heads, -1), matrices, y.reshape(len(y), heads, -1))
    bilinear = torch.einsum("bki,kij,bkj->b", *parts)[:, None]
    return torch.sigmoid((fusion / "w_x").linear(x) + (fusion / "w_y").linear(y) + bilinear)


def _embedded(at: Keys, ids: Tensor) -> list[Tensor]:
    """A row of its field's table for every id; fields are called C0 to C9."""
    tables = at / "embedding_layer" / "embedding_layers"
    return [(tables / f"C{field}")["weight"][ids[:, field]] for field in range(ids.shape[1]) if f"C{field}" in tables]


def _stream(at: Keys, x: Tensor) -> Tensor:
    """Linear layers with a ReLU between each two."""
    layers = (at / "mlp").each()
    for layer in layers[:-1]:
        x = relu(layer.linear(x))
    return layers[-1].linear(x)


def _hidden(at: Keys, x: Tensor) -> Tensor:
    return relu(_stream(at, x))
