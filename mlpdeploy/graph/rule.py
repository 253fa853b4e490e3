"""What a rewrite rule is, and the walk that runs one: where it fired, and where it refused, goes into a log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.tracing.place import network_of

PHASES = ("normalise", "layout", "algebra", "fusion")


@dataclass(frozen=True)
class Refused:
    """A rule's pattern is there, and this is why it leaves it."""

    reason: str


@dataclass(frozen=True)
class Refusal:
    """A place where a rule refused: the user's module, and the reason."""

    where: str
    reason: str


@dataclass(frozen=True)
class RuleReport:
    """What one rule did to a graph."""

    name: str
    fired: int
    refused: tuple[Refusal, ...]
    seconds: float


@dataclass
class Log:
    """Collects what a rule does while it runs."""

    count: int = 0
    refusals: list[Refusal] = field(default_factory=list)

    def fired(self) -> None:
        """The rule replaced one occurrence."""
        self.count += 1

    def refused(self, node: fx.Node, reason: str) -> None:
        """The pattern was there at `node`, and the guard gave this reason not to replace it."""
        self.refusals.append(Refusal(network_of(node) or node.name, reason))


Find = Callable[[Editor, fx.Node], Any]
"""What stands at an operation: what `replace` needs to know of the pattern; Refused; None where it is not there."""

Replace = Callable[[Editor, fx.Node, Any], "fx.Node | Refused | None"]
"""Writes, in front of the operation, what takes its place, and gives that node. None where it has put its results into
their places itself; Refused where it turns out in the making that there is none."""


@dataclass(frozen=True)
class Rule:
    """One rewrite. Each file of `rules/` defines one as RULE; its docstring says before, after, and why it pays.

    `find` and `replace`: see there. `phase`: one of PHASES, in which order rules run; within a phase a rule runs behind
    those that it names as `after`. `backwards`: whether it sees the last operation first. `default`: whether it runs
    without being asked for; an engine may have it off (`Backend.off`). `for_kernel`: whether it makes an operation of
    ours with an epilogue, and so runs by default only for engines that carry our kernels (`Backend.carries_kernel`):
    their builds measure each such operation, and keep the faster of the kernel and what it means.
    """

    name: str
    phase: str
    find: Find
    replace: Replace
    after: tuple[str, ...] = ()
    backwards: bool = False
    default: bool = True
    for_kernel: bool = False


def run(rule: Rule, editor: Editor, log: Log) -> None:
    """Ask a rule about every operation of the graph that was there before, once; drop what nothing reads any more."""
    nodes = [node for node in editor.graph.nodes if node.op == "call_function"]
    for node in reversed(nodes) if rule.backwards else nodes:
        if node._erased or not node.users:
            continue
        found = rule.find(editor, node)
        if found is None:
            continue
        if not isinstance(found, Refused):
            with editor.before(node):
                made = rule.replace(editor, node, found)
            if not isinstance(made, Refused):
                if made is not None:
                    node.replace_all_uses_with(made)
                drop(editor, [node])
                log.fired()
                continue
            found = made
        log.refused(node, found.reason)
    if log.count:
        editor.graph.eliminate_dead_code()


def drop(editor: Editor, nodes: Iterable[fx.Node]) -> None:
    """Erase operations that nothing reads, and what only they read."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if not node._erased and not node.users and node.op == "call_function":
            waiting += node.all_input_nodes
            editor.graph.erase_node(node)


def by_target(finds: Mapping[Any, Find]) -> Find:
    """One `find` for operations that each have their own."""

    def find(editor: Editor, node: fx.Node) -> Any:
        own = finds.get(node.target)
        return None if own is None else own(editor, node)

    return find


def ordered(rules: Mapping[str, Any]) -> list[Any]:
    """Rules, phase by phase, each behind those that it comes after; else as they are given.

    Raises ValueError where rules come after one another in a circle.
    """
    result: list[Any] = []
    waiting = [rule for phase in PHASES for rule in rules.values() if rule.phase == phase]
    while waiting:
        free = next((one for one in waiting if not any(other.name in one.after for other in waiting)), None)
        if free is None:
            raise ValueError(f"each comes after another: {', '.join(one.name for one in waiting)}")
        waiting.remove(free)
        result.append(free)
    return result
