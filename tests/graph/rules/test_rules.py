"""The same questions to every rule: its example and its near-misses, which its own test brings (`contract.brought`)."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch import Tensor

from mlpdeploy.graph import invariants
from mlpdeploy.graph.rewrite import Rewritten, all_rules, rewrite
from mlpdeploy.graph.rule import PHASES
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.graph.tracing.trace import Traced
from tests.graph.proof import assert_done, assert_same, fired, prove, reasons, targets
from tests.graph.rules.contract import EXAMPLES, NEAR_MISSES, NETWORKS, RULES, brought, proved, traced
from tests.graph.rules.examples import Branches


def _calls(result: Rewritten) -> list[torch.fx.Node]:
    return [node for node in result.module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", RULES)
def test_brings_its_example_and_its_near_misses(name: str) -> None:
    brought(name)


def test_a_rule_that_brings_too_little_is_told_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        LookupError, match=r"use_silu has no test of its name: write tests/graph/rules/test_use_silu\.py"
    ):
        brought("use_silu")
    with pytest.raises(LookupError, match=r"test_windows\.py has to define EXAMPLE"):
        brought("windows")
    monkeypatch.setattr(importlib.import_module("tests.graph.rules.test_fold_affine"), "NEAR_MISSES", {})
    with pytest.raises(LookupError, match=r"test_fold_affine\.py has to define NEAR_MISSES"):
        brought("fold_affine")


@pytest.mark.parametrize("name", EXAMPLES)
def test_fires_as_often_as_it_should(name: str) -> None:
    example = EXAMPLES[name]
    assert fired(proved(example.build, example.shape, enabled=[name]))[name] == example.fires > 0


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_fires_in_no_near_miss(name: str) -> None:
    rule, miss = name.partition(":")[0], NEAR_MISSES[name]
    network, shapes = miss.build(), [miss.shape, *miss.others]
    result = prove(network, *shapes, batches=miss.batches, enabled=[rule])
    assert fired(result)[rule] == 0 and rule in fired(result)
    assert tuple(reasons(result, rule)) == miss.reasons
    assert miss.holds is None or miss.holds(result), targets(result)
    if miss.twice:
        assert_done(network, result, rule, shapes, miss.batches, enabled=[rule])


@pytest.mark.parametrize("name", EXAMPLES)
def test_can_be_disabled(name: str) -> None:
    network, before = traced(EXAMPLES[name].build, EXAMPLES[name].shape)
    result = rewrite(before, disabled=(name,), enabled=set(RULES) - {name})
    assert_same(network, result, [EXAMPLES[name].shape])
    assert name not in {report.name for report in result.report}


@pytest.mark.parametrize("name", RULES)
def test_says_what_it_does(name: str) -> None:
    """Before, after, and a name that is its file's."""
    rule = all_rules()[name]
    module = sys.modules[f"mlpdeploy.graph.rules.{name}"]
    assert rule.name == name
    assert module.__doc__
    assert "\nbefore: " in module.__doc__
    assert "\nafter:  " in module.__doc__
    assert rule.phase in PHASES


@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_is_left_to_do(network: str) -> None:
    """A second rewrite gives the same operations: `W @ x` is read as a contraction and written again, and what lays a
    map is taken out and put in again; no more.
    """
    build, shape = NETWORKS[network]
    once = proved(build, shape, RULES)
    twice = rewrite(Traced(once.module, once.inputs, once.outputs), enabled=RULES)
    matmul = torch.ops.aten.matmul.default
    products = sum(node.target is matmul and node.all_input_nodes[0].op == "get_attr" for node in _calls(once))
    again = {LAYOUT: 1, "normalise_contractions": products, "project_tokens": products}
    laid = {"remove_identities": targets(once)[torch.ops.aten.contiguous.default]}
    again |= laid | {"lay_maps_last": fired(once)["lay_maps_last"]}
    assert {name: count for name, count in fired(twice).items() if count} == {n: c for n, c in again.items() if c}
    before, after = targets(once), targets(twice)
    reshape, permute = torch.ops.aten.reshape.default, torch.ops.aten.permute.default
    # The layout pass may merge those that later rules made, and have a linear read rows as our operation stores them;
    # between two such operations on maps it leaves out what turns them to and fro.
    flat = fired(once)["activate_projections"]
    assert after.pop(reshape, 0) <= before.pop(reshape, 0) + flat
    turned = before.pop(permute, 0) - after.pop(permute, 0)
    assert turned == 0 or 0 < turned <= 2 * flat
    assert after == before
    assert_same(traced(build, shape)[0], twice, [shape])


@pytest.mark.parametrize("network", NETWORKS)
def test_every_node_knows_its_shape_and_where_it_came_from(network: str) -> None:
    result = proved(*NETWORKS[network], RULES)
    for node in result.module.graph.nodes:
        if node.op == "output":
            continue
        assert "val" in node.meta, node
        if node.op == "call_function":
            assert node.meta.get("nn_module_stack"), node
    invariants.check(result.module, PHASES[-1], RULES)


class _Shapes(torch.fx.Interpreter):
    """Compares what each node computes with the shape and dtype that it claims."""

    def run_node(self, n: torch.fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            claimed = n.meta["val"]
            assert claimed.dtype == value.dtype, n
            sizes = [size if isinstance(size, int) else None for size in claimed.shape]
            assert len(sizes) == value.dim(), n
            assert all(size in (None, real) for size, real in zip(sizes, value.shape, strict=True)), n
        return value


@pytest.mark.parametrize("network", NETWORKS)
def test_claimed_shapes_are_the_real_ones(network: str) -> None:
    build, shape = NETWORKS[network]
    _Shapes(proved(build, shape, RULES).module).run(torch.randn(5, *shape, dtype=torch.float64))


def test_rewriting_leaves_the_traced_graph_alone() -> None:
    _, before = traced(Branches, (4, 4, 16))
    graph, tensors = str(before.module.graph), before.module.state_dict()
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    first = rewrite(before)
    assert str(before.module.graph) == graph
    assert before.module.state_dict().keys() == copies.keys()
    assert all(torch.equal(tensor, copies[name]) for name, tensor in before.module.state_dict().items())
    assert [report.fired for report in rewrite(before).report] == [report.fired for report in first.report]
