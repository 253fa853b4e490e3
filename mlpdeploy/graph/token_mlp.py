"""An MLP over tokens as one operation: two products from the left, and GELU between them."""

from __future__ import annotations

import torch
from torch import Tensor

from mlpdeploy.graph.operation import GELUS, Operation, define, on_gpu

_PLUGIN = "token_mlp"


@define("mlpdeploy::token_mlp", mutates_args=())
def token_mlp(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    gelu: str,
    down: Tensor,
    down_bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """`residual + down @ gelu(up @ x + up_bias) + down_bias`: biases and residual are left out where not given.

    `x`: (B, N, C). `up`: (H, N) and `down`: (M, H), whose rows may be longer, if they end in zeros (see
    `programs.padded`). `up_bias`: (H, 1). `down_bias`: (M, 1). `residual`: (B, M, C). `gelu` is one of GELUS. Returns
    (B, M, C), contiguous. On NVIDIA GPUs all of it is one kernel, which keeps the hidden activations on the chip,
    unless that was measured to be slower.
    Source: Tolstikhin et al., MLP-Mixer, section 2 (arXiv 2105.01601).
    """
    given = (x, up, up_bias, gelu, down, down_bias, residual)
    result = on_gpu(_PLUGIN, *given)
    return by_products(*given) if result is None else result


def by_products(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    gelu: str,
    down: Tensor,
    down_bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """What the operation means, step by step."""
    hidden = _product(up, x, up_bias)
    result = _product(down, torch.nn.functional.gelu(hidden, approximate=GELUS[gelu]), down_bias)
    return result if residual is None else (residual + result).contiguous()


def _product(matrix: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    result = (matrix[:, : x.shape[1]] if matrix.shape[1] > x.shape[1] else matrix) @ x
    return result if bias is None else result + bias


@token_mlp.register_fake
def _(x: Tensor, up: Tensor, up_bias: Tensor | None, gelu: str, down: Tensor, *rest: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], down.shape[0], x.shape[2]))


TOKEN_MLP = torch.ops.mlpdeploy.token_mlp.default
MLPS = (Operation(TOKEN_MLP, by_products, _PLUGIN, (1, 4)),)
