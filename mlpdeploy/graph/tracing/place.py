"""Where in the user's network something happens: the path of the module, the file and the line."""

from __future__ import annotations

import copy
import functools
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

UNKNOWN = ("unknown file", None)
"""The file and line of a node that nobody's code is known for."""

_TORCH = os.path.dirname(torch.__file__) + os.sep
_PACKAGE = str(Path(__file__).parents[2]) + os.sep
_DATA: Any = torch.Tensor.data
_ZOO = _PACKAGE + "zoo" + os.sep


def is_torch(filename: str) -> bool:
    """Whether a file is torch's."""
    return filename.startswith(_TORCH)


@functools.cache
def is_users(filename: str) -> bool:
    """Whether a file is neither torch's nor the compiler's: the user's, a library's, or a network of ours."""
    return not is_torch(filename) and (filename.startswith(_ZOO) or not filename.startswith(_PACKAGE))


def apart(network: nn.Module, *, buffers: bool = False) -> nn.Module:
    """A copy that shares the parameters, and the `buffers` if asked for: what a run leaves in it, the network lacks.

    The network itself where it refuses to be copied.
    """
    tensors = [*network.parameters(), *(network.buffers() if buffers else ())]
    try:
        return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    except Exception:  # a module may hold anything
        return network


@dataclass(frozen=True)
class Here:
    """Where Python is: the path of the innermost module, and the user's lines that called it, the inner first."""

    path: str
    lines: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        """` module 'a.b' (file.py, line 7)`."""
        return site(self.path, *(self.lines[0] if self.lines else ("unknown file", None)))


def here(paths: Mapping[int, str]) -> Here:
    """Where Python is, among the modules whose ids have these `paths`."""
    path, lines = None, []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if is_users(code.co_filename):
            lines.append((code.co_filename, frame.f_lineno))
        if path is None and code.co_argcount:
            path = paths.get(id(frame.f_locals.get(code.co_varnames[0])))
        frame = frame.f_back
    return Here(path or "", tuple(lines))


def network_of(node: fx.Node) -> str:
    """Dotted path of the user's module that `node` came from; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def placeholders(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a graph's inputs."""
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def line_of(node: fx.Node) -> tuple[str, int | None]:
    """File and line of the user's code that a node came from: the innermost that is not torch's or made by it."""
    found = re.findall(r'File "([^<].*?)", line (\d+)', node.meta.get("stack_trace") or "")
    lines = [(name, int(line)) for name, line in found if not is_torch(name)]
    return lines[-1] if lines else UNKNOWN


def place_of(node: fx.Node) -> str:
    """` module 'a.b' (file.py, line 7)`."""
    return site(network_of(node), *line_of(node))


def site(path: str | None, filename: str, line: int | None) -> str:
    """` module 'a.b' (file.py, line 7)`."""
    where = f"{os.path.basename(filename)}, line {line}"
    return f" {where}" if path is None else f" module '{path or '(root)'}' ({where})"


def blame(network: nn.Module, error: BaseException) -> str:
    """`, in module 'a.b' (file.py, line 7)`: the innermost line outside torch that raised, or that torch says it was.

    Empty where neither is known.
    """
    paths = {id(module): path for path, module in network.named_modules()}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        names = frame.f_code.co_varnames
        owner = frame.f_locals.get(names[0]) if names else None
        if id(owner) in paths and is_users(frame.f_code.co_filename):
            place = site(paths[id(owner)], frame.f_code.co_filename, line)
    told = [(name, int(line)) for name, line in re.findall(r'File "(.+?)", line (\d+)', str(error)) if is_users(name)]
    if not place and told:
        place = site(None, *told[-1])
    return f", in{place}" if place else ""


def around_trace(network: nn.Module, examples: Sequence[torch.Tensor]) -> str:
    """`, in module 'a.b' (file.py, line 7)`: where a network that runs on `examples` first goes through `.data`."""
    asked = _Asked({id(module): path for path, module in network.named_modules()})
    try:
        with asked, torch.no_grad():
            network(*examples)
    except Exception:  # what was asked for until then counts
        pass
    return f", in{asked.place}" if asked.place else ""


class _Asked(TorchFunctionMode):
    """Remembers where `.data` of a tensor that is no weight was asked for first."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        super().__init__()
        self.paths = paths
        self.place: Here | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = func in (_DATA.__get__, _DATA.__set__)
        if asked and self.place is None and not isinstance(args[0], nn.Parameter):
            self.place = here(self.paths)
        return func(*args, **(kwargs or {}))
