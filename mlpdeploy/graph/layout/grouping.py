"""The dimensions in which several views are told alike."""

from __future__ import annotations

from mlpdeploy.graph.layout.view import Group, View, flat, runs
from mlpdeploy.graph.layout.wants import CONFLICT


def boundary(groups: tuple[Group, ...], count: int) -> int | None:
    """How many of `groups` hold the first `count` axes; None where a group reaches across that place."""
    index = 0
    while count > 0:
        count -= len(groups[index])
        index += 1
    return index if count == 0 else None


def padded(view: View, rank: int) -> View:
    return View(view.stored, ((),) * (rank - len(view.seen)) + view.seen)


def common_order(views: list[View], want: View | None) -> Group:
    """The memory order for a pointwise operation on `views`, all told in the same axes."""
    first, seen = views[0].order, flat(views[0].seen)
    alike = all(view.order == first for view in views)
    if alike and (want is None or first == seen):
        return first
    return seen if want is None or want is CONFLICT else want.order


def groups_of(reference: View, order: Group, views: list[View]) -> tuple[Group, ...]:
    """Dimensions for `order`, such that each operand has all the axes of a dimension or none."""
    if order == flat(reference.seen):
        groups = reference.seen
    else:
        groups = reference.stored if order == reference.order else tuple((axis,) for axis in order)
    for view in views:
        groups = tuple(run for group in groups for run in (runs(group, view.order) if group else [()]))
    return groups
