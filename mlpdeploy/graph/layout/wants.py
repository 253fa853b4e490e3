"""Backward: in which memory layout do the consumers of each value want it?

A wanted layout is a View whose memory order is the one wanted. Operations that care (normalisation, convolution, the
output) want the order that they see; pointwise operations and projections hand on what their own consumers want, told
in the axes of their input; None means that nobody cares.
"""

from __future__ import annotations

from torch import fx

from mlpdeploy.graph.editor import is_linear_of_constants
from mlpdeploy.graph.kinds import (
    ALONG,
    LISTS,
    PICKS,
    REDUCTIONS,
    dim_of,
    is_getitem,
    is_pointwise,
    is_tensor,
    rearranged,
    shape_of,
)
from mlpdeploy.graph.layout.view import Axis, Size, View, align

CONFLICT = View((), ())
"""Two consumers want different layouts."""

Wants = dict[fx.Node, View | None]


def wanted(graph: fx.Graph) -> Wants:
    """What the consumers of every tensor of `graph` want, in one pass from the outputs to the inputs."""
    wants: Wants = {}
    for node in reversed(graph.nodes):
        if node.op != "output" and (is_tensor(node) or node.target in LISTS):
            wants[node] = _agreed([want_of(user, node, wants) for user in node.users])
    return wants


def _agreed(views: list[View | None]) -> View | None:
    real = [view for view in views if view is not None]
    if any(view is CONFLICT for view in real):
        return CONFLICT
    for other in real[1:]:
        pair = align(real[0], other)
        if pair is None or pair[0].order != pair[1].order:
            return CONFLICT
    return max(real, key=lambda view: len(view.order), default=None)


def want_of(user: fx.Node, node: fx.Node, wants: Wants) -> View | None:
    """What `user` wants of its input `node`."""
    want = wants.get(user)
    if is_getitem(user):
        return want
    if user.op == "call_function" and is_tensor(user):
        if (seen := rearranged(user, View.of(shape_of(node)))) is not None:
            return _through_rearrangement(seen, want)
        if is_pointwise(user):
            return _unless_conflict(want, user) if shape_of(user) == shape_of(node) else None
        if user.target in REDUCTIONS:
            return None
        if is_linear_of_constants(user):
            return _through_projection(node, want)
    if user.target in ALONG:
        return _through_dimension(user, node, want)
    return View.of(shape_of(node)) if is_tensor(node) else None


def _unless_conflict(want: View | None, user: fx.Node) -> View | None:
    """`user` computes a new tensor: where its consumers disagree it does so as it is seen, and wants its input so."""
    return View.of(shape_of(user)) if want is CONFLICT else want


def _through_rearrangement(seen: View, want: View | None) -> View | None:
    """A layout wanted of the result, told in the dimensions of the input: those of `seen.stored`."""
    if want is None or want is CONFLICT:
        return want
    pair = align(seen, want)
    return View(tuple((axis,) for axis in pair[1].order), pair[0].stored) if pair is not None else CONFLICT


def _through_projection(node: fx.Node, want: View | None) -> View | None:
    shape = shape_of(node)
    if want is None:
        return None
    if want is CONFLICT:
        return View.of(shape)
    return _resized(want, shape, -1)


def _through_dimension(user: fx.Node, node: fx.Node, want: View | None) -> View | None:
    shape, dim = shape_of(node), dim_of(user)
    if want is None or want is CONFLICT:
        return want if want is None else View.of(shape)
    if user.target in PICKS:
        return View.of(shape) if want.contiguous else None
    return _resized(want, shape, dim)


def _resized(want: View, shape: tuple[Size, ...], dim: int) -> View | None:
    """The same layout for a value of `shape`, other in `dim`; None where that dimension has no place of its own."""
    if want.shape == shape:
        return want
    axis = (Axis(shape[dim]),) if shape[dim] != 1 else ()
    return want.replace({want.seen[dim][0]: axis}) if len(want.seen[dim]) == 1 else None
