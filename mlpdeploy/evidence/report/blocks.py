"""The block that a network repeats most, as a graph to look at: before the rules and after them.

Works on the outlines of graph.json (see `graph.outline`): plain facts, so that a report needs neither torch nor the
network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpdeploy.evidence.report.verdicts import is_contraction

LIMIT = 44
"""Operations that are drawn one by one; in a longer block, what stands in a row is drawn as one."""

TRANSPOSE, RESHAPE, CONTRACTION, OTHER, INPUT, OUTPUT = (
    "transpose",
    "reshape",
    "contraction",
    "other",
    "input",
    "output",
)

TIMES = "\N{MULTIPLICATION SIGN}"

_TRANSPOSES = frozenset({"permute", "transpose", "t", "movedim", "swapaxes", "roll"})
_RESHAPES = frozenset({"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "contiguous"})

Outlined = Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """A box: its key, one of the kinds above, the lines in it, and what to tell who points at it."""

    key: str
    kind: str
    lines: tuple[str, ...]
    hint: str
    operations: int = 1


@dataclass(frozen=True)
class Picture:
    """A graph to draw: boxes, and edges between their keys."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]

    def count(self, kind: str) -> int:
        """How many boxes of one kind there are."""
        return sum(node.kind == kind for node in self.nodes)


@dataclass(frozen=True)
class Block:
    """The chosen block: the path of its module (empty: the whole network), how often the network has it, pictures."""

    module: str
    repeats: int
    before: Picture
    after: Picture
    operations: tuple[int, int]


def block(outlines: Mapping[str, Sequence[Outlined]]) -> Block:
    """The first of the modules that the network repeats most, measured by how much of the network they make up."""
    module, repeats = most_repeated(outlines["before"])
    inside = [[one for one in outlines[when] if _within(one["module"], module)] for when in ("before", "after")]
    before, after = (
        picture(ours, outlines[when], module) for ours, when in zip(inside, ("before", "after"), strict=True)
    )
    return Block(module, repeats, before, after, (len(inside[0]), len(inside[1])))


def most_repeated(operations: Sequence[Outlined]) -> tuple[str, int]:
    """Path and number of the modules that compute the same and together hold most operations; ("", 1) if none do.

    Modules compute the same where their operations, shapes and the paths inside them are equal.
    """
    inside: dict[str, list[tuple[Any, ...]]] = {}
    for one in operations:
        for path in _ancestors(one["module"]):
            inner = one["module"][len(path) :]
            inside.setdefault(path, []).append((inner, one["op"], tuple(one["shape"])))
    alike: dict[tuple[Any, ...], list[str]] = {}
    for path, content in inside.items():
        alike.setdefault(tuple(content), []).append(path)
    repeated = [(len(content) * len(paths), len(paths), paths[0]) for content, paths in alike.items() if len(paths) > 1]
    if not repeated:
        return "", 1
    _, count, path = max(repeated, key=lambda found: found[:2])
    return path, count


def picture(inside: Sequence[Outlined], whole: Sequence[Outlined], module: str, limit: int = LIMIT) -> Picture:
    """The graph of some operations of a network, with what flows in and out; shortened where it is long."""
    names = {one["name"] for one in inside}
    nodes = [_node(one, module) for one in inside]
    edges = [(source, one["name"]) for one in inside for source in one["inputs"] if source in names]
    outer = list(dict.fromkeys(source for one in inside for source in one["inputs"] if source not in names))
    entries = [Node(f"in:{name}", INPUT, ("in",), f"from {name}") for name in outer]
    edges += [(f"in:{source}", one["name"]) for one in inside for source in one["inputs"] if source not in names]
    used = {source for one in whole if one["name"] not in names for source in one["inputs"]}
    last = [one["name"] for one in inside if one["name"] in used or not _read(one["name"], whole)]
    exits = [Node("out", OUTPUT, ("out",), "to the rest of the network")] if last else []
    edges += [(name, "out") for name in last]
    full = Picture((*entries, *nodes, *exits), tuple(dict.fromkeys(edges)))
    if len(inside) <= limit:
        return full
    short = _merged(full, _runs(full))
    return short if len(short.nodes) <= 2 * limit else _merged(full, _children(inside, module))


