"""The typed graph as an ExportedProgram, and what backends that run PyTorch share around it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.grouped import grouped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from torch import Tensor

    from mlpdeploy.engine.batch import Batch
    from mlpdeploy.engine.nvidia import Gpu
    from mlpdeploy.engine.onnx.emit import Emitted
    from mlpdeploy.engine.runner import Bind, Context, Launch, Tensors
    from mlpdeploy.graph.precision.typed import Typed


GPU = "cuda:0"
"""The GPU that programs are moved to, by its number: torch.export takes `cuda` and `cuda:0` for different devices."""


def unserved(gpu: Gpu) -> str | None:
    """None where the PyTorch that is installed runs programs on a GPU with its driver, else one line: why not."""
    import torch

    library = f"PyTorch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{library} was built without CUDA; install a build with it"
    if (reason := nvidia.outdated(library, torch.version.cuda, gpu)) is not None:
        return reason
    # Code for sm80 runs on every later GPU of that major version.
    here = int(gpu.capability.removeprefix("sm"))
    known = [name.replace("_", "") for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    numbers = [int("".join(filter(str.isdigit, name))) for name in known]
    if not known or any(number // 10 == here // 10 and number <= here for number in numbers):
        return None
    return f"{library} has code for {', '.join(known)}, and this machine's {gpu.name} is {gpu.capability}"


def exported(emitted: Emitted, batch: Batch) -> Any:
    """The ExportedProgram of the typed graph, on the CPU, for every batch up to the largest."""
    import torch

    from mlpdeploy.graph.tracing.rows import fixed_batch

    fixed = fixed_batch(emitted.typed.inputs)
    # Traced at two rows or more: a size of one would be taken for a constant.
    rows = fixed or max(2, min(batch.opt, batch.max))
    sample = tuple(torch.zeros((rows, *spec.shape), dtype=spec.dtype) for spec in emitted.typed.inputs)
    free = None if fixed else {0: torch.export.Dim("batch", min=1, max=max(2, batch.max))}
    with torch.no_grad():
        return torch.export.export(emitted.typed.module, sample, dynamic_shapes=(free,) * len(sample))


def meanings() -> dict[Any, Any]:
    """Our operations by what they mean, for compilers that do not know them."""
    from mlpdeploy.graph.operations import OPERATIONS

    return {target: operation.meaning for target, operation in OPERATIONS.items()}


VECTOR = 16
"""Bytes that a thread of a GPU moves at once, from an address that is a multiple of them."""


def for_gpu(typed: Typed) -> Typed:
    """The same graph with its weights laid as a GPU reads them, once and not in each call."""
    return channels_last(padded(carried(grouped(sampled(typed)))))


def sampled(typed: Typed) -> Typed:
    """The same graph, in which maps are sampled at places by an operation that compilers know on a GPU too.

    There `grid_sampler` can become an operation of cuDNN, which has no shape where the batch is free.
    """
    from dataclasses import replace

    import torch

    from mlpdeploy.graph.rewrite import copied

    aten = torch.ops.aten
    module = copied(typed.module)
    for node in module.graph.nodes:
        if node.target is aten.grid_sampler.default and node.meta["val"].dim() == 4:
            node.target = aten.grid_sampler_2d.default
    module.recompile()
    return replace(typed, module=module)


def channels_last(typed: Typed) -> Typed:
    """The same graph, in which the kernels of convolutions over images have their channels last in memory.

    A convolution gives its result in the memory format of its kernel, and Inductor has its map in the same: with
    channels last as cuDNN's tensor cores read them, also where the batch is free. There Inductor chooses no layouts by
    itself (`GraphLowering.decide_layout_opt`), and where it does it would copy these kernels in each call.
    """
    from dataclasses import replace

    import torch
    from torch import nn

    from mlpdeploy.graph.editor import weight
    from mlpdeploy.graph.grouped_convolution import GROUPED_CONVOLUTION
    from mlpdeploy.graph.kinds import CONVOLUTIONS_OF_IMAGES
    from mlpdeploy.graph.rewrite import copied

    module = copied(typed.module)
    for node in module.graph.nodes:
        convolves = node.target in CONVOLUTIONS_OF_IMAGES or node.target is GROUPED_CONVOLUTION
        kernel = weight(module, node.args[1]) if convolves else None
        if kernel is not None and kernel.dim() == 4:
            place, _, name = node.args[1].target.rpartition(".")
            laid = kernel.detach().clone(memory_format=torch.channels_last)
            setattr(module.get_submodule(place), name, nn.Parameter(laid, requires_grad=False))
    return replace(typed, module=module)


def carried(typed: Typed) -> Typed:
    """The same graph, in which products from the left whose rows begin between two vectors are our operation.

    A library's kernels read such rows (196 numbers in FP16) two numbers at a time, and would only read `x` wider if it
    were copied to a length that vectors divide. Ours reads rows that are stored longer, and `x` as it lies. Which of
    the two is faster is measured where an engine is built.
    """
    from dataclasses import replace

    import torch

    from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION
    from mlpdeploy.graph.editor import Editor, weight
    from mlpdeploy.graph.kinds import shape_of
    from mlpdeploy.graph.matching.products import product
    from mlpdeploy.graph.rewrite import copied

    module = copied(typed.module)
    editor = Editor(module, module.graph)
    for node in list(module.graph.nodes):
        found = product(editor, node) if node.target is torch.ops.aten.matmul.default else None
        matrix = None if found is None else weight(module, found.matrix)
        if found is None or matrix is None or matrix.dim() != 2 or not _lacking(matrix):
            continue
        if not matrix.is_floating_point():  # which no kernel multiplies
            continue
        *leading, tokens, channels = shape_of(found.x)
        if not (isinstance(tokens, int) and isinstance(channels, int)):
            continue
        with editor.before(node):
            x = editor.reshape(found.x, [math.prod(leading), tokens, channels], origin=node)
            made = editor.call(SEGMENT_GROUPED_PROJECTION, (x, found.matrix, 1), origin=node)
            node.replace_all_uses_with(editor.reshape(made, shape_of(node), origin=node))
        module.graph.erase_node(node)
    module.recompile()
    return replace(typed, module=module)


def padded(typed: Typed) -> Typed:
    """The same graph, in which every row of a matrix of our operations begins where a vector does.

    Rows of 196 numbers in FP16 have 392 bytes: of these, libraries and our kernel read fewer bytes at once. What is
    longer ends in zeros; the graph that was given stays as it is.
    """
    from dataclasses import replace

    from torch import fx
    from torch.nn.functional import pad

    from mlpdeploy.graph.editor import Editor, weight
    from mlpdeploy.graph.operations import OPERATIONS
    from mlpdeploy.graph.rewrite import copied

    module = copied(typed.module)
    editor = Editor(module, module.graph)
    known: dict[fx.Node, fx.Node] = {}
    ours = [(node, OPERATIONS[node.target]) for node in module.graph.nodes if node.target in OPERATIONS]
    for node, place in [(node, place) for node, operation in ours for place in operation.matrices]:
        given = node.args[place]
        matrix = weight(module, given)
        if matrix is None or not (lacking := _lacking(matrix)):
            continue
        if given not in known:
            with editor.before(node):
                known[given] = editor.constant(pad(matrix, (0, lacking)), f"{given.target}_padded", origin=node)
        node.update_arg(place, known[given])
    module.graph.eliminate_dead_code()
    module.recompile()
    return replace(typed, module=module)


def _lacking(matrix: Tensor) -> int:
    """By how many numbers its rows are too short for each to begin where a vector does."""
    return -matrix.shape[1] % (VECTOR // matrix.element_size())


def tune(module: Any, batch: int) -> None:
    """Measure the kernel of each of our operations in a graph on this machine's GPU, where that is not known yet."""
    import importlib.util

    from torch import fx

    from mlpdeploy import kernels
    from mlpdeploy.graph.operations import OPERATIONS

    if importlib.util.find_spec("triton") is None:
        return
    launching: Any = kernels.load("common.launching")
    for node in module.graph.nodes:
        if (operation := OPERATIONS.get(node.target)) is not None:
            launch: Any = kernels.load(f"{operation.plugin}.launch")
            operands = fx.map_arg(node.args, lambda argument: _at_batch(argument.meta["val"], batch, launching.hint))
            if operands[0].dtype in launching.PRECISIONS and not launch.is_tuned(operands):
                launch.tune(operands, operation.meaning)


