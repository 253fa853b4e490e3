"""What Inductor generates for a GPU that is not here, of the plain network and of ours: kernels, calls, bytes.

    python -m benchmarks.inductor_structure [RECIPE ...] [--rules | --packages]

FP16, at batch 128 and 1. Inductor is told of an H100's SMs and goes as far as its code, over tensors without content:
nothing is compiled, run or tuned. Plain is what torch.compile makes of the network with its channels last, ours what it
makes of the graph that the `inductor` backend compiles, the batch fixed in both; `--rules` adds ours without each rule,
or with one more, at batch 128. `--packages` counts that backend's own build in their place, whose batch is free, with
and without the kernels of convolutions laid channels last.
"""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from onnx import ModelProto
from torch import nn
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.passes import move_to_device_pass
from torch.fx import Node

from benchmarks import common
from benchmarks.gpu.networks import NAMES
from benchmarks.recorded import ALL, PACKAGE, PLAIN, TRACED
from benchmarks.rules import variants
from mlpdeploy.engine import programs
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.backends import inductor
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import Rewritten, all_rules, rewrite
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.graph.tracing.trace import Traced, trace

BATCHES = (128, 1)
OFF = backends()["inductor"].off_for((CURRENT,))
KERNEL = backends()["inductor"].carries_kernel((CURRENT,))
SETTINGS = {"precision": "fp16", "gpu": "H100"}
SM = 90
"""Compute capability, and with it an H100's numbers."""
H100 = SimpleNamespace(
    name="H100", major=SM // 10, minor=SM % 10, multi_processor_count=132, warp_size=32, total_memory=80 << 30,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block_optin=232448, gcnArchName="",
)  # fmt: skip


class Generated(BaseException):
    """Ends a compilation that has its code; no handler of errors is to take it for one."""


@contextmanager
def told_of_a_gpu() -> Iterator[None]:
    """Inductor's and Triton's questions about the GPU are answered: an H100, on which nothing can be done."""
    import torch.utils._triton as found
    from torch._dynamo.device_interface import CudaInterface, register_interface_for_device
    from torch._inductor.fx_passes import joint_graph
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    answers: dict[str, Any] = {
        "device_count": lambda: 1,
        "get_device_properties": lambda device=None: H100,
        "get_device_capability": lambda device=None: (H100.major, H100.minor),
        "get_compute_capability": lambda device=None: SM,
        "get_rng_state": lambda *given: torch.zeros(1),
    }
    exchanges = ("_exchange_device", "_maybe_exchange_device", "exchange_device", "maybe_exchange_device")
    answers |= dict.fromkeys(("current_device", *exchanges), lambda *given: 0)
    answers |= dict.fromkeys(("is_available", "is_bf16_supported", "is_tf32_supported"), lambda *given: True)
    answers |= dict.fromkeys(("synchronize", "set_rng_state", "raise_if_triton_unavailable"), lambda *given: None)
    for function in vars(found).values():
        getattr(function, "cache_clear", bool)()  # what was asked before, of the machine as it is
    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", SM, 32))
    patterns, deduce = joint_graph.lazy_init, joint_graph.UniformValueConstantFolder._deduce_value

    def deduced(folder: Any, node: Node) -> Any:
        """What a constant is, found with one on the CPU."""
        given = node.kwargs
        node.kwargs = given | ({"device": torch.device("cpu")} if "device" in given else {})
        try:
            return deduce(folder, node)
        finally:
            node.kwargs = given

    with ExitStack() as stack:
        for name, answer in answers.items():
            for holder in (torch.cuda, CudaInterface, CudaInterface.Worker):
                if hasattr(holder, name):
                    kept = answer if holder is torch.cuda else staticmethod(answer)
                    stack.enter_context(patch.object(holder, name, kept))
        # Patterns of attention are made of tensors, which can be those of a CPU.
        stack.enter_context(patch.object(joint_graph, "lazy_init", lambda device: patterns(torch.device("cpu"))))
        stack.enter_context(patch.object(joint_graph.UniformValueConstantFolder, "_deduce_value", deduced))
        stack.enter_context(patch.object(driver, "_active", target))
        register_interface_for_device("cuda", CudaInterface)
        yield


