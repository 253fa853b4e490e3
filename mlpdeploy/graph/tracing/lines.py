"""The user's innermost line for every operation: torch.export keeps those of methods called `forward` alone."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch.fx.traceback import annotate, preserve_node_meta
from torch.overrides import TorchFunctionMode

from mlpdeploy.graph.tracing.place import is_users

LINE = "mlpdeploy_line"
"""Key of `node.meta["custom"]` under which export carries the file, line and function of an operation."""


@contextmanager
def recorded() -> Iterator[None]:
    """Let whatever is traced meanwhile remember its line; see `restore`."""
    with preserve_node_meta(), _Lines():
        yield


def restore(graph: fx.Graph) -> None:
    """Write the line of each operation behind those that export keeps, in `meta["stack_trace"]`."""
    for node in graph.nodes:
        line = (node.meta.pop("custom", None) or {}).get(LINE)
        if line is None:
            continue
        file, number, name = line
        known = node.meta.get("stack_trace") or ""
        if f'File "{file}", line {number}, in' not in known:
            code = linecache.getline(file, number).strip()
            node.meta["stack_trace"] = f'{known}\n  File "{file}", line {number}, in {name}\n    {code}\n'


class _Lines(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():  # a branch of torch.cond: Dynamo reads this, and no frames
            return func(*args, **(kwargs or {}))
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not is_users(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None:
            return func(*args, **(kwargs or {}))
        with annotate({LINE: (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)}):
            return func(*args, **(kwargs or {}))
