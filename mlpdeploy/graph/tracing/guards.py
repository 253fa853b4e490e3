"""Which batch sizes a traced network takes: what its code decided by them is in the guards of the trace."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from mlpdeploy.errors import NetworkError
from mlpdeploy.graph.tracing.place import apart, is_torch, network_of, place_of, placeholders, site
from mlpdeploy.graph.tracing.quiet import quiet
from mlpdeploy.system.guest import guest

if TYPE_CHECKING:
    from mlpdeploy.graph.tracing.trace import TensorSpec

CHECKED_BATCHES = (1, 2, 3, 5, 8, 64)
ODD = 3
USUAL = (1, 2, 4, 8, 16, 32, 64, 128)
"""Batches at which a network is tried that does not take every one: one that nobody fixes, and those that people do."""
TRIED = 4
"""Batches at which an operation that does not take them is looked for."""


def require_symbolic_batch(network: nn.Module, module: fx.GraphModule, batches: Iterable[int]) -> None:
    """Raise NetworkError where a batch became a number, or where the code treats some sizes in another way than others:
    those of CHECKED_BATCHES and the `batches`."""
    sizes = [node.meta["val"].shape[0] for node in placeholders(module)]
    tried = sorted({*CHECKED_BATCHES, *batches})
    environment = placeholders(module)[0].meta["val"].fake_mode.shape_env
    for guard in environment.guards:
        refused = [n for n in tried if guard.expr.free_symbols and not _holds(guard.expr, n)]
        if refused and (place := _place(network, module, guard.sloc, refused[-TRIED:])):
            raise NetworkError(
                f"{type(network).__name__} works only for some batch sizes ({guard.expr}), decided in{place};"
                " use x.shape[0] for len(x), integer arithmetic (//), or -1 in reshape there"
            )
    if any(isinstance(size, int) for size in sizes):
        fixed = next(size for size in sizes if isinstance(size, int))
        raise NetworkError(f"{type(network).__name__} fixes the batch at {fixed}; keep its first axis free")


def only_size(network: nn.Module, inputs: Sequence[TensorSpec], sizes: Sequence[int]) -> int | None:
    """A batch that a network takes though it does not take every one; of `sizes`, or a usual one.

    None where it takes a batch of 3, or none at all.
    """
    copied = apart(network)

    def outputs(size: int) -> list[torch.Tensor] | None:
        try:
            with guest(lambda error: NetworkError(str(error))), torch.no_grad():
                found = pytree.tree_leaves(copied(*(spec.example(size) for spec in inputs)))
        except NetworkError:
            return None
        return [one for one in found if isinstance(one, torch.Tensor)]

    def takes(size: int) -> bool:
        found = outputs(size)
        return bool(found and all(one.dim() > 0 and len(one) == size for one in found))

    return next(filter(takes, dict.fromkeys((*sizes, *USUAL))), None) if outputs(ODD) is None else None


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
    values = [node.meta["val"] for node in placeholders(module)]
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