def without_content(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy whose parameters and buffers are a GPU's, each as large and as laid out as before, and empty."""
    module = copy.deepcopy(module)
    known: dict[torch.Tensor, torch.Tensor] = {}

    def empty(one: torch.Tensor) -> torch.Tensor:
        if one not in known:
            with mode:
                known[one] = torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=programs.GPU)
        return known[one]

    for part in module.modules():
        for name, one in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            setattr(part, name, nn.Parameter(empty(one), False) if isinstance(one, nn.Parameter) else empty(one))
    return module


@contextmanager
def ends_with_its_code(found: dict[str, Any]) -> Iterator[None]:
    """Inductor's compilation raises Generated where its code is there, and `found` says what that launches."""
    from torch._inductor import config

    def stop(graph: GraphLowering) -> None:
        graph.init_wrapper_code()
        graph._update_scheduler()
        graph.wrapper_code.push_codegened_graph(graph)
        graph.scheduler.codegen()
        found.update(counted(graph.scheduler.nodes))
        raise Generated

    with ExitStack() as stack:
        # Whether a product pays with padded rows is measured where there is a GPU.
        stack.enter_context(config.patch(compile_threads=1, force_disable_caches=True, shape_padding=False))
        for name in ("compile_to_module", "codegen_with_cpp_wrapper"):
            stack.enter_context(patch.object(GraphLowering, name, stop))
        yield


def packaged(typed: Typed, batch: int) -> dict[str, Any]:
    """The same of what the backend builds for batches up to this one, at this one."""
    from torch._inductor import config

    request = BuildRequest("fp16", Batch(1, batch, batch), (CURRENT,))
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(patch("torch.export.passes.move_to_device_pass", moved))
        stack.enter_context(patch.object(programs, "tune", lambda module, batch: None))
        # Constants have no content: none is written into the code, or compared with another.
        stack.enter_context(config.patch(always_keep_tensor_constants=True))
        stack.enter_context(patch("torch._inductor.graph.is_same_tensor", lambda one, other: one is other))
        stack.enter_context(told_of_a_gpu())
        stack.enter_context(ends_with_its_code(found))
        try:
            given = Emitted(ModelProto(), typed)
            inductor.BACKEND._build(given, request, Path(folder) / "engine.pt2", common.Silent())
        except Generated:
            return found
    raise ValueError("Inductor did not get to its code")


def moved(program: Any, device: str) -> Any:
    """An exported program on a GPU that is not here: its weights become empty."""
    mode = next(node.meta["val"].fake_mode for node in program.graph.nodes if node.op == "placeholder")
    with mode:
        images = (torch.empty(one.shape, dtype=one.dtype) for one in program.example_inputs[0])
        program._example_inputs = (tuple(images), {})
        for weights in (program._state_dict, program._constants):
            for name, one in weights.items():
                empty = mode.from_tensor(one.detach(), static_shapes=True)
                weights[name] = nn.Parameter(empty, False) if isinstance(one, nn.Parameter) else empty
        return move_to_device_pass(program, device)


