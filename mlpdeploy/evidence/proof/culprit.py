"""Which operation makes a network something else than one function of each row, and what to write instead of it.

The network runs with every operation recorded, once in each of two ways that must agree; the first operation whose
results do not is the one. Each answer is the second half of a line: `softmax mixes them, in module 'head' (net.py,
line 7); ...`, empty where nothing was found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.proof.recorded import (
    TENSOR,
    Recorded,
    is_finite,
    is_part,
    is_random,
    name_of,
    near,
    recorded,
    same,
    tensors,
)
from mlpdeploy.graph.tracing.place import apart, line_of, place_of
from mlpdeploy.graph.tracing.rows import fixed_batch
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}

TRIES = 16
"""Runs of an operation that may be random, of which one must differ; a dropped path is dropped now and then."""

UNSET = "empty"
"""What operators are called that give whatever lies in memory."""

RANDOM = "leave it out unless self.training, or draw the numbers once and keep them as a buffer"
STATE = "keep nothing from one call to the next: compute it from the input"
STATISTICS = "give it running statistics (track_running_stats=True)"
AXIS = "let it work along another axis than the first, which is the batch"
COUNT = "compute with the values of a row, not with how many rows there are"
SQUEEZE = "name the axis that it drops, such as squeeze(-1)"
PLAIN = "write it without in-place operations on views, without .data and without state in Python"
GUARD = "check the weights there, or guard it, as with clamp or + eps"


def changed(network: nn.Module, inputs: Sequence[TensorSpec], rows: Arrays) -> str:
    """What makes a network give something else when it runs on the same rows again."""
    first, second = (recorded(network, inputs, rows) for _ in range(2))
    pairs = ((a, b) for a, b in zip(first, second, strict=False) if not b.name.startswith(UNSET))
    found = next((b for a, b in pairs if not same(a, b)), None)
    if found is None:
        return ""
    what, instead = ("draws random numbers", RANDOM) if found.random else ("does first", STATE)
    return f"{found.name} {what}{found.place}; {instead}"


def mixed(network: nn.Module, inputs: Sequence[TensorSpec], rows: Arrays) -> str:
    """What makes a row of a network depend on which other rows are in its batch, or on how many.

    Not looked for where the network takes a single batch size, in which no row can be alone.
    """
    if fixed_batch(inputs) is not None:
        return ""
    count = len(next(iter(rows.values())))
    together = recorded(apart(network), inputs, rows)
    alone = [recorded(apart(network), inputs, {n: v[i : i + 1] for n, v in rows.items()}) for i in range(count)]
    for batch, *single in zip(together, *alone, strict=False):
        if batch.name.startswith(UNSET) or all(is_part(batch, one, i, count) for i, one in enumerate(single)):
            continue
        what, instead = "mixes them", AXIS
        if "batch_norm" in batch.name:
            what, instead = "takes the batch's own statistics", STATISTICS
        elif "squeeze" in batch.name:
            what, instead = "drops the batch axis where the batch is 1", SQUEEZE
        elif batch.name == TENSOR or any((batch.name, batch.numbers) != (one.name, one.numbers) for one in single):
            what, instead = "depends on the number of rows", COUNT
        return f"{batch.name} {what}{batch.place}; {instead}"
    shortest = min(map(len, (together, *alone)))
    for more in (together, *alone):
        if len(more) > shortest:
            return f"{more[shortest].name} depends on the number of rows{more[shortest].place}; {COUNT}"
    return ""


def strayed(network: nn.Module, traced: Traced, rows: Arrays) -> str:
    """Where the traced graph of a network computes what no line of the network does."""
    seen, values = recorded(apart(network), traced.inputs, rows), _values(traced, rows)

    def strays(node: fx.Node) -> bool:
        value = values.get(node)
        if node.op != "call_function" or not isinstance(value, Tensor):
            return False
        given = ((one, each.scale) for each in seen if _called(node, each) for one in each.results)
        return not any(near(value, one, scale) for one, scale in given)

    def unmatched(operation: Recorded) -> bool:
        known = [value for value in values.values() if isinstance(value, Tensor)]
        return not any(near(one, value, operation.scale) for one in operation.results for value in known)

    if (found := _origin(traced.module, strays)) is not None:
        return f"{_title(found)} first{_where(found, seen, unmatched)}; {PLAIN}"
    return f"{seen[-1].name} is not in it{seen[-1].place}; {PLAIN}" if seen else ""


def drawn(network: nn.Module, traced: Traced, rows: Arrays) -> str:
    """Which random numbers decide the outputs of a traced graph."""
    values = _values(traced, rows)

    def varies(node: fx.Node) -> bool:
        if not is_random(node.target):
            return False
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        with torch.inference_mode():
            found = [pytree.tree_leaves(node.target(*args, **kwargs)) for _ in range(TRIES)]  # type: ignore[operator]
        return any(not torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))

    found = _origin(traced.module, lambda node: True, varies)
    if found is None:
        return ""
    seen = recorded(apart(network), traced.inputs, rows)
    return f"{_title(found)} draws random numbers{_where(found, seen, lambda one: one.random)}; {RANDOM}"


def own_precision(module: fx.GraphModule) -> str | None:
    """The half precision in which a network, as its graph says, computes by itself: the coarser of two, or none."""
    values = (one for node in module.graph.nodes for one in pytree.tree_leaves(node.meta.get("val")))
    found = {value.dtype for value in values if isinstance(value, Tensor)}
    return next((name for name, dtype in HALVES.items() if dtype in found), None)


def unbounded(network: nn.Module, traced: Traced, rows: Arrays) -> str:
    """What gives the NaN or infinity that reaches the outputs of a traced graph."""
    values = _values(traced, rows)

    def spoilt(node: fx.Node) -> bool:
        return not all(map(is_finite, pytree.tree_leaves(values.get(node))))

    found = _origin(traced.module, spoilt)
    if found is None:
        return ""
    if found.op != "call_function":
        return f"the tensor {found.target!r} of the network holds it"
    seen = recorded(apart(network), traced.inputs, rows)
    where = _where(found, seen, lambda one: not all(map(is_finite, one.results)))
    return f"{_title(found)} gives it first{where}; {GUARD}"


def _called(node: fx.Node, operation: Recorded) -> bool:
    """Whether an operation was asked for by the line that a node came from, or by what that line calls."""
    return line_of(node) in operation.here.lines


def _where(node: fx.Node, seen: Sequence[Recorded], fits: Callable[[Recorded], bool]) -> str:
    """The place of a node: that of the operation that it came from, where one `fits`; a trace knows no inner lines."""
    alike = (one for one in seen if one.name == _title(node) and _called(node, one) and fits(one))
    found = next(alike, None)
    return f", in{place_of(node)}" if found is None else found.place


def _origin(
    module: fx.GraphModule, through: Callable[[fx.Node], bool], wanted: Callable[[fx.Node], bool] = lambda node: True
) -> fx.Node | None:
    """Of the nodes that the outputs depend on through such nodes only, the first that is wanted."""
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    seen: set[fx.Node] = set()
    left = list(output.all_input_nodes)
    while left:
        node = left.pop()
        if node not in seen and through(node):
            seen.add(node)
            left += node.all_input_nodes
    return next((node for node in module.graph.nodes if node in seen and wanted(node)), None)


class _Values(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.found[n] = super().run_node(n)
        return self.found[n]


def _values(traced: Traced, rows: Arrays) -> dict[fx.Node, Any]:
    interpreter = _Values(traced.module)
    with torch.inference_mode():
        interpreter.run(*tensors(traced.inputs, rows))
    return interpreter.found


def _title(node: fx.Node) -> str:
    return name_of(node.target) if hasattr(node.target, "overloadpacket") else str(node.name)
