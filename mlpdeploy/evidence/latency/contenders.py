"""What an engine is timed against: each contender loaded anew as often as is asked, and fed with inputs made before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.utils import _pytree as pytree

from mlpdeploy.artifact import store
from mlpdeploy.engine import programs
from mlpdeploy.engine.backend import Backend, BuildRequest, Progress
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.engine.runner import Arrays, OnDevice
from mlpdeploy.evidence.documents.bench import EAGER, MAX_AUTOTUNE
from mlpdeploy.evidence.latency import machine
from mlpdeploy.evidence.latency.clocks import Call
from mlpdeploy.graph.tracing.trace import TensorSpec
from mlpdeploy.system.guest import copied

DISTINCT = 4
"""Random batches that are drawn; more inputs are copies of them elsewhere in memory."""

MOST_INPUTS, MOST_BYTES = 1000, 1 << 29
"""Of small images a thousand will do, however large the cache is."""


@dataclass(frozen=True)
class Contender:
    """Something to time. `load` gives a function of one prepared input; `prepare` makes that from arrays by name.

    One in another process is given inputs by `hand_over` instead: of a batch size, those that were drawn, and how many
    are wanted. What `load` gives there times itself, with a batch size and the place of an input.
    """

    name: str
    kind: str
    what: str
    inputs: tuple[TensorSpec, ...]
    prepare: Callable[[Arrays], Any]
    load: Callable[[], AbstractContextManager[Call]]
    hand_over: Callable[[int, Sequence[Arrays], int], None] | None = None


@dataclass(frozen=True)
class Loadable:
    """An engine on disk with what is needed to load it: the same for the artifact and for engines built to compare."""

    backend: Backend
    engine: Path
    facts: Mapping[str, Any]

    def on(self, threads: int) -> Loadable:
        """The same engine, run with this many threads."""
        return Loadable(self.backend, self.engine, {**self.facts, "threads": threads})


def engine(name: str, kind: str, what: str, loadable: Loadable, inputs: Sequence[TensorSpec]) -> Contender:
    """An engine of any backend."""
    dtypes = {str(port["name"]): _numpy(str(port["dtype"])) for port in loadable.facts["inputs"]}

    def prepare(arrays: Arrays) -> Arrays:
        return {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in dtypes.items()}

    def load() -> AbstractContextManager[Call]:
        return loadable.backend.load(loadable.engine, loadable.facts)

    return Contender(name, kind, what, tuple(inputs), prepare, load)


def build(backend: Backend, emitted: Emitted, request: BuildRequest, folder: Path, progress: Progress) -> Loadable:
    """Build a graph with a backend in `folder`, which is made for it, and keep the file that it compiled there."""
    folder.mkdir(parents=True)
    built = backend.build(emitted, request, folder, progress)
    onnx.save(built.prepared.model, folder / store.MODEL)
    return Loadable(backend, built.engine, built.facts)


def eager(network: nn.Module, inputs: Sequence[TensorSpec], dtype: torch.dtype, device: str) -> Contender:
    """The network as PyTorch runs it: what the user has without an engine."""
    moved = _moved(network, dtype, device)
    return _torch(EAGER, f"PyTorch, eager, {_name(dtype)}", moved, inputs, dtype, device)


def compiled(
    name: str, network: nn.Module, inputs: Sequence[TensorSpec], dtype: torch.dtype, device: str
) -> list[Contender]:
    """torch.compile, a graph for each batch size, compiled once for all sittings; in each layout that may be fastest.

    `name` is COMPILE, with the compiler's defaults, or MAX_AUTOTUNE, which tries forms of every product, for minutes.
    Where a network convolves more than its patches, its images may lie channels last.
    """
    moved, tuned = _moved(network, dtype, device), name == MAX_AUTOTUNE
    what = f"torch.compile, {f'{name}, ' if tuned else ''}{_name(dtype)}"
    ways = [_torch(name, what, _Compiled(moved, tuned), inputs, dtype, device)]
    if sum(isinstance(module, nn.Conv2d) for module in moved.modules()) > 1:
        last = _Compiled(copied(moved).to(memory_format=torch.channels_last), tuned, torch.channels_last)
        ways.append(_torch(f"{name}, {LAST}", f"{what}, {LAST}", last, inputs, dtype, device))
    return ways


LAST = "channels last"


class _Compiled:
    """A network through torch.compile, one program for each batch size, its 4-D inputs in a layout.

    One program for all sizes would check the guards of each at every call, and run eagerly from the ninth on.
    """

    def __init__(self, network: nn.Module, tuned: bool, layout: torch.memory_format = torch.contiguous_format) -> None:
        self.network, self.layout = network, layout
        # CUDA graphs are for whoever times it to make, of every contender.
        self.mode = "max-autotune-no-cudagraphs" if tuned else None
        self.programs: dict[int, Callable[..., Any]] = {}

    def __call__(self, *tensors: torch.Tensor) -> Any:
        size = tensors[0].shape[0]
        if size not in self.programs:
            self.programs[size] = self.program()
        if self.layout == torch.contiguous_format:
            return self.programs[size](*tensors)
        return self.programs[size](*(t.contiguous(memory_format=self.layout) if t.dim() == 4 else t for t in tensors))

    def program(self) -> Callable[..., Any]:
        """A program of its own to Dynamo, which counts what it compiles by code object."""

        def run(*tensors: torch.Tensor) -> Any:
            return network(*tensors)

        network = self.network
        own = FunctionType(run.__code__.replace(co_name="network"), globals(), closure=run.__closure__)
        return torch.compile(own, dynamic=False, mode=self.mode)


def prepared(contenders: Sequence[Contender], size: int, seed: int) -> dict[str, list[Any]]:
    """For each contender the inputs to rotate through: together more than the largest cache, within reason."""
    rows: dict[tuple[TensorSpec, ...], list[Arrays]] = {}
    made: dict[str, list[Any]] = {}
    for one in contenders:
        if one.hand_over is not None:
            drawn, wanted = _drawn(one.inputs, size, seed)
            one.hand_over(size, drawn, wanted)
            made[one.name] = [(size, place) for place in range(wanted)]
            continue
        if one.inputs not in rows:
            drawn, wanted = _drawn(one.inputs, size, seed)
            copies = itertools.islice(itertools.cycle(drawn), wanted - len(drawn))
            rows[one.inputs] = [*drawn, *({name: array.copy() for name, array in each.items()} for each in copies)]
        made[one.name] = [one.prepare(arrays) for arrays in rows[one.inputs]]
    shortest = min(map(len, made.values()))
    return {name: values[:shortest] for name, values in made.items()}


def _drawn(inputs: Sequence[TensorSpec], size: int, seed: int) -> tuple[list[Arrays], int]:
    """A few random batches, and how many are wanted, copies of them included."""
    rng = np.random.default_rng(seed)
    drawn: list[Arrays] = [{spec.name: spec.draw(size, rng) for spec in inputs} for _ in range(DISTINCT)]
    bytes_each = sum(array.nbytes for array in drawn[0].values())
    wanted = min(MOST_INPUTS, -(-min(5 * machine.cache_bytes() // 4, MOST_BYTES) // max(1, bytes_each)))
    return drawn, max(DISTINCT, wanted)


def _torch(
    name: str, what: str, run: Callable[..., Any], inputs: Sequence[TensorSpec], dtype: torch.dtype, device: str
) -> Contender:
    """PyTorch on a cpu or on cuda, from inputs on the host to outputs on the host, as an engine is timed."""
    specs = tuple(inputs)

    def prepare(arrays: Arrays) -> dict[str, torch.Tensor]:
        tensors = {spec.name: torch.from_numpy(np.ascontiguousarray(arrays[spec.name])) for spec in specs}
        return {name: one.to(dtype) if one.is_floating_point() else one for name, one in tensors.items()}

    @contextmanager
    def load() -> Iterator[Call]:
        def call(tensors: dict[str, torch.Tensor]) -> Any:
            with torch.inference_mode():
                moved = (tensor.to(device) for tensor in tensors.values())
                return pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, run(*moved))

        yield call if device == "cpu" else OnDevice(call, programs.binder(run, [spec.name for spec in specs]))

    return Contender(name, name, what, specs, prepare, load)


def _moved(network: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """The network itself where it is what is asked for already, else a copy."""
    here = next(iter((*network.parameters(), *network.buffers())), None)
    if here is None or (here.dtype == dtype and here.device.type == device):
        return network
    return copied(network).to(device, dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _numpy(dtype: str) -> Any:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, dtype, dtype))