def generated(module: nn.Module, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """What Inductor's code for FP16 inputs of these shapes launches, and the bytes that it reads and writes."""
    from torch._inductor.compile_fx import compile_fx

    found: dict[str, Any] = {}

    def backend(graph: Any, inputs: Any) -> Any:
        with told_of_a_gpu(), ends_with_its_code(found):
            return compile_fx(graph, inputs)

    torch._dynamo.reset()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = without_content(module, mode)
    with mode, torch.no_grad():
        images = [torch.empty(shape, dtype=torch.float16, device=programs.GPU) for shape in shapes]
        try:
            torch.compile(module, backend=backend, dynamic=False, fullgraph=True)(*images)
        except Generated:
            return found
    raise ValueError("Inductor did not get to its code")


def counted(nodes: Sequence[Any]) -> dict[str, Any]:
    """Kernels, those of them that read through a table, calls by what is called, and bytes of each."""
    from torch._inductor.dependencies import MemoryDep
    from torch._inductor.scheduler import NopKernelSchedulerNode

    kernels = [node for node in nodes if not isinstance(node, NopKernelSchedulerNode) and not node.is_extern()]
    calls = [node for node in nodes if node.is_extern()]
    reads = [[one for one in node.read_writes.reads if isinstance(one, MemoryDep)] for node in kernels]
    named = Counter(str(node.node.python_kernel_name or "our kernel").rpartition(".")[2] for node in calls)
    return {
        "kernels": len(kernels),
        "tables": sum(any(one.is_indirect() for one in some) for some in reads),
        "calls": dict(sorted(named.items())),
        "convolutions": dict(sorted(Counter(map(format_of, filter(convolves, calls))).items())),
        "bytes": {side: sum(map(bytes_of, some)) for side, some in (("kernels", kernels), ("calls", calls))},
    }


def convolves(node: Any) -> bool:
    return str(node.node.python_kernel_name).endswith("convolution") and len(node.node.inputs[0].get_size()) == 4


def format_of(node: Any) -> str:
    """How the map of a convolution lies; maps of one place lie in both ways."""
    from torch._inductor.ir import NHWC_STRIDE_ORDER

    last = node.node.inputs[0].get_layout().is_stride_ordered(NHWC_STRIDE_ORDER)
    return "channels last" if last else "channels first"


def bytes_of(node: Any) -> int:
    """Bytes that are read and written; what a kernel of ours writes in place is nothing that it reads."""
    filled = {name for output in node.get_outputs() for name in output.get_mutations()}
    sizes = node.get_read_write_buffer_accesses(include_reads=True, include_writes=True)
    return sum(size for name, size in sizes.items() if name not in filled)


def ours(traced: Traced, disabled: Sequence[str] = (), enabled: Sequence[str] = ()) -> tuple[Typed, Rewritten]:
    """The graph that the backend is given for a GPU, in FP16 from inputs to outputs."""
    rewritten = rewrite(traced, disabled, enabled, OFF, KERNEL)
    return apply(rewritten, plan(rewritten, "fp16", io="fp16")), rewritten


def measure(name: str, seed: int, rules: bool) -> dict[str, Any]:
    """By batch and contender, what is generated; the contenders of `--rules` at the first batch alone."""
    network, specs = common.load(name, seed)
    traced = trace(network, specs)
    report = ours(traced, (), [*all_rules()])[1].report if rules else ()
    named = variants({one.name: one.fired for one in report if one.name != LAYOUT}, OFF, KERNEL)
    plain = network.half().to(memory_format=torch.channels_last)
    found: dict[str, Any] = {}
    for batch in BATCHES:
        shapes = [(batch, *spec.shape) for spec in specs]
        chosen = [label for label in named if label == ALL or (rules and batch == BATCHES[0])]
        graphs = {label: ours(traced, *named[label])[0] for label in chosen}
        contenders = {PLAIN: plain, **{label: programs.for_gpu(one).module for label, one in graphs.items()}}
        found[f"batch {batch}"] = {label: generated(one, shapes) for label, one in contenders.items()}
    return found


def packages(name: str, seed: int) -> dict[str, Any]:
    """The backend's package for the first batch, and what it would be with kernels as they were traced."""
    typed, _ = ours(trace(*common.load(name, seed)))
    with patch.object(programs, "channels_last", lambda given: given):
        before = packaged(typed, BATCHES[0])
    return {f"batch {BATCHES[0]}": {TRACED: before, PACKAGE: packaged(typed, BATCHES[0])}}


def main() -> None:
    parser = common.parser(__doc__, NAMES)
    parser.add_argument("--rules", action="store_true", help=f"with every rule's part, at batch {BATCHES[0]}")
    parser.add_argument("--packages", action="store_true", help=f"the backend's own build, at batch {BATCHES[0]}")
    arguments = parser.parse_args()
    kind = "inductor_packages" if arguments.packages else "inductor_structure"
    results: dict[str, Any] = {}
    for name in arguments.recipes:
        packed = arguments.packages
        results[name] = packages(name, arguments.seed) if packed else measure(name, arguments.seed, arguments.rules)
        # Written after each recipe, so that a long run that is stopped keeps what it has.
        path = common.write(kind, results, SETTINGS, arguments.out, alone=True)
        for batch, row in results[name].items():
            for label, one in row.items():
                print(f"{name:24s} {batch:10s} {label:30s} {one}", flush=True)
    print(path)


if __name__ == "__main__":
    main()
