"""An MLP over tokens as one operation: what it means, for compilers, in files, and in low precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.engine import programs
from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.graph.operation import GELUS
from mlpdeploy.graph.operations import OPERATIONS
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.token_mlp import TOKEN_MLP, by_products
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

B, N, H, M, C = 2, 7, 5, 4, 3
PARTS = [(True, True, True), (False, False, False), (True, False, True), (False, True, False)]


def operands(parts: tuple[bool, bool, bool], gelu: str = "erf", longer: bool = False) -> tuple[Any, ...]:
    """Arguments in float64: biases and residual, each there or not; `longer`: with rows that end in zeros."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (B, N, C), "up": (H, N), "first": (H, 1), "down": (M, H), "second": (M, 1), "r": (B, M, C)}
    made = {name: torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}
    given = [
        one if there else None for one, there in zip((made["first"], made["second"], made["r"]), parts, strict=True)
    ]
    up, down = (F.pad(made[name], (0, 3 * longer)) for name in ("up", "down"))
    return made["x"], up, given[0], gelu, down, given[1], given[2]


@pytest.mark.parametrize("longer", [False, True])
@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_it_is_what_it_says(parts: tuple[bool, bool, bool], gelu: str, longer: bool) -> None:
    x, up, first, _, down, second, residual = operands(parts, gelu, longer)
    hidden = torch.einsum("hn,bnc->bhc", up[:, :N], x) + (0 if first is None else first)
    wanted = torch.einsum("mh,bhc->bmc", down[:, :H], F.gelu(hidden, approximate=GELUS[gelu]))
    wanted = wanted + (0 if second is None else second) + (0 if residual is None else residual)
    got = torch.ops.mlpdeploy.token_mlp(x, up, first, gelu, down, second, residual)
    assert got.is_contiguous()
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", PARTS[:2], ids=str)
def test_it_passes_opcheck(parts: tuple[bool, bool, bool]) -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(TOKEN_MLP, operands(parts), test_utils=tests)


def test_a_residual_that_lies_otherwise_gives_a_contiguous_result() -> None:
    *given, residual = operands((True, True, True))
    moved = residual.transpose(1, 2).contiguous().transpose(1, 2)
    assert not moved.is_contiguous() and by_products(*given, moved).is_contiguous()


def test_every_operation_with_a_kernel_is_known_by_its_meaning() -> None:
    assert programs.meanings()[TOKEN_MLP] is by_products
    assert programs.meanings().keys() == OPERATIONS.keys() and len(OPERATIONS) == 4


class Mixer(nn.Module):
    """An MLP over 6 tokens with a residual, whose first matrix holds `number` alone where one is given."""

    def __init__(self, number: float | None = None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        if number is not None:
            nn.init.constant_(self.up.weight, number)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up((x.abs() + 5).transpose(1, 2)), approximate="tanh")).transpose(1, 2)


def typed(network: nn.Module, precision: str) -> tuple[Typed, tuple[str, ...]]:
    """The typed graph with the operation, and the nodes that are kept in FP32."""
    rewritten = rewrite(trace(network.eval(), [TensorSpec("x", (6, 4), torch.float32)]), enabled=["fuse_token_mlps"])
    planned = plan(rewritten, precision)
    made = apply(rewritten, planned)
    assert TOKEN_MLP in [node.target for node in made.module.graph.nodes]
    return made, tuple(one.node for one in planned.kept if "reaches" in one.reason)


@pytest.mark.parametrize(("number", "kept"), [(-0.2, False), (-2000.0, True)])
def test_it_is_judged_by_what_it_reaches_on_the_way(number: float, kept: bool) -> None:
    """FP16 would have infinity there, of which GELU is no number, although what it leaves is 0."""
    assert any("token_mlp" in name for name in typed(Mixer(number), "fp16")[1]) == kept


def test_files_hold_the_operations_that_it_means() -> None:
    network = Mixer()
    model = emit(typed(network, "fp32")[0]).model
    assert not model.functions and [node.op_type for node in model.graph.node].count("MatMul") == 2
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, 6, 4)
        with torch.no_grad():
            wanted = network(x).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], wanted, rtol=0, atol=1e-5)
