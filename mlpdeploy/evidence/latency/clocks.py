"""The clock that contenders are timed on: the host's, or on a GPU device events around each phase of a call.

On a GPU all memory is had before the first timed call: pinned on the host, so that copies need no staging, and one
buffer for each input on the GPU, which every call fills anew, as a service would. The computing is one CUDA graph where
it can be captured, so that what is compared is the GPU's work and not how fast the host launches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mlpdeploy.engine import programs
from mlpdeploy.engine.cuda_graphs import WARMUP, captured, leads
from mlpdeploy.engine.runner import Bind, OnDevice
from mlpdeploy.evidence.latency.timing import Phased, Phases, TimedRun, Timings, measure

Call = Callable[[Any], object]
Host = Mapping[str, Tensor]


class OnClock(Phased, Protocol):
    """A contender on a GPU's clock. `uncaptured` is why its computing is no CUDA graph, None where it is one."""

    @property
    def uncaptured(self) -> str | None: ...


@runtime_checkable
class Elsewhere(Protocol):
    """A contender that is loaded in another process, which has its inputs: what times it there, at a batch size.

    `host_clock` is None where that can be a GPU's clock, else why it cannot ("" on a CPU).
    """

    @property
    def host_clock(self) -> str | None: ...

    def on_host(self, size: int) -> TimedRun:
        """By the host's clock, which takes places of inputs."""

    def on_device(self, size: int) -> OnClock:
        """By the GPU's."""


@dataclass(frozen=True)
class Inputs:
    """What contenders are fed with in turn, by contender; all have equally many."""

    values: Mapping[str, Sequence[Any]]

    @cached_property
    def pinned(self) -> dict[str, list[dict[str, Tensor]]]:
        """The same in memory that a GPU copies from, made once; what contenders share is held once."""
        made: dict[tuple[int, str], Tensor] = {}

        def pin(value: np.ndarray | Tensor) -> Tensor:
            where = value.data_ptr() if isinstance(value, Tensor) else value.ctypes.data
            key = where, str(value.dtype).removeprefix("torch.")
            if key not in made:
                made[key] = (value if isinstance(value, Tensor) else programs.tensor(value)).pin_memory()
            return made[key]

        return {
            name: [{port: pin(value) for port, value in one.items()} for one in values]
            for name, values in self.values.items()
        }


def timed(calls: Mapping[str, Call], inputs: Inputs, **limits: Any) -> Timings:
    """Time loaded contenders in turns, within `limits` (see `measure`).

    On the GPU's clock where all of them run on it, each as one CUDA graph where that can be had; else on the host's.
    """
    turns = range(min(map(len, inputs.values.values())))
    reason = host_clock(calls)
    if reason is not None:
        runs = {name: _fed(call, inputs.values[name]) for name, call in calls.items()}
        return replace(measure(runs, turns, **limits), host_clock=reason)
    bound = {name: _bound(call, inputs, name) for name, call in calls.items()}
    taken = measure(bound, turns, **limits)
    return replace(taken, uncaptured={name: one.uncaptured or "" for name, one in bound.items()})


def host_clock(calls: Mapping[str, object]) -> str | None:
    """None where all contenders can be timed on the GPU's clock; else why they are on the host's, "" on a CPU."""
    told = {name: _host_clock(call) for name, call in calls.items()}
    elsewhere = [name for name, reason in told.items() if reason == ""]
    if len(elsewhere) == len(calls):
        return ""
    if (reason := next(filter(None, told.values()), None)) is not None:
        return reason
    return f"{', '.join(elsewhere)} does not run on the GPU" if elsewhere else None


def _host_clock(call: object) -> str | None:
    if isinstance(call, Elsewhere):
        return call.host_clock
    if not isinstance(call, OnDevice):
        return ""
    if torch.cuda.is_available():
        return None
    return f"PyTorch {torch.__version__} cannot use the GPU, whose events it records"


class DeviceCall:
    """One contender bound to one batch size. `uncaptured` is why its computing is no CUDA graph, None where it is one.

    `values` are its inputs, tensors by name in pinned memory, of one shape and dtype each.
    """

    def __init__(self, bind: Bind, values: Sequence[Host]) -> None:
        self._values, sample = values, values[0]
        self._stream = torch.cuda.Stream()
        with torch.cuda.stream(self._stream):
            self._inputs = {name: torch.empty_like(value, device="cuda") for name, value in sample.items()}
            self._fill(sample)
            launch = bind(self._inputs)
            outputs = launch.run()
            self._run, self.uncaptured = captured(launch, self._stream)
        self._outputs = [torch.empty_like(one, device="cpu", pin_memory=True) for one in outputs]
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        self._leads = 0
        compute = min(self.phases(0).compute for _ in range(WARMUP))
        self._leads = leads(compute)

    def phases(self, value: int) -> Phases:
        """See `Phased`; `value` is the place of an input. All is enqueued on one stream, behind untimed computing."""
        start, filled, computed, end = self._events
        with torch.cuda.stream(self._stream):
            for _ in range(self._leads):
                self._run()
            start.record()
            self._fill(self._values[value])
            filled.record()
            outputs = self._run()
            computed.record()
            for host, one in zip(self._outputs, outputs, strict=True):
                host.copy_(one, non_blocking=True)
            end.record()
        end.synchronize()
        steps = ((start, filled), (filled, computed), (computed, end))
        return Phases(*(1e-3 * before.elapsed_time(after) for before, after in steps))

    def _fill(self, value: Host) -> None:
        for name, tensor in self._inputs.items():
            tensor.copy_(value[name], non_blocking=True)


def _fed(call: Call | Elsewhere, values: Sequence[Any]) -> TimedRun:
    if isinstance(call, Elsewhere):
        return call.on_host(values[0][0])
    return lambda index: call(values[index])


def _bound(call: object, inputs: Inputs, name: str) -> OnClock:
    if isinstance(call, Elsewhere):
        return call.on_device(inputs.values[name][0][0])
    assert isinstance(call, OnDevice)
    return DeviceCall(call.bind, inputs.pinned[name])
