"""Stage 1: a network becomes a graph of whole ATen operations whose batch stays symbolic where its code lets it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mlpdeploy.errors import InputError, NetworkError
from mlpdeploy.graph.tracing import lines
from mlpdeploy.graph.tracing.guards import require_symbolic_batch
from mlpdeploy.graph.tracing.place import apart, around_trace, blame, placeholders
from mlpdeploy.graph.tracing.quiet import quiet
from mlpdeploy.graph.tracing.refusals import (
    lost_batch,
    require_free_names,
    require_known_values,
    require_no_state,
    require_writable,
)
from mlpdeploy.graph.tracing.regions import inline_regions
from mlpdeploy.graph.tracing.rows import fixed_batch
from mlpdeploy.graph.tracing.strides import resolve_strides
from mlpdeploy.system.guest import LONGEST, guest, in_eval, text_of
from mlpdeploy.system.turns import turn

TRACE_BATCH = 3
"""Batch of the example that is traced: 0 and 1 would be specialised, and 2 is a usual size of other axes."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, its shape without the batch axis, and its dtype.

    `low` and `high` bound the values that an input may have, where it cannot have any: indices, coordinates. Of an
    image whose normalisation is known, `black` and `white` are the values of such a pixel, one a channel. `batch` is
    the only batch size that the network takes, None where it takes any.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float | None = None
    high: float | None = None
    black: tuple[float, ...] = ()
    white: tuple[float, ...] = ()
    batch: int | None = None

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
    Its forward returns a tuple, one tensor for each of `outputs`, without what is None in that of the network itself;
    `mapping` says that this returns a dict.
    """

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    mapping: bool = False


def trace(
    network: nn.Module, inputs: Sequence[TensorSpec], batches: Iterable[int] = (), outputs: Sequence[str] = ()
) -> Traced:
    """Trace `network` (put in eval mode) with every input's first axis as one batch of any size, `batches` among them;
    or of the one size that the inputs' specs say.

    `outputs` are what its outputs are called; none: what the network calls them. Raises InputError for other numbers of
    names than outputs.
    Raises NetworkError, naming the module and line of the user's network, where control flow depends on data, where
    an operation cannot be traced, or where the code fixes or restricts the batch.
    """
    kept, network = in_eval(network), apart(network, buffers=True)
    fixed = fixed_batch(inputs)
    examples = tuple(spec.example(fixed or TRACE_BATCH) for spec in inputs)
    dynamic = dynamic_shapes(network, [None if fixed else {0: torch.export.Dim.AUTO} for _ in inputs])
    require_free_names(network)

    def refused(error: BaseException) -> NetworkError:
        place = blame(network, error) or around_trace(apart(kept), examples)
        return NetworkError(f"cannot trace {type(network).__name__}: {_explain(error)}{place}")

    with guest(refused), torch.no_grad(), turn(), quiet():
        with lines.recorded():
            exported = torch.export.export(network, examples, dynamic_shapes=dynamic)
        program = _functional(exported)
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    inline_regions(module, type(network).__name__)
    module.graph.set_codegen(fx.graph.CodeGen())
    lines.drop_annotations(module.graph)
    _restore_batch_norms(module.graph)
    resolve_strides(module, type(network).__name__)
    _free_of_strides(module.graph)
    require_no_state(network, exported, program)
    require_known_values(network, module)
    require_writable(network, module)
    if fixed is None:
        require_symbolic_batch(network, module, batches)
    _rename_inputs(module, inputs)
    _freeze(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    paths = _without_none(module, _paths(exported))
    mapping = all(path and isinstance(path[0], pytree.MappingKey) for path in paths)
    if outputs and len(outputs) != len(paths):
        raise InputError(f"{len(outputs)} names of outputs, and the network returns {len(paths)} tensors")
    return Traced(module, tuple(inputs), _outputs(module, outputs or output_names(paths), fixed), mapping)


def dynamic_shapes(network: nn.Module, shapes: Sequence[Any]) -> tuple[Any, ...]:
    """What torch.export is told of a network's inputs, one each: those that `*args` takes are one tuple to it."""
    parameters = inspect.signature(network.forward).parameters.values()
    named = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(shapes) <= len(named) or not any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return tuple(shapes)
    return (*shapes[: len(named)], tuple(shapes[len(named) :]))


