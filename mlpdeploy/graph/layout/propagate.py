"""Forward: the graph is written anew on stored tensors; reshapes and permutes become views, and most of them vanish.

Each value is a stored tensor and a View of it. An operation that can work on the tensor as it lies does so; one that
cannot makes its input materialise, in the layout that the consumers want (see `wants`). A linear becomes an axis
projection of the stored tensor, computed by the first lowering whose guard accepts it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph import kinds
from mlpdeploy.graph.editor import Editor, is_linear_of_constants
from mlpdeploy.graph.kinds import dim_of, dims_of, is_getitem, is_pointwise, is_tensor, keeps_dims, rearranged, shape_of
from mlpdeploy.graph.layout.grouping import boundary, common_order, groups_of, padded
from mlpdeploy.graph.layout.projection import CHANNELS, Lowering, Projection, Value, regroup, relaid
from mlpdeploy.graph.layout.view import Axis, Group, View, align, blocks, flat, numel, permutation, runs
from mlpdeploy.graph.layout.wants import CONFLICT, Wants, want_of, wanted
from mlpdeploy.graph.rule import Log

aten = torch.ops.aten


def propagate(module: fx.GraphModule, lowerings: Sequence[tuple[Lowering, Log]]) -> fx.GraphModule:
    """The same network with layouts propagated; weights are shared with `module`."""
    return _Propagation(module, lowerings).run()


class _Propagation:
    def __init__(self, module: fx.GraphModule, lowerings: Sequence[tuple[Lowering, Log]]) -> None:
        self.source = module.graph
        self.wants: Wants = wanted(module.graph)
        self.lowerings = lowerings
        self.values: dict[fx.Node, Any] = {}
        self.copies: dict[tuple[Any, ...], fx.Node] = {}
        graph = fx.Graph()
        for node in self.source.nodes:
            if node.op in ("placeholder", "get_attr"):
                copy = graph.node_copy(node)
                self.values[node] = Value(copy, View.of(shape_of(copy))) if is_tensor(copy) else copy
        self.editor = Editor(fx.GraphModule(module, module.graph), graph)  # a module of its own for new weights

    def run(self) -> fx.GraphModule:
        for node in self.source.nodes:
            if node.op == "output":
                self.editor.graph.output(fx.map_arg(node.args[0], self.plain))
            elif node not in self.values:
                self.values[node] = self.handler(node)(node)
        self.editor.graph.eliminate_dead_code()
        return fx.GraphModule(self.editor.module, self.editor.graph)

    def handler(self, node: fx.Node) -> Callable[[fx.Node], Any]:
        if is_getitem(node) and isinstance(self.values[node.args[0]], list):  # type: ignore[index]
            return lambda node: self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        if is_linear_of_constants(node):
            return self.linear
        if node.target is aten.layer_norm.default:
            return self.normalisation
        if node.target in kinds.REDUCTIONS and dims_of(node):
            return self.reduction
        if node.target in kinds.ALONG:
            return self.along
        if is_pointwise(node) and any(shape_of(operand) == shape_of(node) for operand in node.all_input_nodes):
            return self.pointwise
        return self.other

    # What makes a tensor lie differently.

    def laid(self, value: Value, groups: Sequence[Group], origin: fx.Node) -> fx.Node:
        """The tensor of `value` with its axes in memory as `groups`; axes that stay neighbours move as one."""
        order, target = value.view.order, flat(groups)
        if order == target:
            return regroup(self.editor, value.node, groups, origin)
        whole, moved = blocks(order, target)
        key = (value.node, tuple(map(numel, whole)), tuple(moved))
        if key not in self.copies:
            parts, moved = permutation(value.view.stored, groups)
            factored = regroup(self.editor, value.node, parts, origin)
            self.copies[key] = self.editor.permute(factored, moved, origin=origin)
        return regroup(self.editor, self.copies[key], groups, origin)

    def plain(self, node: fx.Node) -> fx.Node:
        """The new node for one of the source graph, laid as it is seen."""
        value = self.values[node]
        return self.laid(value, value.view.seen, node) if isinstance(value, Value) else value

    def settled(self, value: Value, want: View | None) -> Value:
        """`value` where it lies, unless it lies unlike it is seen and its consumers want it otherwise."""
        if value.view.contiguous or want is None:
            return value
        view, order = value.view, flat(value.view.seen)
        if want is not CONFLICT and (pair := align(view, want)) is not None:
            view, order = pair[0], pair[1].order
            if view.order == order:
                return value
        groups = view.seen if order == flat(view.seen) else tuple((axis,) for axis in order)
        node = self.laid(Value(value.node, view), groups, value.node)
        return Value(node, View(groups, view.seen))

    def embedded(self, value: Value, want: View | None) -> Value:
        """Where nobody cares, a map that a convolution makes is laid as the network sees it, not channels first."""
        is_map = value.node.target in kinds.CONVOLUTIONS and any(size != 1 for size in shape_of(value.node)[2:])
        free = want is None and is_map and not value.view.contiguous
        return self.settled(value, CONFLICT) if free else value

    def isolated(self, value: Value, dim: int, origin: fx.Node) -> tuple[fx.Node, tuple[Group, ...], int]:
        """The tensor with the axes of `dim` (a run in memory) as one dimension, its groups, and that dimension's index.

        Where the other axes lie as they are seen, they are grouped as they are seen, so that what broadcasts later
        finds its dimensions of 1.
        """
        order, axes = value.view.order, value.view.seen[dim]
        start = order.index(axes[0])
        others = (*value.view.seen[:dim], *value.view.seen[dim + 1 :])
        index = dim if len(flat(others[:dim])) == start else boundary(others, start)
        if index is not None and flat(others) == (*order[:start], *order[start + len(axes) :]):
            groups: tuple[Group, ...] = (*others[:index], axes, *others[index:])
        else:
            groups = tuple(run for group in value.view.stored for run in runs(group, axes))
            first = next(index for index, group in enumerate(groups) if group[0] in axes)
            groups = (*(g for g in groups[:first]), axes, *(g for g in groups[first:] if g[0] not in axes))
        return regroup(self.editor, value.node, groups, origin), groups, groups.index(axes)

    # What each kind of operation does.

    def other(self, node: fx.Node) -> Any:
        """Rearrangements become views; the rest runs on tensors that lie as they are seen."""
        source = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if isinstance(source, Value) and (view := rearranged(node, source.view)) is not None:
            return self.embedded(Value(source.node, view), self.wants.get(node))
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self.plain)
        copy = self.editor.call(node.target, args, kwargs, origin=node)
        return Value(copy, View.of(shape_of(copy))) if is_tensor(copy) else copy

    def linear(self, node: fx.Node) -> Any:
        """An axis projection, by the first lowering that accepts it; else a linear on a tensor laid as it is seen."""
        x: Value = self.values[node.args[0]]  # type: ignore[index]
        if not x.view.seen[-1] or shape_of(node)[-1] == 1:
            return self.other(node)
        weights: Any = (*node.args[1:], None)[:2]
        matrix, bias = (None if arg is None else self.plain(arg) for arg in weights)
        assert matrix is not None
        projection, seen = self.projection(x.view, node, self.wants[node])
        attempts = [(projection, seen)]
        if relaid(projection, seen) is None and not projection.contracts(projection.runs()[-1]):
            # The tensor would have to move, and its result again: better in place, then only the result moves.
            attempts.append(self.projection(x.view, node, None))
        for lowering, log in ((CHANNELS, Log()), *self.lowerings):
            if not lowering.matches(projection):
                continue
            reasons = [lowering.guard(attempt) for attempt, _ in attempts]
            if None in reasons:
                attempt, seen = attempts[reasons.index(None)]
                tensor, groups = lowering.emit(self.editor, x.node, attempt, matrix, bias, node)
                log.fired()
                return Value(tensor, View(groups, seen))
            reason = reasons[0] or ""
            log.refused(node, "its consumers want different layouts" if self.wants[node] is CONFLICT else reason)
        if not x.view.contiguous and (target := relaid(projection, seen)) is not None:
            moved = self.laid(Value(x.node, View(projection.stored, ())), target.stored, node)
            tensor, groups = CHANNELS.emit(self.editor, moved, target, matrix, bias, node)
            return Value(tensor, View(groups, seen))
        plain = self.editor.call(node.target, (self.plain(node.args[0]), matrix, bias), origin=node)  # type: ignore[arg-type]
        return Value(plain, View.of(shape_of(node)))

    def projection(self, view: View, node: fx.Node, want: View | None) -> tuple[Projection, tuple[Group, ...]]:
        """What a linear is to the tensor that its input is stored in, and the dimensions seen of its result."""
        contracted, produced = view.seen[-1], (Axis(shape_of(node)[-1]),)
        result = View((*view.stored, produced), (*view.seen[:-1], produced))
        order = flat(result.seen)
        pieces = runs(view.order, contracted)
        if want is None and (pieces[-1][0] not in contracted or sum(run[0] in contracted for run in pieces) == 1):
            *first, last = [index for index, run in enumerate(pieces) if run[0] in contracted]
            pieces[last] = produced
            order = flat(piece for index, piece in enumerate(pieces) if index not in first)
        elif want is not None and want is not CONFLICT and (pair := align(result, want)) is not None:
            result, order = pair[0], pair[1].order
        return Projection(result.stored[:-1], contracted, result.seen[-1], order), result.seen

    def normalisation(self, node: fx.Node) -> Value:
        """LayerNorm works on any layout whose last axes are those that it normalises."""
        source, count = node.args[0], len(node.args[1])  # type: ignore[arg-type]
        value = self.settled(self.values[source], self.wants[node])  # type: ignore[index]
        axes = flat(value.view.seen[-count:])
        if value.view.order[-len(axes) :] != axes:
            value = Value(self.plain(source), View.of(shape_of(node)))  # type: ignore[arg-type]
            axes = flat(value.view.seen[-count:])
        kept = tuple(run for group in value.view.stored for run in runs(group, axes) if run[0] not in axes)
        groups = (*kept, *value.view.seen[-count:])
        tensor = regroup(self.editor, value.node, groups, node)
        rest = fx.map_arg(node.args[1:], self.plain)
        return Value(self.editor.call(node.target, (tensor, *rest), origin=node), View(groups, value.view.seen))

    def reduction(self, node: fx.Node) -> Any:
        """Means and sums remove axes wherever these lie."""
        value: Value = self.values[node.args[0]]  # type: ignore[index]
        dims = dims_of(node) or ()
        axes = flat(value.view.seen[dim] for dim in dims)
        if not axes:
            return self.other(node)
        groups = tuple(run for group in value.view.stored for run in runs(group, axes))
        tensor = regroup(self.editor, value.node, groups, node)
        removed = [index for index, group in enumerate(groups) if group[0] in axes]
        options = {key: option for key, option in node.kwargs.items() if key not in ("dim", "keepdim")}
        kept = keeps_dims(node) and groups == value.view.seen
        result = self.editor.call(node.target, (tensor, removed, kept), options, origin=node)
        seen = tuple(() if d in dims else g for d, g in enumerate(value.view.seen) if d not in dims or keeps_dims(node))
        return Value(result, View(seen if kept else tuple(g for g in groups if g[0] not in axes), seen))

    def along(self, node: fx.Node) -> Any:
        """Softmax, slices, splits: along one dimension of the tensor as it lies."""
        source, dim = node.args[0], dim_of(node)
        value = self.settled(self.values[source], want_of(node, source, self.wants))  # type: ignore[index, arg-type]
        axes = value.view.seen[dim]
        start = value.view.order.index(axes[0]) if axes else 0
        if not axes or value.view.order[start : start + len(axes)] != axes:
            return self.other(node)
        tensor, groups, index = self.isolated(value, dim, node)
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        options = {**dict(zip(names[1:], node.args[1:], strict=False)), **node.kwargs, "dim": index}
        result = self.editor.call(node.target, (tensor,), fx.map_arg(options, self.plain), origin=node)
        if node.target not in kinds.LISTS:
            return self.part(node, result, groups, value.view.seen, index, dim)
        parts = [self.editor.call(operator.getitem, (result, i), origin=node) for i in range(len(result.meta["val"]))]
        return [self.part(node, part, groups, value.view.seen, index, dim) for part in parts]

    def part(
        self, node: fx.Node, tensor: fx.Node, groups: tuple[Group, ...], seen: tuple[Group, ...], index: int, dim: int
    ) -> Value:
        """The value of `tensor`, whose dimension `index` in memory (`dim` as seen) has another size, or is gone."""
        kept: tuple[Group, ...] = ()
        if node.target not in kinds.PICKS:
            size = shape_of(tensor)[index]
            kept = ((Axis(size),) if size != 1 else (),)
        stored = (*groups[:index], *kept, *groups[index + 1 :])
        return Value(tensor, View(stored, (*seen[:dim], *kept, *seen[dim + 1 :])))

    def pointwise(self, node: fx.Node) -> Any:
        """Works on tensors as they lie, where they lie alike; smaller operands are reshaped so that they broadcast."""
        shape = shape_of(node)
        operands = [operand for operand in node.all_input_nodes if isinstance(self.values[operand], Value)]
        views = [padded(self.values[operand].view, len(shape)) for operand in operands]
        want = self.wants[node]
        views = views if want is None or want is CONFLICT else [*views, want]
        reference = next(view for view, operand in zip(views, operands, strict=False) if shape_of(operand) == shape)
        for index in [*range(len(views))] * 2:
            if (pair := align(reference, views[index])) is None:
                return self.other(node)
            reference, views[index] = pair
        full = [view for view, operand in zip(views, operands, strict=False) if shape_of(operand) == shape]
        order = common_order(full, want if want is None or want is CONFLICT else views[-1])
        groups = groups_of(reference, order, views[: len(operands)])
        tensors = {
            operand: self.broadcast(Value(self.values[operand].node, view), groups, node)
            for operand, view in zip(operands, views, strict=False)
        }
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda arg: tensors.get(arg) or self.plain(arg))
        return Value(self.editor.call(node.target, args, kwargs, origin=node), View(groups, reference.seen))

    def broadcast(self, value: Value, groups: tuple[Group, ...], origin: fx.Node) -> fx.Node:
        """The tensor of `value` laid as those of the axes of `groups` that it has, with 1 for the others."""
        mine = set(value.view.order)
        laid = [tuple(axis for axis in group if axis in mine) for group in groups]
        while laid and not laid[0] and len(laid) > len(shape_of(value.node)):
            laid.pop(0)
        return self.laid(value, laid, origin)
