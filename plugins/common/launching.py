"""PyTorch's tensors and sizes as a kernel takes them, whichever it is, eager or traced."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .configurations import INDEXABLE, OLDEST

_UNKNOWN = 8
"""The batch for which a configuration is chosen where nothing says what it will be."""

PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def precision_of(dtype: torch.dtype, tf32: bool | None = None) -> str:
    """How products of numbers are formed; `tf32` None: as `torch.set_float32_matmul_precision` says for FP32."""
    if tf32 is None:
        tf32 = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if dtype is torch.float32 and tf32 else PRECISIONS[dtype]


def serves(x: Tensor, *others: Tensor) -> bool:
    """Whether a kernel takes these tensors: on an NVIDIA GPU of compute capability 8.0 or later, dense, one dtype."""
    if x.device.type != "cuda" or torch.version.cuda is None or x.dtype not in PRECISIONS:
        return False
    same = all(one.dtype == x.dtype and one.device == x.device for one in others)
    return same and compute_capability(x.device) >= OLDEST and all(one.is_contiguous() for one in (x, *others))


def wrapped(kernel: Any) -> Any:
    """A kernel as compilers see it.

    What it reads is computed once: Inductor, which writes an operand of somebody's kernel where the kernel wants it,
    would compute the operand anew for each of its other readers, as it would not for those of a library's product.
    """
    lowering = sys.modules.get("torch._inductor.lowering")  # Inductor is there where it is what traces
    if lowering is not None and hasattr(lowering, "needs_realized_inputs"):
        lowering.needs_realized_inputs.add(torch.ops.higher_order.triton_kernel_wrapper_mutation)
    return torch.library.wrap_triton(kernel)


def on_its_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The device of `x` made the current one, on which Triton launches; nothing where CUDA was never used."""
    return torch.cuda.device(x.device) if x.is_cuda and torch.cuda.is_initialized() else contextlib.nullcontext()


def compute_capability(device: torch.device) -> int:
    """That of a GPU, as one number: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


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


def drawn(like: Tensor) -> Tensor:
    numbers: Tensor = torch.randn(like.shape, device="cuda").to(like.dtype) / math.sqrt(like.shape[-1])
    return numbers


def hint(size: Any) -> int:
    """A size as a number: that of the example where it is symbolic, if there is one, which constrains nothing."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    example: Any = size.node.hint
    return _UNKNOWN if example is None else int(example)


def largest(size: Any) -> int:
    """The largest number that a size can become: where nothing bounds it, one that 32-bit addresses do not reach."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    environment: Any = size.node.shape_env
    bound = environment.bound_sympy(size.node.expr).upper
    return int(bound) if bound.is_Integer else INDEXABLE
