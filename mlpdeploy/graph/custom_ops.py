"""Our custom operations: their meaning, and their shape function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlpdeploy.graph.operation import GELUS, Operation, define, on_gpu

DOMAIN = "mlpdeploy"
_PLUGIN = "segment_grouped_projection"


@define("mlpdeploy::segment_grouped_projection", mutates_args=())
def segment_grouped_projection(x: Tensor, weight: Tensor, segments: int) -> Tensor:
    """Project the axes p and s of `x` together; the axis q between them, and o behind them if there is one, stay alone.

        y[b, k, q, t, o] = sum over p, s of x[b, p, q, s, o] * weight[(k t), (p s)]

    Both branches of Permute-MLP are this operation on the activations as they lie in memory (`b h w (n s)`): the
    height branch with p = h and q = (w n), the width branch with p = w, q = n and the rows h counted to the batch.
    RaftMLP's mixers have a trailing axis: `b h w (r o)` with p = h, q = w, s = r.

    `x`: (B, P, Q, S) or (B, P, Q, S, O); or (B, S, O), which is a product from the left, with one segment. `weight`:
    (K*T, P*S), whose rows may be longer, if they end in zeros (see `programs.padded`). `segments`: K. Returns
    (B, K, Q, T), (B, K, Q, T, O) or (B, T, O), contiguous. On NVIDIA GPUs a kernel that
    permutes nothing computes it, unless it was measured to be slower.
    Source: Hou et al., Vision Permutator, section 3.2 (arXiv 2106.12368).
    """
    result = on_gpu(_PLUGIN, x, weight, segments)
    return by_permuting(x, weight, segments) if result is None else result


def by_permuting(
    x: Tensor,
    weight: Tensor,
    segments: int,
    bias: Tensor | None = None,
    gelu: str | None = None,
    scale: Tensor | None = None,
    accumulate: Tensor | None = None,
) -> Tensor:
    """What both operations mean: permute, multiply, permute, and each step of the epilogue by itself."""
    if x.dim() == 3:
        full = by_permuting(x[:, None, None], weight, segments, bias, gelu, scale, accumulate)
        return full[:, 0, 0] if accumulate is None else full
    _, p, q, s, *trailing = x.shape
    weight = weight[:, : p * s] if weight.shape[1] > p * s else weight
    result = _from_the_left(x, weight) if trailing and p == q == segments == 1 else _permuted(x, weight, segments)
    if bias is not None:
        result = result + bias
    if gelu is not None:
        result = torch.nn.functional.gelu(result, approximate=GELUS[gelu])
    if accumulate is None:
        return result
    seen = result.reshape(accumulate.shape)
    return (accumulate + (seen if scale is None else seen * scale)).contiguous()


def _from_the_left(x: Tensor, weight: Tensor) -> Tensor:
    """A projection (B, 1, 1, S, O) with one segment: nothing is permuted."""
    result: Tensor = weight @ x.flatten(0, 2)
    return result[:, None, None].contiguous()


def _permuted(x: Tensor, weight: Tensor, segments: int) -> Tensor:
    """Any other."""
    b, p, q, s, *trailing = x.shape
    rows = x.movedim((1, 3), (-2, -1)).reshape(b, q, *trailing, p * s)
    projected: Tensor = torch.nn.functional.linear(rows, weight).unflatten(-1, (segments, weight.shape[0] // segments))
    return projected.movedim((-2, -1), (1, 3)).contiguous()


@define("mlpdeploy::segment_grouped_projection_epilogue", mutates_args=())
def segment_grouped_projection_epilogue(
    x: Tensor,
    weight: Tensor,
    segments: int,
    bias: Tensor | None,
    gelu: str | None,
    scale: Tensor | None,
    accumulate: Tensor | None,
) -> Tensor:
    """`accumulate + scale * gelu(projection + bias)`: a segment-grouped projection and what follows it.

    Each part is left out where it is not given; `gelu` is one of GELUS. `bias`: (K, 1, T), or (K, 1, T, 1) with a
    trailing axis. `accumulate`: (images, ..., channels), the elements of the projection in another shape, which is that
    of the result. `scale`: (images, 1, ..., 1, channels), with an `accumulate` only. Returns what the projection does
    where there is none, contiguous. On NVIDIA GPUs all of it is one kernel, unless that was measured to be slower.
    """
    given = (x, weight, segments, bias, gelu, scale, accumulate)
    result = on_gpu(_PLUGIN, *given)
    return by_permuting(*given) if result is None else result


@segment_grouped_projection.register_fake
@segment_grouped_projection_epilogue.register_fake
def _(x: Tensor, weight: Tensor, segments: int, *epilogue: Any) -> Tensor:
    b, *sizes, t = *x.shape, weight.shape[0] // segments
    accumulate = epilogue[-1] if epilogue else None
    shape = (b, t, sizes[1]) if x.dim() == 3 else (b, segments, sizes[1], t, *sizes[3:])
    return x.new_empty(shape if accumulate is None else accumulate.shape)


SEGMENT_GROUPED_PROJECTION = torch.ops.mlpdeploy.segment_grouped_projection.default
WITH_EPILOGUE = torch.ops.mlpdeploy.segment_grouped_projection_epilogue.default
PROJECTIONS = (
    Operation(SEGMENT_GROUPED_PROJECTION, by_permuting, _PLUGIN, (1,), steps=False),
    Operation(WITH_EPILOGUE, by_permuting, _PLUGIN, (1,)),
)


@torch.library.custom_op("mlpdeploy::quantise", mutates_args=())
def quantise(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes of `x`, int8 or float8_e4m3fn, one scale for all of it: x / scale, rounded to even and saturated.

    As ONNX's QuantizeLinear with a zero point of 0. `scale` has no dimension and the dtype of `x`.
    """
    exact, ends = x / scale, torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return (exact if dtype.is_floating_point else torch.round(exact)).clamp(ends.min, ends.max).to(dtype)


