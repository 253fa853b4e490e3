"""What Inductor generates for a GPU that is not here, of the plain network and of ours: kernels, calls, bytes.

    python -m benchmarks.inductor_structure [RECIPE ...] [--rules]

FP16, at batch 128 and 1. Inductor is told of an H100's SMs and goes as far as its code, over tensors without content:
nothing is compiled, run or tuned. Plain is what torch.compile makes of the network with its channels last, ours what
the `inductor` backend gives the same compiler; `--rules` adds ours without each rule, or with one more, at batch 128.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import common
from benchmarks.gpu.networks import NAMES
from benchmarks.recorded import ALL, PLAIN
from benchmarks.rules import variants
from mlpdeploy.engine import programs
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import Rewritten, all_rules, rewrite
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.graph.tracing.trace import Traced, trace

BATCHES = (128, 1)
OFF = backends()["inductor"].off_for((CURRENT,))
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
    patterns = joint_graph.lazy_init
    with ExitStack() as stack:
        for name, answer in answers.items():
            for holder in (torch.cuda, CudaInterface, CudaInterface.Worker):
                if hasattr(holder, name):
                    kept = answer if holder is torch.cuda else staticmethod(answer)
                    stack.enter_context(patch.object(holder, name, kept))
        # Patterns of attention are made of tensors, which can be those of a CPU.
        stack.enter_context(patch.object(joint_graph, "lazy_init", lambda device: patterns(torch.device("cpu"))))
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


def generated(module: nn.Module, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """What Inductor's code for FP16 inputs of these shapes launches, and the bytes that it reads and writes."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    found: dict[str, Any] = {}

    def stop(graph: GraphLowering) -> None:
        graph.codegen()
        found.update(counted(graph.scheduler.nodes))
        raise Generated

    def backend(graph: Any, inputs: Any) -> Any:
        # Whether a product pays with padded rows is measured where there is a GPU.
        options = config.patch(compile_threads=1, force_disable_caches=True, shape_padding=False)
        with told_of_a_gpu(), options, patch.object(GraphLowering, "compile_to_module", stop):
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
        "bytes": {side: sum(map(moved, some)) for side, some in (("kernels", kernels), ("calls", calls))},
    }


def moved(node: Any) -> int:
    """Bytes that are read and written; what a kernel of ours writes in place is nothing that it reads."""
    filled = {name for output in node.get_outputs() for name in output.get_mutations()}
    sizes = node.get_read_write_buffer_accesses(include_reads=True, include_writes=True)
    return sum(size for name, size in sizes.items() if name not in filled)


def ours(traced: Traced, disabled: Sequence[str] = (), enabled: Sequence[str] = ()) -> tuple[nn.Module, Rewritten]:
    """The graph that the backend compiles for a GPU, in FP16 from inputs to outputs."""
    rewritten = rewrite(traced, disabled, enabled, OFF)
    return programs.for_gpu(apply(rewritten, plan(rewritten, "fp16", io="fp16"))).module, rewritten


def measure(name: str, seed: int, rules: bool) -> dict[str, Any]:
    """By batch and contender, what is generated; the contenders of `--rules` at the first batch alone."""
    network, specs = common.load(name, seed)
    traced = trace(network, specs)
    report = ours(traced, (), [*all_rules()])[1].report if rules else ()
    named = variants({one.name: one.fired for one in report if one.name != LAYOUT}, OFF)
    plain = network.half().to(memory_format=torch.channels_last)
    found: dict[str, Any] = {}
    for batch in BATCHES:
        shapes = [(batch, *spec.shape) for spec in specs]
        chosen = [label for label in named if label == ALL or (rules and batch == BATCHES[0])]
        contenders = ((label, ours(traced, *named[label])[0]) for label in chosen)
        found[f"batch {batch}"] = {label: generated(one, shapes) for label, one in ((PLAIN, plain), *contenders)}
    return found


def main() -> None:
    parser = common.parser(__doc__, NAMES)
    parser.add_argument("--rules", action="store_true", help=f"with every rule's part, at batch {BATCHES[0]}")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.recipes:
        results[name] = measure(name, arguments.seed, arguments.rules)
        # Written after each recipe, so that a long run that is stopped keeps what it has.
        path = common.write("inductor_structure", results, SETTINGS, arguments.out, alone=True)
        for batch, row in results[name].items():
            for label, one in row.items():
                print(f"{name:24s} {batch:10s} {label:30s} {one}", flush=True)
    print(path)


if __name__ == "__main__":
    main()