def _at_batch(value: Tensor, batch: int, hint: Callable[[Any], int]) -> Tensor:
    """A tensor without content, as the traced `value` is at this batch."""
    import torch

    from mlpdeploy.graph.tracing.trace import TRACE_BATCH

    shape = [hint(size) * batch // TRACE_BATCH if isinstance(size, torch.SymInt) else size for size in value.shape]
    return torch.empty(shape, dtype=value.dtype, device="meta")


def computing(program: Callable[..., Any], inputs: Sequence[str], outputs: Sequence[str]) -> Context:
    """A PyTorch program as a context over tensors: outputs are copied, as one may be an input or a weight."""
    import torch

    def compute(given: Tensors, made: Tensors) -> None:
        with torch.inference_mode():
            results = program(*(given[name] for name in inputs))
            results = results if isinstance(results, tuple | list) else (results,)
            for name, result in zip(outputs, results, strict=True):
                made[name].copy_(result)

    return compute


def binder(program: Callable[..., Any], inputs: Sequence[str]) -> Bind:
    """A PyTorch program that takes `inputs` in this order, as the work that it puts on a GPU."""
    import torch
    from torch.utils import _pytree as pytree

    from mlpdeploy.engine.runner import Launch

    def bind(given: Tensors) -> Launch:
        arguments = [given[name] for name in inputs]

        def run() -> Sequence[Tensor]:
            with torch.inference_mode():
                return [leaf for leaf in pytree.tree_leaves(program(*arguments)) if isinstance(leaf, torch.Tensor)]

        return Launch(run)

    return bind


def tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor, BF16 included; they share memory where the array is contiguous."""
    import numpy as np
    import torch

    array = np.ascontiguousarray(array)
    if array.dtype.kind == "V":  # BF16, which NumPy knows through ml_dtypes
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
