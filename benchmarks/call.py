"""What a call of an engine costs beside the engine's own time: `engine(x)` against the bare engine, in microseconds.

    python -m benchmarks.call [RECIPE ...] [--backends openvino,onnxruntime,inductor] [--batch 1,8] [--seconds 10]

The bare engine is the same loaded engine, called as its own library has it, with inputs and outputs bound beforehand:
it checks nothing, makes no array, and computes the same numbers from the same memory each time. It takes turns with
`engine(x)` on arrays and on tensors; what is told are medians of the differences within rounds, the middle, the least
and the most of several loads. Where an engine runs on a GPU, tensors lie there, and both are timed by CUDA events.
"""

from __future__ import annotations

import pkgutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import mlpdeploy
from benchmarks import common
from mlpdeploy.engine import programs
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.cuda_graphs import captured
from mlpdeploy.engine.runner import Arrays, OnDevice
from mlpdeploy.evidence.latency import timing

CHOSEN = ("dualmlp", "ff_g2m_student", "mint_unchanged_mlp")
BARE, ARRAYS, TENSORS = "bare", "arrays", "tensors"
ROUNDS, LOADS = 1000, 5
Call = Callable[[Any], object]


def outputs(engine: mlpdeploy.Engine, rows: int) -> Arrays:
    """Arrays for what an engine gives."""
    return {port["name"]: np.empty((rows, *port["shape"][1:]), port["dtype"]) for port in engine.manifest["outputs"]}


def openvino(compiled: Any, inputs: Arrays, made: Arrays) -> Call:
    """An inference request with its tensors set."""
    from openvino import Tensor

    request = compiled.create_infer_request()
    for name, array in (*inputs.items(), *made.items()):
        request.set_tensor(name, Tensor(array, shared_memory=True))
    return lambda _: request.infer(share_outputs=True)


def onnxruntime(session: Any, inputs: Arrays, made: Arrays) -> Call:
    """A session with a binding to memory."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name, array in made.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return lambda _: session.run_with_iobinding(binding)


def inductor(package: Any, inputs: Arrays, made: Arrays) -> Call:
    """A package with its tensors made; it makes its own outputs."""
    tensors = list(map(programs.tensor, inputs.values()))

    def run(_: Any) -> object:
        with torch.inference_mode():
            return package(*tensors)

    return run


BARE_ENGINES = {
    "openvino": ("mlpdeploy.engine.backends.openvino.imported", openvino),
    "onnxruntime": ("mlpdeploy.engine.backends.onnxruntime.open_session", onnxruntime),
    "inductor": ("torch._inductor.aoti_load_package", inductor),
}
"""What loads an engine, and how that is called bare."""


class ByEvents:
    """A call on PyTorch's current stream, timed by the GPU (see `timing.Phased`)."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def phases(self, value: Any) -> timing.Phases:
        """All of it is told as computing."""
        self._start.record()
        self._call(value)
        self._end.record()
        self._end.synchronize()
        return timing.Phases(0.0, 1e-3 * self._start.elapsed_time(self._end), 0.0)


def on_gpu(engine: mlpdeploy.Engine, inputs: Arrays) -> dict[str, timing.TimedRun]:
    """The bare engine's own graph, and `engine(x)` on tensors on the GPU."""
    tensors = [programs.tensor(array).cuda() for array in inputs.values()]
    bound = []

    def bind(runner: Any, bind: Any) -> OnDevice:
        bound.append(bind)
        return OnDevice(runner, bind)

    with mock.patch("mlpdeploy.engine.on_gpu.OnDevice", bind):
        engine(*tensors)
    replay, _ = captured(bound[0](dict(zip(inputs, tensors, strict=True))), torch.cuda.current_stream())
    return {BARE: ByEvents(lambda _: replay()), TENSORS: ByEvents(lambda _: engine(*tensors))}


def on_cpu(engine: mlpdeploy.Engine, inputs: Arrays) -> dict[str, timing.TimedRun]:
    """The bare engine, and `engine(x)` on arrays and on tensors of the host."""
    where, call = BARE_ENGINES[engine.manifest["backend"]]
    load = pkgutil.resolve_name(where)
    arrays, made = list(inputs.values()), outputs(engine, len(next(iter(inputs.values()))))
    tensors = list(map(programs.tensor, arrays))
    loaded = list[Any]()

    def loading(*given: Any, **named: Any) -> Any:
        loaded.append(load(*given, **named))
        return loaded[-1]

    with mock.patch(where, loading):
        engine(*arrays)
    bare = call(loaded[0], inputs, made)

    def run(value: Any) -> object:
        assert made  # which the engine knows by its address only
        return bare(value)

    return {BARE: run, ARRAYS: lambda _: engine(*arrays), TENSORS: lambda _: engine(*tensors)}


def measure(name: str, backend: str, sizes: list[int], seconds: float, seed: int) -> dict[str, Any]:
    """By batch size: the bare engine's time, and what a call costs more."""
    specs, found = common.load(name, seed)[1], dict[str, Any]()
    batch = f"{min(sizes)}:{sizes[0]}:{max(sizes)}"
    with tempfile.TemporaryDirectory() as folder:
        selection = mlpdeploy.Selection(name, "fp32", backend, batch, seed=seed, out=Path(folder))
        artifact = mlpdeploy.build(selection)
        on_device = on_gpu if backends()[backend].device(artifact.manifest["facts"]) == "cuda" else on_cpu
        for size in sizes:
            inputs, taken = common.inputs(specs, size, seed, 1)[0], []
            for load in range(LOADS):
                with mlpdeploy.load(artifact.folder) as engine:
                    runs = on_device(engine, inputs)
                    limit = seconds / LOADS
                    one = timing.measure(runs, [None], rounds=ROUNDS, seconds=limit, shortest=0.0, seed=seed + load)
                    taken.append(one)
            bare = float(np.median([1e6 * one.latency(BARE).median for one in taken]))
            over = {one: difference(taken, one) for one in taken[0].seconds if one != BARE}
            found[f"batch {size}"] = {BARE: round(bare, 2), **over}
    return found


def difference(taken: list[timing.Timings], name: str) -> dict[str, float]:
    """Microseconds over the bare engine: the median within each load, of these the middle, the least and the most."""
    loads = [float(np.median(1e6 * (one.seconds[name] - one.seconds[BARE]))) for one in taken]
    return {
        "microseconds": round(float(np.median(loads)), 2),
        "low": round(min(loads), 2),
        "high": round(max(loads), 2),
    }


def main() -> None:
    parser = common.parser(__doc__, CHOSEN)
    parser.add_argument("--backends", default="openvino,onnxruntime,inductor")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--seconds", type=float, default=10, help="budget of one measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.batch.split(",")]
    results: dict[str, Any] = {}
    with timing.pinned(arguments.threads):
        torch.set_num_threads(arguments.threads)
        for name in arguments.recipes:
            results[name] = {}
            for backend in arguments.backends.split(","):
                results[name][backend] = measure(name, backend, sizes, arguments.seconds, arguments.seed)
                for size, row in results[name][backend].items():
                    told = (f"{one} +{row[one]['microseconds']:.1f}" for one in (ARRAYS, TENSORS) if one in row)
                    print(f"{name:20s} {backend} {size}: {row[BARE]:.1f} us, {', '.join(told)}", flush=True)
            settings = {"precision": "fp32", "threads": arguments.threads, "seconds": arguments.seconds}
            path = common.write("call", results, settings, arguments.out)
    print(path)


if __name__ == "__main__":
    main()
