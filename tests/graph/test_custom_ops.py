"""The custom operation: the contraction that it says it is, and what can follow it in one kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpdeploy.graph import custom_ops

SIZES = [(2, 3, 5, 4, 3, 4), (1, 2, 1, 3, 6, 1), (3, 1, 4, 2, 1, 5), (2, 4, 4, 4, 4, 4)]
"""B, P, Q, S, K, T."""


def _example(sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, int]:
    b, p, q, s, k, t = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    x = torch.randn(b, p, q, s, generator=generator, dtype=dtype)
    return x, torch.randn(k * t, p * s, generator=generator, dtype=dtype), k


def _einsum(x: Tensor, weight: Tensor, k: int) -> Tensor:
    p, s = x.shape[1], x.shape[3]
    return torch.einsum("bpqs,ktps->bkqt", x, weight.reshape(k, -1, p, s))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_segment_grouped_projection_is_the_contraction_it_says(sizes: tuple[int, ...]) -> None:
    example = _example(sizes)
    result = custom_ops.segment_grouped_projection(*example)
    assert result.is_contiguous()
    torch.testing.assert_close(result, _einsum(*example), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
def test_segment_grouped_projection_passes_opcheck(sizes: tuple[int, ...]) -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(custom_ops.SEGMENT_GROUPED_PROJECTION, _example(sizes), test_utils=tests)


def _epilogue(sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """All that can follow: the q axis is the width, and its parts and t are the channels of an image."""
    b, _, q, _, k, t = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    shapes = ((k, 1, t), (b, 1, 1, q * t), (b, k, 1, q * t))
    bias, scale, accumulate = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return bias, "erf", scale, accumulate


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_its_epilogue_is_what_it_says(sizes: tuple[int, ...]) -> None:
    example, (bias, _, scale, accumulate) = _example(sizes), _epilogue(sizes)
    projected = _einsum(*example)
    run = torch.ops.mlpdeploy.segment_grouped_projection_epilogue
    shifted = run(*example, bias, None, None, None)
    torch.testing.assert_close(shifted, projected + bias, rtol=1e-12, atol=1e-12)
    wanted = accumulate + scale * F.gelu(projected + bias).reshape(accumulate.shape)
    got = run(*example, bias, "erf", scale, accumulate)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    near = run(*example, bias, "tanh", None, None)
    torch.testing.assert_close(near, F.gelu(projected + bias, approximate="tanh"), rtol=1e-12, atol=1e-12)
    added = run(*example, None, None, None, accumulate.transpose(1, 3).contiguous().transpose(1, 3))
    torch.testing.assert_close(added, accumulate + projected.reshape(accumulate.shape), rtol=1e-12, atol=1e-12)
    assert shifted.is_contiguous() and got.is_contiguous() and added.is_contiguous()


@pytest.mark.parametrize("parts", [(0,), (0, 1), (0, 1, 2, 3), (3,)], ids=str)
def test_its_epilogue_passes_opcheck(parts: tuple[int, ...]) -> None:
    given = [part if index in parts else default for index, (part, default) in
             enumerate(zip(_epilogue(SIZES[0]), (None, None, None, None), strict=True))]  # fmt: skip
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(custom_ops.WITH_EPILOGUE, (*_example(SIZES[0]), *given), test_utils=tests)
