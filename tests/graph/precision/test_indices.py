"""Numbers that become integers, are ranked or compared, keep FP32, as does what computes them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from tests.graph.low_precision import Forward, Net, kept, off, traced


def shown(net: Net, indices: Tensor) -> Tensor:
    return net.table(indices).mean(1)


EXACT: dict[str, tuple[Forward, set[str]]] = {
    "cast": (lambda net, x: shown(net, (999 * net.first(x).sigmoid()).long()), {"linear", "sigmoid", "mul", "to"}),
    "floor": (
        lambda net, x: shown(net, (x.sigmoid() * 999).floor().to(torch.int32)),
        {"sigmoid", "mul", "floor", "to"},
    ),
    "gather": (
        lambda net, x: net.table.weight[:, :1].expand(-1, 8).gather(0, (x.sigmoid() * 999).round().long()),
        {"sigmoid", "mul", "round", "to"},
    ),
    "buckets": (lambda net, x: shown(net, torch.bucketize(net.first(x), net.edges)), {"linear", "bucketize"}),
    "the largest": (lambda net, x: net.table(net.first(x).argmax(-1)), {"linear", "argmax"}),
    "the two largest": (lambda net, x: shown(net, net.first(x).topk(2)[1]), {"linear", "topk"}),
    "order": (lambda net, x: shown(net, net.first(x).sort(-1)[1]), {"linear", "sort"}),
    "what is left": (lambda net, x: torch.remainder(x * 300, 1.0), {"mul", "remainder"}),
    "whole quotients": (lambda net, x: torch.div(x * 30, 0.7, rounding_mode="floor"), {"mul", "div"}),
    "above the mean": (
        lambda net, x: torch.where(net.first(x) > net.first(x).mean(-1, keepdim=True), x, -x),
        {"linear", "mean", "gt"},
    ),
    "above the third": (
        lambda net, x: (lambda y: y.masked_fill(y < y.topk(3)[0][:, -1:], -1e4).softmax(-1))(net.first(x)),
        {"linear", "topk", "lt"},
    ),
    "behind a norm": (
        lambda net, x: shown(net, (F.layer_norm(net.first(x), (8,)).sigmoid() * 999).long()),
        {"linear", "layer_norm", "sigmoid", "mul", "to"},
    ),
    "between two rows": (
        lambda net, x: (lambda u: shown(net, u.floor().long()) * (u - u.floor()))(x.sigmoid() * 900),
        {"sigmoid", "mul", "floor", "sub", "to"},
    ),
    "the first n": (
        lambda net, x: (torch.arange(8)[None] < 8 * x.mean(-1, keepdim=True).sigmoid()).float() * x,
        {"mean", "sigmoid", "mul", "lt"},
    ),
}
"""Networks and what they keep in FP32 at least."""

SPARED: dict[str, Forward] = {
    "a sign": lambda net, x: torch.where(net.first(x) > 0, x, 0.01 * x),
    "the largest values": lambda net, x: net.second(net.first(x).topk(8)[0]),
    "a reduction": lambda net, x: net.first(x).amax(-1, keepdim=True) + net.first(x).max(-1, keepdim=True)[0],
    "sizes": lambda net, x: net.first(x) * torch.zeros_like(x, dtype=torch.int64).add(2),
}

PROJECTED_TWICE: Forward = lambda net, x: net.table(net.second(net.first(x).relu()).argmax(-1))  # noqa: E731


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", EXACT)
def test_what_becomes_an_integer_is_kept(name: str, precision: str) -> None:
    forward, operations = EXACT[name]
    assert operations <= set(kept(forward, precision))


@pytest.mark.parametrize("name", SPARED)
def test_what_does_not_keeps_nothing(name: str) -> None:
    assert kept(SPARED[name]) == {}


def test_the_reasons_tell_who_asks() -> None:
    found = kept(EXACT["cast"][0])
    assert found["linear"] == "computes numbers that become integers"
    assert found["to"] == "reads numbers that become integers"


def test_only_one_projection_back() -> None:
    rewritten = traced(PROJECTED_TWICE)[1]
    planned = plan(rewritten, "fp16")
    linears = [node.name for node in rewritten.module.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert [name in {found.node for found in planned.kept} for name in linears] == [False, True]


@pytest.mark.parametrize("name", ["floor", "what is left", "the largest", "above the third", "between two rows"])
def test_the_file_finds_the_same_rows(name: str) -> None:
    ordinary = traced(EXACT[name][0])
    typed = apply(ordinary[1], plan(ordinary[1], "fp16")).module
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    wanted = ordinary[0](x)
    assert ((typed(x)[0] - wanted).abs() <= 5e-3 * wanted.abs().max()).all()


def test_without_a_plan_other_rows_are_found() -> None:
    assert off(EXACT["floor"][0], everything=True) > 0.1


@pytest.mark.slow
def test_a_quantile_has_no_form_in_fp16() -> None:
    found = kept(lambda net, x: x - x.quantile(0.5, 1, keepdim=True))
    assert found == {"quantile": "has no form in FP16"}
    assert off(lambda net, x: x - x.quantile(0.5, 1, keepdim=True)) <= 5e-3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_comparison_of_two_precisions_is_made_in_fp32(precision: str) -> None:
    def mixed(net: Net, x: Tensor) -> Tensor:
        large = net.first(x).abs() * 1e6
        return torch.where(torch.isclose(large, net.second(x)) | (large >= net.second(x)), x, -x)

    assert off(mixed, precision) <= 5e-2


def test_a_row_that_the_network_refuses_is_left_out_of_the_range_pass() -> None:
    def of_no_number(net: Net, x: Tensor) -> Tensor:
        return shown(net, (x / x * 3).long().clamp(max=999))

    network, rewritten = traced(of_no_number)
    with pytest.raises((IndexError, RuntimeError)):
        network(torch.zeros(1, 8))
    assert plan(rewritten, "fp16").kept
