"""The ONNX form of an MLP over tokens: the operations that it means, which every engine fuses as it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxscript import opset20

from mlpdeploy.graph.operation import GELUS
from mlpdeploy.graph.token_mlp import TOKEN_MLP

op: Any = opset20  # whose annotations know no values of an unknown dtype


def _token_mlp(x: Any, up: Any, up_bias: Any, gelu: str, down: Any, down_bias: Any = None, residual: Any = None) -> Any:
    hidden = op.Gelu(_product(up, x, up_bias), approximate=GELUS[gelu])
    result = _product(down, hidden, down_bias)
    return result if residual is None else op.Add(residual, result)


def _product(matrix: Any, x: Any, bias: Any) -> Any:
    result = op.MatMul(matrix, x)
    return result if bias is None else op.Add(result, bias)


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {TOKEN_MLP: _token_mlp}
