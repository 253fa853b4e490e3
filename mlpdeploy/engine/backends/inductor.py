"""PyTorch's AOTInductor: the rewritten graph compiled ahead of time, the honest PyTorch baseline.

It takes the typed graph itself, not the ONNX file. On a CPU, FP16 and BF16 graphs compute each operation in float32
and round its result where it is stored; a chain of pointwise operations that Inductor fuses is rounded once, so a
result can be closer to float32 than eager PyTorch's.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine import host, nvidia, programs
from mlpdeploy.engine.base import EngineBackend, installed_version, missing, one_line
from mlpdeploy.engine.on_gpu import OnGpu
from mlpdeploy.engine.runner import Arrays, Contexts
from mlpdeploy.engine.signature import Signature
from mlpdeploy.errors import ArtifactError, BuildError, MachineLacks

if TYPE_CHECKING:
    from torch import Tensor

    from mlpdeploy.engine.backend import BuildRequest, Progress
    from mlpdeploy.engine.onnx.emit import Emitted

_STEPS = 2


SHIFTS = ("convolve_shifts", "convolve_regions", "merge_depthwise")
"""Rules that make grouped convolutions of shifts. On an H100 these took longer than the copies that they save."""
PARTS = ("gather_shifts", "pick_parts", "split_projection")
"""Rules that take parts of a tensor apart. By the code that Inductor generates for a GPU, not by a measurement of their
own. Where a gather reads it cannot know: its kernels neither transpose in tiles nor load several numbers at once, and
check each place; a roll or a slice is arithmetic in the kernel that reads it. Parts of a list share one copy in another
order; selections are copied by themselves, keys of attention twice. Halves of a product are views: two products in its
place read the same twice, and no kernel is saved.
"""


class Inductor(EngineBackend):
    """An AOTInductor package: for the CPU, or with `gpus` for this machine's GPU, where it carries our kernel."""

    name = "inductor"
    engine_file = "engine.pt2"
    code = "a compiled library"
    packages = ("torch",)
    reads_file = False

    def available(self) -> str | None:
        """PyTorch, and the C++ compiler that its generated code goes through."""
        if absent := missing("torch", "torch"):
            return absent
        if not any(map(shutil.which, ("g++", "clang++", "cl"))):
            return "AOTInductor needs a C++ compiler; install g++ (Debian, Ubuntu: apt-get install g++)"
        return None

    def supports(self, precision: str, gpus: Collection[str] = ()) -> str | None:
        """See Backend.supports: of GPUs it builds for the one that is here."""
        if not gpus:
            return super().supports(precision)
        if tuple(gpus) != (nvidia.CURRENT,):
            return f"backend {self.name} builds for this machine's GPU, not for {', '.join(gpus)}: --gpu current"
        if (reason := self.without_gpu()) is not None:
            raise MachineLacks(f"--gpu {nvidia.CURRENT} means this machine's GPU: {reason}")
        return super().supports(precision)

    def without_gpu(self) -> str | None:
        """See Backend.without_gpu."""
        gpu = nvidia.probe()
        if isinstance(gpu, str):
            return gpu
        return self.available() or programs.unserved(gpu)

    def off_for(self, gpus: Collection[str] = ()) -> tuple[str, ...]:
        """See Backend.off_for."""
        return (*self.off, *SHIFTS, *PARTS) if gpus else self.off

    def carries_kernel(self, gpus: Collection[str] = ()) -> bool:
        """See Backend.carries_kernel: on a GPU."""
        return bool(gpus)

    def device(self, facts: Mapping[str, Any]) -> str:
        """See Backend.device: where it was compiled for."""
        return str(facts.get("device", "cpu"))

    def executable(self) -> str | None:
        """A CPU package runs anywhere that PyTorch is; a GPU package is checked when it is loaded."""
        return missing("torch", "torch")

    def host(self) -> dict[str, Any]:
        """See Backend.host: code is generated for the CPU and a number of threads, and compiled."""
        import torch

        return {
            "cpu": host.cpu(),
            "compiler": host.compiler(),
            "triton": installed_version("triton"),
            "threads": torch.get_num_threads(),
            "environment": host.environment(
                "ATEN_CPU_CAPABILITY", "CXX", "TORCHINDUCTOR_", "TORCH_COMPILE", "AOT_INDUCTOR_"
            ),
        }

    def _build(self, emitted: Emitted, request: BuildRequest, engine: Path, progress: Progress) -> dict[str, Any]:
        from torch._inductor import aoti_compile_and_package
        from torch.export.passes import move_to_device_pass

        device = "cuda" if request.gpus else "cpu"
        try:
            if device == "cuda":
                emitted = replace(emitted, typed=programs.for_gpu(emitted.typed))
            exported = programs.exported(emitted, request.batch)
            if device == "cuda":
                programs.tune(emitted.typed.module, request.batch.opt)
                exported = move_to_device_pass(exported, programs.GPU)
            progress.step("exporting", 1, _STEPS)
            with warnings.catch_warnings():  # of what Inductor itself should no longer use
                warnings.simplefilter("ignore")
                aoti_compile_and_package(exported, package_path=str(engine), inductor_configs=_options(request.threads))
            progress.step("compiling", 2, _STEPS)
        except RuntimeError as error:  # the root of the errors of Inductor, Dynamo and export
            raise BuildError(f"AOTInductor cannot compile the graph: {one_line(error)}\n{error}") from error
        arithmetic = "float32" if device == "cpu" else "native"
        return {
            "threads": request.threads,
            "device": device,
            "executed": f"{request.precision} stored, {arithmetic} arithmetic",
        }

    @contextmanager
    def _load(self, engine: Path, signature: Signature, facts: Mapping[str, Any]) -> Iterator[Contexts]:
        from torch._inductor import aoti_load_package

        device = self.device(facts)
        if device == "cuda" and (reason := self.without_gpu()) is not None:
            raise MachineLacks(f"{engine} was compiled for a GPU: {reason}")
        try:
            model = aoti_load_package(str(engine))
        except RuntimeError as error:
            raise ArtifactError(f"AOTInductor cannot load {engine}: {one_line(error)}") from error

        names = [port.name for port in signature.inputs], [port.name for port in signature.outputs]
        program = _flat(model)
        compute = programs.computing(program, *names)

        def on_host(inputs: Arrays, outputs: Arrays) -> None:
            compute(*({name: programs.tensor(one) for name, one in side.items()} for side in (inputs, outputs)))

        with _threads(facts.get("threads")):
            if device == "cpu":
                yield Contexts(lambda: on_host)
            else:
                yield OnGpu(lambda: compute, programs.binder(program, names[0]))


BACKEND = Inductor()


def _flat(model: Any) -> Callable[..., Sequence[Tensor]]:
    """A package from tensors to tensors. Its own call reads anew each time how they lie in arguments and results."""
    run = model.loader.run
    return lambda *given: run([*given])


def _options(threads: int | None) -> dict[str, Any]:
    return {} if threads is None else {"cpp.threads": threads}


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """PyTorch's number of threads for as long as the engine is loaded, where the request asked for one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
