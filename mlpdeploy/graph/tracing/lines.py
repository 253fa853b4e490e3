"""The user's innermost line for every operation, as its stack trace.

torch.export keeps those of methods called `forward` alone, and walks and renders the whole stack for each operation; it
does not where it is told of one.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch.fx.traceback import get_current_meta, preserve_node_meta
from torch.overrides import TorchFunctionMode

from mlpdeploy.graph.tracing.place import is_users

STACK = "stack_trace"
"""The metadata that a new node takes over."""


@contextmanager
def recorded() -> Iterator[None]:
    """Let whatever is traced meanwhile remember its line, in `meta["stack_trace"]`."""
    with preserve_node_meta(), _Lines():
        yield


def drop_annotations(graph: fx.Graph) -> None:
    """Take from the operations what torch.export notes of itself."""
    for node in graph.nodes:
        node.meta.pop("custom", None)


class _Lines(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():  # a branch of torch.cond: Dynamo reads this, and no frames
            return func(*args, **(kwargs or {}))
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not _has_a_line(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None:
            return func(*args, **(kwargs or {}))
        meta = get_current_meta()
        before = meta.get(STACK)
        meta[STACK] = _told(frame)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            if before is None:
                meta.pop(STACK, None)
            else:
                meta[STACK] = before


def _has_a_line(file: str) -> bool:
    """Whether a file is one of the user's; code that was never in a file is called `<...>`."""
    return is_users(file) and not file.startswith("<")


def _told(frame: FrameType) -> str:
    """A frame as Python prints it."""
    file, line, name = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
    return f'  File "{file}", line {line}, in {name}\n    {linecache.getline(file, line).strip()}\n'
