"""Operations that the exporter has no form for: what PyTorch gives, or one line that names them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.errors import NetworkError
from mlpdeploy.graph.tracing.trace import TensorSpec
from tests.engine.onnx.test_elementary import Function
from tests.engine.onnx.test_emit import emitted, infer


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linalg.svdvals(x.unsqueeze(-1) * x.unsqueeze(-2))


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = torch.ops.mlpdeploy_tests.double(x)
        return doubled


@torch.library.custom_op("mlpdeploy_tests::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    """2 x, by an operation that ONNX knows nothing of."""
    return x * 2


@double.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Kernels(nn.Module):
    """A kernel of its own for each row: as many groups as rows, which ONNX has no place for."""

    def forward(self, x: Tensor) -> Tensor:
        kernels = x.sin()[:, None, :2]
        return F.conv1d(x.reshape(1, -1, 4), kernels, groups=x.shape[0]).reshape(-1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "operation"), [(Custom, "double"), (Spectrum, "linalg_svdvals"), (Kernels, "aten.conv1d.default")]
)
def test_an_operation_without_an_onnx_form_is_named_with_its_module_and_line(
    kind: type[nn.Module], operation: str
) -> None:
    network = nn.Sequential(nn.Linear(4, 4), kind())
    with pytest.raises(NetworkError) as caught:
        emitted(network, TensorSpec("x", (4,), torch.float32))
    message = str(caught.value)
    assert operation in message and "has no ONNX form" in message and "module '1'" in message
    assert 'File "test_lacking.py", line' in message and "\n" not in message and len(message) < 400, message


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.hypot(x, x + 1),
        lambda x: torch.fmax(x, 2 * x) - torch.fmin(x, -x),
        lambda x: x.median(-1, keepdim=True).values + x.median(1).values.mean(-1)[:, None, None],
        lambda x: x.kthvalue(2, 1).values,
        lambda x: torch.cdist(x, x[:, :2] + 1),
        lambda x: torch.cdist(x, x * 2, p=1) + torch.cdist(x, x * 2, p=3) + torch.cdist(x, x * 2, p=float("inf")),
        lambda x: torch.cdist(x.round(), x.round().flip(1), p=0),
        lambda x: x.clamp(0, 0.5) + x.clamp(min=0) + x.clip(-1, 0.25) + F.hardtanh(x, -1, 0.5) + F.hardsigmoid(x),
        lambda x: F.scaled_dot_product_attention(x, 2 * x, x + 1),
        lambda x: F.scaled_dot_product_attention(x, 2 * x, x, is_causal=True, scale=0.3),
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.transpose(1, 2)),
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(4, 4, dtype=torch.bool).tril()),
        lambda x: F.scaled_dot_product_attention(*[x.reshape(-1, 2, 1, 2, 3)] * 3, attn_mask=torch.zeros(2, 1, 2, 2)),
    ],
)
def test_operations_that_the_exporter_has_no_form_for(function: Callable[[Tensor], Tensor]) -> None:
    network, spec = Function(function), TensorSpec("x", (4, 3), torch.float32)
    model = emitted(network, spec).model
    rows = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    rows[1], rows[2, :, 0] = 0, 1e30
    for count in (1, 5):
        wanted = network(rows[:count]).numpy()
        np.testing.assert_allclose(infer(model, x=rows[:count].numpy())[0], wanted, rtol=2e-5, atol=2e-6)


def test_not_a_number_is_ignored_where_pytorch_ignores_it() -> None:
    model = emitted(Function(lambda x: torch.fmax(x, x.flip(-1))), TensorSpec("x", (3,), torch.float32)).model
    rows = np.array([[1, 2, np.nan], [np.nan, 0, np.nan]], np.float32)
    np.testing.assert_array_equal(infer(model, x=rows)[0], np.array([[1, 2, 1], [np.nan, 0, np.nan]], np.float32))
