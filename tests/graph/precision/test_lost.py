"""Constants that FP16 or BF16 does not know keep in FP32 what needs them; those that nothing misses do not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from tests.graph.low_precision import ALLOWED, Forward, kept, off, rows, traced

NEEDED: dict[str, tuple[Forward, set[str]]] = {
    "x / (|x| + 1e-8)": (lambda net, x: x / (x.abs() + 1e-8), {"add", "div"}),
    "x / (sum + 1e-8)": (lambda net, x: x / (x.abs().sum(-1, keepdim=True) + 1e-8), {"sum", "add", "div"}),
    "linear attention": (
        lambda net, x: (lambda k: k / (k.sum(-1, keepdim=True) + 1e-8))(net.first(x).relu()),
        {"sum", "add", "div"},
    ),
    "F.normalize": (lambda net, x: F.normalize(x, dim=-1), {"linalg_vector_norm", "clamp_min", "div"}),
    "root of variance": (
        lambda net, x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-12),
        {"var", "add", "sqrt", "div"},
    ),
    "standard deviation": (
        lambda net, x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-8),
        {"std", "add", "div"},
    ),
    "rsqrt": (lambda net, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-8), {"pow", "mean", "add", "rsqrt"}),
    "power": (lambda net, x: x * (x.abs() + 1e-9) ** -0.5, {"add", "pow"}),
    "reciprocal": (lambda net, x: torch.reciprocal(x.abs() + 1e-9) * x, {"add", "reciprocal", "mul"}),
    "maximum": (lambda net, x: x / torch.maximum(x.abs(), torch.tensor(1e-9)), {"maximum", "div"}),
    "where": (lambda net, x: x / torch.where(x.abs() < 1e-9, 1e-9, x), {"where", "div"}),
    "logarithm": (lambda net, x: torch.log(x.softmax(-1).clamp(min=1e-10)), {"softmax", "clamp", "log"}),
    "a count": (
        lambda net, x: (x * (x > 0)).sum(-1, keepdim=True) / ((x > 0).float().sum(-1, keepdim=True) + 1e-9),
        {"sum", "add", "div"},
    ),
    "down and up": (lambda net, x: (x * 1e-9) / 1e-9, {"mul", "div"}),
    "a mask that is filled": (
        lambda net, x: x.masked_fill(x.sum(-1, keepdim=True) < 1, -1e9).softmax(-1),
        {"masked_fill", "softmax"},
    ),
    "a mask that is chosen": (
        lambda net, x: torch.where(x.sum(-1, keepdim=True) < 1, x, torch.tensor(-1e9)).softmax(-1),
        {"where", "softmax"},
    ),
    "the lowest number": (
        lambda net, x: x.masked_fill(x.sum(-1, keepdim=True) < 1, torch.finfo(torch.float32).min).softmax(-1),
        {"masked_fill", "softmax"},
    ),
}
"""Networks that FP16 alone answers with NaN, infinity or another number, and what they keep in FP32 at least."""

SPARED: dict[str, Forward] = {
    "added to what a projection reads": lambda net, x: net.second(net.first(x) + 1e-8),
    "a bound that FP16 knows": lambda net, x: x / net.first(x).clamp(min=0.01),
    "a small mask": lambda net, x: x.masked_fill(x < 0, -100.0).softmax(-1),
    "a mask of infinity": lambda net, x: x.masked_fill(x < 0, -math.inf).softmax(-1),
    "a norm's own epsilon": lambda net, x: F.layer_norm(net.first(x), (8,), eps=1e-6),
    "beside 1 and what is not negative": lambda net, x: x / (1 + x.abs() + 1e-8),
    "a bound that nothing falls below": lambda net, x: x / (x.sigmoid() + x.abs() + 0.5).clamp(min=1e-9),
    "an epsilon of 0": lambda net, x: x / (x.abs() + 0.0 + 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDED)
def test_what_a_constant_protects_is_kept_and_right(name: str) -> None:
    forward, operations = NEEDED[name]
    assert operations <= set(kept(forward))
    assert off(forward) <= ALLOWED["fp16"]


@pytest.mark.parametrize("name", ["x / (|x| + 1e-8)", "F.normalize", "a mask that is chosen"])
def test_without_a_plan_it_is_wrong(name: str) -> None:
    assert not math.isfinite(off(NEEDED[name][0], everything=True))


@pytest.mark.parametrize("name", SPARED)
def test_a_constant_that_nothing_misses_keeps_nothing(name: str) -> None:
    assert kept(SPARED[name]) == {}


def test_the_reason_names_the_constant_and_what_fp16_has_instead() -> None:
    found = kept(NEEDED["x / (|x| + 1e-8)"][0])
    assert found["add"] == "has 1e-08, which is 0 in FP16"
    assert found["div"] == "reads 1e-08, which is 0 in FP16"
    assert "subnormal in FP16" in kept(lambda net, x: x / (x.abs() + 1e-6))["add"]
    assert "-inf in FP16" in kept(lambda net, x: x.masked_fill(x > 1e6, -1e9).softmax(-1))["softmax"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_norm_without_an_epsilon_has_that_of_the_networks_dtype(precision: str) -> None:
    network, rewritten = traced(lambda net, x: F.rms_norm(x, (8,)))
    made = apply(rewritten, plan(rewritten, precision)).module
    small = 1e-3 * torch.from_numpy(rows()[:4])
    assert (made(small)[0] - network(small)).abs().max() <= ALLOWED[precision]


def test_bf16_knows_small_constants_and_not_what_is_close_to_1() -> None:
    assert kept(NEEDED["x / (|x| + 1e-8)"][0], "bf16") == {}

    def entropy(net: object, x: torch.Tensor) -> torch.Tensor:
        return torch.log(1 - x.sigmoid().clamp(1e-4, 1 - 1e-4))

    assert {"clamp", "sub", "rsub", "log"} & set(kept(entropy, "bf16"))
    assert off(entropy, "bf16") <= ALLOWED["bf16"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_logit_of_what_rounds_to_1_is_finite(precision: str) -> None:
    assert math.isfinite(off(lambda net, x: torch.logit(x.sigmoid(), eps=1e-7), precision))
