"""Torch-TensorRT: the typed graph compiled by its Dynamo front end; what TensorRT cannot take stays in PyTorch.

The engine is an ExportedProgram whose operations are TensorRT engines and PyTorch's own. The package comes in two
flavours with one module name: torch-tensorrt, and torch-tensorrt-rtx, which compiles for TensorRT-RTX. Importing it
fails without a driver, so it is imported where it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine import nvidia, programs
from mlpdeploy.engine.backends import _ptx_op
from mlpdeploy.engine.backends.tensorrt import unserved
from mlpdeploy.engine.base import EngineBackend, installed_version, missing, one_line
from mlpdeploy.engine.on_gpu import OnGpu
from mlpdeploy.engine.signature import Signature
from mlpdeploy.errors import ArtifactError, BuildError, MachineLacks

if TYPE_CHECKING:
    from mlpdeploy.engine.backend import BuildRequest, Progress
    from mlpdeploy.engine.batch import Batch
    from mlpdeploy.engine.onnx.emit import Emitted

FLAVOURS = ("torch-tensorrt", "torch-tensorrt-rtx")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
_STEPS = 3


class TorchTensorRT(EngineBackend):
    """A graph of TensorRT engines and PyTorch operations, for this machine's GPU."""

    name = "torch-tensorrt"
    engine_file = "engine.ep"
    code = "a PyTorch program and compiled kernels"
    packages = ("torch-tensorrt", "torch")
    reads_file = False
    has_levels = True
    off = ("split_activation", "convolve_shifts")  # as in TensorRT, of which its engines are made

    def versions(self) -> dict[str, str]:
        """PyTorch's, and that of the flavour that is installed, under its own name."""
        flavour = next((name for name in FLAVOURS if installed_version(name)), FLAVOURS[0])
        return {name: installed_version(name) or "none" for name in (flavour, "torch")}

    def available(self) -> str | None:
        """The library and a GPU: it cannot even be imported without a driver."""
        return missing("torch_tensorrt", "torch-tensorrt") or self.executable()

    def executable(self) -> str | None:
        """Its engines run on an NVIDIA GPU only, which PyTorch and the flavour's TensorRT serve."""
        gpu = nvidia.probe()
        if isinstance(gpu, str):
            return gpu
        if (absent := missing("torch_tensorrt", "torch-tensorrt")) is not None:
            return absent
        flavour = "tensorrt-rtx" if FLAVOURS[1] in self.versions() else "tensorrt"
        return programs.unserved(gpu) or unserved(flavour, gpu)

    def device(self, facts: Mapping[str, Any]) -> str:
        """See Backend.device: a GPU."""
        return "cuda"

    def supports(self, precision: str, gpus: Collection[str] = ()) -> str | None:
        """Every precision: TF32 is an option on FP32. It builds for this machine's GPU."""
        if gpus:
            return f"backend {self.name} builds for this machine's GPU, not for {', '.join(gpus)}: drop --gpu"
        return None if precision in PRECISIONS else super().supports(precision)

    def gpu(self, gpus: Collection[str] = ()) -> nvidia.Gpu | None:
        """See Backend.gpu: always."""
        return super().gpu((nvidia.CURRENT,))

    def plugins(self) -> str | None:
        """Those of TensorRT can, with a kernel that Triton compiles."""
        if FLAVOURS[1] in self.versions():
            return f"{FLAVOURS[1]} has no plugins, which are TensorRT's; leave --plugin on out"
        absent = missing("triton", "triton")
        return None if absent is None else f"backend {self.name}: {absent}, or leave --plugin on out"

    def _build(self, emitted: Emitted, request: BuildRequest, engine: Path, progress: Progress) -> dict[str, Any]:
        import torch_tensorrt
        from torch.export.passes import move_to_device_pass

        program, carried = programs.exported(emitted, request.batch), dict[Any, Any]()
        if request.plugin == "on":
            carried = self._carried(program, request.precision == "tf32")
        # Torch-TensorRT has no kernel for our operation by itself, but one for each operation that it means.
        program = program.run_decompositions(programs.meanings() | carried)
        progress.step("exporting", 1, _STEPS)
        inputs = [_input(torch_tensorrt, spec, request.batch) for spec in emitted.typed.inputs]
        options = {} if request.level is None else {"optimization_level": request.level}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled = torch_tensorrt.dynamo.compile(
                    move_to_device_pass(program, programs.GPU),
                    arg_inputs=inputs,
                    disable_tf32=request.precision != "tf32",
                    min_block_size=1,
                    **options,
                )
                progress.step("compiling", 2, _STEPS)
                torch_tensorrt.save(compiled, str(engine), output_format="exported_program", arg_inputs=inputs)
        except Exception as error:  # it has no error of its own: whatever TensorRT, Dynamo or export raise
            raise BuildError(f"Torch-TensorRT cannot compile the graph: {one_line(error)}\n{error}") from error
        progress.step("saving", 3, _STEPS)
        if any(_ptx_op.is_ours(node.target) for graph in _outside(compiled) for node in graph.nodes):
            raise BuildError("the engine cannot carry the plugin: Torch-TensorRT left it to PyTorch; drop --plugin on")
        share = placed(compiled, program.graph)
        executed = f"{request.precision}, {share['in_tensorrt']:.0%} of the operations in TensorRT"
        facts = {"executed": executed, "placed": share}
        return facts | ({"plugin": {"used": True, "reason": None, "milliseconds": {}}} if carried else {})

    def _carried(self, program: Any, tf32: bool) -> dict[Any, Any]:
        """The projections of a program as the kernel that an engine carries. Raises BuildError where it cannot."""
        gpu = nvidia.probe()
        if isinstance(gpu, str):
            raise MachineLacks(gpu)
        try:
            carried = _ptx_op.carried(program, tf32, int(gpu.capability.removeprefix("sm")), gpu.driver)
        except Exception as error:  # Torch-TensorRT, TensorRT's decorators and Triton raise what they like
            raise BuildError(f"the plugin cannot be registered: {type(error).__name__}: {one_line(error)}") from error
        if not carried:
            raise BuildError("the engine cannot carry the plugin: the network has no operation that has a plugin")
        return carried

    @contextmanager
    def _load(self, engine: Path, signature: Signature, facts: Mapping[str, Any]) -> Iterator[OnGpu]:
        import torch
        import torch_tensorrt  # noqa: F401  (it brings the operation that runs an engine)

        try:
            model = torch.export.load(str(engine)).module()
        except Exception as error:  # as above
            raise ArtifactError(f"Torch-TensorRT cannot load {engine}: {one_line(error)}") from error

        names = [port.name for port in signature.inputs], [port.name for port in signature.outputs]
        compute = programs.computing(model, *names)
        yield OnGpu(lambda: compute, programs.binder(model, names[0]))


