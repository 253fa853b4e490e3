"""What a custom operation with a kernel in `plugins/` is: what it means, and where its kernel is used."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlpdeploy import kernels

GELUS = {"erf": "none", "tanh": "tanh"}
"""How a kernel computes GELU, exactly or by its approximation, to the `approximate` of ATen's and ONNX's."""

_TRITON = importlib.util.find_spec("triton") is not None

define: Any = torch.library.triton_op if _TRITON else torch.library.custom_op
"""Compilers look into a `triton_op`: they fuse its meaning, and on a GPU they see its kernel. Without Triton there is
no kernel to see, and PyTorch would warn."""


@dataclass(frozen=True)
class Operation:
    """A custom operation that has a kernel.

    `meaning`: the same of the same arguments, in operations of PyTorch. `plugin`: the folder of its kernel, whose
    `launch` has `dispatch`, `tune` and `is_tuned`. `matrices`: the places of arguments whose rows may be longer, if
    they end in zeros. `steps`: whether its meaning has several, each of which rounds.
    """

    target: Any
    meaning: Callable[..., Tensor]
    plugin: str
    matrices: tuple[int, ...]
    steps: bool = True


def on_gpu(plugin: str, x: Tensor, *others: Any) -> Tensor | None:
    """The kernel's result; None where it does not serve, or was measured to be slower than the operation's meaning."""
    if x.device.type != "cuda" or not _TRITON:
        return None
    launch: Any = kernels.load(f"{plugin}.launch")
    result: Tensor | None = launch.dispatch(x, *others)
    return result
