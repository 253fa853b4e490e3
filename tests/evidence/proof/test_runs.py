"""The arithmetic that the typed stage is run with: float32 inside an operation, the low precision between them."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.evidence.proof.runs import Rounding, float64_run, module_run, shaken_run, specified_run, typed_run
from mlpdeploy.graph.tracing.trace import TensorSpec


def rounded(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    with torch.inference_mode(), Rounding():
        return function(*tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_each_operation_is_exact_but_for_one_rounding(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(s, generator=generator).to(dtype) for s in ((5, 64), (32, 64), (32,)))
    found = rounded(nn.functional.linear, x, w, b)
    exact = nn.functional.linear(x.double(), w.double(), b.double())
    assert found.dtype == dtype
    # Half a unit in the last place, and the float32 sum's own error before it.
    assert ((found.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps / 2 + 1e-5).all()


def test_every_step_between_operations_is_rounded() -> None:
    x = torch.tensor([2048.0], dtype=torch.float16)
    assert rounded(lambda t: (t + 1) - 2048, x).item() == 0.0  # FP16 has no 2049


def test_overflow_becomes_infinity_as_it_would() -> None:
    x = torch.tensor([300.0], dtype=torch.float16)
    assert rounded(lambda t: (t * t) * 1e-3, x).isinf().all()
    y = torch.tensor([300.0], dtype=torch.bfloat16)
    assert rounded(lambda t: t * t, y).item() == pytest.approx(90000, rel=4e-3)


def test_a_missing_cast_is_named() -> None:
    half, single = torch.ones(2, 2, dtype=torch.float16), torch.ones(2, 2)
    with pytest.raises(TypeError, match=r"aten\.add\.Tensor mixes torch\.float16 and torch\.float32"):
        rounded(torch.add, half, single)
    assert rounded(lambda a, b: a.float() + b, half, single).dtype == torch.float32
    assert rounded(lambda a: a * torch.tensor(2.0), half).dtype == torch.float16


def test_float32_graphs_are_left_alone() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(lambda t: t.softmax(-1) @ t.T, x), x.softmax(-1) @ x.T)


def test_runs_convert_to_the_dtypes_that_were_specified() -> None:
    spec = TensorSpec("x", (3,), torch.float16)
    arrays = {"x": np.array([[1.0, 2.0, 3.0]], np.float32)}
    assert module_run(lambda x: x, [spec], ["y"])(arrays)["y"].dtype == np.float16
    assert typed_run(lambda x: x.bfloat16() / 3, [spec], ["y"])(arrays)["y"].dtype == np.float32
    assert float64_run(lambda x: x.float() / 3, [spec], ["y"])(arrays)["y"][0, 0] == 1 / 3
    seen = {}
    for dtype, expected in ((torch.float16, np.float16), (torch.bfloat16, ml_dtypes.bfloat16)):
        specified_run(lambda x: seen.update(x) or {}, [TensorSpec("x", (3,), dtype)])(arrays)  # type: ignore[func-returns-value]
        assert seen["x"].dtype == expected and seen["x"].flags.c_contiguous


def test_another_number_of_outputs_than_named_is_an_error() -> None:
    spec = TensorSpec("x", (3,), torch.float32)
    with pytest.raises(ValueError, match="zip"):
        module_run(lambda x: (x, x), [spec], ["y"])({"x": np.ones((1, 3), np.float32)})


def test_views_of_low_precision_tensors_are_left_alone() -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).half()
    q, k, v = (part.float() for part in x.unbind(0))
    found = rounded(lambda t: nn.functional.scaled_dot_product_attention(*t.unbind(0)), x[:, None, None])
    expected = nn.functional.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None]).half()
    assert torch.equal(found, expected) and rounded(lambda t: t.transpose(0, 2)[1:], x).dtype == torch.float16


def test_what_is_conjugated_by_a_mark_alone_is_conjugated_in_float64_too() -> None:
    """`hfft` transforms the conjugate, which within it is a view of the same numbers."""

    def transformed(x: Tensor) -> Tensor:
        return torch.fft.hfft(torch.fft.rfft(x), n=24) + torch.fft.rfft(x).conj().imag.sum(-1, keepdim=True)

    rows = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    spec, arrays = TensorSpec("x", (24,), torch.float32), {"x": rows.numpy()}
    wanted = transformed(rows.double())
    for run in (float64_run(transformed, [spec], ["y"]), shaken_run(transformed, [spec], ["y"], 0.0, 0)):
        np.testing.assert_allclose(run(arrays)["y"], wanted.numpy(), rtol=1e-12, atol=1e-12)