@quantise.register_fake
def _(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@torch.library.custom_op("mlpdeploy::dequantise", mutates_args=())
def dequantise(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The values of `codes` in the dtype of `scale`, which is one number, or one for each index along `axis`."""
    shape = [1] * codes.dim()
    if scale.dim():
        shape[axis] = -1
    return codes.to(scale.dtype) * scale.reshape(shape)


@dequantise.register_fake
def _(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


@torch.library.custom_op("mlpdeploy::dequantise_blocks", mutates_args=())
def dequantise_blocks(codes: Tensor, scales: Tensor, axis: int, block: int) -> Tensor:
    """The values of `codes` in the dtype of `scales`, which has one for each `block` of indices along `axis`."""
    each = scales.repeat_interleave(block, axis).narrow(axis, 0, codes.shape[axis])
    return codes.to(scales.dtype) * each


@dequantise_blocks.register_fake
def _(codes: Tensor, scales: Tensor, axis: int, block: int) -> Tensor:
    return torch.empty_like(codes, dtype=scales.dtype)


FP4_BLOCK, FP4_LARGEST = 16, 6.0
"""Numbers of NVFP4 that share a scale, and the largest of E2M1."""


def to_fp4(x: Tensor) -> Tensor:
    """The numbers of E2M1 nearest to `x`, ties to even, saturated: steps of 1/2 up to 2, of 1 up to 4, of 2 up to 6."""
    magnitudes = x.abs()
    steps = torch.where(magnitudes < 2, 0.5, torch.where(magnitudes < 4, 1.0, 2.0)).to(x.dtype)
    return (torch.round(x / steps) * steps).clamp(-FP4_LARGEST, FP4_LARGEST)


def to_fp8(x: Tensor) -> Tensor:
    """`x` in E4M3, saturated."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    return x.clamp(-largest, largest).to(torch.float8_e4m3fn)


@torch.library.custom_op("mlpdeploy::coded_fp4", mutates_args=())
def coded_fp4(x: Tensor, scale: Tensor) -> Tensor:
    """Rows (r, K) as NVFP4 tells them: of each 16 numbers along K, E2M1 codes times an E4M3 scale, times `scale`.

    The scale of a block gives its largest magnitude the largest code. `scale` is one number in FP32, the double
    quantisation scale of TensorRT's DynamicQuantize, which computes in FP32 then; this in FP64 where `x` is of it.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    blocks = wide.unflatten(-1, (-1, FP4_BLOCK))
    scales = to_fp8(blocks.abs().amax(-1, keepdim=True) / FP4_LARGEST * (1 / scale))
    steps = scales.to(wide.dtype) * scale
    codes = to_fp4(blocks * torch.where(steps > 0, 1 / steps, 0.0))
    return (codes * steps).flatten(-2).to(x.dtype)


@coded_fp4.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


QUANTISE = torch.ops.mlpdeploy.quantise.default
DEQUANTISE = torch.ops.mlpdeploy.dequantise.default
DEQUANTISE_BLOCKS = torch.ops.mlpdeploy.dequantise_blocks.default
CODED_FP4 = torch.ops.mlpdeploy.coded_fp4.default
