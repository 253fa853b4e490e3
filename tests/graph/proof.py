"""What the tests of the graph compiler share: rewrite a network, and prove that it computes the same."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced, trace

aten = torch.ops.aten

BATCHES = (1, 2, 5, 11)
TOLERANCE = 1e-9
MOVES = {aten.permute.default, aten.transpose.int, aten.movedim.int, aten.t.default, aten.einsum.default}


class Wrapped(nn.Module):
    """A network as a part of another: messages must name the part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Identity(), part)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` in float64 and eval mode, every parameter and running statistic random: nothing is 0 or 1 by luck."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval()
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(values.abs() + 0.5 if "running_var" in name else values / max(1, tensor.shape[-1]) ** 0.5)
    return network


def specs(shapes: Sequence[Sequence[int]]) -> list[TensorSpec]:
    """float64 inputs of these shapes (without the batch)."""
    return [TensorSpec(f"input_{i}", tuple(shape), torch.float64) for i, shape in enumerate(shapes)]


def rewritten(
    network: nn.Module, *shapes: Sequence[int], disabled: Collection[str] = (), enabled: Collection[str] = ()
) -> Rewritten:
    """`network` with random parameters after the rules."""
    return rewrite(trace(randomised(network), specs(shapes)), disabled, enabled)


def prove(
    network: nn.Module,
    *shapes: Sequence[int],
    batches: Sequence[int] = BATCHES,
    disabled: Collection[str] = (),
    enabled: Collection[str] = (),
) -> Rewritten:
    """`network` after the rules, having given the same results as before them at every one of `batches`."""
    result = rewritten(network, *shapes, disabled=disabled, enabled=enabled)
    assert_same(network, result, shapes, batches)
    return result


def prove_twice(network: nn.Module, rule: str, *shapes: Sequence[int], enabled: Collection[str] = ()) -> Rewritten:
    """As `prove`, and the same for the result, in which `rule` finds nothing more to do."""
    result = prove(network, *shapes, enabled=enabled)
    assert_done(network, result, rule, shapes, enabled=enabled)
    return result


def assert_done(
    network: nn.Module,
    result: Rewritten,
    rule: str,
    shapes: Sequence[Sequence[int]],
    batches: Sequence[int] = BATCHES,
    enabled: Collection[str] = (),
) -> None:
    """The rules once more: `rule` finds nothing, and all stays the same."""
    again = rewrite(Traced(result.module, result.inputs, result.outputs), enabled=enabled)
    assert_same(network, again, shapes, batches)
    assert fired(again)[rule] == 0


def assert_same(
    network: nn.Module, result: Rewritten, shapes: Sequence[Sequence[int]], batches: Sequence[int] = BATCHES
) -> None:
    """Equal to TOLERANCE relative to the largest element, finite, and of the same shape."""
    for batch in batches:
        generator = torch.Generator().manual_seed(batch)
        inputs = [torch.randn((batch, *shape), generator=generator, dtype=torch.float64) for shape in shapes]
        with torch.no_grad():
            wanted, got = tensors(network(*inputs)), tensors(result.module(*inputs))
        assert len(wanted) == len(got) == len(result.outputs)
        for one, other in zip(wanted, got, strict=True):
            assert one.shape == other.shape, f"batch {batch}: {tuple(other.shape)} instead of {tuple(one.shape)}"
            assert torch.isfinite(one).all()
            difference = (one - other).abs().max() / one.abs().max().clamp_min(1e-30)
            assert difference <= TOLERANCE, f"batch {batch}: relative difference {difference:.2e}"


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a network's result."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in (value.values() if isinstance(value, dict) else value) for tensor in tensors(part)]


def fired(result: Rewritten) -> Counter[str]:
    """How often each rule fired; 0 for those that did not."""
    return Counter({report.name: report.fired for report in result.report})


def reasons(result: Rewritten, rule: str) -> list[str]:
    """Why `rule` refused, in order."""
    return [refusal.reason for report in result.report if report.name == rule for refusal in report.refused]


def targets(result: Rewritten) -> Counter[Any]:
    """How often each operation is in the graph."""
    return Counter(node.target for node in result.module.graph.nodes if node.op == "call_function")


def moves(result: Rewritten) -> int:
    """How many operations are left that move data: permutes and their spellings."""
    return sum(count for target, count in targets(result).items() if target in MOVES)


def structure(module: torch.fx.GraphModule) -> str:
    """A hash of what a graph computes, operation for operation and number for number, whatever its nodes are called."""
    known: dict[torch.fx.Node, str] = {}
    for node in module.graph.nodes:
        tensor = weight(module, node)
        if tensor is not None:
            content = [str(tensor.dtype), list(tensor.shape), tensor.detach().contiguous().numpy().tobytes().hex()]
        else:
            arguments = torch.fx.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
            content = [node.op, str(node.target) if node.op == "call_function" else node.name, str(arguments)]
        known[node] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return next(known[node] for node in module.graph.nodes if node.op == "output")
