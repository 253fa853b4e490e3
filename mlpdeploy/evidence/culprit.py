"""Which operation makes a network something else than one function of each row, and what to write instead of it.

The network runs with every operation recorded, once in each of two ways that must agree; the first operation whose
results do not is the one. Each answer is the second half of a line: `softmax mixes them, in module 'head' (net.py,
line 7); ...`, empty where nothing was found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mlpdeploy.engine.backend import Arrays
from mlpdeploy.graph.place import apart, here, line_of, place_of, site
from mlpdeploy.graph.trace import TensorSpec, Traced

NOISE = 1000.0
"""Results that differ by less than so many units in the last place of their operands agree."""

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


@dataclass
class Operation:
    """One call of an operator: where the user asked for it, and copies of its results.

    `scale` is the largest magnitude among its operands and results, `numbers` are its arguments that are no tensors.
    """

    name: str
    path: str
    file: str
    line: int
    random: bool
    numbers: tuple[Any, ...]
    scale: float
    results: list[Tensor] = field(default_factory=list)

    @property
    def place(self) -> str:
        """`, in module 'a.b' (file.py, line 7)`."""
        return f", in{site(self.path, self.file, self.line)}"


class Recorder(TorchDispatchMode):
    """Records every operation of a network that runs, `seen` in order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.paths = {id(module): path for path, module in network.named_modules()}
        self.seen: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves = pytree.tree_leaves((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        numbers = tuple(leaf for leaf in leaves if isinstance(leaf, int | float))
        operation = Operation(
            _name(func), *here(self.paths), _is_random(func), numbers, max(map(_largest, tensors), default=0)
        )
        self.seen.append(operation)
        found = func(*args, **(kwargs or {}))
        operation.results = [leaf.clone() for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
        operation.scale = max([operation.scale, *map(_largest, operation.results)])
        return found


def changed(network: nn.Module, inputs: Sequence[TensorSpec], rows: Arrays) -> str:
    """What makes a network give something else when it runs on the same rows again."""
    first, second = (_recorded(network, inputs, rows) for _ in range(2))
    pairs = ((a, b) for a, b in zip(first, second, strict=False) if not b.name.startswith(UNSET))
    found = next((b for a, b in pairs if not _same(a, b)), None)
    if found is None:
        return ""
    what, instead = ("draws random numbers", RANDOM) if found.random else ("does first", STATE)
    return f"{found.name} {what}{found.place}; {instead}"


def mixed(network: nn.Module, inputs: Sequence[TensorSpec], rows: Arrays) -> str:
    """What makes a row of a network depend on which other rows are in its batch, or on how many."""
    count = len(next(iter(rows.values())))
    together = _recorded(apart(network), inputs, rows)
    alone = [_recorded(apart(network), inputs, {n: v[i : i + 1] for n, v in rows.items()}) for i in range(count)]
    for batch, *single in zip(together, *alone, strict=False):
        if batch.name.startswith(UNSET) or all(_is_part(batch, one, i, count) for i, one in enumerate(single)):
            continue
        what, instead = "mixes them", AXIS
        if "batch_norm" in batch.name:
            what, instead = "takes the batch's own statistics", STATISTICS
        elif "squeeze" in batch.name:
            what, instead = "drops the batch axis where the batch is 1", SQUEEZE
        elif any((batch.name, batch.numbers) != (one.name, one.numbers) for one in single):
            what, instead = "depends on the number of rows", COUNT
        return f"{batch.name} {what}{batch.place}; {instead}"
    shortest = min(map(len, (together, *alone)))
    for more in (together, *alone):
        if len(more) > shortest:
            return f"{more[shortest].name} depends on the number of rows{more[shortest].place}; {COUNT}"
    return ""


def strayed(network: nn.Module, traced: Traced, rows: Arrays) -> str:
    """Where the traced graph of a network computes what no line of the network does."""
    lines: dict[tuple[str, int | None], list[Operation]] = {}
    seen = _recorded(apart(network), traced.inputs, rows)
    for operation in seen:
        lines.setdefault((operation.file, operation.line), []).append(operation)
    values = _values(traced, rows)

    def strays(node: fx.Node) -> bool:
        value = values.get(node)
        if node.op != "call_function" or not isinstance(value, Tensor):
            return False
        given = ((one, each.scale) for each in lines.get(line_of(node), ()) for one in each.results)
        return not any(_near(value, one, scale) for one, scale in given)

    if (found := _origin(traced.module, strays)) is not None:
        return f"{_title(found)} first{_place(found)}; {PLAIN}"
    return f"{seen[-1].name} is not in it{seen[-1].place}; {PLAIN}" if seen else ""


def drawn(traced: Traced, rows: Arrays) -> str:
    """Which random numbers decide the outputs of a traced graph."""
    values = _values(traced, rows)

    def varies(node: fx.Node) -> bool:
        if not _is_random(node.target):
            return False
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        with torch.inference_mode():
            found = [pytree.tree_leaves(node.target(*args, **kwargs)) for _ in range(TRIES)]  # type: ignore[operator]
        return any(not torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))

    found = _origin(traced.module, lambda node: True, varies)
    return "" if found is None else f"{_title(found)} draws random numbers{_place(found)}; {RANDOM}"


def computes_low(module: fx.GraphModule) -> bool:
    """Whether a network, as its graph says, computes in half precision by itself."""
    values = (pytree.tree_leaves(node.meta.get("val")) for node in module.graph.nodes)
    return any(isinstance(one, Tensor) and one.dtype in (torch.float16, torch.bfloat16) for v in values for one in v)


def unbounded(traced: Traced, rows: Arrays) -> str:
    """What gives the NaN or infinity that reaches the outputs of a traced graph."""
    values = _values(traced, rows)

    def spoilt(node: fx.Node) -> bool:
        return any(not torch.isfinite(one).all() for one in pytree.tree_leaves(values.get(node)) if _is_float(one))

    found = _origin(traced.module, spoilt)
    if found is None:
        return ""
    if found.op != "call_function":
        return f"the tensor {found.target!r} of the network holds it"
    return f"{_title(found)} gives it first{_place(found)}; {GUARD}"


def _recorded(network: nn.Module, inputs: Sequence[TensorSpec], rows: Arrays) -> list[Operation]:
    """The operations of one run in float32, up to where it raised an error if it did."""
    recorder = Recorder(network)
    tensors = _tensors(inputs, rows)
    try:
        with recorder, torch.inference_mode():
            network(*tensors)
    except (Exception, SystemExit):  # whatever the user's code raises; what was asked for last is recorded
        pass
    return recorder.seen


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


def _tensors(inputs: Sequence[TensorSpec], rows: Arrays) -> list[Tensor]:
    """The rows in float32, or as integers."""
    kinds = [torch.float32 if spec.dtype.is_floating_point else spec.dtype for spec in inputs]
    return [torch.tensor(rows[spec.name], dtype=kind) for spec, kind in zip(inputs, kinds, strict=True)]


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
        interpreter.run(*_tensors(traced.inputs, rows))
    return interpreter.found


def _same(first: Operation, second: Operation) -> bool:
    if first.name != second.name or len(first.results) != len(second.results):
        return False
    return all(_near(a, b, first.scale) for a, b in zip(first.results, second.results, strict=True))


def _is_part(batch: Operation, single: Operation, index: int, count: int) -> bool:
    """Whether a row alone got what it got as row `index` of `count`."""
    if batch.name != single.name or len(batch.results) != len(single.results):
        return False
    return all(_holds(a, b, index, count, batch.scale) for a, b in zip(batch.results, single.results, strict=True))


def _holds(batch: Tensor, single: Tensor, index: int, count: int, scale: float) -> bool:
    if batch.shape == single.shape:
        return _near(batch, single, scale)
    if batch.dim() != single.dim():
        return False
    differ = [axis for axis in range(batch.dim()) if batch.shape[axis] != single.shape[axis]]
    if len(differ) != 1 or batch.shape[differ[0]] != count * single.shape[differ[0]]:
        return False
    (axis,) = differ
    size = single.shape[axis]
    # The batch may have been merged with other axes, on their inside, their outside or between them.
    merged = (outer for outer in range(1, size + 1) if size % outer == 0)
    return any(_near(_row(batch, axis, outer, index, count), single, scale) for outer in merged)


def _row(batch: Tensor, axis: int, outer: int, index: int, count: int) -> Tensor:
    """Row `index` of `count`, where the batch lies behind `outer` numbers within an axis."""
    parts = batch.unflatten(axis, (outer, count, -1))
    return parts.select(axis + 1, index).flatten(axis, axis + 1)


def _near(a: Tensor, b: Tensor, scale: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not _is_float(a):
        return torch.equal(a, b)
    allowed = NOISE * torch.finfo(a.dtype).eps * scale
    return torch.allclose(a, b, rtol=0, atol=allowed, equal_nan=True)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _largest(value: Tensor) -> float:
    """The largest finite magnitude."""
    if not _is_float(value) or not value.numel():
        return 0.0
    return float(value.detach().nan_to_num(0.0, 0.0, 0.0).abs().max())


def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


def _name(func: Any) -> str:
    """What people call an operator: `softmax` for `aten._softmax`."""
    name = func.overloadpacket.__name__.strip("_").removeprefix("native_")
    for ending in ("_legit", "_no_training", "_functional"):
        name = name.removesuffix(ending)
    return name


def _title(node: fx.Node) -> str:
    return _name(node.target) if hasattr(node.target, "overloadpacket") else str(node.name)


def _place(node: fx.Node) -> str:
    return f", in{place_of(node)}"
