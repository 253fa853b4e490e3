"""Stage 2: runs the rules, and records what fired, what was refused and why, and how long each took."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import fx

from mlpdeploy.errors import InputError
from mlpdeploy.graph import rules
from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.invariants import check
from mlpdeploy.graph.layout.projection import Lowering
from mlpdeploy.graph.layout.propagate import propagate
from mlpdeploy.graph.rule import PHASES, Log, Rule, RuleReport, ordered, run
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced

T = TypeVar("T")


@dataclass(frozen=True)
class Rewritten:
    """The network after the rules: the same inputs and outputs, the same function in real arithmetic."""

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    report: tuple[RuleReport, ...]


def all_rules() -> dict[str, Rule | Lowering]:
    """Every rule by name, in the order in which they run: one for each file of `rules/`."""
    names = sorted(module.name for module in pkgutil.iter_modules(rules.__path__))
    found = [importlib.import_module(f"{rules.__name__}.{name}").RULE for name in names]
    return {rule.name: rule for rule in ordered({rule.name: rule for rule in found})}


def on_by_default(off: Collection[str] = (), kernel: bool = False) -> set[str]:
    """The names of the rules that run unless asked otherwise, for an engine that has these `off`.

    `kernel`: whether it carries our kernels.
    """
    left_out = {*off} if kernel else {*off} | for_kernel()
    return {name for name, rule in all_rules().items() if rule.default} - left_out


def for_kernel() -> set[str]:
    """The names of the rules that pay only in engines that carry our kernels."""
    return {name for name, rule in all_rules().items() if isinstance(rule, Rule) and rule.for_kernel}


def rewrite(
    traced: Traced,
    disabled: Collection[str] = (),
    enabled: Collection[str] = (),
    off: Collection[str] = (),
    kernel: bool = False,
) -> Rewritten:
    """Run the rules that are on by default but those that an engine has `off`, those `enabled`, and none `disabled`.

    `kernel`: whether the engine carries our kernels: then the rules for them are on by default too. `traced` stays as
    it is. Raises InputError for an unknown rule name.
    """
    known = all_rules()
    unknown = sorted({*disabled, *enabled} - {*known, LAYOUT})
    if unknown:
        raise InputError(f"no rule is named {unknown[0]!r}; the rules are {', '.join([*known, LAYOUT])}")
    return _rewritten(traced, ({LAYOUT} | on_by_default(off, kernel) | {*enabled}) - {*disabled})


def rewrite_as(traced: Traced, other: Rewritten) -> Rewritten:
    """Run the rules that `other` went through."""
    return _rewritten(traced, {report.name for report in other.report})


def _rewritten(traced: Traced, names: Collection[str]) -> Rewritten:
    active = [rule for name, rule in all_rules().items() if name in names]
    module = fold_constants(copied(traced.module))
    reports: list[RuleReport] = []
    for phase in PHASES:
        if phase == "layout" and LAYOUT in names:
            module, layout = _propagate(module, [rule for rule in active if isinstance(rule, Lowering)])
            reports += layout
        reports += [_run(rule, module) for rule in active if isinstance(rule, Rule) and rule.phase == phase]
        module = fold_constants(module)
        check(module, phase, {report.name for report in reports})
    module.recompile()
    return Rewritten(module, traced.inputs, traced.outputs, tuple(reports))


def _run(rule: Rule, module: fx.GraphModule) -> RuleReport:
    log = Log()
    seconds, _ = _timed(lambda: run(rule, Editor(module, module.graph), log))
    return RuleReport(rule.name, log.count, tuple(log.refusals), seconds)


def _propagate(module: fx.GraphModule, lowerings: list[Lowering]) -> tuple[fx.GraphModule, list[RuleReport]]:
    logs = [(lowering, Log()) for lowering in lowerings]
    seconds, module = _timed(lambda: propagate(module, logs))
    reports = [RuleReport(low.name, log.count, tuple(log.refusals), 0.0) for low, log in logs]
    return module, [RuleReport(LAYOUT, 1, (), seconds), *reports]


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """The same weights, and a graph of its own with the same nodes."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return fx.GraphModule(module, graph)


def _is_pure(node: fx.Node) -> bool:
    """Whether the same operands always give the same result: no random numbers."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags


def _is_exact(value: object) -> bool:
    """Whether a tensor made out of nothing is the same in every dtype: 0, 1, 2, but not 1/3 in float32.

    One that no dtype was asked for has float32's numbers wherever its network runs.
    """
    if not isinstance(value, torch.Tensor):
        return False
    return not value.is_floating_point() or bool((value == value.round()).all())


def fold_constants(module: fx.GraphModule) -> fx.GraphModule:
    """Compute what depends on weights alone, and drop what nothing uses."""
    editor = Editor(module, module.graph)
    module.graph.eliminate_dead_code()
    constant: dict[fx.Node, object] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            constant[node] = weight(module, node)
            continue
        if node.op == "call_function" and _is_pure(node) and all(one in constant for one in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), constant.__getitem__)  # type: ignore[arg-type]
            with torch.no_grad():
                value = node.target(*args, **kwargs)
            if node.all_input_nodes or _is_exact(value) or node.kwargs.get("dtype") is None:
                constant[node] = value
    for node, value in list(constant.items()):
        live = [user for user in node.users if user not in constant]
        if node.op == "get_attr" or not live or not isinstance(value, torch.Tensor):
            continue
        with editor.before(node):
            folded = editor.constant(value, node.name, origin=node)
        node.replace_all_uses_with(folded)
    module.graph.eliminate_dead_code()
    return module
