"""A TensorRT engine from its file, and contexts beside Polygraphy's: one bound to buffers for timing, one to profile.

A context belongs to one batch size and one set of addresses, as a CUDA graph of it must. TensorRT-RTX compiles kernels
for the shapes that it meets while it runs, and uses general ones until they are ready; these contexts wait for them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine import programs
from mlpdeploy.engine.backend import MODEL
from mlpdeploy.engine.backends.tensorrt import _features, _polygraphy, _runtime_cache
from mlpdeploy.engine.backends.tensorrt.parsed import origins
from mlpdeploy.engine.base import one_line
from mlpdeploy.engine.runner import Launch
from mlpdeploy.errors import ArtifactError, MachineLacks

if TYPE_CHECKING:
    from torch import Tensor

    from mlpdeploy.engine.backend import LayerTime
    from mlpdeploy.engine.runner import Arrays, Context, Tensors
    from mlpdeploy.engine.signature import Port


@dataclass(frozen=True)
class Loaded:
    """An ICudaEngine, the TensorRT that made it, and the list that TensorRT's errors go to.

    `kernels` is an IRuntimeCache with what TensorRT-RTX compiled for the engine before, None with plain TensorRT.
    `profiles` are its optimisation profiles where it has several.
    """

    trt: Any
    engine: Any
    errors: list[str]
    kernels: Any = None
    profiles: Sequence[Sequence[int]] = ()

    def profile(self, size: int) -> int | None:
        """The optimisation profile for a batch: the one that is tuned nearest to it; None where there is no choice."""
        fitting = [place for place, (low, _, high) in enumerate(self.profiles) if low <= size <= high]
        return min(fitting, key=lambda place: abs(self.profiles[place][1] - size), default=None)


@contextmanager
def deserialised(flavour: str, engine: Path, facts: Mapping[str, Any]) -> Iterator[Loaded]:
    """The engine of a file. Raises ArtifactError where TensorRT refuses it."""
    trt = _polygraphy.bind(flavour)
    from polygraphy.backend.trt import engine_from_bytes

    features = facts.get("features", ())
    with _polygraphy.collected_errors(trt) as errors:
        with _polygraphy.refusals(ArtifactError, f"TensorRT cannot load {engine}", errors):
            made = engine_from_bytes(engine.read_bytes(), runtime=_features.runtime(trt, features))
        _features.prepare(trt, made, features, engine.parent / MODEL, errors)
        with _runtime_cache.kernels(trt, made, str(facts.get("engine_sha256"))) as kernels:
            yield Loaded(trt, made, errors, kernels, facts.get("profiles", ()))


def pytorch_has_gpu() -> bool:
    """Whether PyTorch is installed, and can use the GPU."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def bind(loaded: Loaded, outputs: Sequence[Port], inputs: Tensors) -> Launch:
    """See `Bind`: a context whose inputs are `inputs` and whose outputs are allocated here, once.

    Raises ArtifactError where TensorRT refuses.
    """
    import torch

    placed, errors, size = _quick(loaded), loaded.errors, _size(inputs)
    _choose(loaded, placed, size, torch.cuda.current_stream().cuda_stream)
    made = _empty(size, outputs)
    _place(placed, inputs, made, errors)

    def run() -> Sequence[Tensor]:
        _execute(placed, errors)
        return list(made.values())

    return Launch(run, _uncapturable(placed, torch.cuda.current_stream().cuda_stream))


def computing(loaded: Loaded, of: Any = None) -> Context:
    """See `Context`: an execution context (`of`, or a new one) that reads and writes the caller's tensors on the GPU.

    What it gives raises ArtifactError where TensorRT refuses.
    """
    import torch

    placed = _quick(loaded) if of is None else of

    def compute(inputs: Tensors, outputs: Tensors) -> None:
        _choose(loaded, placed, _size(inputs), torch.cuda.current_stream().cuda_stream)
        _place(placed, inputs, outputs, loaded.errors)
        _execute(placed, loaded.errors)

    return compute


@contextmanager
def by_polygraphy(loaded: Loaded, of: Any = None) -> Iterator[Context]:
    """The same over arrays of the host, where PyTorch cannot use the GPU: Polygraphy needs CUDA's runtime library.

    Raises MachineLacks without one.
    """
    import numpy as np
    from polygraphy.backend.trt import TrtRunner

    placed, errors = context(loaded) if of is None else of, loaded.errors

    @contextmanager
    def told() -> Iterator[None]:
        try:
            with _polygraphy.refusals(ArtifactError, "TensorRT cannot run the engine", errors):
                yield
        except OSError as error:  # the library is looked for when it is first used
            lacking = f"Polygraphy finds no CUDA runtime library ({one_line(error)})"
            raise MachineLacks(f"{lacking}; install a PyTorch that can use the GPU") from error

    with ExitStack() as stack:
        with told():
            runner = stack.enter_context(TrtRunner(placed))

        def compute(inputs: Arrays, outputs: Arrays) -> None:
            with told():
                profile = loaded.profile(_size(inputs))
                if profile is not None and profile != placed.active_optimization_profile:
                    runner.set_profile(profile)
                found = runner.infer(dict(inputs), check_inputs=False)
            for name, array in outputs.items():
                np.copyto(array, found[name])

        yield compute


def _quick(loaded: Loaded) -> Any:
    """A context that leaves out the detailed names, with which Polygraphy builds: they cost time at every launch."""
    made = context(loaded)
    made.nvtx_verbosity = loaded.trt.ProfilingVerbosity.NONE
    return made


