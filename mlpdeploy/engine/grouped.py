"""Programs for a GPU: convolutions of groups as our operation, whose spelling the build measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, fx

    from mlpdeploy.graph.precision.typed import Typed


def grouped(typed: Typed) -> Typed:
    """The same graph, in which convolutions of groups along one dimension or two are our operation.

    But depthwise ones, of which a group has one channel and gives one: libraries have kernels for these, and for others
    slow ones. As sums of shifted maps they are a kernel of Inductor's, with what stands behind them; as products of
    matrices a library's. Which of these and the convolution is fastest is measured where an engine is built.
    """
    from dataclasses import replace

    from mlpdeploy.graph.editor import Editor, weight
    from mlpdeploy.graph.grouped_convolution import GROUPED_CONVOLUTION
    from mlpdeploy.graph.kinds import CONVOLUTIONS, convolution_arguments
    from mlpdeploy.graph.rewrite import copied

    module = copied(typed.module)
    editor = Editor(module, module.graph)
    for node in list(module.graph.nodes):
        if node.target not in CONVOLUTIONS:
            continue
        x, given, bias, stride, padding, dilation, groups = convolution_arguments(node)
        kernel = weight(module, given)
        if groups == 1 or kernel is None or groups == kernel.shape[0] == x.meta["val"].shape[1]:
            continue
        if (spans := _spans(x, kernel, stride, padding, dilation)) is None:
            continue
        with editor.before(node):
            # The numbers of all outputs at one place lie together: a kernel reads them at once.
            taps = editor.constant(_taps(kernel), f"{given.target}_taps", origin=node)
            made = editor.call(GROUPED_CONVOLUTION, (x, given, taps, bias, *spans, groups), origin=node)
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
    module.recompile()
    return replace(typed, module=module)


def _taps(kernel: Tensor) -> Tensor:
    """(N, C / groups, *places) as (C / groups * places, N)."""
    return kernel.flatten(1).t().contiguous()


def _spans(
    x: fx.Node, kernel: Tensor, stride: Sequence[int], padding: Sequence[int] | str, dilation: Sequence[int]
) -> tuple[list[int], list[int], list[int]] | None:
    """Stride, padding and dilation for each dimension; None where the operation has no such convolution."""
    rank = kernel.dim() - 2
    if rank > 2 or x.meta["val"].dim() != kernel.dim():
        return None
    apart = [*dilation][:rank]
    if isinstance(padding, str):
        around = [0 if padding == "valid" else one * (k - 1) for one, k in zip(apart, kernel.shape[2:], strict=True)]
        if any(one % 2 for one in around):
            return None
        padding = [one // 2 for one in around]
    return [*stride][:rank], [*padding][:rank], apart
