"""Where a compiler has symbols for sizes, the kernel gets numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import ShapeEnv

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

from mlpdeploy import kernels

launch: Any = kernels.load("segment_grouped_projection.launch")


def test_the_number_of_segments_is_a_constant_of_the_kernel() -> None:
    """A second shape makes it a symbol in torch.compile, which nothing can copy."""
    env, source = ShapeEnv(), ConstantSource("segments")
    symbol = env.create_symintnode(env.create_symbol(4, source), hint=4, source=source)
    found = launch.describe(torch.zeros(2, 4, 3, 5), torch.zeros(24, 20), symbol)
    assert type(found.k) is int and type(found.t) is int and (found.k, found.t) == (4, 6)
