"""Operations that exist in FP32 alone: a quantile, an inverse, a determinant, the distances of all pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from mlpdeploy.graph.kinds import packet
from mlpdeploy.graph.precision.reach import NAMES
from mlpdeploy.graph.tracing.place import placeholders

aten = torch.ops.aten

POWERS = {aten.cdist}
"""Operations whose squares are no nodes that could be looked at."""


def formless(module: fx.GraphModule, low: torch.dtype) -> dict[str, str]:
    """Why each node that has no form in the low precision must be computed in FP32, by node name."""
    tried: dict[Any, bool] = {}
    reasons = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or packet(node) is None:
            continue
        if packet(node) in POWERS:
            reasons[node.name] = f"sums powers of differences, which leave the range of {NAMES[low]}"
            continue
        if node.target not in tried:
            tried[node.target] = _runs(module, node, low)
        if not tried[node.target]:
            reasons[node.name] = f"has no form in {NAMES[low]}"
    return reasons


def _runs(module: fx.GraphModule, node: fx.Node, low: torch.dtype) -> bool:
    """Whether an operation takes real numbers of a dtype; nothing is computed but shapes."""

    def value(operand: fx.Node) -> Any:
        found = operand.meta["val"]
        return found.to(low) if isinstance(found, torch.Tensor) and found.is_floating_point() else found

    with placeholders(module)[0].meta["val"].fake_mode, enable_python_dispatcher(), torch.no_grad():
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value)
        try:
            node.target(*args, **kwargs)  # type: ignore[operator]
        except RuntimeError:
            return False
    return True
