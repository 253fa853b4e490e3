"""Where in the user's network a node came from: its module, and the line of code that called it."""

from __future__ import annotations

import os
import re

import torch
from torch import fx

UNKNOWN = ("unknown file", None)
"""The file and line of a node that nobody's code is known for."""


def network_of(node: fx.Node) -> str:
    """Dotted path of the user's module that `node` came from; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def line_of(node: fx.Node) -> tuple[str, int | None]:
    """File and line of the user's code that a node came from: the innermost that is not torch's or made by it."""
    found = re.findall(r'File "([^<].*?)", line (\d+)', node.meta.get("stack_trace") or "")
    lines = [(name, int(line)) for name, line in found if not is_torch(name)]
    return lines[-1] if lines else UNKNOWN


def place_of(node: fx.Node) -> str:
    """` module 'a.b' (file.py, line 7)`."""
    return site(network_of(node), *line_of(node))


def site(path: str | None, filename: str, line: int | None) -> str:
    """` module 'a.b' (file.py, line 7)`; without a path only the file and line."""
    where = f"{os.path.basename(filename)}, line {line}"
    return f" {where}" if path is None else f" module '{path or '(root)'}' ({where})"


def is_torch(filename: str) -> bool:
    """Whether a file is a part of PyTorch."""
    return filename.startswith(os.path.dirname(torch.__file__) + os.sep)
