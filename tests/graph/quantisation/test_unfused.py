"""Which products FP8 makes dearer where nothing runs within a product of codes, and that they stay out of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.evidence.proof.sensitivity import Judge, Target, loud_ends, mix, sensitivities
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate
from mlpdeploy.graph.quantisation.codes import FP8
from mlpdeploy.graph.quantisation.equalise import equalise
from mlpdeploy.graph.quantisation.sites import Quantisation, sites
from mlpdeploy.graph.quantisation.unfused import unfused
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.progress import Stages

TOKENS, CHANNELS = 32, 256
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Layers for a forward of its own on (b, 32, 256), with random parameters."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own = forward
        self.norm, self.other = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.widen, self.narrow = nn.Linear(TOKENS, 64), nn.Linear(64, TOKENS)
        self.up, self.down, self.same = nn.Linear(CHANNELS, 512), nn.Linear(512, CHANNELS), nn.Linear(64, 64)
        self.head = nn.Linear(CHANNELS, 32)
        self.conv = nn.Conv2d(TOKENS, 64, 1)
        self.back = nn.Conv2d(64, TOKENS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def tokens(net: Net, x: Tensor) -> Tensor:
    return x + net.narrow(F.gelu(net.widen(net.norm(x).mT))).mT


def channels(net: Net, x: Tensor) -> Tensor:
    return x + net.down(F.gelu(net.up(net.other(x))))


def mixer(net: Net, x: Tensor) -> Tensor:
    return net.head(channels(net, tokens(net, channels(net, tokens(net, x)))).mean(1))


def rewritten(forward: Forward) -> Rewritten:
    return rewrite(trace(Net(forward).eval(), [TensorSpec("x", (TOKENS, CHANNELS), torch.float32)]))


def found(forward: Forward) -> list[str]:
    """The modules of the products that stay in FP16."""
    graph = rewritten(forward)
    taking = sites(graph.module, FP8).found
    return [taking[name].module for name in unfused(graph.module)]


def test_hidden_activations_that_outweigh_weight_and_input_stay_out() -> None:
    """Over tokens 64 * 256 numbers are given for 32 * 256 read and 32 * 64 of the weight; over channels the weight has
    as many as eight images give."""
    assert found(mixer) == ["widen", "widen"]
    told = unfused(rewritten(mixer).module)
    assert all("16,384 numbers an image" in reason for reason in told.values())


def relu(net: Net, x: Tensor) -> Tensor:
    return channels(net, x + net.narrow(F.relu(net.widen(net.norm(x).mT))).mT)


def another_shape(net: Net, x: Tensor) -> Tensor:
    hidden = net.widen(net.norm(x).mT).unflatten(1, (16, 16))
    return channels(net, x + net.narrow(F.gelu(hidden).flatten(1, 2)).mT)


def convolved(net: Net, x: Tensor, biased: bool = True, convolve: Callable[..., Tensor] = F.conv2d) -> Tensor:
    """Two convolutions of one place, on maps of 16 x 16, with what `convolve` makes of the first."""
    maps = net.norm(x).unflatten(-1, (16, 16))
    hidden = F.gelu(convolve(maps, net.conv.weight, net.conv.bias if biased else None))
    return channels(net, x + net.back(hidden).flatten(2)[..., :1])


def convolved_without_bias(net: Net, x: Tensor) -> Tensor:
    return convolved(net, x, biased=False)


@pytest.mark.parametrize("forward", [relu, another_shape])
def test_by_meaning(forward: Forward) -> None:
    assert found(forward) == ["widen"]


@pytest.mark.parametrize("forward", [convolved, convolved_without_bias])
def test_of_convolutions_those_that_are_products(forward: Forward) -> None:
    graph = rewritten(forward)
    (name,) = unfused(graph.module)
    assert name == next(node.name for node in graph.module.graph.nodes if node.target is torch.ops.aten.conv2d.default)


def no_activation(net: Net, x: Tensor) -> Tensor:
    return channels(net, x + net.narrow(net.widen(net.norm(x).mT)).mT)


def read_elsewhere(net: Net, x: Tensor) -> Tensor:
    hidden = net.widen(net.norm(x).mT)
    return channels(net, x + net.narrow(F.gelu(hidden)).mT + hidden[:, :, :TOKENS].mT)


def gated(net: Net, x: Tensor) -> Tensor:
    hidden = net.norm(x).mT
    return channels(net, x + net.narrow(F.silu(net.widen(hidden)) * net.same(F.pad(hidden, (0, 32)))).mT)


def no_codes_behind(net: Net, x: Tensor) -> Tensor:
    return channels(net, x + F.gelu(net.widen(net.norm(x).mT))[:, :, ::2].mT)


def of_two(net: Net, x: Tensor) -> Tensor:
    hidden = net.norm(x).mT
    return channels(net, x + net.narrow(F.gelu(net.widen(hidden) + F.pad(hidden, (0, 32)))).mT)


def with_neighbours(net: Net, x: Tensor) -> Tensor:
    return convolved(net, x, convolve=lambda maps, kernel, bias: F.conv2d(maps, F.pad(kernel, (1,) * 4), bias, 1, 1))


def of_every_other_place(net: Net, x: Tensor) -> Tensor:
    return convolved(net, x, convolve=lambda maps, kernel, bias: F.conv2d(maps, kernel, bias, 2))


def of_odd_places(net: Net, x: Tensor) -> Tensor:
    return convolved(net, x, convolve=lambda maps, kernel, bias: F.conv2d(maps[..., 1:, 1:], kernel, bias))


def with_channels_beside(net: Net, x: Tensor) -> Tensor:
    beside = net.same.bias[:, None, None]
    return convolved(net, x, convolve=lambda maps, kernel, bias: F.conv2d(maps, kernel, bias).tanh() * beside)


CONVOLVED = [with_neighbours, of_every_other_place, of_odd_places, with_channels_beside]
NEAR = [channels, no_activation, read_elsewhere, gated, no_codes_behind, of_two, *CONVOLVED]


@pytest.mark.parametrize("forward", NEAR)
def test_near_misses_take_codes(forward: Forward) -> None:
    assert found(forward) == []


def test_a_network_of_nothing_else_keeps_its_codes() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.same(F.gelu(net.same(F.pad(x.mT, (0, 32)))))

    graph = rewritten(forward)
    assert len(sites(graph.module, FP8).found) == 2 and len(unfused(graph.module)) == 1

    def without_last(net: Net, x: Tensor) -> Tensor:
        return F.gelu(net.same(F.pad(x.mT, (0, 32)))) @ x.new_ones(64, 8)

    assert len(sites(rewritten(without_last).module, FP8).found) == 1 and found(without_last) == []


def calibrated(graph: Rewritten, kept: dict[str, str]) -> tuple[Quantisation, Judge]:
    rows = {"x": np.random.default_rng(0).normal(size=(12, TOKENS, CHANNELS)).astype(np.float32)}
    rows["x"][..., 3] *= 80  # so that something is equalised
    return calibrate(graph, rows, "max", "fp8", kept=kept), Judge.of(graph, rows, None)


def test_what_stays_out_is_not_calibrated_and_not_judged() -> None:
    graph = rewritten(mixer)
    kept = unfused(graph.module)
    quantisation, judge = calibrated(graph, kept)
    taking = sites(graph.module, FP8).found
    assert quantisation.kept == kept and not quantisation.equalised.keys() & kept.keys()
    assert {taking[name].source for name in kept}.isdisjoint(quantisation.thresholds)
    ranked = sensitivities(graph, quantisation, judge)
    assert {row.node for row in ranked} == taking.keys() - kept.keys()
    assert kept.keys().isdisjoint(loud_ends(graph, quantisation, judge))
    mixed, curve = mix(graph, quantisation, judge, ranked, Target(min_sqnr=200.0))
    assert mixed.kept.keys() == taking.keys() and mixed.kept.items() >= kept.items()
    whole, rest = (sum(site.macs for name, site in taking.items() if name not in out) for out in ((), kept))
    assert curve[0].kept == 0 and curve[0].quantised_macs == pytest.approx(rest / whole)


@pytest.mark.slow
@pytest.mark.parametrize(("forward", "fewer"), [(mixer, 2), (convolved, 1)])
def test_tensorrt_rtx_launches_less(forward: Forward, fewer: int, tmp_path: Path) -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    graph, told = rewritten(forward), []
    for kept in (unfused(graph.module), {}):
        quantisation = calibrated(graph, kept)[0]
        balanced = equalise(graph, quantisation.equalised)
        file = emit(apply(balanced, plan(balanced, "fp8", quantisation=quantisation, beside="fp16")))
        folder = tmp_path / str(len(kept))
        folder.mkdir()
        built = backend.build(file, BuildRequest("fp8", Batch(8, 8, 8), ("sm89",)), folder, Stages())
        told.append(built.facts["launches"])
    assert told[0]["total"] <= told[1]["total"] - fewer and told[0]["bytes_moved"] < told[1]["bytes_moved"]
