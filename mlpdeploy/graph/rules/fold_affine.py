"""Constant scales and shifts go into the weights of a neighbouring projection.

before: x * alpha + beta -> linear(W, b) -> * gamma                 (ResMLP's Affine and LayerScale, BatchNorm)
after:  linear(gamma * W * alpha, gamma * (b + W beta))

A product from the left, W @ x with x of shape (..., K, C), takes scales along K and N into W; a scale along C commutes
with it and is left as one product, and all shifts become one constant of shape (N, C). The scale and shift of a
LayerNorm that one linear alone reads go into that linear. Rearrangements, and means in front of it, may stand between
(BatchNorm -> mean over h w -> linear). Each saved operation is a pass over memory, or a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, is_linear_of_constants, weight
from mlpdeploy.graph.kinds import convolution_arguments, convolves_maps, shape_of
from mlpdeploy.graph.matching.affine import Affine, affine, averages, rearranges, seen_behind, seen_in_front
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class AffineChain:
    """Affine operations in the order in which they run: those in front of a projection, or those behind it."""

    links: tuple[Affine, ...]

    def total(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift of the whole chain along one dimension of `size`, which is all that it varies along."""
        scale, shift = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for link in self.links:
            if link.scale is not None:
                factor = link.scale.reshape(-1)
                scale, shift = scale * factor, shift * factor
            if link.shift is not None:
                shift = shift + link.shift.reshape(-1)
        return scale, shift


@dataclass(frozen=True)
class Surroundings:
    """What is around a projection and goes into its weights."""

    front: AffineChain
    behind: AffineChain


def find(editor: Editor, node: fx.Node) -> Surroundings | Refused | None:
    """Constant scales and shifts around a linear, a convolution, or a product from the left."""
    if is_linear_of_constants(node):
        return _around_linear(editor, node)
    if convolves_maps(node) and weight(editor.module, node.args[1]) is not None:
        return _around_convolution(editor, node)
    if node.target is aten.matmul.default and _is_left_product(editor, node):
        return _around_left_product(editor, node)
    return None


def replace(editor: Editor, node: fx.Node, found: Surroundings) -> fx.Node:
    """The projection with all that in it."""
    if node.target is aten.matmul.default:
        return _left_product(editor, node, found)
    return _projection(editor, node, found, (1, 1) if convolves_maps(node) else ())


def _is_left_product(editor: Editor, node: fx.Node) -> bool:
    matrix = weight(editor.module, node.args[0])
    return matrix is not None and matrix.dim() == 2 and len(shape_of(node)) >= 2


def _in_front(editor: Editor, node: fx.Node, accepts: Callable[[Affine], bool]) -> AffineChain:
    """Affine operations that only a projection reads, back from its input `node`, as they are there."""
    links: list[Affine] = []
    path: list[fx.Node] = []
    while len(node.users) == 1:
        if (link := _link(editor, node)) is not None:
            seen = None if link.source is node and not all(map(averages, path)) else seen_behind(link, path)
            if seen is None or not accepts(seen):
                break
            links.append(seen)
            if link.source is node:
                break
            node = link.source
        elif rearranges(node) or averages(node):
            path.insert(0, node)
            node = node.args[0]  # type: ignore[assignment]
        else:
            break
    return AffineChain(tuple(reversed(links)))


def _behind(editor: Editor, node: fx.Node, accepts: Callable[[Affine], bool]) -> AffineChain:
    """Affine operations that alone read a projection `node`, and so on, as they are there."""
    links: list[Affine] = []
    path: list[fx.Node] = []
    while len(node.users) == 1:
        user = next(iter(node.users))
        if (link := affine(editor.module, user)) is not None and link.source is node:
            if not accepts(seen := seen_in_front(link, path)):
                break
            links.append(seen)
        elif user.op == "call_function" and rearranges(user):
            path.append(user)
        else:
            break
        node = user
    return AffineChain(tuple(links))


def _link(editor: Editor, node: fx.Node) -> Affine | None:
    """An affine operation, or the scale and shift of a LayerNorm over one dimension."""
    if node.target is not aten.layer_norm.default:
        return affine(editor.module, node)
    gamma, beta = (weight(editor.module, arg) for arg in (*node.args[2:4], None, None)[:2])
    if gamma is None or beta is None or gamma.dim() != 1 or bool((gamma == 1).all() and (beta == 0).all()):
        return None
    shape = (1,) * (len(shape_of(node)) - 1) + (-1,)
    return Affine(node, node, gamma.double().reshape(shape), beta.double().reshape(shape))


def _remove(editor: Editor, chain: AffineChain) -> None:
    """Take out operations that are folded into a projection; a LayerNorm stays, with scale 1 and shift 0."""
    for link in reversed(chain.links):
        if link.source is link.node:
            _make_unit(editor, link)
        else:
            link.node.replace_all_uses_with(link.source)
            editor.graph.erase_node(link.node)


def _make_unit(editor: Editor, first: Affine) -> None:
    size = int(shape_of(first.node)[-1])
    dtype = first.node.meta["val"].dtype
    with editor.before(first.node):
        ones = editor.constant(torch.ones(size, dtype=dtype), "unit_scale", origin=first.node)
        zeros = editor.constant(torch.zeros(size, dtype=dtype), "zero_shift", origin=first.node)
    first.node.args = (*first.node.args[:2], ones, zeros, *first.node.args[4:])


def _around_linear(editor: Editor, node: fx.Node) -> Surroundings | None:
    front = _in_front(editor, node.args[0], lambda link: link.varies(-1))  # type: ignore[arg-type]
    behind = _behind(editor, node, lambda link: link.varies(-1))
    return Surroundings(front, behind) if front.links or behind.links else None