def _size(inputs: Mapping[str, Any]) -> int:
    return int(next(iter(inputs.values())).shape[0])


def _choose(loaded: Loaded, of: Any, size: int, stream: int) -> None:
    """Let a context use the optimisation profile for a batch."""
    profile = loaded.profile(size)
    if profile is not None and profile != of.active_optimization_profile:
        _told(of.set_optimization_profile_async(profile, stream), f"use the profile for batch {size}", loaded.errors)


def _place(of: Any, inputs: Tensors, outputs: Tensors, errors: list[str]) -> None:
    """Let a context read `inputs` and write `outputs` from now on."""
    for name, tensor in inputs.items():
        shape = tuple(tensor.shape)
        _told(of.set_input_shape(name, shape), f"take {name} of shape {list(shape)}", errors)
        _told(of.set_tensor_address(name, tensor.data_ptr()), f"read {name} where it is", errors)
    for name, tensor in outputs.items():
        shape = tuple(tensor.shape)
        _told(tuple(of.get_tensor_shape(name)) == shape, f"give {name} of shape {list(shape)}", errors)
        _told(of.set_tensor_address(name, tensor.data_ptr()), f"write {name} where it is", errors)


def _execute(of: Any, errors: list[str]) -> None:
    """Enqueue what a context has been placed for on PyTorch's current stream."""
    import torch

    _told(of.execute_async_v3(torch.cuda.current_stream().cuda_stream), "run the engine", errors)


def _told(success: bool, what: str, errors: list[str]) -> None:
    if not success:
        raise _refused(what, errors)


def layer_times(loaded: Loaded, outputs: Sequence[Port], inputs: Sequence[Arrays]) -> tuple[LayerTime, ...]:
    """The time of each layer in the order of execution, median over `inputs`, from TensorRT's IProfiler.

    Names are the ONNX nodes that the engine inspector says a layer came from, then TensorRT's own.
    """
    from mlpdeploy.engine.backend import LayerTime

    class Profiler(loaded.trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            loaded.trt.IProfiler.__init__(self)
            self.seconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.seconds[layer_name] = self.seconds.get(layer_name, 0.0) + 1e-3 * ms

    profiled, profiler = context(loaded), Profiler()
    known = {one["Name"]: one for one in inspected(loaded, profiled).get("Layers", ()) if isinstance(one, dict)}
    profiled.profiler = profiler
    seconds: dict[str, list[float]] = {}
    with _on_host(loaded, outputs, profiled) as run:
        for turn, arrays in enumerate((inputs[0], *inputs)):
            profiler.seconds = {}
            run(arrays)
            for name, taken in profiler.seconds.items() if turn else ():  # the first run warms up
                seconds.setdefault(name, []).append(taken)
    told = ((name, known.get(name, {})) for name in seconds)
    return tuple(
        LayerTime(of.get("LayerType", "layer"), name, tuple(seconds[name]), origins(of.get("Metadata")))
        for name, of in told
    )


@contextmanager
def _on_host(loaded: Loaded, outputs: Sequence[Port], of: Any) -> Iterator[Callable[[Arrays], None]]:
    """Calls of a context with arrays of the host, of which the outputs stay on the GPU."""
    import torch

    if not torch.cuda.is_available():
        with by_polygraphy(loaded, of) as compute:
            yield lambda inputs: compute(inputs, {})
        return
    compute = computing(loaded, of)

    def run(inputs: Arrays) -> None:
        given = {name: _on_gpu(programs.tensor(array)) for name, array in inputs.items()}
        compute(given, _empty(_size(inputs), outputs))
        torch.cuda.current_stream().synchronize()

    yield run


def _on_gpu(tensor: Tensor) -> Tensor:
    import torch

    made = torch.empty_like(tensor, device="cuda")
    made.copy_(tensor)
    return made


def _empty(size: int, outputs: Sequence[Port]) -> dict[str, Tensor]:
    import torch

    return {
        port.name: torch.empty((size, *port.shape), dtype=getattr(torch, port.dtype), device="cuda") for port in outputs
    }


def context(loaded: Loaded) -> Any:
    """An execution context; with TensorRT-RTX one that compiles the kernels of a shape before it runs it."""
    if hasattr(loaded.trt, "DynamicShapesKernelSpecializationStrategy"):
        config = loaded.engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = (
            loaded.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        if loaded.kernels is not None:
            config.set_runtime_cache(loaded.kernels)
        made = loaded.engine.create_execution_context(config)
    else:
        made = loaded.engine.create_execution_context()
    if made is None:
        raise _refused("make room to run the engine", loaded.errors)
    return made


def _refused(what: str, errors: list[str]) -> ArtifactError:
    """What TensorRT said since it was last asked."""
    error = ArtifactError(
        _polygraphy.message(f"TensorRT cannot {what}", list(errors), RuntimeError("it gave no reason"))
    )
    errors.clear()
    return error


def _uncapturable(of: Any, stream: int) -> str | None:
    """Why TensorRT-RTX cannot be captured in a CUDA graph; plain TensorRT tells only when it is tried."""
    if hasattr(of, "is_stream_capturable") and not of.is_stream_capturable(stream):
        return "TensorRT-RTX says that this engine cannot be captured"
    return None


def inspected(loaded: Loaded, of: Any = None) -> dict[str, Any]:
    """What TensorRT's inspector tells of the layers of an engine, as JSON; of a context where one is given."""
    inspector = loaded.engine.create_engine_inspector()
    if of is not None:
        inspector.execution_context = of
    found: dict[str, Any] = json.loads(inspector.get_engine_information(loaded.trt.LayerInformationFormat.JSON))
    return found
