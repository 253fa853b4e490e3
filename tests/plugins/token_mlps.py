"""The arithmetic of the kernel for MLPs over tokens, by Triton's interpreter, against the formula in float64.

Run by `test_arithmetic.py` in a process of its own: Triton reads TRITON_INTERPRET when it is imported. The interpreter
has BF16 as integers: `bf16` has it multiply the numbers that these are. TF32 is multiplied there as FP32 is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from mlpdeploy import kernels
from mlpdeploy.graph.token_mlp import by_products

launch = kernels.load("token_mlp.launch")
configurations = kernels.load("common.configurations")
problem = kernels.load("token_mlp.problem")

# The exponential of GELU by tanh may be infinite, on a GPU too; here NumPy says so.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
TOKENS = (1, 7, 49, 50, 64, 196, 197, 256)


@pytest.fixture(autouse=True)
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of BF16 numbers, which are the upper halves of FP32 numbers."""
    kept = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.data.dtype != np.uint16:
            return handle
        data = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(data, interpreter.tl.float32)

    def dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        return kept(builder, widened(a), widened(b), *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int, size: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / size).to(dtype)


def operands(sizes: tuple[int, ...], dtype: torch.dtype, parts: str = "up_bias down_bias residual") -> list[Any]:
    """Arguments of `run` after the configuration, for B, N, H, M and C; GELU by erf."""
    b, n, h, m, c = sizes
    shapes: dict[str, Any] = {"up_bias": (h,), "down_bias": (m,), "residual": (b, m, c)}
    given = {name: drawn(shapes[name], dtype, place) if name in parts else None for place, name in enumerate(shapes)}
    up, down = drawn((h, n), dtype, 4, n**0.5), drawn((m, h), dtype, 5, h**0.5)
    return [drawn((b, n, c), dtype, 6), up, given["up_bias"], "erf", down, given["down_bias"], given["residual"]]


def agree(got: Tensor, given: list[Any]) -> None:
    """With the formula in float64."""
    double = [one.double() if isinstance(one, Tensor) else one for one in given]
    columns = [None if double[place] is None else double[place][:, None] for place in (2, 5)]
    wanted = by_products(double[0], double[1], columns[0], given[3], double[4], columns[1], double[6])
    assert got.shape == wanted.shape and got.is_contiguous() and got.dtype == given[0].dtype
    error = (got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1)
    assert error <= TOLERANCE[got.dtype], error


def config(n: int, tall: int = 16, deep: int = 16) -> Any:
    return configurations.Config(tall, configurations.holding(n), deep, 4, 2)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("n", TOKENS)
def test_it_is_the_formula(n: int, dtype: torch.dtype) -> None:
    """Odd channels and hidden tokens, over two tiles of channels and several steps."""
    given = operands((2, n, 37, n, 21), dtype)
    agree(launch.run(config(n), *given, tf32=False), given)


@pytest.mark.parametrize("parts", ["", "up_bias", "down_bias", "residual", "up_bias residual"])
def test_what_is_not_there_is_left_out(parts: str) -> None:
    given = operands((1, 7, 5, 9, 3), torch.float32, parts)
    agree(launch.run(config(9), *given, tf32=False), given)


def test_tf32_sums_in_fp32_as_well() -> None:
    given = operands((2, 49, 37, 49, 21), torch.float32)
    assert launch.describe(*given, tf32=True).constants(config(49))["PRECISION"] == "tf32"
    agree(launch.run(config(49), *given, tf32=True), given)


@pytest.mark.parametrize("batch", [1, 3, 300])
def test_every_image_is_its_own(batch: int) -> None:
    given = operands((batch, 5, 6, 4, 3), torch.float16)
    agree(launch.run(config(4), *given), given)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_both_kinds_of_gelu_in_larger_tiles(dtype: torch.dtype, gelu: str) -> None:
    given = operands((1, 50, 70, 49, 40), dtype)
    given[3] = gelu
    agree(launch.run(config(49, 64, 64), *given, tf32=False), given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_rows_that_end_in_zeros(dtype: torch.dtype) -> None:
    """What stands behind a row of the matrices counts for nothing."""
    given = operands((2, 49, 37, 50, 5), dtype)
    plain = launch.run(config(50), *given, tf32=False)
    longer = [*given]
    for place, rows in ((1, 56), (4, 40)):
        longer[place] = torch.nn.functional.pad(given[place], (0, rows - given[place].shape[1]))
    assert torch.equal(launch.run(config(50), *longer, tf32=False), plain)
    agree(plain, given)


def test_operands_as_the_operation_has_them() -> None:
    """Biases that are columns, a residual and an x that lie otherwise."""
    x, up, first, gelu, down, second, residual = operands((2, 7, 5, 9, 3), torch.float32)
    moved = [one.transpose(1, 2).contiguous().transpose(1, 2) for one in (x, residual)]
    flat = launch._flat(moved[0], up, first[:, None], gelu, down, second[:, None], moved[1])
    agree(launch.run(config(9), **flat, tf32=False), [x, up, first, gelu, down, second, residual])


def test_the_unmeasured_choice_computes_it() -> None:
    given = operands((3, 49, 64, 49, 40), torch.float16)
    agree(launch.run(launch.describe(*given).default(3, 90), *given), given)


def test_gelu_by_tanh_ends_as_it_should() -> None:
    """Where its exponential is infinite, or vanishes."""
    x = torch.tensor([-1e18, -300.0, -20.0, 0.0, 20.0, 300.0, 1e18]).reshape(7, 1, 1)
    one = torch.ones(1, 1)
    got = launch.run(config(1), x, one, None, "tanh", one, None, None, tf32=False)
    assert got.flatten().tolist() == x.clamp(min=0).flatten().tolist()


def test_addresses_of_64_bits_are_the_same_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    given = operands((3, 7, 5, 9, 20), torch.float32)
    narrow = launch.run(config(9), *given, tf32=False)
    monkeypatch.setattr(problem, "INDEXABLE", 1)
    assert launch.describe(*given).wide
    assert torch.equal(launch.run(config(9), *given, tf32=False), narrow)


def test_tensors_that_do_not_fit_are_refused() -> None:
    x, up, *rest = operands((2, 7, 5, 9, 3), torch.float32)
    with pytest.raises(ValueError, match="do not follow"):
        launch.run(config(9), x, up[:, :6], *rest)
    rest[2] = rest[2][:, :4]
    with pytest.raises(ValueError, match="do not follow"):
        launch.run(config(9), x, up, *rest)
