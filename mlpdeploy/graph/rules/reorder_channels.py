"""Channels lie as (s n) where they are contracted as segments of (n s): neighbours then, and nothing between them.

before: `b h w (n s)` -> permute -> `b h n (w s)` -> linear -> permute -> `b h w (n s)`                 (Permute-MLP)
after:  `b h w (s n)`, of which w and s are neighbours: a product from the left, with nothing permuted; and h and s
        with the whole of n behind them, which a kernel reads in long runs

In which order a stream of activations has its channels is nobody's business but ours: what writes and reads it, norms
and scales take the order into their constants. The rule leaves a stream alone where something else sees its channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, is_linear_of_constants, weight
from mlpdeploy.graph.kinds import is_tensor, rearranged, shape_of
from mlpdeploy.graph.layout.view import Axis, Group, View, numel
from mlpdeploy.graph.matching.axis import Course, Place, follow
from mlpdeploy.graph.matching.rearrangements import back
from mlpdeploy.graph.outline import name_of
from mlpdeploy.graph.rule import Refused, Rule

SUFFIX = "_reordered"
"""What a constant's name ends in, however often it was reordered."""


@dataclass(frozen=True)
class Stream:
    """Where the channels are that lie as (n s) and shall lie as (s n)."""

    course: Course
    n: int
    s: int


def find(editor: Editor, node: fx.Node) -> list[Stream] | Refused | None:
    """The streams whose segments' elements a linear contracts together with another axis, or produces so."""
    streams: list[Stream] = []
    for place, n, s in _segments(node):
        if any(place.node in stream.course.places for stream in streams):
            continue
        course = follow(place, n * s)
        if course is None:
            return Refused("a tensor has its channels at two places")
        ends = [*((end, end) for end in course.makes), *course.reads]
        others = (end for end, value in ends if not _takes_apart(end, course.places[value], n, s))
        if (other := next(others, None)) is not None:
            return Refused(f"{name_of(other)} has its channels in their order")
        if any(_opposed(end, course.places[value], n, s) for end, value in ends):
            return Refused("its channels are mixed as (s n) elsewhere")
        if course.held:
            streams.append(Stream(course, n, s))
    return streams or None


def _segments(node: fx.Node) -> Iterator[tuple[Place, int, int]]:
    """Channels that lie as (n s), n and s: s is what a linear contracts with another axis, or produces with one."""
    if not is_linear_of_constants(node):
        return
    chain = back(node.args[0])  # type: ignore[arg-type]
    *seen, contracted = chain.view.seen
    for dim, group in enumerate(chain.view.stored):
        n = tuple(axis for axis in group if axis not in contracted)
        s = group[len(n) :]
        if n and s and group == (*n, *s) and len(s) < len(contracted) and _whole(group):
            yield Place(chain.source, dim), numel(n), numel(s)
    produced = (Axis(shape_of(node)[-1]),)
    last, view = node, View((*chain.view.stored, produced), (*seen, produced))
    while len(last.users) == 1 and (moved := rearranged(next(iter(last.users)), view)) is not None:
        last, view = next(iter(last.users)), moved
    made = view.stored[-1]
    for dim, group in enumerate(view.seen):
        n = tuple(axis for axis in group if axis not in made)
        s = group[len(n) :]
        if n and s and group == (*n, *s) and s == made[-len(s) :] and len(s) < len(made) and _whole(group):
            yield Place(last, dim), numel(n), numel(s)


def _whole(group: Group) -> bool:
    """Whether all sizes are numbers."""
    return all(isinstance(axis.size, int) for axis in group)


def _takes_apart(end: fx.Node, place: Place, n: int, s: int) -> bool:
    """Whether an end of the stream only rearranges its channels, of which n and s each stay whole."""
    source = end.args[0] if end.op == "call_function" and end.args else None
    if not isinstance(source, fx.Node) or not is_tensor(source) or not is_tensor(end):
        return False
    view, dim, parts = View.of(shape_of(source)), place.dim, (place.before, n, s, place.behind)
    if place.node is end:
        made, shape = rearranged(end, view), shape_of(end)
        return made is not None and made.reshape([*shape[:dim], *parts, *shape[dim + 1 :]]) is not None
    apart = tuple(Axis(size) for size in parts if size != 1)
    return place.node is source and rearranged(end, view.replace({view.seen[dim][0]: apart})) is not None