def _rename_inputs(module: fx.GraphModule, inputs: Sequence[TensorSpec]) -> None:
    for node, spec in zip(placeholders(module), inputs, strict=True):
        node.target = node.name = spec.name


def _freeze(module: fx.GraphModule) -> None:
    """Weights become constants that share memory with the network's own, which stay as they are."""
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(parameter.detach(), requires_grad=False))


def _outputs(module: fx.GraphModule, names: Sequence[str], fixed: int | None) -> tuple[TensorSpec, ...]:
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    nodes = [node for node in output.args[0] if isinstance(node, fx.Node)]
    values = [value for node in nodes if isinstance(value := node.meta.get("val"), torch.Tensor)]
    if not values or len(values) != len(output.args[0]):
        other = next((f", not {value!r}" for value in output.args[0] if not isinstance(value, fx.Node)), "")
        raise NetworkError(f"the network must return tensors (a tensor, or a tuple, list or dict of tensors){other}")
    taken = {node.name for node in placeholders(module)}
    names = [f"{name}_of_network" if name in taken else name for name in names]
    for name, value in zip(names, values, strict=True):
        shape = f"{name} of the network has shape {tuple(value.shape)}"
        if value.dim() == 0 or (value.shape[0] != fixed if fixed else isinstance(value.shape[0], int)):
            raise NetworkError(f"{shape}: its first axis is not the batch{lost_batch(module, TRACE_BATCH)}")
        if 0 in value.shape[1:]:
            raise NetworkError(f"{shape}: there is nothing in it")
        if value.is_complex():
            raise NetworkError(f"{name} of the network is complex, which no engine gives: return its view_as_real")
    return tuple(TensorSpec(n, tuple(int(s) for s in v.shape[1:]), v.dtype) for n, v in zip(names, values, strict=True))


def _without_none(module: fx.GraphModule, paths: Sequence[pytree.KeyPath]) -> list[pytree.KeyPath]:
    """Take what is None out of what the graph returns; the paths of the rest."""
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    kept = [(value, path) for value, path in zip(output.args[0], paths, strict=True) if value is not None]
    output.args = (tuple(value for value, _ in kept),)
    module.recompile()
    return [path for _, path in kept]


def _paths(exported: torch.export.ExportedProgram) -> list[pytree.KeyPath]:
    """Where each tensor stands in what the network returns."""
    spec = exported.call_spec.out_spec
    assert spec is not None
    tree = pytree.tree_unflatten(range(spec.num_leaves), spec)
    return [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def output_names(paths: Sequence[pytree.KeyPath]) -> list[str]:
    """What the outputs of a network are called: by the keys and fields it returns them under, else by their place."""
    named = any(isinstance(key, pytree.MappingKey | pytree.GetAttrKey) for path in paths for key in path)
    if named:
        names = [re.sub(r"[^\w.-]+", "_", ".".join(map(_key, path))) for path in paths]
        if len(set(names)) == len(names) and all(names):
            return names
    return ["output"] if len(paths) == 1 else [f"output_{index}" for index in range(len(paths))]


def _key(key: Any) -> str:
    """One step of a path: the key of a dict, the field of a named tuple, the place in a sequence."""
    return str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)))


def _functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without operations that write into their input, so that a value can be had in another layout, nor vmap."""
    graphs = (part.graph for part in program.graph_module.modules() if isinstance(part, fx.GraphModule))
    targets = {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}
    written = any(isinstance(one, torch._ops.OpOverload) and one._schema.is_mutable for one in targets)
    mapped = any(getattr(one, "__module__", "").startswith("torch._functorch") for one in targets)
    return program.run_decompositions({}) if written or mapped else program


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


def _explain(error: BaseException) -> str:
    """One line for what torch.export tells in pages."""
    text = text_of(error)
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in type(error).__name__:
        return "its control flow depends on the values of a tensor; use torch.where or remove the branch"
    if "fake tensor in the exported program" in text:
        return "it goes through .data, or keeps a tensor between calls; compute with the tensor itself"
    if "register a pytree" in text:
        kind = re.search(r"<class '([^']*)'>", text)
        what = f"returns a {kind[1].rpartition('.')[2]}" if kind else "returns something"
        return f"it {what}, which torch.export cannot see into; return a tensor, or a tuple, list or dict of tensors"
    if "internal overlap" in text:
        return "it writes into a view that holds an element twice; compute a new tensor, with clone() or out of place"
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:LONGEST]}" if first else type(error).__name__
