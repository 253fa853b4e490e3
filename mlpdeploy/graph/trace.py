"""Stage 1: a network becomes a graph of whole ATen operations whose batch stays symbolic."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from mlpdeploy.errors import InputError, NetworkError
from mlpdeploy.graph.origin import is_torch, network_of, place_of, site
from mlpdeploy.graph.regions import inline_regions
from mlpdeploy.guest import guest

TRACE_BATCH = 3
"""Batch of the example that is traced: 0 and 1 would be specialised, and 2 is a usual size of other axes."""

CHECKED_BATCHES = (1, 2, 3, 5, 8, 64)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, its shape without the batch axis, and its dtype.

    `low` and `high` bound the values that an input may have, where it cannot have any: indices, coordinates. Of an
    image whose normalisation is known, `black` and `white` are the values of such a pixel, one a channel.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float | None = None
    high: float | None = None
    black: tuple[float, ...] = ()
    white: tuple[float, ...] = ()

    def example(self, batch: int) -> torch.Tensor:
        """The lowest value, or zeros, in this shape: `(batch, *shape)`."""
        return torch.full((batch, *self.shape), self.low or 0, dtype=self.dtype)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Random rows `(count, *shape)`: uniform in [low, high) where bounded, standard normal numbers elsewhere.

        Floating-point rows are float32. Raises InputError for integers without bounds.
        """
        shape = (count, *self.shape)
        if self.low is None or self.high is None:
            if not self.dtype.is_floating_point:
                raise InputError(f"input {self.name!r} is {self.dtype}, and nothing says which values it can have")
            return rng.standard_normal(shape, dtype=np.float32)
        if self.dtype.is_floating_point:
            return rng.uniform(self.low, self.high, shape).astype(np.float32)
        return rng.integers(int(self.low), int(self.high), shape)


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

    def refused(error: BaseException) -> NetworkError:
        return NetworkError(f"cannot trace {type(network).__name__}: {_explain(error)}{_blame(network, error)}")

    with guest(refused), torch.no_grad(), quiet():
        program = _functional(torch.export.export(network, examples, dynamic_shapes=dynamic))
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    inline_regions(module, type(network).__name__)
    module.graph.set_codegen(fx.graph.CodeGen())
    _restore_batch_norms(module.graph)
    _free_of_strides(module.graph)
    _require_no_state(network, program)
    _require_known_values(network, module)
    _require_symbolic_batch(network, module)
    _rename_inputs(module, inputs)
    _freeze(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    return Traced(module, tuple(inputs), _outputs(module))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the graph dumps and warnings of torch.export off the user's terminal: an error says what they mean."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(_Muted(sys.stderr)):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Muted:
    """A stream that drops what this thread writes; another thread may be drawing progress on it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
    values = [value for node in nodes if isinstance(value := node.meta.get("val"), torch.Tensor)]
    if not values or len(values) != len(output.args[0]):
        raise NetworkError("the network must return tensors only (a tensor, or a tuple, list or dict of tensors)")
    names = ["output"] if len(nodes) == 1 else [f"output_{index}" for index in range(len(nodes))]
    taken = {node.name for node in _placeholders(module)}
    names = [f"{name}_of_network" if name in taken else name for name in names]
    for name, value in zip(names, values, strict=True):
        if value.dim() == 0 or isinstance(value.shape[0], int):
            raise NetworkError(f"{name} of the network has shape {tuple(value.shape)}: its first axis is not the batch")
    return tuple(TensorSpec(n, tuple(int(s) for s in v.shape[1:]), v.dtype) for n, v in zip(names, values, strict=True))


def _functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without operations that write into their input, so that a value can be had in another layout."""
    graphs = (part.graph for part in program.graph_module.modules() if isinstance(part, fx.GraphModule))
    nodes = (node for graph in graphs for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    return program.run_decompositions({}) if any(node.target._schema.is_mutable for node in nodes) else program


def _restore_batch_norms(graph: fx.Graph) -> None:
    """`batch_norm` in place of the form with three results that functionalisation makes of it."""
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten._native_batch_norm_legit_no_training.default:
            continue
        first = next(user for user in node.users if user.args[1] == 0)
        *operands, momentum, epsilon = node.args
        first.target, first.args = torch.ops.aten.batch_norm.default, (*operands, False, momentum, epsilon, False)


def _free_of_strides(graph: fx.Graph) -> None:
    """No operation may ask for the strides or dtypes of the trace: those of the rewritten graph are others."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default


def _require_no_state(network: nn.Module, program: torch.export.ExportedProgram) -> None:
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        name = type(network).__name__
        raise NetworkError(f"{name} writes into {changed[0]!r}; a network must leave its inputs and buffers alone")


def _require_known_values(network: nn.Module, module: fx.GraphModule) -> None:
    """Raise where a shape or a number depends on the values of a tensor."""
    for node in module.graph.nodes:
        values = node.meta.get("val")
        values = values if isinstance(values, list | tuple) else [values]
        if node.op == "call_function" and any(map(free_unbacked_symbols, values)):
            raise NetworkError(
                f"{type(network).__name__} makes a number or a shape out of the values of a tensor ({node.target}), in"
                f"{place_of(node)}; keep it a tensor of a fixed shape there"
            )


def _require_symbolic_batch(network: nn.Module, module: fx.GraphModule) -> None:
    """Raise where a batch became a number, or where the code admits only some batches."""
    sizes = [node.meta["val"].shape[0] for node in _placeholders(module)]
    environment = _placeholders(module)[0].meta["val"].fake_mode.shape_env
    for guard in environment.guards:
        refused = [n for n in CHECKED_BATCHES if guard.expr.free_symbols and not _holds(guard.expr, n)]
        if refused and (place := _place(network, module, guard.sloc, refused)):
            raise NetworkError(
                f"{type(network).__name__} works only for some batch sizes ({guard.expr}), decided in{place};"
                " use integer arithmetic (//) or -1 in reshape there"
            )
    if any(isinstance(size, int) for size in sizes):
        raise NetworkError(f"{type(network).__name__} fixes the batch at {TRACE_BATCH}; keep its first axis free")


def _holds(expression: Any, batch: int) -> bool:
    return bool(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


def _place(network: nn.Module, module: fx.GraphModule, location: Any, batches: Sequence[int]) -> str | None:
    """` module 'a.b' (file.py, line 7)`: the user's line that made a guard, or the operation that fails without it.

    None where torch made the guard and every operation takes the batches that it rules out: a shortcut, no restriction.
    """
    with quiet():
        node = next(filter(None, (_failing(module, batch) for batch in reversed(batches))), None)
    frame = location.framework_loc
    if not isinstance(frame, traceback.FrameSummary) or is_torch(frame.filename):
        return None if node is None else place_of(node)
    owners = [path for path, owner in network.named_modules() if _defines(type(owner), frame)]
    path = owners[0] if owners else None if node is None else network_of(node)
    return site(path, frame.filename, frame.lineno)


class _Recorder(fx.Interpreter):
    """Runs a graph and remembers where it is."""

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)


def _failing(module: fx.GraphModule, batch: int) -> fx.Node | None:
    """The first operation that refuses inputs of this batch; nothing is computed but shapes."""
    recorder = _Recorder(module)
    values = [node.meta["val"] for node in _placeholders(module)]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        try:
            recorder.run(*(torch.zeros((batch, *map(int, value.shape[1:])), dtype=value.dtype) for value in values))
        except Exception:  # whatever it raises, it is the operation looked for
            return recorder.node
    return None


def _defines(kind: type, frame: traceback.FrameSummary) -> bool:
    code = getattr(getattr(kind, frame.name, None), "__code__", None)
    if code is None or frame.lineno is None or os.path.basename(code.co_filename) != os.path.basename(frame.filename):
        return False
    return any(line == frame.lineno for _, _, line in code.co_lines())


def _blame(network: nn.Module, error: BaseException) -> str:
    """The innermost line outside torch that raised, and the module that it belongs to."""
    paths = {id(module): path for path, module in network.named_modules()}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        names = frame.f_code.co_varnames
        owner = frame.f_locals.get(names[0]) if names else None
        if id(owner) in paths and not is_torch(frame.f_code.co_filename) and frame.f_code.co_filename != __file__:
            place = site(paths[id(owner)], frame.f_code.co_filename, line)
    return f", in{place}" if place else ""


def _explain(error: BaseException) -> str:
    """One line for what torch.export tells in pages."""
    text = str(error)
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in type(error).__name__:
        return "its control flow depends on the values of a tensor; use torch.where or remove the branch"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{type(error).__name__}: {first}"
