"""TransTEE for dosages (arXiv 2202.01336, figure 2), and the student of FF-G2M (arXiv 2305.10758)."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, relu, softmax

HEADS = 2


def outputs(name: str, keys: Keys, *inputs: Tensor) -> object:
    """The student: features (b, f) to the results of its layers, and the last of them once more.

    TransTEE: covariates (b, f), treatments (b) and dosages (b) to outcomes (b, 1).
    """
    if name == "ff_g2m_student":
        (x,) = inputs
        results = []
        for layer in (keys / "layers").each():
            x = layer.linear(x if not results else results[-1])
            results.append(relu(x) if len(results) < len((keys / "layers").each()) - 1 else x)
        return results, results[-1]
    covariates, treatment, dosage = inputs
    memory = _embedded(keys / "feature_weight", relu(_columns(keys / "linear1", covariates)))
    for layer in (keys / "encoder" / "layers").each():
        # The channels of the norms are the tokens.
        memory = (layer / "norm1").batch_norm(memory + _attention(layer / "self_attn", memory, memory))
        memory = (layer / "norm2").batch_norm(memory + _mlp(layer, memory))
    asked = [_embedded(keys / "treat_emb", treatment), _embedded(keys / "dosage_emb", dosage)]
    x = relu(_columns(keys / "linear2", torch.cat(asked, 1)))[:, None]
    for layer in (keys / "decoder" / "layers").each():
        x = x + _attention(layer / "self_attn", x, x)
        x = x + _attention(layer / "multihead_attn", x, memory)
        x = x + _mlp(layer, x)
    return _columns(keys / "Q", x[:, 0])


def _columns(at: Keys, x: Tensor) -> Tensor:
    return x @ at["weight"] + at["bias"]


def _embedded(at: Keys, x: Tensor) -> Tensor:
    """A vector for each number, along a line."""
    line = at / "treat_weight"
    return x[..., None] * line["weight"][:, 0] + line["bias"]


def _mlp(at: Keys, x: Tensor) -> Tensor:
    return (at / "linear2").linear(relu((at / "linear1").linear(x)))


def _attention(at: Keys, x: Tensor, memory: Tensor) -> Tensor:
    width = x.shape[2]
    q, k, v = (
        (tokens @ weight.mT + bias).unflatten(2, (HEADS, -1))
        for tokens, weight, bias in zip(
            (x, memory, memory),
            at["in_proj_weight"].reshape(3, width, width),
            at["in_proj_bias"].reshape(3, width),
            strict=True,
        )
    )
    weights = softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / (width // HEADS) ** 0.5, 3)
    return (at / "out_proj").linear(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
