"""Our custom operations: their meaning, their shape function, and their ONNX function."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlpdeploy import kernels

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import onnx

DOMAIN = "mlpdeploy"
OPSET = 20

_TRITON = importlib.util.find_spec("triton") is not None
# Compilers look into a `triton_op`: they fuse its meaning, and on a GPU they see its kernel. Without Triton there is
# no kernel to see, and PyTorch would warn.
_define = torch.library.triton_op if _TRITON else torch.library.custom_op


@_define("mlpdeploy::segment_grouped_projection", mutates_args=())
def segment_grouped_projection(x: Tensor, weight: Tensor, segments: int) -> Tensor:
    """Project the axes p and s of `x` together; the axis q between them, and o behind them if there is one, stay alone.

        y[b, k, q, t, o] = sum over p, s of x[b, p, q, s, o] * weight[(k t), (p s)]

    Both branches of Permute-MLP are this operation on the activations as they lie in memory (`b h w (n s)`): the
    height branch with p = h and q = (w n), the width branch with p = w, q = n and the rows h counted to the batch.
    RaftMLP's mixers have a trailing axis: `b h w (r o)` with p = h, q = w, s = r.

    `x`: (B, P, Q, S) or (B, P, Q, S, O). `weight`: (K*T, P*S). `segments`: K. Returns (B, K, Q, T) or (B, K, Q, T, O),
    contiguous. On NVIDIA GPUs a kernel that permutes nothing computes it, unless it was measured to be slower.
    Source: Hou et al., Vision Permutator, section 3.2 (arXiv 2106.12368).
    """
    if x.device.type == "cuda" and (result := _on_gpu(x, weight, segments)) is not None:
        return result
    return by_permuting(x, weight, segments)


def by_permuting(x: Tensor, weight: Tensor, segments: int) -> Tensor:
    """What `segment_grouped_projection` means: permute, multiply, permute."""
    b, p, q, s, *trailing = x.shape
    rows = x.movedim((1, 3), (-2, -1)).reshape(b, q, *trailing, p * s)
    projected = torch.nn.functional.linear(rows, weight).unflatten(-1, (segments, weight.shape[0] // segments))
    return projected.movedim((-2, -1), (1, 3)).contiguous()


def _on_gpu(x: Tensor, weight: Tensor, segments: int) -> Tensor | None:
    """The kernel's result; None where it does not serve, or was measured to be slower than permuting."""
    if not _TRITON:
        return None
    launch: Any = kernels.load("segment_grouped_projection.launch")
    result: Tensor | None = launch.dispatch(x, weight, segments)
    return result


@segment_grouped_projection.register_fake
def _(x: Tensor, weight: Tensor, segments: int) -> Tensor:
    b, _, q, _, *trailing = x.shape
    return x.new_empty((b, segments, q, weight.shape[0] // segments, *trailing))


SEGMENT_GROUPED_PROJECTION = torch.ops.mlpdeploy.segment_grouped_projection.default


@torch.library.custom_op("mlpdeploy::quantise", mutates_args=())
def quantise(x: Tensor, scale: Tensor) -> Tensor:
    """INT8 codes of `x`, one scale for all of it: round(x / scale) to even, saturated at -128 and 127.

    As ONNX's QuantizeLinear with a zero point of 0. `scale` has no dimension and the dtype of `x`.
    """
    return torch.clamp(torch.round(x / scale), -128, 127).to(torch.int8)


@quantise.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.int8)


@torch.library.custom_op("mlpdeploy::dequantise", mutates_args=())
def dequantise(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The values of INT8 `codes` in the dtype of `scale`, which is one number, or one for each index along `axis`."""
    shape = [1] * codes.dim()
    if scale.dim():
        shape[axis] = -1
    return codes.to(scale.dtype) * scale.reshape(shape)


@dequantise.register_fake
def _(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


QUANTISE = torch.ops.mlpdeploy.quantise.default
DEQUANTISE = torch.ops.mlpdeploy.dequantise.default


SEGMENTS = "segment_grouped_projection"
TRAILING = {(g, s): "_".join([SEGMENTS, "trailing", *["gather"] * g, *["scatter"] * s]) for g in (0, 1) for s in (0, 1)}
"""Names of the ONNX functions for (B, P, Q, S, O), by whether P and whether K is more than 1."""


def onnx_functions(names: Collection[str]) -> list[onnx.FunctionProto]:
    """Those of our ONNX local functions that are called `names`."""
    trailing = [_trailing_onnx(*moved) for moved, name in TRAILING.items() if name in names]
    return [segment_grouped_projection_onnx(), *trailing] if SEGMENTS in names else trailing


def segment_grouped_projection_onnx() -> onnx.FunctionProto:
    """The operation as an ONNX local function: X (B, P, Q, S), W (P*S, K*T), attribute `split` = [0, 0, K, T]."""
    from onnx import helper

    nodes = [
        helper.make_node("Transpose", ["X"], ["rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Constant", [], ["merge"], value_ints=[0, 0, -1]),
        helper.make_node("Reshape", ["rows", "merge"], ["merged"]),
        helper.make_node("MatMul", ["merged", "W"], ["projected"]),
        attribute_ints("split"),
        helper.make_node("Reshape", ["projected", "split"], ["factored"]),
        helper.make_node("Transpose", ["factored"], ["Y"], perm=[0, 2, 1, 3]),
    ]
    return local_function(SEGMENTS, nodes, ["split"])


def _trailing_onnx(gathers: int, scatters: int) -> onnx.FunctionProto:
    """X (B, P, Q, S, O), W (K*T, P*S); attributes `merge` = [0, Q, P*S, O], `split` = [0, K, Q, T, O].

    Where K is more than 1, `split` is [0, Q, K, T, O]. The product is from the left, so o is not moved from its place.
    """
    from onnx import helper

    gather = helper.make_node("Transpose", ["X"], ["rows"], perm=[0, 2, 1, 3, 4])
    scatter = helper.make_node("Transpose", ["factored"], ["Y"], perm=[0, 2, 1, 3, 4])
    nodes = [
        *([gather] if gathers else []),
        attribute_ints("merge"),
        helper.make_node("Reshape", ["rows" if gathers else "X", "merge"], ["merged"]),
        helper.make_node("MatMul", ["W", "merged"], ["projected"]),
        attribute_ints("split"),
        helper.make_node("Reshape", ["projected", "split"], ["factored" if scatters else "Y"]),
        *([scatter] if scatters else []),
    ]
    return local_function(TRAILING[gathers, scatters], nodes, ["merge", "split"])


def attribute_ints(name: str) -> onnx.NodeProto:
    """A constant that is the attribute `name` of the function's call."""
    from onnx import AttributeProto, helper

    node = helper.make_node("Constant", [], [name])
    node.attribute.append(AttributeProto(name="value_ints", type=AttributeProto.INTS, ref_attr_name=name))
    return node


def local_function(name: str, nodes: Sequence[onnx.NodeProto], attributes: Sequence[str]) -> onnx.FunctionProto:
    """An ONNX function of our domain, from X and W to Y."""
    from onnx import helper

    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, ["X", "W"], ["Y"], nodes, opsets, attributes=attributes)
