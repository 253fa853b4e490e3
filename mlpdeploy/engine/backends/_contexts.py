"""A TensorRT engine from its file, and contexts beside Polygraphy's: one bound to buffers for timing, one to profile.

A context belongs to one batch size and one set of addresses, as a CUDA graph of it must. TensorRT-RTX compiles kernels
for the shapes that it meets while it runs, and uses general ones until they are ready; these contexts wait for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine.backends import _nvidia, _polygraphy
from mlpdeploy.engine.parsed import origins
from mlpdeploy.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from mlpdeploy.engine.backend import Arrays, Launch, LayerTime
    from mlpdeploy.engine.backends._base import Port


@contextmanager
def deserialised(flavour: str, engine: Path, facts: Mapping[str, Any]) -> Iterator[tuple[Any, Any, list[str]]]:
    """TensorRT, the ICudaEngine of the file, and the list that TensorRT's errors go to from now on.

    Raises ArtifactError where the file is for another GPU, or TensorRT refuses it.
    """
    gpu, built_for = _nvidia.probe(), [str(name) for name in facts.get("gpus", ())]
    if isinstance(gpu, _nvidia.Gpu) and built_for and gpu.capability not in built_for:
        raise ArtifactError(
            f"{engine} was built for {', '.join(built_for)} and this machine's {gpu.name} is {gpu.capability}; "
            "build it again here" + (f" or with --gpu {gpu.capability}" if flavour == "tensorrt-rtx" else "")
        )
    trt = _polygraphy.bind(flavour)
    from polygraphy.backend.trt import engine_from_bytes

    with _polygraphy.collected_errors(trt) as errors:
        with _polygraphy.refusals(ArtifactError, f"TensorRT cannot load {engine}", errors):
            loaded = engine_from_bytes(engine.read_bytes())
        yield trt, loaded, errors


def bind(trt: Any, engine: Any, outputs: Sequence[Port], errors: list[str], inputs: Mapping[str, Tensor]) -> Launch:
    """See `Bind`: a context of `engine` whose inputs are `inputs` and whose outputs are allocated here, once.

    `errors` is where TensorRT's errors are collected. Raises ArtifactError where TensorRT refuses.
    """
    import torch

    from mlpdeploy.engine.backend import Launch

    def told(success: bool, what: str) -> None:
        if not success:
            raise _refused(what, errors)

    context = _context(trt, engine, errors)
    # Polygraphy builds with detailed names, which cost time at every launch unless the context leaves them out.
    context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
    for name, tensor in inputs.items():
        told(context.set_input_shape(name, tuple(tensor.shape)), f"take {name} of shape {list(tensor.shape)}")
        told(context.set_tensor_address(name, tensor.data_ptr()), f"read {name} where it is")
    made = []
    for port in outputs:
        shape, dtype = tuple(context.get_tensor_shape(port.name)), getattr(torch, port.dtype)
        made.append(torch.empty(shape, dtype=dtype, device="cuda"))
        told(context.set_tensor_address(port.name, made[-1].data_ptr()), f"write {port.name} where it is")

    def run() -> Sequence[Tensor]:
        told(context.execute_async_v3(torch.cuda.current_stream().cuda_stream), "run the engine")
        return made

    return Launch(run, _uncapturable(context, torch.cuda.current_stream().cuda_stream))


def layer_times(trt: Any, engine: Any, errors: list[str], inputs: Sequence[Arrays]) -> tuple[LayerTime, ...]:
    """The time of each layer in the order of execution, median over `inputs`, from TensorRT's IProfiler.

    Names are the ONNX nodes that the engine inspector says a layer came from, then TensorRT's own.
    """
    from polygraphy.backend.trt import TrtRunner

    from mlpdeploy.engine.backend import LayerTime

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.seconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.seconds[layer_name] = self.seconds.get(layer_name, 0.0) + 1e-3 * ms

    context, profiler = _context(trt, engine, errors), Profiler()
    known = _inspected(trt, engine, context)
    context.profiler = profiler
    seconds: dict[str, list[float]] = {}
    with TrtRunner(context) as runner:
        for turn, arrays in enumerate((inputs[0], *inputs)):
            profiler.seconds = {}
            runner.infer(dict(arrays), check_inputs=False)
            for name, taken in profiler.seconds.items() if turn else ():  # the first run warms up
                seconds.setdefault(name, []).append(taken)
    kinds = ((name, *known.get(name, ("layer", ()))) for name in seconds)
    return tuple(LayerTime(kind, median(seconds[name]), (*nodes, name)) for name, kind, nodes in kinds)


def _context(trt: Any, engine: Any, errors: list[str]) -> Any:
    """An execution context; with TensorRT-RTX one that compiles the kernels of a shape before it runs it."""
    if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        config = engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise _refused("make room to run the engine", errors)
    return context


def _refused(what: str, errors: list[str]) -> ArtifactError:
    """What TensorRT said since it was last asked."""
    error = ArtifactError(
        _polygraphy.message(f"TensorRT cannot {what}", list(errors), RuntimeError("it gave no reason"))
    )
    errors.clear()
    return error


def _uncapturable(context: Any, stream: int) -> str | None:
    """Why TensorRT-RTX cannot be captured in a CUDA graph; plain TensorRT tells only when it is tried."""
    if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
        return "TensorRT-RTX says that this engine cannot be captured"
    return None


def _inspected(trt: Any, engine: Any, context: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and ONNX nodes of each layer of the engine, by TensorRT's name; none of an engine without such details."""
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)).get("Layers", ())
    detailed = (layer for layer in layers if isinstance(layer, dict))
    return {one["Name"]: (one.get("LayerType", "layer"), origins(one.get("Metadata"))) for one in detailed}