def _within(path: str, module: str) -> bool:
    return not module or path == module or path.startswith(f"{module}.")


def _ancestors(path: str) -> Iterator[str]:
    """`a.b.c`: a, a.b, a.b.c."""
    parts = path.split(".") if path else []
    return (".".join(parts[: depth + 1]) for depth in range(len(parts)))


def _read(name: str, whole: Sequence[Outlined]) -> bool:
    return any(name in one["inputs"] for one in whole)


def _kind(op: str) -> str:
    short = op.rpartition("::")[2]
    if short in _TRANSPOSES:
        return TRANSPOSE
    if short in _RESHAPES:
        return RESHAPE
    return CONTRACTION if is_contraction(op) else OTHER


def _node(one: Outlined, module: str) -> Node:
    shape = TIMES.join(str(size).replace("batch", "b") for size in one["shape"])
    inner = one["module"][len(module) :].lstrip(".")
    hint = f"{one['op']} in {one['module'] or 'the network itself'}: {one['dtype']} [{shape}]"
    name = one["op"].rpartition("::")[2]
    name = name.replace("segment_grouped_projection", "segment-grouped projection").replace("token_mlp", "token MLP")
    return Node(one["name"], _kind(one["op"]), (f"{name} · {inner}" if inner else name, shape), hint)


def _runs(full: Picture) -> dict[str, str]:
    """By box, the first box of the row that it stands in: boxes of kind OTHER that follow one another alone."""
    kinds = {node.key: node.kind for node in full.nodes}
    readers: dict[str, list[str]] = {}
    writers: dict[str, list[str]] = {}
    for source, target in full.edges:
        readers.setdefault(source, []).append(target)
        writers.setdefault(target, []).append(source)
    heads: dict[str, str] = {}
    for node in full.nodes:
        before = writers.get(node.key, [])
        alone = len(before) == 1 and len(readers[before[0]]) == 1
        joins = alone and kinds[node.key] == OTHER == kinds[before[0]]
        heads[node.key] = heads[before[0]] if joins else node.key
    return heads


def _children(inside: Sequence[Outlined], module: str) -> dict[str, str]:
    """By operation, the first operation of the same module directly below `module`."""
    heads: dict[str, str] = {}
    first: dict[str, str] = {}
    for one in inside:
        inner = one["module"][len(module) :].lstrip(".").split(".")[0]
        key = first.setdefault(inner, one["name"]) if inner else one["name"]
        heads[one["name"]] = key
    return heads


def _merged(full: Picture, heads: Mapping[str, str]) -> Picture:
    """The graph with each group of boxes drawn as one."""
    groups: dict[str, list[Node]] = {}
    for node in full.nodes:
        groups.setdefault(heads.get(node.key, node.key), []).append(node)
    edges = ((heads.get(a, a), heads.get(b, b)) for a, b in full.edges)
    nodes = tuple(_together(key, group) for key, group in groups.items())
    return Picture(nodes, tuple(dict.fromkeys((a, b) for a, b in edges if a != b)))


def _together(key: str, group: Sequence[Node]) -> Node:
    if len(group) == 1:
        return group[0]
    kinds = {node.kind for node in group}
    moves = sum(node.kind in (TRANSPOSE, RESHAPE) for node in group)
    kind = next((k for k in (TRANSPOSE, CONTRACTION, RESHAPE) if k in kinds), OTHER)
    names = list(dict.fromkeys(node.lines[0].partition(" · ")[0] for node in group))
    shown = " · ".join(names[:3]) + (" …" if len(names) > 3 else "")
    count = f"{len(group)} operations" + (f", {moves} of them move data" if moves else "")
    return Node(key, kind, (shown, count, group[-1].lines[-1]), "; ".join(node.hint for node in group), len(group))
