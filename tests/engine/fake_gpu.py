"""A stand-in of torch.cuda, after its documentation: work is enqueued on streams and done when one is waited for.

It keeps a clock that only the GPU's work advances, and a log of what was enqueued where. What PyTorch refuses, it
refuses too: to capture on the default stream, to wait while capturing, to read the time of an event that has not come.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

SECONDS = {"copy in": 3e-6, "compute": 6e-5, "copy out": 2e-6}
DEVICE = torch.device("cuda", 0)
WHERE: Any = tuple(getattr(torch.Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu"))


class Stream:
    """A queue of work. Real ones are told apart by `cuda_stream`, the handle that TensorRT takes."""

    def __init__(self, gpu: Gpu, handle: int) -> None:
        self.gpu, self.cuda_stream = gpu, handle
        self.queue: list[Callable[[], None]] = []
        self.graph: Graph | None = None

    def put(self, what: str, work: Callable[[], None]) -> None:
        if self.graph is not None:
            self.graph.work.append((what, work))
            return
        self.gpu.log.append((what, self.cuda_stream))
        self.queue.append(work)

    def synchronize(self) -> None:
        self.gpu.refuse_while_capturing()
        self.gpu.waits += 1
        self.finish()

    def finish(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def wait_stream(self, other: Stream) -> None:
        if other is not self:
            self.gpu.log.append((f"behind {other.cuda_stream}", self.cuda_stream))
            self.queue.append(other.finish)


class Event:
    def __init__(self, gpu: Gpu, enable_timing: bool = False) -> None:
        self.gpu, self.timing = gpu, enable_timing
        self.stream: Stream | None = None
        self.time: float | None = None

    def record(self) -> None:
        self.stream, self.time = self.gpu.current, None
        self.stream.put("event", self._come)

    def _come(self) -> None:
        self.time = self.gpu.clock

    def synchronize(self) -> None:
        assert self.stream is not None
        self.stream.synchronize()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""
        if not self.timing or self.time is None or end.time is None:
            raise RuntimeError("both events must be created with enable_timing and have come")
        return 1e3 * (end.time - self.time)


class Graph:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.broken = gpu, False
        self.work: list[tuple[str, Callable[[], None]]] = []

    def replay(self) -> None:
        self.gpu.log.append(("replay", self.gpu.current.cuda_stream))
        self.gpu.current.queue += [work for _, work in self.work]


class Gpu(TorchFunctionMode):
    """The device and its driver. `log` has (what, handle of the stream) in the order in which it was enqueued.

    `waits` is how often the host waited for a stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.default = self.current = Stream(self, 0)
        self.streams = [self.default]
        self.clock = 0.0
        self.log: list[tuple[str, int]] = []
        self.waits = 0
        self.allocated: list[torch.Tensor] = []
        self.pinned: list[torch.Tensor] = []
        self.capture_modes: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.pin_memory:
            return self._kept(args[0].clone(), self.pinned)
        if func in (torch.empty_like, torch.empty):
            where = self.pinned if kwargs.pop("pin_memory", False) else self.allocated
            if torch.device(kwargs.pop("device", "cpu")).type != "cuda" and where is self.allocated:
                return func(*args, **kwargs)
            return self._kept(func(*args, **kwargs), where)
        if func is torch.Tensor.copy_:
            return self._copy(*args, **kwargs)
        if func in WHERE and (func == WHERE[2] or self._holds(self.allocated, args[0])):
            return (DEVICE, True, not self._holds(self.allocated, args[0]))[WHERE.index(func)]
        return func(*args, **kwargs)

    def _kept(self, tensor: torch.Tensor, where: list[torch.Tensor]) -> torch.Tensor:
        self.log.append(("pin" if where is self.pinned else "allocate", self.current.cuda_stream))
        where.append(tensor)
        return tensor

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        ends = self._holds(self.allocated, source), self._holds(self.allocated, target)
        if not any(ends):
            _move(target, source)
            return target
        self.enqueue(
            "copy within" if all(ends) else "copy in" if ends[1] else "copy out", lambda: _move(target, source)
        )
        if non_blocking:
            host = target if ends[0] else source
            assert all(ends) or self._holds(self.pinned, host), "the host's side must be pinned"
        elif not all(ends):
            self.current.synchronize()
        return target

    @staticmethod
    def _holds(tensors: list[torch.Tensor], one: torch.Tensor) -> bool:
        memory = one.untyped_storage().data_ptr()
        return any(other.untyped_storage().data_ptr() == memory for other in tensors)

    def enqueue(self, what: str, work: Callable[[], object], stream: int | None = None) -> None:
        """Put work on a stream, the current one or that of a handle; it lasts SECONDS."""

        def done() -> None:
            work()
            self.clock += SECONDS.get(what, 1e-6)

        on = self.current if stream is None else next(one for one in self.streams if one.cuda_stream == stream)
        on.put(what, done)

    def at(self, address: int) -> torch.Tensor:
        """The tensor on the GPU at an address."""
        return next(tensor for tensor in self.allocated if tensor.data_ptr() == address)

    def synchronize(self, device: torch.device | None = None) -> None:
        for stream in self.streams:
            stream.synchronize()

    def refuse_while_capturing(self) -> None:
        for stream in self.streams:
            if stream.graph is not None:
                stream.graph.broken = True
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")

    def new_stream(self) -> Stream:
        self.streams.append(Stream(self, 64 + len(self.streams)))
        return self.streams[-1]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph: Graph, *, stream: Stream, capture_error_mode: str = "global") -> Iterator[None]:
        """As torch.cuda.graph: it waits first, captures, and leaves the current stream as it is where that fails."""
        self.synchronize()
        assert stream is not self.default, "capture must not be on the default stream"
        self.capture_modes.append(capture_error_mode)
        before, self.current, stream.graph = self.current, stream, graph
        try:
            yield
        finally:
            stream.graph = None
            if graph.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.current = before


def _move(target: torch.Tensor, source: torch.Tensor) -> None:
    with torch._C.DisableTorchFunction():
        target.copy_(source)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """torch.cuda with one GPU."""
    made = Gpu()
    stand_ins = {
        "is_available": lambda: True,
        "Stream": made.new_stream,
        "stream": made.stream,
        "current_stream": lambda: made.current,
        "Event": lambda enable_timing=False: Event(made, enable_timing),
        "CUDAGraph": lambda: Graph(made),
        "graph": made.graph,
        "synchronize": made.synchronize,
        "device": lambda device: contextlib.nullcontext(),
        "current_device": lambda: DEVICE.index,
        "is_current_stream_capturing": lambda: made.current.graph is not None,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    recorded = lambda self, stream: made.log.append(("record", stream.cuda_stream))  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", recorded)
    with made:
        yield made
