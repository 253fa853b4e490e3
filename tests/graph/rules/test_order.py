"""The order of rules is what they say, and no other: shuffled in all that they leave open, they find the same graph."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from mlpdeploy.graph import rewrite as rewriting
from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.rewrite import all_rules, rewrite
from mlpdeploy.graph.rule import PHASES, Log, Refused, Rule, ordered, run
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.graph.proof import structure
from tests.graph.rules import contract
from tests.graph.rules.contract import NETWORKS

RULES = all_rules()
aten = torch.ops.aten


def test_a_rule_comes_after_rules_of_its_phase() -> None:
    for rule in RULES.values():
        assert {RULES[name].phase for name in rule.after} <= {rule.phase}, rule.name
    places = list(RULES)
    assert all(places.index(name) < places.index(rule.name) for rule in RULES.values() for name in rule.after)
    assert [RULES[name].phase for name in places] == sorted((r.phase for r in RULES.values()), key=PHASES.index)


def test_rules_in_a_circle_are_named() -> None:
    first, second = (replace(RULES[name], after=()) for name in ("fold_affine", "merge_embeddings"))
    circle = {"fold_affine": replace(first, after=(second.name,)), second.name: replace(second, after=(first.name,))}
    with pytest.raises(ValueError, match="fold_affine, merge_embeddings"):
        ordered(circle)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_what_no_rule_asks_for_does_not_matter(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, traced = contract.traced(*NETWORKS[network])
    wanted = structure(rewrite(traced, enabled=RULES).module)
    for seed in range(3):
        names = list(RULES)
        random.Random(seed).shuffle(names)
        shuffled = {rule.name: rule for rule in ordered({name: RULES[name] for name in names})}
        assert list(shuffled) != list(RULES)
        monkeypatch.setattr(rewriting, "all_rules", lambda: shuffled)  # noqa: B023
        assert structure(rewrite(traced, enabled=RULES).module) == wanted, list(shuffled)


class Waves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin().cos().sin() + x.sin()


def graph() -> Editor:
    module = trace(Waves(), [TensorSpec("x", (3,), torch.float32)]).module
    return Editor(module, module.graph)


def kinds(editor: Editor) -> list[str]:
    return [str(node.target).split(".")[1] for node in editor.graph.nodes if node.op == "call_function"]


def rule(find: object, replace_: object = None, **more: bool) -> Rule:
    return Rule("one", "normalise", find, replace_, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("backwards", [False, True])
def test_each_operation_is_asked_about_once(backwards: bool) -> None:
    editor, seen = graph(), list[str]()
    run(rule(lambda _, node: seen.append(str(node.target).split(".")[1]), backwards=backwards), editor, Log())
    assert seen == (["add", "sin", "sin", "cos", "sin"] if backwards else ["sin", "cos", "sin", "sin", "add"])


def test_an_operation_that_is_gone_is_not_asked_about() -> None:
    def swallow(editor: Editor, node: torch.fx.Node, found: object) -> torch.fx.Node:
        return node.all_input_nodes[0].all_input_nodes[0]

    editor, log = graph(), Log()
    cosine = rule(lambda _, node: node.all_input_nodes[0].target is aten.cos.default or None, swallow, backwards=True)
    run(cosine, editor, log)
    assert (kinds(editor), log.count) == (["sin", "sin", "add"], 1)


def test_refusals_are_kept_with_their_place_whoever_refuses() -> None:
    editor, log = graph(), Log()
    run(rule(lambda _, node: Refused("no cosines") if node.target is aten.cos.default else None), editor, log)
    run(rule(lambda _, node: node.target is aten.add.Tensor or None, lambda *_: Refused("no sums")), editor, log)
    assert [one.reason for one in log.refusals] == ["no cosines", "no sums"] and log.count == 0
    assert kinds(editor) == ["sin", "cos", "sin", "sin", "add"]
