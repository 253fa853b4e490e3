"""Stand-ins of TensorRT's engines, contexts and caches; engines compute on the stand-in of torch.cuda."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch

from mlpdeploy.engine.signature import Port

OUTPUTS = [Port("y", (4,), "float32"), Port("half", (4,), "float16")]
LAYERS = [
    {"Name": "__myl_Conv_0", "LayerType": "gemm", "Metadata": "[ONNX Layer: stem/Conv]"},
    {
        "Name": "__myl_MulAdd_1",
        "LayerType": "kgen",
        "Metadata": "[ONNX Layer: n1 | blocks.0.tokens/Call (segments)]\x1e[ONNX Layer: blocks.0.norm/Mul]",
    },
    {"Name": "Reformat", "LayerType": "Reformat", "Metadata": ""},
]


class Context:
    """An IExecutionContext that computes y = 2 x and half = x, on the stream that it is given."""

    def __init__(self, engine: Engine, config: Any) -> None:
        self.engine, self.config = engine, config
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.nvtx_verbosity = "DETAILED"
        self.active_optimization_profile = 0
        if engine.capturable is not None:
            self.is_stream_capturable = lambda stream: stream > 0 and engine.capturable

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.active_optimization_profile = profile_index
        return profile_index < self.engine.profiles and stream_handle >= 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[0] <= self.engine.largest

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory > 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert set(self.addresses) == {"x", "y", "half"}, "an address is missing"
        if self.engine.broken:
            return False
        x, y, half = (self.engine.gpu.at(self.addresses[name]) for name in ("x", "y", "half"))

        def work() -> None:
            with torch._C.DisableTorchFunction():
                y.copy_(2 * x)
                half.copy_(x)
            for place, layer in enumerate(self.engine.layers if self.profiler is not None else ()):
                self.profiler.report_layer_time(layer["Name"], place + 1.0)

        self.engine.gpu.enqueue("compute", work, stream_handle)
        return True


class Engine:
    """An ICudaEngine. `capturable` is what TensorRT-RTX answers, None for plain TensorRT, which cannot be asked."""

    def __init__(self, gpu: Any, capturable: bool | None = None) -> None:
        self.gpu, self.capturable, self.largest, self.broken, self.full = gpu, capturable, 8, False, False
        self.contexts: list[Context] = []
        self.profiles = 2
        self.layers: list[Any] = LAYERS

    def create_runtime_config(self) -> Any:
        made = SimpleNamespace(dynamic_shapes_kernel_specialization_strategy="LAZY", kernels=None)
        made.set_runtime_cache = lambda kernels: setattr(made, "kernels", kernels)
        return made

    def create_execution_context(self, runtime_config: Any = None) -> Context | None:
        if self.full:
            return None
        self.contexts.append(Context(self, runtime_config))
        return self.contexts[-1]

    def create_engine_inspector(self) -> Any:
        told = json.dumps({"Layers": self.layers, "Bindings": []})
        return SimpleNamespace(execution_context=None, get_engine_information=lambda format: told)


class Cache:
    """An IRuntimeCache that takes in what another one gave, and nothing else."""

    def __init__(self) -> None:
        self.known = b"nothing"

    def deserialize(self, blob: bytes) -> bool:
        self.known = blob if blob.startswith(b"kernels") else self.known
        return blob.startswith(b"kernels")

    def serialize(self) -> memoryview:
        return memoryview(self.known)


def tensorrt(flavour: str) -> Any:
    made = SimpleNamespace(
        __name__=flavour,
        ProfilingVerbosity=SimpleNamespace(NONE="NONE"),
        LayerInformationFormat=SimpleNamespace(JSON="JSON"),
        IProfiler=type("IProfiler", (), {"__init__": lambda self: None}),
    )
    if flavour == "tensorrt_rtx":
        made.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")
    return made
