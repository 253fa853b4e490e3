"""Every custom operation that has a kernel, by its target. A new one is a file of its own, and a name here."""

from __future__ import annotations

import torch

from mlpdeploy.graph.custom_ops import PROJECTIONS
from mlpdeploy.graph.grouped_convolution import CONVOLUTIONS_OF_GROUPS
from mlpdeploy.graph.token_mlp import MLPS

aten = torch.ops.aten

OPERATIONS = {one.target: one for one in (*PROJECTIONS, *MLPS, *CONVOLUTIONS_OF_GROUPS)}

PRODUCTS = {
    aten.linear, aten.matmul, aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.einsum, aten.bilinear,
    aten.conv1d, aten.conv2d, aten.conv3d, aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
    aten.scaled_dot_product_attention, *(target.overloadpacket for target in OPERATIONS),
}  # fmt: skip
"""Operations that multiply matrices, or convolve, and sum: torch's and ours (packets of overloads)."""
