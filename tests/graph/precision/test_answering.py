"""Probabilities, and the largest of them, behind a typed graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.errors import InputError
from mlpdeploy.graph.precision.answers import answering
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x + 2


class Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(torch.int64)


def typed(network: nn.Module, precision: str = "fp16", io: str = "fp32", shape: tuple[int, ...] = (6,)) -> Typed:
    rewritten = rewrite(trace(network.eval(), [TensorSpec("input", shape, torch.float32)]))
    return apply(rewritten, plan(rewritten, precision, io=io))


@pytest.mark.parametrize(("precision", "io"), [("fp32", "fp32"), ("fp16", "fp32"), ("fp16", "fp16"), ("bf16", "bf16")])
@pytest.mark.parametrize("topk", [None, 1, 3, 9])
@pytest.mark.parametrize("softmax", [False, True])
def test_answers_are_those_of_the_scores(softmax: bool, topk: int | None, precision: str, io: str) -> None:
    torch.manual_seed(0)
    graph = typed(nn.Linear(6, 9), precision, io)
    names = [node.name for node in graph.module.graph.nodes]
    found = answering(graph, softmax, topk)
    x = torch.randn(4, 6).to(graph.inputs[0].dtype)
    (scores,) = graph.module(x)
    expected = scores.float().softmax(-1) if softmax else scores.float()
    results = [expected] if topk is None else list(expected.topk(topk))
    got = found.module(x)
    assert [(one.dtype, tuple(one.shape)) for one in got] == [(spec.dtype, (4, *spec.shape)) for spec in found.outputs]
    torch.testing.assert_close(got[0], results[0].to(scores.dtype), rtol=0, atol=0)
    if topk is not None:
        assert [spec.name for spec in found.outputs] == ["scores", "classes"] and torch.equal(got[1], results[1])
    assert [node.name for node in graph.module.graph.nodes] == names


def test_without_answers_it_is_the_graph_itself() -> None:
    graph = typed(nn.Linear(6, 9))
    assert answering(graph, False, None) is graph


@pytest.mark.parametrize(
    ("network", "shape", "topk", "told"),
    [
        (Two(), (6,), 1, "one score a class, and no more"),
        (Whole(), (6,), 1, "one score a class, and no more"),
        (nn.Linear(6, 9), (5, 6), None, "one score a class, and no more"),
        (nn.Linear(6, 9), (6,), 10, "--topk 10: the network has 9 classes"),
    ],
    ids=["two", "whole", "rows", "more"],
)
def test_what_gives_no_scores_has_no_answers(
    network: nn.Module, shape: tuple[int, ...], topk: int | None, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        answering(typed(network, shape=shape), True, topk)
