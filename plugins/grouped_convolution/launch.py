"""Which spelling of a convolution of groups PyTorch's compilers see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common import tuning
from ..common.configurations import Choice
from ..common.launching import PRECISIONS, compiled, compute_capability, drawn, hint, precision_of
from .kernel import SPELLED
from .problem import Problem


def dispatch(x: Tensor, weight: Tensor, taps: Tensor, *others: Any) -> Tensor | None:
    """The convolution as it is spelled; None where the library's was measured to be faster, or the dtype is another.

    The operands are those of `grouped_convolution` of `mlpdeploy.graph`.
    """
    if x.dtype not in PRECISIONS:
        return None
    problem = describe(x, weight, taps, *others)
    choice = tuning.choose(problem, hint(x.shape[0]), compute_capability(x.device))
    return None if choice == tuning.LIBRARY else SPELLED[str(choice)](x, weight.shape[2:], taps, *others)


def describe(
    x: Tensor, weight: Tensor, taps: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Problem:  # fmt: skip
    """The problem that these tensors are. All sizes but the batch become numbers."""
    channels, *size = map(int, x.shape[1:])
    outputs, _, *kernel = map(int, weight.shape)
    return Problem(
        channels, outputs, int(groups), tuple(size), tuple(kernel), tuple(stride), tuple(padding), tuple(dilation),
        precision_of(x.dtype, False), bias is not None,
    )  # fmt: skip


def tune(operands: Sequence[Any], library: Callable[..., Tensor]) -> dict[Choice, float]:
    """Measure the spellings of an operation on this machine's GPU, as Inductor compiles each: seconds of each.

    `operands`: the arguments of `dispatch`, of whose tensors shape and dtype count. `library(*operands)` is the
    convolution itself, whose maps and kernel lie channels last.
    """
    made: list[Any] = [_laid(drawn(one)) if isinstance(one, Tensor) else one for one in operands]
    x, *others = made

    def spelled(choice: Choice) -> Callable[..., Tensor]:
        return lambda x, weight, taps, *rest: SPELLED[str(choice)](x, weight.shape[2:], taps, *rest)

    def run(choice: Choice) -> Callable[[], Any]:
        return compiled(library if choice == tuning.LIBRARY else spelled(choice), made)

    problem = describe(x, *others)
    return tuning.timings(problem, x.shape[0], compute_capability(x.device), run, tuning.seconds)


def is_tuned(operands: Sequence[Any]) -> bool:
    """Whether an operation with operands like these was measured before on a GPU of this compute capability."""
    x, *others = operands
    sm = compute_capability(torch.device("cuda"))
    return tuning.remembered(describe(x, *others), x.shape[0], sm) is not None


def _laid(tensor: Tensor) -> Tensor:
    """As programs for a GPU lay maps and kernels."""
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