def _opposed(end: fx.Node, place: Place, n: int, s: int) -> bool:
    """Whether behind an end of the stream, or in front of it, a linear mixes n with another axis, and s not."""
    shape, dim = shape_of(place.node), place.dim
    chain = back(place.node)
    view = chain.view.reshape([*shape[:dim], place.before, n, s, place.behind, *shape[dim + 1 :]])
    if view is None:
        return False
    alone, other = view.seen[dim + 1], view.seen[dim + 2]
    if place.node is end:
        return is_linear_of_constants(chain.source) and _mixes(view.stored[-1], alone, other)
    seen = view.reshape(shape)
    return seen is not None and _read_opposed(end, seen, alone, other)


def _read_opposed(node: fx.Node, view: View, alone: Group, other: Group) -> bool:
    """The same of what a rearrangement hands on."""
    moved = rearranged(node, view)
    if moved is None:
        return False
    linears = [user for user in node.users if is_linear_of_constants(user) and user.args[0] is node]
    if linears and _mixes(moved.seen[-1], alone, other):
        return True
    return any(_read_opposed(user, moved, alone, other) for user in node.users if user not in linears)


def _mixes(mixed: Group, alone: Group, other: Group) -> bool:
    """Whether one factor of the channels is mixed with another axis, and the other factor not."""
    return {*alone} < {*mixed} and not {*other} & {*mixed}


def replace(editor: Editor, node: fx.Node, streams: list[Stream]) -> None:
    """Each stream reordered, and looked for again: a constant may be in two."""
    found: list[Stream] | Refused | None = streams
    while isinstance(found, list):
        _reorder(editor, found[0])
        found = find(editor, node)


def _reorder(editor: Editor, stream: Stream) -> None:
    """The constants reordered, and at the ends of the stream its channels in their order."""
    course, n, s = stream.course, stream.n, stream.s
    for (reader, constant), places in course.held.items():
        tensor = weight(editor.module, constant)
        assert tensor is not None
        for place in places:
            tensor = _ordered(tensor, place, n, s)
        with editor.before(reader):
            ordered = editor.constant(tensor, f"{str(constant.target).removesuffix(SUFFIX)}{SUFFIX}", origin=reader)
        reader.replace_input_with(constant, ordered)
    inside: dict[fx.Node, fx.Node] = {}
    for made in course.makes:
        users = list(made.users)
        with editor.before(made.next):
            inside[made] = _swapped(editor, made, course.places[made], n, s)
        for user in users:
            user.replace_input_with(made, inside[made])
    for reader, value in course.reads:
        ordered, place = inside.get(value, value), course.places[value]
        with editor.before(reader):
            reader.replace_input_with(ordered, _swapped(editor, ordered, place, s, n))


def _ordered(tensor: torch.Tensor, place: Place, n: int, s: int) -> torch.Tensor:
    """A constant whose dimension has its channels as (s n)."""
    indices = torch.arange(tensor.shape[place.dim]).reshape(place.before, n, s, place.behind)
    return tensor.index_select(place.dim, indices.transpose(1, 2).flatten())


def _swapped(editor: Editor, node: fx.Node, place: Place, slow: int, fast: int) -> fx.Node:
    """A value whose channels lie as (slow fast), with (fast slow) instead."""
    shape, dim = shape_of(node), place.dim
    factored = [*shape[:dim], place.before, slow, fast, place.behind, *shape[dim + 1 :]]
    order = list(range(len(factored)))
    order[dim + 1], order[dim + 2] = dim + 2, dim + 1
    apart = editor.permute(editor.reshape(node, factored, origin=node), order, origin=node)
    return editor.reshape(apart, shape, origin=node)


AFTER = ("convolve_patches", "normalise_contractions", "pick_parts", "reorder_normalisation", "reparameterise")

RULE = Rule("reorder_channels", "normalise", find, replace, AFTER, default=False)
