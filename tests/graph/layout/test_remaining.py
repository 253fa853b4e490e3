"""The reasons for the transposes that are left, told from the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.engine.backends.tensorrt import parse_prepared
from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.graph.layout.remaining import transposes
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace


class Stem(nn.Module):
    """A convolution whose map a LayerNorm reads, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.patches(x).flatten(2).transpose(1, 2)).relu())


class Attention(nn.Module):
    """Products of two activations, heads in front."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key))
        shares = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.out((shares @ q).transpose(1, 2).flatten(2))


class Fused(Attention):
    """The same with PyTorch's one operation."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key))
        mixed = nn.functional.scaled_dot_product_attention(q, k, q)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Returned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().transpose(1, 2)


class Mixer(nn.Module):
    """Token mixing, whose transposes go."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tokens(x.transpose(1, 2)).transpose(1, 2)


def left(network: nn.Module, *shape: int) -> list[tuple[str, str, str]]:
    spec = TensorSpec("input", shape, torch.float32)
    found = transposes(rewrite(trace(network.eval(), [spec])).module.graph)
    return [(one.where, one.permutation, one.reason) for one in found]


def test_a_convolution_and_a_layer_norm_meet() -> None:
    reason = "conv2d gives channels in front of the grid; layer_norm wants the normalised axes last"
    assert [why for _, _, why in left(Stem(), 3, 8, 8)] == [reason]


def test_attention_has_its_heads_in_front() -> None:
    reasons = [why for _, _, why in left(Attention(), 5, 8)]
    assert reasons and all("matmul" in why and "batch, rows and columns" in why for why in reasons)
    assert reasons[-1].startswith("matmul gives") and "linear wants" in reasons[-1]


def test_an_attention_transposes_its_keys_itself() -> None:
    found = left(Fused(), 5, 8)
    where, permutation, reason = found[-2]
    assert permutation == "batch 2 5 4 -> batch 2 4 5" and where
    assert reason == "scaled_dot_product_attention multiplies its queries by the keys transposed"


@pytest.mark.parametrize("network", [Attention(), Fused()], ids=["matmul", "fused"])
def test_each_transpose_that_tensorrt_parses_is_explained(network: nn.Module) -> None:
    spec = TensorSpec("input", (5, 8), torch.float32)
    rewritten = rewrite(trace(network.eval(), [spec]))
    # The form would make two of what TensorRT turns by itself.
    parsed = parse_prepared(emit(apply(rewritten, plan(rewritten, "fp16"))).model, disabled=["transpose_last"])
    assert parsed.total.transposes == len(left(network, 5, 8))


def test_the_network_may_return_it_so() -> None:
    ((where, permutation, reason),) = left(Returned(), 5, 7)
    assert permutation == "batch 5 7 -> batch 7 5"
    assert reason == "input comes so; the network returns it so" and where


@pytest.mark.parametrize("network", [Mixer(), nn.Linear(8, 8)])
def test_nothing_is_left_to_explain(network: nn.Module) -> None:
    assert left(network, 5, 8) == []
