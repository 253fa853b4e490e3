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
from .kernel import project as kernel
from .problem import Problem


def dispatch(x: Tensor, weight: Tensor, segments: int, *following: Any) -> Tensor | None:
    """The projection by the kernel; None where it does not serve, or was measured to be slower than permuting.

    `following` are the epilogue's operands as `segment_grouped_projection_epilogue` takes them, or none.
    """
    epilogue = _flat(*following)
    if not serves(x, weight, *(one for one in epilogue.values() if isinstance(one, Tensor))):
        return None
    problem = describe(x, weight, segments, **epilogue)
    choice = tuning.choose(problem, hint(x.shape[0]), compute_capability(x.device))
    if isinstance(choice, str):
        return None
    return project(x, weight, segments, choice, **epilogue, kernel=wrapped(kernel))


def _flat(
    bias: Tensor | None = None, gelu: str | None = None, scale: Tensor | None = None, accumulate: Tensor | None = None
) -> dict[str, Any]:
    """The epilogue of an operation as `project` takes it: contiguous, the bias (K*T,), the scale (images, channels)."""
    return {
        "bias": None if bias is None else bias.reshape(-1),
        "gelu": gelu,
        "scale": None if scale is None else scale.reshape(scale.shape[0], -1).contiguous(),
        "accumulate": None if accumulate is None else accumulate.contiguous(),
    }


def describe(
    x: Tensor,
    weight: Tensor,
    segments: int,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    accumulate: Tensor | None = None,
    gelu: str | None = None,
    tf32: bool | None = None,
) -> Problem:
    """The problem that these tensors are; see `project`. Raises ValueError where they do not fit each other.

    All sizes but the batch are constants of the kernel: where a compiler has symbols for them, they become numbers.
    """
    p, q, s, *trailing = [1, 1] * (x.dim() == 3) + [*map(int, x.shape[1:])]
    o, segments = trailing[0] if trailing else 1, int(segments)
    rows, columns = map(int, weight.shape)
    if columns < p * s or rows % segments or (x.dim() == 3 and segments > 1):
        raise ValueError(f"a weight {list(weight.shape)} does not contract x {list(x.shape)} into {segments} segments")
    t = rows // segments
    problem = Problem(
        p, q, s, o, segments, t,
        precision=precision_of(x.dtype, tf32),
        bias=bias is not None,
        gelu=gelu,
        accumulate=accumulate is not None,
        channels=0 if scale is None else int(scale.shape[1]),
        share=1 if scale is None else _share(x, scale),
        pitch=0 if columns == p * s else columns,
    )  # fmt: skip
    return problem.for_batch(largest(x.shape[0]))


def project(
    x: Tensor,
    weight: Tensor,
    segments: int,
    config: Config,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    accumulate: Tensor | None = None,
    gelu: str | None = None,
    out: Tensor | None = None,
    tf32: bool | None = None,
    kernel: Any = kernel,
) -> Tensor:
    """`accumulate + scale * gelu(x * weight + bias)`, of which all but the projection is optional.

    `x`: (B, P, Q, S) or (B, P, Q, S, O); or (B, S, O), with one segment. `weight`: (K*T, P*S), or longer rows that end
    in zeros. `segments`: K. Returns (B, K, Q, T), (B, K, Q, T, O) or (B, T, O), in `out` where it is given. `bias`:
    (K*T,). `scale`: (images, channels), where B is a multiple of images, whose entries are consecutive, and a channel
    is (the last part of q, t, o). `accumulate`: the elements of the result in the same order, in any shape, which the
    result then has; it may be `out`. All contiguous and of one dtype.
    `tf32`: for FP32 (None: as `torch.set_float32_matmul_precision` says). `kernel`: wrapped, where a compiler traces.
    """
    problem = describe(x, weight, segments, bias=bias, scale=scale, accumulate=accumulate, gelu=gelu, tf32=tf32)
    b, *sizes = x.shape
    given = (b, problem.t, *sizes[1:]) if x.dim() == 3 else (b, segments, sizes[1], problem.t, *sizes[3:])
    shape = given if accumulate is None else accumulate.shape
    y = x.new_empty(shape) if out is None else out
    with on_its_device(x):
        kernel[(problem.tiles(config, b),)](
            x, weight, bias, scale, accumulate, b, y,
            **problem.constants(config), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return y


def tune(operands: Sequence[Any], library: Callable[..., Tensor]) -> dict[Choice, float] | None:
    """Measure the configurations for an operation on this machine's GPU: seconds of each.

    `operands`: the arguments of `dispatch`, of whose tensors shape and dtype count. `library(*operands)` computes the
    same without the kernel, and competes as Inductor compiles it: its permutations and the steps of an epilogue are
    fused among themselves there, which launched one by one would lose. `dispatch` will use the fastest from now on.
    None where the kernel does not serve.
    """
    made: list[Any] = [drawn(one) if isinstance(one, Tensor) else one for one in operands]
    x, weight, segments, *following = made
    epilogue = _flat(*following)
    if not serves(x, weight):
        return None

    def run(choice: Choice) -> Callable[[], Any]:
        if isinstance(choice, str):
            return compiled(library, made)
        return lambda: project(x, weight, segments, choice, **epilogue)

    problem = describe(x, weight, segments, **epilogue)
    return tuning.timings(problem, x.shape[0], compute_capability(x.device), run, tuning.seconds)


def is_tuned(operands: Sequence[Any]) -> bool:
    """Whether an operation with operands like these was measured before on a GPU of this compute capability."""
    x, weight, segments, *following = operands
    problem = describe(x, weight, segments, **_flat(*following))
    return tuning.remembered(problem, x.shape[0], compute_capability(torch.device("cuda"))) is not None


def _share(x: Tensor, scale: Tensor) -> int:
    """Batch entries of one image. Raises ValueError where the batch is no multiple of the images."""
    share, left = divmod(hint(x.shape[0]), hint(scale.shape[0]))
    if left:
        raise ValueError(f"a scale for {scale.shape[0]} images does not divide a batch of {x.shape[0]}")
    return share