BACKEND = TorchTensorRT()


def placed(compiled: Any, graph: Any) -> dict[str, Any]:
    """Where the operations of `graph` ended: how many there were, how many PyTorch runs, and TensorRT's share.

    `compiled` is Torch-TensorRT's result, whose children called `_run_on_acc_N` are engines. It breaks operations up,
    so what PyTorch runs is counted as it will run.
    """
    left = sum(map(_operations, _outside(compiled)))
    engines = sum("_run_on_acc" in name for name, _ in compiled.named_children())
    total = _operations(graph)
    share = max(0.0, 1 - left / total) if total and engines else 0.0
    return {"operations": total, "in_pytorch": left, "engines": engines, "in_tensorrt": round(share, 4)}


def _outside(compiled: Any) -> list[Any]:
    """The graphs of what was compiled that PyTorch runs."""
    modules = [compiled, *(child for name, child in compiled.named_children() if "_run_on_acc" not in name)]
    return [module.graph for module in modules if hasattr(module, "graph")]


def _operations(graph: Any) -> int:
    """Operations of a graph that compute: not those that pick from a tuple, nor on sizes."""
    return sum(node.op == "call_function" and hasattr(node.target, "overloadpacket") for node in graph.nodes)


def _input(torch_tensorrt: Any, spec: Any, batch: Batch) -> Any:
    if batch.min == batch.max:
        return torch_tensorrt.Input(shape=(batch.max, *spec.shape), dtype=spec.dtype, name=spec.name)
    shapes = {f"{name}_shape": (getattr(batch, name), *spec.shape) for name in ("min", "opt", "max")}
    return torch_tensorrt.Input(**shapes, dtype=spec.dtype, name=spec.name)