def _around_convolution(editor: Editor, node: fx.Node) -> Surroundings | Refused | None:
    source, _, _, _, padding, *_ = convolution_arguments(node)
    padded = any(padding)
    front = _in_front(editor, source, lambda link: link.varies(1) and not (padded and link.shift is not None))
    behind = _behind(editor, node, lambda link: link.varies(1))
    if front.links or behind.links:
        return Surroundings(front, behind)
    if padded and len(source.users) == 1 and (link := _link(editor, source)) and link.varies(1):
        return Refused("a shift in front of zero padding is not a bias")
    return None


def _projection(editor: Editor, node: fx.Node, found: Surroundings, kernel: tuple[int, ...]) -> fx.Node:
    """A linear or convolution with both chains in its weight (N, K / groups, *kernel) and bias (N)."""
    matrix = weight(editor.module, node.args[1])
    assert matrix is not None
    groups = convolution_arguments(node)[-1] if kernel else 1
    rows, columns = matrix.shape[0], matrix.shape[1] * groups
    old = weight(editor.module, node.args[2]) if len(node.args) > 2 else None
    bias = torch.zeros(rows, dtype=torch.float64) if old is None else old.double()
    (scale_in, shift_in), (scale_out, shift_out) = found.front.total(columns), found.behind.total(rows)
    inside = _per_row(scale_in, rows, groups), _per_row(shift_in, rows, groups)
    expand = (...,) + (None,) * len(kernel)
    bias = bias + (matrix.double() * inside[1][expand]).flatten(1).sum(1)
    folded = matrix.double() * inside[0][expand] * scale_out[(slice(None), None, *(None,) * len(kernel))]
    bias = bias * scale_out + shift_out
    _remove(editor, found.front)
    dtype, name = matrix.dtype, str(node.args[1].target)  # type: ignore[union-attr]
    weights = editor.constant(folded.to(dtype), f"{name}_folded", origin=node)
    biases = editor.constant(bias.to(dtype), f"{name}_bias_folded", origin=node)
    result = editor.call(node.target, (node.args[0], weights, biases, *node.args[3:]), origin=node)
    _remove(editor, found.behind)
    return result


def _per_row(vector: torch.Tensor, rows: int, groups: int) -> torch.Tensor:
    """A vector over all input channels as (rows, channels that each row reads)."""
    return vector.reshape(groups, 1, -1).expand(groups, rows // groups, -1).reshape(rows, -1)


def _around_left_product(editor: Editor, node: fx.Node) -> Surroundings | None:
    """Around W @ x: y = (r W q) @ x * c + shift, with q along K, r along N, c along C."""

    def accepts(link: Affine) -> bool:
        scale = link.scale
        along = scale is None or scale.shape[-1] == 1 or scale.shape[-2] == 1
        return link.varies(-2, -1) and along

    source: fx.Node = node.args[1]  # type: ignore[assignment]
    # The scale and shift of a LayerNorm cost nothing there; here they would become operations of their own.
    front = AffineChain(()) if source.target is aten.layer_norm.default else _in_front(editor, source, accepts)
    found = Surroundings(front, _behind(editor, node, accepts))
    matrix = weight(editor.module, node.args[0])
    assert matrix is not None
    folded, columns, shift = _left_total(matrix.double(), found.front, found.behind)
    steps = (columns is not None) + (shift is not None)
    saves = steps < len(found.front.links) + len(found.behind.links) or not folded.equal(matrix.double())
    return found if saves else None


def _left_product(editor: Editor, node: fx.Node, found: Surroundings) -> fx.Node:
    matrix = weight(editor.module, node.args[0])
    assert matrix is not None
    folded, columns, shift = _left_total(matrix.double(), found.front, found.behind)
    dtype, name = matrix.dtype, str(node.args[0].target)  # type: ignore[union-attr]
    _remove(editor, found.front)
    weights = editor.constant(folded.to(dtype), f"{name}_folded", origin=node)
    result = editor.call(aten.matmul.default, (weights, node.args[1]), origin=node)
    if columns is not None:
        scale = editor.constant(columns.to(dtype), f"{name}_scale_folded", origin=node)
        result = editor.call(aten.mul.Tensor, (result, scale), origin=node)
    if shift is not None:
        constant = editor.constant(shift.to(dtype), f"{name}_shift_folded", origin=node)
        result = editor.call(aten.add.Tensor, (result, constant), origin=node)
    _remove(editor, found.behind)
    return result


def _left_total(
    matrix: torch.Tensor, front: AffineChain, behind: AffineChain
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """W with q and r in it; where there are any, the scale c (1, C) and the shift (N or 1, C or 1)."""
    columns: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    inner = torch.ones(1, 1, dtype=torch.float64)
    for link in front.links:
        rows, columns, shift = _step(link, columns, shift)
        inner = inner * rows
    shift = None if shift is None else matrix @ shift.expand(matrix.shape[1], -1)
    matrix = matrix * inner.mT
    for link in behind.links:
        rows, columns, shift = _step(link, columns, shift)
        matrix = matrix * rows
    return matrix, columns, shift


def _step(
    link: Affine, columns: torch.Tensor | None, shift: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """One affine operation: its scale along the rows, and the scale of columns and the shift after it."""
    rows = torch.ones(1, 1, dtype=torch.float64)
    if link.scale is not None:
        scale = link.scale.reshape(link.scale.shape[-2:])
        shift = None if shift is None else shift * scale
        if scale.shape[1] == 1:
            rows = scale
        else:
            columns = scale if columns is None else columns * scale
    if link.shift is not None:
        shift = link.shift.reshape(link.shift.shape[-2:]) + (0 if shift is None else shift)
    return rows, columns, shift


RULE = Rule("fold_affine", "algebra", find, replace)
