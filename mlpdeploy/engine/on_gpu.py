"""A loaded engine on a GPU: called with tensors that are there, or with arrays of the host through pinned memory.

With tensors on the GPU nothing is waited for: work is enqueued on PyTorch's current stream, as PyTorch's own operations
are, and what is computed is one CUDA graph for each batch size, unless that cannot be captured or is not wanted. A
graph reads and writes buffers of its own, so tensors are copied there and back on the GPU; without one the engine reads
and writes the caller's tensors where they are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine import programs
from mlpdeploy.engine.cuda_graphs import captured
from mlpdeploy.engine.runner import Bind, Calls, Contexts, Loading, OnDevice, Tensors
from mlpdeploy.engine.signature import Port, Signature
from mlpdeploy.errors import InputError

if TYPE_CHECKING:
    import torch

MOST_SIZES = 16
"""Batch sizes that a context keeps buffers and a graph for: another one takes the place of the oldest."""


@dataclass(frozen=True)
class OnGpu(Contexts):
    """What a backend loads on the current GPU: its contexts take tensors there, and enqueue on the current stream."""

    @contextmanager
    def runner(self, signature: Signature, loading: Loading, concurrent: bool) -> Iterator[OnDevice]:
        """See Contexts.runner. When it ends, the GPU has done all that was enqueued."""
        import torch

        assert self.bind is not None
        device, bind = torch.device("cuda", torch.cuda.current_device()), self.one_at_a_time(self.bind)
        direct = self.one_at_a_time(self.make)

        def make() -> _Context:
            return _Context(direct, bind, signature.outputs, loading.cuda_graphs)

        try:
            yield OnDevice(_Calls(device, signature, make, loading, concurrent), bind)
        finally:
            torch.cuda.synchronize(device)


class _Calls(Calls):
    """A runner that takes tensors on its GPU, too: outputs are tensors there then."""

    def __init__(self, device: torch.device, signature: Signature, *how: Any) -> None:
        super().__init__(signature, *how)
        self._device = device

    def __call__(self, inputs: Any, out: Any = None) -> dict[str, Any]:
        """Raises InputError where tensors are on another device, or not what the engine takes."""
        import torch

        with torch.cuda.device(self._device), torch.no_grad():
            if not all(isinstance(one, torch.Tensor) for one in inputs.values()):
                return super().__call__(inputs, out)
            for name, one in inputs.items():
                if one.device != self._device:
                    raise InputError(f"the engine is on {self._device}; it was given {name!r} on {one.device}")
            rows = self._signature.check(inputs)
            if out is None:
                out = {port.name: _empty(rows, port, device="cuda") for port in self._signature.outputs}
            stream = torch.cuda.current_stream()
            self._compute(inputs, out, stream.cuda_stream)
            for one in (*inputs.values(), *out.values()):
                one.record_stream(stream)
            return dict(out)


class _Context:
    """A context that is used on one stream after another, and keeps what it needs for each batch size."""

    def __init__(self, direct: Any, bind: Bind, outputs: Sequence[Port], graphs: bool) -> None:
        import torch

        self._make_direct, self._bind, self._outputs, self._graphs = direct, bind, outputs, graphs
        self._direct: Any = None
        self._own = torch.cuda.Stream()
        self._last: torch.cuda.Stream | None = None
        self._sizes: dict[int, _Bound] = {}

    def __call__(self, inputs: Any, outputs: Any) -> None:
        import torch

        if not isinstance(next(iter(inputs.values())), torch.Tensor):
            with torch.cuda.stream(self._own):
                self._follow(self._own)
                given = {name: programs.tensor(array) for name, array in inputs.items()}
                self._bound(given).from_host(given, {name: programs.tensor(one) for name, one in outputs.items()})
            return
        if self._graphs and torch.cuda.is_current_stream_capturing():
            raise InputError(
                "a call makes CUDA graphs of its own: load the engine with cuda_graphs=False to capture it"
            )
        self._follow(torch.cuda.current_stream())
        bound = self._bound(inputs) if self._graphs else None
        if bound is not None and bound.captured:
            bound(inputs, outputs)
            return
        if self._direct is None:
            self._direct = self._make_direct()
        self._direct(inputs, outputs)

    def _follow(self, stream: torch.cuda.Stream) -> None:
        """Go on behind what was enqueued on the stream of the last call."""
        if self._last is not None and stream != self._last:
            stream.wait_stream(self._last)
        self._last = stream

    def _bound(self, inputs: Tensors) -> _Bound:
        """What is kept for the batch size of `inputs`."""
        import torch

        rows = next(iter(inputs.values())).shape[0]
        if rows not in self._sizes:
            if len(self._sizes) == MOST_SIZES:
                torch.cuda.current_stream().synchronize()
                del self._sizes[next(iter(self._sizes))]
            stream = torch.cuda.current_stream()
            self._own.wait_stream(stream)
            with torch.cuda.stream(self._own):
                self._sizes[rows] = _Bound(self._bind, inputs, self._outputs, self._own, self._graphs)
            stream.wait_stream(self._own)
        return self._sizes[rows]


class _Bound:
    """An engine bound to buffers for one batch size. `captured` says whether it is a CUDA graph."""

    def __init__(
        self, bind: Bind, inputs: Tensors, outputs: Sequence[Port], stream: torch.cuda.Stream, graphs: bool
    ) -> None:
        import torch

        self._stream, self._outputs = stream, outputs
        self._buffers = {name: torch.empty_like(one, device="cuda") for name, one in inputs.items()}
        for name, one in inputs.items():
            self._buffers[name].copy_(one)  # an engine is not run on any numbers: they may be places in a table
        launch = bind(self._buffers)
        self._run, self.captured = launch.run, False
        if graphs:
            with _CAPTURING:
                self._run, reason = captured(launch, stream)
            self.captured = reason is None
        self._pinned: tuple[Tensors, Tensors] | None = None

    def __call__(self, inputs: Tensors, outputs: Tensors) -> None:
        """Enqueue; tensors are on the GPU, or in pinned memory."""
        for name, buffer in self._buffers.items():
            buffer.copy_(inputs[name], non_blocking=True)
        for port, one in zip(self._outputs, self._run(), strict=True):
            outputs[port.name].copy_(one, non_blocking=True)

    def from_host(self, inputs: Tensors, outputs: Tensors) -> None:
        """From tensors of the host to tensors of the host, through pinned memory; waits once, at the end."""
        import torch

        if self._pinned is None:
            pinned = (
                {name: torch.empty_like(one, pin_memory=True) for name, one in side.items()}
                for side in (inputs, outputs)
            )
            self._pinned = next(pinned), next(pinned)
        given, made = self._pinned
        for name, one in inputs.items():
            given[name].copy_(one)
        self(given, made)
        self._stream.synchronize()
        for name, one in outputs.items():
            one.copy_(made[name])


_CAPTURING = threading.Lock()
"""One graph at a time: capturing waits for the whole GPU, which nobody may do while another graph is captured."""


def _empty(rows: int, port: Port, **where: Any) -> torch.Tensor:
    import torch

    return torch.empty((rows, *port.shape), dtype=getattr(torch, port.dtype), **where)
