"""DualMLP and FinalMLP: two-stream MLPs for click-through rates, Mao et al. 2023, arXiv 2304.00902.

A row holds one integer id for each of F fields; each field has a table with one vector of `dim` numbers per id:

    e  = (T_1[id_1], ..., T_F[id_F])                                       F * dim numbers
    DualMLP:   p = sigmoid(mlp1(e) + mlp2(e))
    FinalMLP:  g_s = 2 sigmoid(gate_s(c_s)) * e,   o_s = mlp_s(g_s)        for the streams s = 1, 2
               p   = sigmoid(w_x o_1 + w_y o_2 + sum over heads k of o_1k^T W_k o_2k)

The context c_s of a gate is either learned (then the gate is a constant) or the embedding, from tables of its own, of
some of the fields. The names of the parameters are those of the authors' checkpoints (FuxiCTR).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlpdeploy.errors import CheckpointError
from mlpdeploy.zoo.recipe import Input

TABLES = "embedding_layer.embedding_layers"
SYNTHETIC = {f"C{index}": 1000 for index in range(10)}
"""Ten fields of a thousand ids: what the recipes are measured with; a checkpoint brings the fields of its data set."""


@dataclass(frozen=True)
class Tower:
    """Hidden units of an MLP, whether a BatchNorm follows each linear layer, and whether it was trained with dropout.

    Dropout computes nothing at inference, but it has a number in the names of the layers after it.
    """

    units: tuple[int, ...]
    batch_norm: bool = False
    dropout: bool = False

    def layers(self, width: int) -> list[nn.Module]:
        """Linear, BatchNorm, ReLU and dropout of every hidden layer."""
        found: list[nn.Module] = []
        for before, after in zip((width, *self.units), self.units, strict=False):
            found.append(nn.Linear(before, after))
            found += [nn.BatchNorm1d(after)] if self.batch_norm else []
            found.append(nn.ReLU())
            found += [nn.Identity()] if self.dropout else []
        return found


NARROW, WIDE, DEEP = Tower((400,)), Tower((800,)), Tower((64, 64, 64))


class Stream(nn.Module):
    """An MLP (b, width) to (b, units[-1]); with `out` a linear layer to (b, out) follows, then the layers `last`."""

    def __init__(self, width: int, tower: Tower, out: int | None = None, *last: nn.Module) -> None:
        super().__init__()
        layers = tower.layers(width)
        layers += [] if out is None else [nn.Linear((width, *tower.units)[-1], out)]
        self.mlp = nn.Sequential(*layers, *last)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class FeatureTables(nn.Module):
    """One table of embeddings for each of the fields `only`: ids (b, F) to (b, len(only) * dim), in the fields' order.

    `vocabulary` gives the number of ids of every field, in the order of the columns of ids.
    """

    def __init__(self, vocabulary: Mapping[str, int], dim: int, only: Sequence[str]) -> None:
        super().__init__()
        self.columns = {field: column for column, field in enumerate(vocabulary) if field in only}
        self.embedding_layers = nn.ModuleDict({field: nn.Embedding(vocabulary[field], dim) for field in self.columns})

    def forward(self, ids: Tensor) -> Tensor:
        columns = self.columns.values()
        tables = self.embedding_layers.values()
        return torch.cat([table(ids[:, column]) for column, table in zip(columns, tables, strict=True)], 1)


class FeatureEmbedding(nn.Module):
    """The module that holds the tables."""

    def __init__(self, vocabulary: Mapping[str, int], dim: int, only: Sequence[str]) -> None:
        super().__init__()
        self.embedding_layer = FeatureTables(vocabulary, dim, only)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding_layer(ids)


class FeatureSelection(nn.Module):
    """Gates of the two streams: ids (b, F) and e (b, F * dim) to two of the shape of e.

    `contexts` are the fields that each gate reads; a gate without any has a learned context and is the same for all.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], dim: int, hidden: Tower, contexts: tuple[Sequence[str], Sequence[str]]
    ) -> None:
        super().__init__()
        self.contexts = contexts
        for stream, fields in enumerate(contexts, 1):
            gate = Stream(dim * max(1, len(fields)), hidden, dim * len(vocabulary), nn.Sigmoid())
            setattr(self, f"fs{stream}_gate", gate)
            if fields:
                setattr(self, f"fs{stream}_ctx_emb", FeatureEmbedding(vocabulary, dim, fields))
            else:
                setattr(self, f"fs{stream}_ctx_bias", nn.Parameter(torch.zeros(1, dim)))

    def forward(self, ids: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        return self._gated(1, ids, embedded), self._gated(2, ids, embedded)

    def _gated(self, stream: int, ids: Tensor, embedded: Tensor) -> Tensor:
        embedding = getattr(self, f"fs{stream}_ctx_emb", None)
        context = getattr(self, f"fs{stream}_ctx_bias") if embedding is None else embedding(ids)
        return embedded * (getattr(self, f"fs{stream}_gate")(context) * 2)


class InteractionAggregation(nn.Module):
    """The bilinear fusion of the streams, head by head: (b, x_dim) and (b, y_dim) to (b, 1)."""

    def __init__(self, x_dim: int, y_dim: int, heads: int) -> None:
        super().__init__()
        if x_dim % heads or y_dim % heads:
            raise ValueError(f"{x_dim} and {y_dim} features do not split into {heads} heads")
        self.heads, self.x_dim, self.y_dim = heads, x_dim // heads, y_dim // heads
        self.w_x = nn.Linear(x_dim, 1)
        self.w_y = nn.Linear(y_dim, 1)
        self.w_xy = nn.Parameter(torch.empty(heads * self.x_dim * self.y_dim, 1))
        nn.init.xavier_normal_(self.w_xy)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        per_head = x.unflatten(1, (self.heads, 1, self.x_dim)) @ self.w_xy.reshape(self.heads, self.x_dim, self.y_dim)
        bilinear = per_head.flatten(1) * y
        return self.w_x(x) + self.w_y(y) + bilinear.sum(1, keepdim=True)


class TwoStreams(nn.Module):
    """What both networks share: the tables, and the input of integer ids (b, F), each below its field's number."""

    def __init__(self, vocabulary: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.inputs = (Input("ids", (len(vocabulary),), "int64", 0, min(vocabulary.values())),)
        self.embedding_layer = FeatureEmbedding(vocabulary, dim, tuple(vocabulary))


class DualMLP(TwoStreams):
    """The sum of two MLPs on the embeddings: integer ids (b, F) to probabilities (b, 1)."""

    def __init__(self, vocabulary: Mapping[str, int], dim: int, first: Tower, second: Tower) -> None:
        super().__init__(vocabulary, dim)
        self.mlp1 = Stream(dim * len(vocabulary), first, 1)
        self.mlp2 = Stream(dim * len(vocabulary), second, 1)

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.embedding_layer(ids)
        return torch.sigmoid(self.mlp1(embedded) + self.mlp2(embedded))


class FinalMLP(TwoStreams):
    """Two gated MLPs and their bilinear fusion: integer ids (b, F) to probabilities (b, 1).

    Without `gate` the streams read the embeddings themselves. Raises ValueError where the streams' features do not
    split into `heads`.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        dim: int,
        first: Tower,
        second: Tower,
        gate: Tower | None,
        contexts: tuple[Sequence[str], Sequence[str]],
        heads: int,
    ) -> None:
        super().__init__(vocabulary, dim)
        self.mlp1 = Stream(dim * len(vocabulary), first)
        self.mlp2 = Stream(dim * len(vocabulary), second)
        self.fs_module = None if gate is None else FeatureSelection(vocabulary, dim, gate, contexts)
        self.fusion_module = InteractionAggregation(first.units[-1], second.units[-1], heads)

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.embedding_layer(ids)
        one, two = (embedded, embedded) if self.fs_module is None else self.fs_module(ids, embedded)
        return torch.sigmoid(self.fusion_module(self.mlp1(one), self.mlp2(two)))


def finalmlp(
    vocabulary: Mapping[str, int] | None = None,
    dim: int = 10,
    first: Tower = NARROW,
    second: Tower = WIDE,
    gate: Tower | None = WIDE,
    contexts: tuple[Sequence[str], Sequence[str]] = ((), ("C0",)),
    heads: int = 50,
) -> FinalMLP:
    """FinalMLP; without `vocabulary` on ten fields of a thousand ids: 0.4 M parameters."""
    return FinalMLP(vocabulary or SYNTHETIC, dim, first, second, gate, contexts, heads)


def dualmlp(
    vocabulary: Mapping[str, int] | None = None,
    dim: int = 10,
    first: Tower = DEEP,
    second: Tower = DEEP,
) -> DualMLP:
    """DualMLP; without `vocabulary` on ten fields of a thousand ids: 0.1 M parameters."""
    return DualMLP(vocabulary or SYNTHETIC, dim, first, second)


def read_finalmlp(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict without the prefix of FuxiCTR's wrapper, and what its shapes tell of the network.

    Raises CheckpointError where the fields' tables differ in width.
    """
    state, options = _read(state)
    fused = state.get("fusion_module.w_xy")
    if fused is None or not options:
        return state, {}
    first, second = _tower(state, "mlp1"), _tower(state, "mlp2")
    gate = _tower(state, "fs_module.fs1_gate", outputs=1) if "fs_module.fs1_gate.mlp.0.weight" in state else None
    contexts = tuple(tuple(_tables(state, f"fs_module.{stream}_ctx_emb")) for stream in ("fs1", "fs2"))
    heads = first.units[-1] * second.units[-1] // fused.shape[0]  # w_xy has heads * (x / heads) * (y / heads) rows
    return state, options | {"first": first, "second": second, "gate": gate, "contexts": contexts, "heads": heads}


def read_dualmlp(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict without the prefix of FuxiCTR's wrapper, and what its shapes tell of the network.

    Raises CheckpointError where the fields' tables differ in width.
    """
    state, options = _read(state)
    if not options:
        return state, {}
    return state, options | {"first": _tower(state, "mlp1", outputs=1), "second": _tower(state, "mlp2", outputs=1)}


def _read(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = {key.removeprefix("net."): value for key, value in state.items()}
    tables = _tables(state, "embedding_layer")
    widths = {field: table.shape[1] for field, table in tables.items()}
    if not tables:
        return state, {}
    dim = max(widths.values())
    if odd := [field for field, width in widths.items() if width != dim]:
        # A number has a table of one column, which multiplies it.
        raise CheckpointError(f"the fields {', '.join(odd)} have no embeddings of {dim} numbers: all must be ids")
    return state, {"vocabulary": {field: len(table) for field, table in tables.items()}, "dim": dim}


def _tables(state: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """The tables below one module, by field."""
    pattern = re.compile(rf"{re.escape(owner)}\.{re.escape(TABLES)}\.(.+)\.weight")
    return {found[1]: value for key, value in state.items() if (found := pattern.fullmatch(key))}


def _tower(state: Mapping[str, Tensor], owner: str, outputs: int = 0) -> Tower:
    """The hidden layers below one module, whose last `outputs` linear layers are not hidden."""
    pattern = re.compile(rf"{re.escape(owner)}\.mlp\.(\d+)\.weight")
    weights = {int(found[1]): value for key, value in state.items() if (found := pattern.fullmatch(key))}
    places = sorted(place for place, value in weights.items() if value.dim() == 2)
    norm = f"{owner}.mlp.1.running_mean" in state
    dropout = len(places) > 1 and places[1] - places[0] > (3 if norm else 2)
    hidden = places[: len(places) - outputs]
    return Tower(tuple(weights[place].shape[0] for place in hidden), norm, dropout)
