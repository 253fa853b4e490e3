"""What a rewrite rule is, and the log in which it records where it fired and where it refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.place import network_of

PHASES = ("normalise", "layout", "algebra", "fusion")


@dataclass(frozen=True)
class Refusal:
    """A place where a rule's pattern was found and its guard said no: the user's module, and the reason."""

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


@dataclass(frozen=True)
class Rule:
    """One rewrite. Each file of `rules/` defines one as RULE; its docstring says before, after, and why it pays.

    `phase`: one of PHASES, in which order rules run (within a phase, by name). `default`: whether it runs unless asked
    for; an engine may have it off (`Backend.off`).
    """

    name: str
    phase: str
    rewrite: Callable[[Editor, Log], None]
    default: bool = True


Spelling = Callable[[Editor, fx.Node], fx.Node | str | None]
"""What stands for a node: another node; a reason why nothing does; None where the pattern is not there."""


def replace_spellings(editor: Editor, log: Log, spellings: Mapping[Any, Spelling]) -> None:
    """Put what its spelling gives in the place of every node whose target has one."""
    for node in list(editor.graph.nodes):
        spelling = spellings.get(node.target) if node.op == "call_function" else None
        if spelling is None:
            continue
        with editor.before(node):
            result = spelling(editor, node)
        if isinstance(result, fx.Node):
            node.replace_all_uses_with(result)
            editor.graph.erase_node(node)
            log.fired()
        elif result is not None:
            log.refused(node, result)
