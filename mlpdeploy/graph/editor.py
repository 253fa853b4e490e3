"""Adds nodes to a graph with their metadata, so that no rule has to repair any."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher

from mlpdeploy.graph.layout.view import Size, size_of

ORIGIN = ("nn_module_stack", "stack_trace")
"""Metadata that tells where in the user's network a node came from; new nodes inherit it."""

aten = torch.ops.aten


class Editor:
    """Writes into a graph whose weights `module` holds; a new node gets `meta["val"]` by running on fake tensors.

    `notes`: what a rule knows of the nodes that it has been asked about, for those behind them.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.module = module
        self.graph = graph
        self.inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        self.fake_mode = self.inputs[0].meta["val"].fake_mode
        # What operations give on fake tensors, for all editors of what came from one trace.
        self.known: dict[Any, Any] = vars(self.fake_mode).setdefault("mlpdeploy_known", {})
        self.notes: dict[fx.Node, Any] = {}

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """New nodes go in front of `node`."""
        with self.graph.inserting_before(node):
            yield

    def call(
        self, target: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None, *, origin: fx.Node
    ) -> fx.Node:
        """A call_function node, its arguments by place as in a trace; `origin` is the node of the user's network that
        it stands for.
        """
        node = self.graph.call_function(target, *_placed(target, args, kwargs or {}))
        node.meta.update({key: origin.meta[key] for key in ORIGIN if key in origin.meta})
        node.meta["val"] = self._value(node)
        return node

    def _value(self, node: fx.Node) -> Any:
        """What `node` gives on fake tensors; a network repeats its blocks, so most of them are known already."""
        key = _key((node.target, node.args, node.kwargs))
        if key not in self.known:
            values = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
            with self.fake_mode, enable_python_dispatcher(), torch.no_grad():
                self.known[key] = node.target(*values[0], **values[1])  # type: ignore[operator]
        return self.known[key]

    def constant(self, tensor: torch.Tensor, name: str, *, origin: fx.Node) -> fx.Node:
        """A get_attr node for a new weight; `name` is made unique and kept readable."""
        base = re.sub(r"\W", "_", name)
        unique, count = base, 1
        while hasattr(self.module, unique):
            unique, count = f"{base}_{count}", count + 1
        self.module.register_parameter(unique, torch.nn.Parameter(tensor.detach().contiguous(), requires_grad=False))
        node = self.graph.get_attr(unique)
        node.meta.update({key: origin.meta[key] for key in ORIGIN if key in origin.meta})
        node.meta["val"] = self.fake_mode.from_tensor(tensor, static_shapes=True)
        return node

    def reshape(self, node: fx.Node, shape: Sequence[Size], *, origin: fx.Node) -> fx.Node:
        """`node` in another shape; the node itself where it has that shape already."""
        shape = list(shape)
        if shape == [size_of(size) for size in node.meta["val"].shape]:
            return node
        return self.call(aten.reshape.default, (node, self.arguments(shape, origin)), origin=origin)

    def permute(self, node: fx.Node, order: Sequence[int], *, origin: fx.Node) -> fx.Node:
        """`node` permuted, in one step where it is a permutation itself; the node itself where nothing moves."""
        if list(order) == list(range(len(order))):
            return node
        if node.target is aten.permute.default:
            source, inner = cast("tuple[fx.Node, list[int]]", node.args[:2])
            return self.permute(source, [inner[dim] % len(inner) for dim in order], origin=origin)
        return self.call(aten.permute.default, (node, list(order)), origin=origin)

    def project(self, node: fx.Node, dim: int, matrix: torch.Tensor, name: str, *, origin: fx.Node) -> fx.Node:
        """The axis `dim` of `node` multiplied with a constant matrix (out, in); the other axes stay alone."""
        rank = node.meta["val"].dim()
        order = [*(one for one in range(rank) if one != dim), dim]
        constant = self.constant(matrix.to(node.meta["val"].dtype), name, origin=origin)
        moved = self.permute(node, order, origin=origin)
        result = self.call(aten.linear.default, (moved, constant), origin=origin)
        return self.permute(result, [order.index(one) for one in range(rank)], origin=origin)

    def arguments(self, shape: Sequence[Size], origin: fx.Node) -> list[Any]:
        """A shape as arguments of reshape: -1 for the symbolic size, graph nodes for any further ones.

        Of no elements every size is told: -1 could be any.
        """
        result: list[Any] = []
        for size in shape:
            open_ = not isinstance(size, int) and -1 not in result and 0 not in shape
            result.append(-1 if open_ else self.size(size, origin=origin))
        return result

    def size(self, size: Size, *, origin: fx.Node) -> int | fx.Node:
        """A size as an argument: itself, or a node for a multiple of the batch."""
        if isinstance(size, int):
            return size
        batch = self.call(aten.sym_size.int, (self.inputs[0], 0), origin=origin)
        factor = size / size_of(batch.meta["val"])
        return batch if factor == 1 else self.call(operator.mul, (batch, int(factor)), origin=origin)


def _placed(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by place, but for those that an operation takes by name alone."""
    schema = getattr(target, "_schema", None)
    places = [] if schema is None else [one for one in schema.arguments if not one.kwarg_only]
    last = max((place for place, one in enumerate(places) if one.name in kwargs), default=-1)
    behind = [kwargs.get(one.name, one.default_value) for one in places[len(args) : last + 1]]
    named = {one.name for one in places[: last + 1]}
    return (*args, *behind), {name: value for name, value in kwargs.items() if name not in named}


def _key(value: Any) -> Any:
    """A hashable form of arguments, in which fake tensors of one dtype, shape and strides are the same."""
    if isinstance(value, fx.Node):
        return ("node", _key(value.meta["val"]))
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, *map(size_of, value.shape), *map(size_of, value.stride()))
    if isinstance(value, torch.SymInt):
        return ("size", size_of(value))
    if isinstance(value, list | tuple):
        return (type(value), *map(_key, value))
    if isinstance(value, Mapping):
        return tuple((name, _key(item)) for name, item in value.items())
    return (type(value), value)


def weight(module: nn.Module, node: Any) -> torch.Tensor | None:
    """The tensor behind a get_attr node, or None where `node` is anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, torch.Tensor) else None


def is_linear_of_constants(node: fx.Node) -> bool:
    """Whether `node` is `aten.linear` with its weight (and bias) taken from the network, not computed from inputs."""
    return node.target is aten.linear.default and all(
        isinstance(arg, fx.Node) and arg.op == "get_attr" for arg in node.args[1:] if arg is not None
    )
