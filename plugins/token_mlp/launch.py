"""The kernel on PyTorch tensors, eager or traced: torch.compile and AOTInductor see the kernel itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import tuning
from ..common.configurations import Choice, Config
from ..common.launching import (
    compiled,
    compute_capability,
    drawn,
    hint,
    largest,
    on_its_device,
    precision_of,
    serves,
    wrapped,
)
from .kernel import mlp as kernel
from .problem import Problem


def dispatch(*operands: Any) -> Tensor | None:
    """The MLP by the kernel; None where it does not serve or fit, or was measured to be slower than two products.

    `operands` are the arguments of `token_mlp` of `mlpdeploy.graph`.
    """
    given = _flat(*operands)
    if not serves(*(one for one in given.values() if isinstance(one, Tensor))):
        return None
    x = given["x"]
    choice = tuning.choose(describe(**given), hint(x.shape[0]), compute_capability(x.device))
    return None if isinstance(choice, str) else run(choice, **given, kernel=wrapped(kernel))


def _flat(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    gelu: str,
    down: Tensor,
    down_bias: Tensor | None,
    residual: Tensor | None,
) -> dict[str, Any]:
    """The arguments of the operation as `run` takes them: contiguous, biases without a second axis."""
    return {
        "x": x.contiguous(),
        "up": up,
        "up_bias": None if up_bias is None else up_bias.reshape(-1),
        "gelu": gelu,
        "down": down,
        "down_bias": None if down_bias is None else down_bias.reshape(-1),
        "residual": None if residual is None else residual.contiguous(),
    }


def describe(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    gelu: str,
    down: Tensor,
    down_bias: Tensor | None,
    residual: Tensor | None,
    tf32: bool | None = None,
) -> Problem:
    """The problem that these tensors are; see `run`. Raises ValueError where they do not fit each other.

    All sizes but the batch are constants of the kernel: where a compiler has symbols for them, they become numbers.
    """
    n, c = map(int, x.shape[1:])
    (h, up_row), (m, down_row) = (map(int, one.shape) for one in (up, down))
    if up_row < n or down_row < h:
        raise ValueError(f"matrices {list(up.shape)} and {list(down.shape)} do not follow x {list(x.shape)}")
    problem = Problem(
        n, h, m, c, precision_of(x.dtype, tf32), gelu, up_bias is not None, down_bias is not None, residual is not None,
        up_row=0 if up_row == n else up_row,
        down_row=0 if down_row == h else down_row,
    )  # fmt: skip
    return problem.for_batch(largest(x.shape[0]))


def run(
    config: Config,
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    gelu: str,
    down: Tensor,
    down_bias: Tensor | None,
    residual: Tensor | None,
    *,
    tf32: bool | None = None,
    kernel: Any = kernel,
) -> Tensor:
    """`residual + down @ gelu(up @ x + up_bias) + down_bias`, of which biases and residual are optional.

    `x`: (B, N, C). `up`: (H, N), `down`: (M, H), or longer rows that end in zeros. `up_bias`: (H,), `down_bias`: (M,).
    `residual`: (B, M, C). Returns (B, M, C). All contiguous and of one dtype. `tf32`: for FP32 (None: as
    `torch.set_float32_matmul_precision` says). `kernel`: wrapped, where a compiler traces.
    """
    problem = describe(x, up, up_bias, gelu, down, down_bias, residual, tf32)
    y = x.new_empty((x.shape[0], problem.m, problem.c))
    with on_its_device(x):
        kernel[(problem.tiles(config, x.shape[0]),)](
            x, up, up_bias, down, down_bias, residual, x.shape[0], y,
            **problem.constants(config), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return y


def tune(operands: Sequence[Any], library: Callable[..., Tensor]) -> dict[Choice, float] | None:
    """Measure the configurations for an operation on this machine's GPU: seconds of each.

    `operands`: the arguments of `dispatch`, of whose tensors shape and dtype count. `library(*operands)` computes the
    same without the kernel, and competes as Inductor compiles it. `dispatch` will use the fastest from now on. None
    where the kernel does not serve.
    """
    made: list[Any] = [drawn(one) if isinstance(one, Tensor) else one for one in operands]
    given = _flat(*made)
    if not serves(given["x"]):
        return None

    def contender(choice: Choice) -> Callable[[], Any]:
        return compiled(library, made) if isinstance(choice, str) else lambda: run(choice, **given)

    batch = given["x"].shape[0]
    return tuning.timings(describe(**given), batch, compute_capability(given["x"].device), contender, tuning.seconds)


def is_tuned(operands: Sequence[Any]) -> bool:
    """Whether an operation with operands like these was measured before on a GPU of this compute capability."""
    given = _flat(*operands)
    sm = compute_capability(torch.device("cuda"))
    return tuning.remembered(describe(**given), given["x"].shape[0], sm) is not None
