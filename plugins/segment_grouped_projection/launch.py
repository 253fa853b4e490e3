"""The kernel on PyTorch tensors, eager or traced: torch.compile and AOTInductor see the kernel itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import tuning
from .kernel import project as kernel
from .problem import INDEXABLE, OLDEST, Config, Problem

_UNKNOWN = 8
"""The batch for which a configuration is chosen where nothing says what it will be."""

PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


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
    return project(x, weight, segments, choice, **epilogue, kernel=torch.library.wrap_triton(kernel))


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
    p, q, s, *trailing = map(int, x.shape[1:])
    o, segments = trailing[0] if trailing else 1, int(segments)
    rows, columns = map(int, weight.shape)
    if columns < p * s or rows % segments:
        raise ValueError(f"a weight {list(weight.shape)} does not contract x {list(x.shape)} into {segments} segments")
    t = rows // segments
    if tf32 is None:
        tf32 = torch.get_float32_matmul_precision() != "highest"
    precision = PRECISIONS[x.dtype]
    problem = Problem(
        p, q, s, o, segments, t,
        precision="tf32" if precision == "fp32" and tf32 else precision,
        bias=bias is not None,
        gelu=gelu,
        accumulate=accumulate is not None,
        channels=0 if scale is None else int(scale.shape[1]),
        share=1 if scale is None else _share(x, scale),
        pitch=0 if columns == p * s else columns,
    )  # fmt: skip
    return problem.for_batch(_largest(x.shape[0]))


def serves(x: Tensor, *others: Tensor) -> bool:
    """Whether the kernel takes these tensors: on an NVIDIA GPU of compute capability 8.0 or later, dense, one dtype."""
    if x.device.type != "cuda" or torch.version.cuda is None or x.dtype not in PRECISIONS:
        return False
    same = all(one.dtype == x.dtype and one.device == x.device for one in others)
    return same and compute_capability(x.device) >= OLDEST and all(one.is_contiguous() for one in (x, *others))


def compute_capability(device: torch.device) -> int:
    """That of a GPU, as one number: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


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

    `x`: (B, P, Q, S) or (B, P, Q, S, O). `weight`: (K*T, P*S), or longer rows that end in zeros. `segments`: K. Returns
    (B, K, Q, T) or (B, K, Q, T, O), in `out` where it is given. `bias`: (K*T,). `scale`: (images, channels), where B is
    a multiple of images, whose entries are consecutive, and a channel is (the last part of q, t, o). `accumulate`: the
    elements of the result in the same order, in any shape, which the result then has; it may be `out`. All contiguous
    and of one dtype.
    `tf32`: for FP32 (None: as `torch.set_float32_matmul_precision` says). `kernel`: wrapped, where a compiler traces.
    """
    problem = describe(x, weight, segments, bias=bias, scale=scale, accumulate=accumulate, gelu=gelu, tf32=tf32)
    b, _, q, _, *trailing = x.shape
    shape = (b, segments, q, problem.t, *trailing) if accumulate is None else accumulate.shape
    y = x.new_empty(shape) if out is None else out
    kernel[(problem.tiles(config, b),)](
        x, weight, bias, scale, accumulate, b, y,
        **problem.constants(config), num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return y


def tune(operands: Sequence[Any], library: Callable[..., Tensor]) -> dict[tuning.Choice, float] | None:
    """Measure the configurations for an operation on this machine's GPU: seconds of each.

    `operands`: the arguments of `dispatch`, of whose tensors shape and dtype count. `library(*operands)` computes the
    same without the kernel, and competes, with an epilogue as Inductor compiles it: Inductor fuses its steps among
    themselves, which launched one by one would lose. `dispatch` will use the fastest from now on. None where the kernel
    does not serve.
    """
    drawn: list[Any] = [_drawn(one) if isinstance(one, Tensor) else one for one in operands]
    x, weight, segments, *following = drawn
    epilogue = _flat(*following)
    if not serves(x, weight):
        return None

    def run(choice: tuning.Choice) -> Callable[[], Any]:
        if isinstance(choice, str):
            return compiled(library, drawn) if following else lambda: library(*drawn)
        return lambda: project(x, weight, segments, choice, **epilogue)

    problem = describe(x, weight, segments, **epilogue)
    return tuning.timings(problem, x.shape[0], compute_capability(x.device), run, tuning.seconds)


def compiled(function: Callable[..., Tensor], operands: Sequence[Any]) -> Callable[[], Any]:
    """A function of these operands as Inductor compiles it.

    Not by torch.compile, which stops compiling a function after a number of shapes and would then run it as it is.
    """
    from torch._inductor import compile as by_inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    tensors: list[Any] = [one for one in operands if isinstance(one, Tensor)]

    def flat(*given: Tensor) -> Tensor:
        left = iter(given)
        return function(*(next(left) if isinstance(one, Tensor) else one for one in operands))

    with torch.no_grad():
        program = by_inductor(make_fx(flat)(*tensors), tensors)

    def run() -> Any:
        with torch.no_grad():
            return program(*tensors)

    return run


def is_tuned(operands: Sequence[Any]) -> bool:
    """Whether an operation with operands like these was measured before on a GPU of this compute capability."""
    x, weight, segments, *following = operands
    problem = describe(x, weight, segments, **_flat(*following))
    return tuning.remembered(problem, x.shape[0], compute_capability(torch.device("cuda"))) is not None


def _drawn(like: Tensor) -> Tensor:
    numbers: Tensor = torch.randn(like.shape, device="cuda").to(like.dtype) / math.sqrt(like.shape[-1])
    return numbers


def hint(size: Any) -> int:
    """A size as a number: that of the example where it is symbolic, if there is one, which constrains nothing."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    example: Any = size.node.hint
    return _UNKNOWN if example is None else int(example)


def _largest(size: Any) -> int:
    """The largest number that a size can become: where nothing bounds it, one that 32-bit addresses do not reach."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    environment: Any = size.node.shape_env
    bound = environment.bound_sympy(size.node.expr).upper
    return int(bound) if bound.is_Integer else INDEXABLE


def _share(x: Tensor, scale: Tensor) -> int:
    """Batch entries of one image. Raises ValueError where the batch is no multiple of the images."""
    share, left = divmod(hint(x.shape[0]), hint(scale.shape[0]))
    if left:
        raise ValueError(f"a scale for {scale.shape[0]} images does not divide a batch of {x.shape[0]}")
    return share
