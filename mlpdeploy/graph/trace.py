"""Stage 1: a network becomes a graph of whole ATen operations whose batch stays symbolic."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from mlpdeploy.errors import NetworkError

TRACE_BATCH = 3
"""Batch of the example that is traced: 0 and 1 would be specialised, and 2 is a usual size of other axes."""

CHECKED_BATCHES = (1, 2, 3, 5, 8, 64)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, its shape without the batch axis, and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def example(self, batch: int) -> torch.Tensor:
        """Zeros of this shape, `(batch, *shape)`."""
        return torch.zeros((batch, *self.shape), dtype=self.dtype)


@dataclass(frozen=True)
class Traced:
    """A traced network.

    `module` is a GraphModule: placeholders for inputs, get_attr for weights, ATen overloads for the rest; every
    node carries `meta["val"]` (a FakeTensor with a symbolic batch) and the user's module path and source line.
    Its forward returns a tuple, one tensor for each of `outputs`.
    """

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def trace(network: nn.Module, inputs: Sequence[TensorSpec]) -> Traced:
    """Trace `network` (put in eval mode) with every input's first axis as one symbolic batch.

    Raises NetworkError, naming the module and line of the user's network, where control flow depends on data, where
    an operation cannot be traced, or where the code fixes or restricts the batch.
    """
    network = network.eval()
    examples = tuple(spec.example(TRACE_BATCH) for spec in inputs)
    dynamic = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(network, examples, dynamic_shapes=dynamic)
            module = program.module(check_guards=False)
    except Exception as error:  # torch.export raises many unrelated types; each becomes one clear line
        raise NetworkError(f"cannot trace {type(network).__name__}: {_explain(error)}{_blame(network, error)}") from error
    assert isinstance(module, fx.GraphModule)
    module.graph.set_codegen(fx.graph.CodeGen())
    _require_symbolic_batch(network, module)
    _rename_inputs(module, inputs)
    _freeze(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    return Traced(module, tuple(inputs), _outputs(module))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the graph dumps that torch logs on failure off the user's terminal: the error says what they mean."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def network_of(node: fx.Node) -> str:
    """Dotted path of the user's module that `node` came from; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def _rename_inputs(module: fx.GraphModule, inputs: Sequence[TensorSpec]) -> None:
    for node, spec in zip(_placeholders(module), inputs, strict=True):
        node.target = node.name = spec.name


def _freeze(module: fx.GraphModule) -> None:
    """Weights become constants that share memory with the network's own, which stay as they are."""
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(parameter.detach(), requires_grad=False))


def _outputs(module: fx.GraphModule) -> tuple[TensorSpec, ...]:
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    nodes = [node for node in output.args[0] if isinstance(node, fx.Node)]
    if len(nodes) != len(output.args[0]) or not nodes:
        raise NetworkError("the network must return tensors only (a tensor, or a tuple, list or dict of tensors)")
    names = ["output"] if len(nodes) == 1 else [f"output_{index}" for index in range(len(nodes))]
    values = [node.meta["val"] for node in nodes]
    for name, value in zip(names, values, strict=True):
        if value.dim() == 0 or isinstance(value.shape[0], int):
            raise NetworkError(f"{name} of the network has shape {tuple(value.shape)}: its first axis is not the batch")
    return tuple(TensorSpec(n, tuple(int(s) for s in v.shape[1:]), v.dtype) for n, v in zip(names, values, strict=True))


def _require_symbolic_batch(network: nn.Module, module: fx.GraphModule) -> None:
    """Raise where a batch became a number, or where the code admits only some batches."""
    sizes = [node.meta["val"].shape[0] for node in _placeholders(module)]
    environment = _placeholders(module)[0].meta["val"].fake_mode.shape_env
    for guard in environment.guards:
        batches = {symbol: n for n in CHECKED_BATCHES for symbol in guard.expr.free_symbols}
        if not batches or all(_holds(guard.expr, n) for n in CHECKED_BATCHES):
            continue
        raise NetworkError(
            f"{type(network).__name__} works only for some batch sizes ({guard.expr}), decided at"
            f"{_place(network, guard.sloc)}; use integer arithmetic (//) or -1 in reshape there"
        )
    if any(isinstance(size, int) for size in sizes):
        raise NetworkError(f"{type(network).__name__} fixes the batch at {TRACE_BATCH}; keep its first axis free")


def _holds(expression: Any, batch: int) -> bool:
    return bool(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


def _place(network: nn.Module, location: Any) -> str:
    """` module 'a.b' (file.py, line 7)` for a guard's source location."""
    frame = getattr(location, "maybe_user_loc", None) or location.framework_loc
    if not isinstance(frame, traceback.FrameSummary):
        return f" {frame}"
    owners = [path for path, module in network.named_modules() if _defines(type(module), frame)]
    return _site(owners[0] if owners else None, frame.filename, frame.lineno)


def _defines(kind: type, frame: traceback.FrameSummary) -> bool:
    code = getattr(getattr(kind, frame.name, None), "__code__", None)
    if code is None or frame.lineno is None or os.path.basename(code.co_filename) != os.path.basename(frame.filename):
        return False
    return any(line == frame.lineno for _, _, line in code.co_lines())


def _site(path: str | None, filename: str, line: int | None) -> str:
    where = f"{os.path.basename(filename)}, line {line}"
    return f" {where}" if path is None else f" module '{path or '(root)'}' ({where})"


def _blame(network: nn.Module, error: BaseException) -> str:
    """The innermost line outside torch that raised, and the module that it belongs to."""
    torch_root = os.path.dirname(torch.__file__)
    paths = {id(module): path for path, module in network.named_modules()}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        names = frame.f_code.co_varnames
        owner = frame.f_locals.get(names[0]) if names else None
        if id(owner) in paths and not frame.f_code.co_filename.startswith(torch_root):
            place = _site(paths[id(owner)], frame.f_code.co_filename, line)
    return f", in{place}" if place else ""


def _explain(error: BaseException) -> str:
    """One line for what torch.export tells in pages."""
    text = str(error)
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in type(error).__name__:
        return "its control flow depends on the values of a tensor; use torch.where or remove the branch"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{type(error).__name__}: {first}"
