"""What an engine is timed against: each contender loaded anew as often as is asked, and fed with inputs made before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from mlpdeploy.engine.backend import Arrays, Backend, BuildRequest, OnDevice, Progress
from mlpdeploy.engine.backends import _programs
from mlpdeploy.engine.emit import Emitted
from mlpdeploy.evidence import machine
from mlpdeploy.evidence.bench import COMPILE, EAGER
from mlpdeploy.evidence.clocks import Call
from mlpdeploy.graph.trace import TensorSpec
from mlpdeploy.guest import copied

DISTINCT = 4
"""Random batches that are drawn; more inputs are copies of them elsewhere in memory."""

MOST_INPUTS, MOST_BYTES = 1000, 1 << 29
"""Of small images a thousand will do, however large the cache is."""


@dataclass(frozen=True)
class Contender:
    """Something to time. `load` gives a function of one prepared input; `prepare` makes that from arrays by name."""

    name: str
    kind: str
    what: str
    inputs: tuple[TensorSpec, ...]
    prepare: Callable[[Arrays], Any]
    load: Callable[[], AbstractContextManager[Call]]


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
    """Build a graph with a backend in `folder`, which is made for it."""
    folder.mkdir(parents=True)
    built = backend.build(emitted, request, folder, progress)
    return Loadable(backend, built.engine, built.facts)


def eager(network: nn.Module, inputs: Sequence[TensorSpec], dtype: torch.dtype, device: str) -> Contender:
    """The network as PyTorch runs it: what the user has without an engine."""
    moved = _moved(network, dtype, device)
    return _torch(EAGER, f"PyTorch, eager, {_name(dtype)}", moved, inputs, dtype, device)


def compiled(network: nn.Module, inputs: Sequence[TensorSpec], dtype: torch.dtype, device: str) -> Contender:
    """torch.compile, a graph for each batch size, compiled once for all sittings."""
    program = torch.compile(_moved(network, dtype, device), dynamic=False)
    return _torch(COMPILE, f"torch.compile, {_name(dtype)}", program, inputs, dtype, device)


def prepared(contenders: Sequence[Contender], size: int, seed: int) -> dict[str, list[Any]]:
    """For each contender the inputs to rotate through: together more than the largest cache, within reason."""
    rows: dict[tuple[TensorSpec, ...], list[Arrays]] = {}
    made: dict[str, list[Any]] = {}
    for one in contenders:
        if one.inputs not in rows:
            rng = np.random.default_rng(seed)
            drawn = [{spec.name: spec.draw(size, rng) for spec in one.inputs} for _ in range(DISTINCT)]
            bytes_each = sum(array.nbytes for array in drawn[0].values())
            wanted = min(MOST_INPUTS, -(-min(5 * machine.cache_bytes() // 4, MOST_BYTES) // max(1, bytes_each)))
            copies = itertools.islice(itertools.cycle(drawn), max(0, wanted - DISTINCT))
            rows[one.inputs] = [*drawn, *({name: array.copy() for name, array in each.items()} for each in copies)]
        made[one.name] = [one.prepare(arrays) for arrays in rows[one.inputs]]
    shortest = min(map(len, made.values()))
    return {name: values[:shortest] for name, values in made.items()}


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

        yield call if device == "cpu" else OnDevice(call, _programs.binder(run, [spec.name for spec in specs]))

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
