"""What a call of an engine costs beside the engine's own time: `engine(x)` against the bare engine, in microseconds.

    python -m benchmarks.call [RECIPE ...] [--backends openvino,onnxruntime,inductor] [--batch 1,8] [--seconds 10]

The bare engine is called as its own library has it, with inputs and outputs bound beforehand: it checks nothing, makes
no array, and computes the same numbers from the same memory each time. It takes turns with `engine(x)` on arrays and on
tensors; what is told are medians of the differences within rounds. Where an engine runs on a GPU, tensors lie there,
and both are timed by CUDA events around them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mlpdeploy
from benchmarks import common
from mlpdeploy.engine import programs
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.cuda_graphs import captured
from mlpdeploy.engine.runner import Arrays, OnDevice
from mlpdeploy.evidence.latency import timing
from mlpdeploy.graph.tracing.trace import TensorSpec

CHOSEN = ("dualmlp", "mint_unchanged_mlp", "mixer_s32")
BARE, ARRAYS, TENSORS = "bare", "arrays", "tensors"
ROUNDS, RESAMPLES = 1000, 2000
Call = Callable[[Any], object]


def outputs(engine: mlpdeploy.Engine, rows: int) -> Arrays:
    """Arrays for what an engine gives."""
    return {port["name"]: np.empty((rows, *port["shape"][1:]), port["dtype"]) for port in engine.manifest["outputs"]}


def openvino(engine: mlpdeploy.Engine, file: Path, inputs: Arrays, made: Arrays) -> Call:
    """An inference request with its tensors set."""
    import openvino as library

    from mlpdeploy.engine.backends.openvino import imported

    request = imported(library, file, engine.manifest["facts"]).create_infer_request()
    for name, array in (*inputs.items(), *made.items()):
        request.set_tensor(name, library.Tensor(array, shared_memory=True))
    return lambda _: request.infer(share_outputs=True)


def onnxruntime(engine: mlpdeploy.Engine, file: Path, inputs: Arrays, made: Arrays) -> Call:
    """A session with a binding to memory."""
    from mlpdeploy.engine.backends.onnxruntime import open_session

    session = open_session(file.read_bytes(), engine.manifest["facts"].get("threads"))
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name, array in made.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return lambda _: session.run_with_iobinding(binding)


def inductor(engine: mlpdeploy.Engine, file: Path, inputs: Arrays, made: Arrays) -> Call:
    """A package with its tensors made; it makes its own outputs."""
    from torch._inductor import aoti_load_package

    package = aoti_load_package(str(file))
    tensors = [programs.tensor(inputs[port["name"]]) for port in engine.inputs]

    def run(_: Any) -> object:
        with torch.inference_mode():
            return package(*tensors)

    return run


BARE_ENGINES = {"openvino": openvino, "onnxruntime": onnxruntime, "inductor": inductor}


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


def on_gpu(engine: mlpdeploy.Engine, file: Path, inputs: Arrays) -> dict[str, timing.TimedRun]:
    """The bare engine's own graph, and `engine(x)` on tensors on the GPU."""
    tensors = {name: programs.tensor(array).cuda() for name, array in inputs.items()}
    runner = engine.manifest["backend"], file, engine.manifest["facts"]
    stream = torch.cuda.current_stream()
    with backends()[runner[0]].load(*runner[1:]) as loaded:
        assert isinstance(loaded, OnDevice)
        replay, _ = captured(loaded.bind(tensors), stream)
    return {BARE: ByEvents(lambda _: replay()), TENSORS: ByEvents(lambda _: engine(tensors))}


def on_cpu(engine: mlpdeploy.Engine, file: Path, inputs: Arrays) -> dict[str, timing.TimedRun]:
    """The bare engine, and `engine(x)` on arrays and on tensors of the host."""
    made = outputs(engine, len(next(iter(inputs.values()))))
    bare = BARE_ENGINES[engine.manifest["backend"]](engine, file, inputs, made)
    arrays = list(inputs.values())
    tensors = [programs.tensor(array) for array in arrays]
    kept = inputs, made  # an engine holds memory that it is bound to by its address

    def run(value: Any) -> object:
        assert kept
        return bare(value)

    return {BARE: run, ARRAYS: lambda _: engine(*arrays), TENSORS: lambda _: engine(*tensors)}


def difference(taken: timing.Timings, name: str, seed: int) -> dict[str, float]:
    """Microseconds over the bare engine: the median of the differences, and its 95 % bootstrap interval."""
    rounds = 1e6 * (taken.seconds[name] - taken.seconds[BARE])
    drawn = np.random.default_rng(seed).choice(rounds, (RESAMPLES, len(rounds)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return {
        "microseconds": round(float(np.median(rounds)), 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
    }


def measure(name: str, backend: str, sizes: list[int], seconds: float, seed: int) -> dict[str, Any]:
    """By batch size: the bare engine's time, and what a call costs more."""
    specs, found = common.load(name, seed)[1], {}
    batch = f"{min(sizes)}:{sizes[0]}:{max(sizes)}"
    with tempfile.TemporaryDirectory() as folder:
        selection = mlpdeploy.Selection(name, "fp32", backend, batch, seed=seed, out=Path(folder))
        artifact = mlpdeploy.build(selection)
        device = backends()[backend].device(artifact.manifest["facts"])
        with mlpdeploy.load(artifact.folder) as engine:
            for size in sizes:
                inputs = _inputs(specs, size, seed)
                runs = (on_gpu if device == "cuda" else on_cpu)(engine, artifact.engine, inputs)
                taken = timing.measure(runs, [None], rounds=ROUNDS, seconds=seconds, shortest=0.0, seed=seed)
                over = {one: difference(taken, one, seed) for one in runs if one != BARE}
                found[f"batch {size}"] = {
                    BARE: round(1e6 * taken.latency(BARE).median, 2),
                    "rounds": len(taken.seconds[BARE]),
                    **over,
                }
    return found


def _inputs(specs: list[TensorSpec], size: int, seed: int) -> Arrays:
    return {name: np.ascontiguousarray(array) for name, array in common.inputs(specs, size, seed, 1)[0].items()}


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
