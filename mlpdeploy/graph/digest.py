"""A graph as text, and its tensors as hashes: equal where two graphs compute the same from the same numbers.

`str(graph)` would not do: it prints `None` and `"none"` alike and says nothing of what goes in, and a state dict lacks
what a network keeps elsewhere: buffers that are not persistent, plain attributes, tensors that are made in `forward`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import fx

from mlpdeploy.graph.trace import TensorSpec, network_of


class Graph(Protocol):
    """A traced or a rewritten network."""

    @property
    def module(self) -> fx.GraphModule: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...


def operations(network: Graph) -> str:
    """What it takes, and a line for each node: its module, its operation, what it is given, the dtype of its result."""
    return "\n".join([*map(repr, network.inputs), *_lines(network.module)])


def tensors(module: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Name and hash of every tensor that a graph reads, those of graphs within it too, in the order of reading."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = _attribute(module, node)
            if isinstance(value, fx.GraphModule):
                yield from ((f"{node.target}.{name}", content) for name, content in tensors(value))
            elif isinstance(value, torch.Tensor):
                yield str(node.target), sha256(value)


def sha256(tensor: torch.Tensor) -> str:
    """The hash of a tensor's dtype, shape and numbers, however they lie in memory."""
    plain = tensor.detach().cpu()
    plain = (plain if plain.layout == torch.strided else plain.to_dense()).resolve_conj().resolve_neg().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}\0".encode())
    digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _lines(module: fx.GraphModule) -> Iterator[str]:
    numbers: dict[fx.Node, int] = {}
    for number, node in enumerate(module.graph.nodes):
        given = _told((node.args, node.kwargs), numbers)
        value = _attribute(module, node) if node.op == "get_attr" else None
        dtype = getattr(node.meta.get("val"), "dtype", None)
        yield f"{network_of(node)} {node.op} {_name(node.target)} {given} {dtype}"
        if isinstance(value, fx.GraphModule):
            yield from _lines(value)
        elif value is not None and not isinstance(value, torch.Tensor):
            yield _told(value, numbers)
        numbers[node] = number


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _name(target: Any) -> str:
    """An operation's or attribute's name; of a Python function with its module."""
    if isinstance(target, str) or hasattr(target, "overloadpacket"):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', None) or target}"


def _told(value: Any, numbers: Mapping[fx.Node, int]) -> str:
    """An operand: nodes by their place, everything else with its type."""
    if isinstance(value, fx.Node):
        return f"%{numbers[value]}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {_told(one, numbers)}' for name, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_told(one, numbers) for one in value)}]"
    if isinstance(value, slice):
        return f"slice{_told((value.start, value.stop, value.step), numbers)}"
    return f"{type(value).__name__} {value!r}"
