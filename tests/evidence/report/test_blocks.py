"""The block that a report shows: which module it is, what is drawn of it, and how long ones are shortened."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.evidence.report.blocks import (
    CONTRACTION,
    INPUT,
    OTHER,
    OUTPUT,
    RESHAPE,
    TRANSPOSE,
    Node,
    Picture,
    block,
    most_repeated,
    picture,
)
from mlpdeploy.evidence.report.drawing import draw
from mlpdeploy.graph.outline import Operation, outline
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.test_api import Net


def op(name: str, op: str, module: str, *inputs: str, shape: tuple[int | str, ...] = ("batch", 4)) -> dict[str, Any]:
    return {"name": name, "op": op, "module": module, "dtype": "float32", "shape": shape, "inputs": inputs}


def chain(*operations: tuple[str, str]) -> list[dict[str, Any]]:
    """Operations that follow one another: (op, module)."""
    names = ["input", *(f"n{index}" for index in range(len(operations)))]
    return [op(names[i + 1], what, module, names[i]) for i, (what, module) in enumerate(operations)]


def outlines(network: nn.Module, *shape: int) -> dict[str, list[dict[str, Any]]]:
    traced = trace(network, [TensorSpec("input", shape, torch.float32)])
    modules = {"before": traced.module, "after": rewrite(traced).module}
    return {when: [vars(one) for one in outline(module)] for when, module in modules.items()}


def test_the_outline_says_what_is_computed_where() -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = x.unflatten(1, (2, 3)).flatten(0, 1).chunk(2, dim=-1)
            return first * second, x

    found = outline(trace(Windows(), [TensorSpec("input", (6, 4), torch.float32)]).module)
    assert [one.op for one in found if "::" not in one.op] == ["getitem", "getitem"]
    assert found[-1] == Operation("mul", "aten::mul", "", "float32", ("2*batch", 3, 2), ("getitem", "getitem_1"))
    assert found[0].inputs == ("input",)


def test_a_network_s_first_block_before_and_after() -> None:
    found = block(outlines(Net(), 3, 16, 16))
    assert (found.module, found.repeats, found.operations) == ("blocks.0", 2, (8, 7))
    assert (found.before.count(TRANSPOSE), found.after.count(TRANSPOSE)) == (2, 0)
    kinds = [node.kind for node in found.before.nodes]
    assert kinds[0] == INPUT and kinds[-1] == OUTPUT and kinds.count(CONTRACTION) == 2
    linear = next(node for node in found.before.nodes if node.lines[0] == "linear · tokens")
    assert linear.lines[1] == "b×16×16" and "aten::linear in blocks.0.tokens: float32" in linear.hint  # noqa: RUF001
    assert set(found.before.edges) >= {("in:transpose", "layer_norm"), ("in:transpose", "add"), ("add_1", "out")}


def test_what_repeats_most_is_what_makes_up_most_of_the_network() -> None:
    body = [("aten::linear", "fc"), ("aten::gelu", ""), ("aten::transpose", "")]

    def modules(*names: str) -> list[tuple[str, str]]:
        return [(what, f"{name}.{inner}".rstrip(".")) for name in names for what, inner in body]

    # Named by hand or numbered, and also inside a stage that itself does not repeat.
    assert most_repeated(chain(*modules("first", "second"))) == ("first", 2)
    assert most_repeated(chain(("aten::conv2d", "stem"), *modules("stage.0", "stage.1", "tail.0"))) == ("stage.0", 3)
    # Two stages of two blocks each: the stages hold as much as the blocks, which repeat more often.
    assert most_repeated(chain(*modules("s.0.0", "s.0.1", "s.1.0", "s.1.1"))) == ("s.0.0", 4)
    # Other shapes are another computation.
    other = [one | {"shape": ("batch", 8)} for one in chain(*modules("b.1"))]
    assert most_repeated([*chain(*modules("b.0")), *other]) == ("", 1)
    assert most_repeated(chain(("aten::linear", ""), ("aten::gelu", ""))) == ("", 1)


def test_a_network_without_repetition_is_shown_whole() -> None:
    found = block(outlines(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), 4))
    assert (found.module, found.repeats) == ("", 1)
    assert [node.lines[0].split(" ")[0] for node in found.before.nodes] == ["in", "linear", "gelu", "linear", "out"]


def test_a_long_block_is_shortened_where_it_is_dull() -> None:
    dull = [("aten::mul", "b.0")] * 30
    inside = chain(("aten::linear", "b.0.fc"), *dull, ("aten::permute", "b.0"), *dull, ("aten::linear", "b.0.fc2"))
    found = picture(inside, inside, "b.0")
    assert [node.kind for node in found.nodes] == [INPUT, CONTRACTION, OTHER, TRANSPOSE, OTHER, CONTRACTION, OUTPUT]
    assert found.nodes[2].lines[:2] == ("mul", "30 operations") and found.nodes[2].operations == 30
    assert len(found.edges) == 6
    # Where nothing is dull, each module below is one box.
    busy = chain(
        *(step for i in range(40) for step in [("aten::linear", f"b.0.m{i}.fc"), ("aten::permute", f"b.0.m{i}")] * 2)
    )
    found = picture(busy, busy, "b.0")
    assert len(found.nodes) == 42 and found.nodes[1].kind == TRANSPOSE
    assert found.nodes[1].lines[:2] == ("linear · permute", "4 operations, 2 of them move data")


def test_a_row_is_not_broken_by_a_branch() -> None:
    """What a second reader needs stays a box of its own, or an edge would start inside another box."""
    reads = {"a": ("input",), "c": ("a",), "d": ("c", "a"), "e": ("d",), "f": ("e",)}
    inside = [op(name, "aten::mul", "b", *inputs) for name, inputs in reads.items()]
    found = picture(inside, inside, "b", limit=4)
    assert [(node.key, node.operations) for node in found.nodes][1:4] == [("a", 1), ("c", 1), ("d", 3)]
    assert set(found.edges) == {("in:input", "a"), ("a", "c"), ("a", "d"), ("c", "d"), ("d", "out")}


@pytest.mark.parametrize("name", ["a", "n0", "graph", "edge", 'x"y', "node [shape=egg]", "-> b", "\\n", "é&<"])
def test_names_never_reach_graphviz(name: str) -> None:
    shown = Picture((Node(name, OTHER, (name, "4"), name), Node("z", RESHAPE, ("z",), "")), ((name, "z"), (name, name)))
    drawn = draw(shown, name)
    assert drawn.count('<g class="node') == 2 and drawn.count('<path class="edge"') == 2
    assert re.findall(r"<g class=\"node (\w+)\">", drawn) == [OTHER, RESHAPE]
    for number in re.findall(r'(?:x|y|width|height)="(-?[\d.]+)"', drawn):
        assert float(number) >= -2
