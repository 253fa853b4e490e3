"""What INT8 costs a site alone, which sites stay out so that a target holds, and when an end is too loud."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.evidence.proof.sensitivity import Judge, Target, loud_ends, mix, sensitivities
from mlpdeploy.graph.quantisation.calibrate import calibrate, fake_quantised, outputs
from mlpdeploy.graph.quantisation.codes import INT8
from mlpdeploy.graph.quantisation.sites import Quantisation, sites
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

DIM = 32
SPEC = TensorSpec("input", (DIM,), torch.float32)


class Layers(nn.Module):
    """Residual layers; the input of those in `wide` has one channel that is 1000 times larger, undone after it."""

    def __init__(self, wide: tuple[int, ...] = (), layers: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(layers))
        for index in range(layers):
            scale = torch.ones(DIM)
            scale[0] = 1000.0 if index in wide else 1.0
            self.register_buffer(f"scale_{index}", scale)
            self.layers[index].weight.data /= scale

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            # exp keeps the scale where it is: no rule folds it into the layer before.
            x = x + layer(x.abs().exp().clamp(max=3.0) * getattr(self, f"scale_{index}"))
        return x


def made(network: nn.Module) -> tuple[Rewritten, Quantisation, Judge]:
    graph = rewrite(trace(network.eval().requires_grad_(False), [SPEC]), ["fold_affine"])
    rows = {"input": np.random.default_rng(0).standard_normal((24, DIM)).astype(np.float32)}
    return graph, calibrate(graph, rows, "max", equalising=False), Judge.of(graph, rows, None)


@pytest.mark.parametrize("wide", [(1,), (2,), (3,)])
def test_each_site_alone_is_that_site_of_the_whole_network(wide: tuple[int, ...]) -> None:
    graph, quantisation, judge = made(Layers(wide))
    names = list(sites(graph.module, INT8).found)
    ranked = sensitivities(graph, quantisation, judge)
    assert {row.node for row in ranked} == set(names) and ranked[0].node == names[wide[0]]
    for row in ranked:
        alone = replace(quantisation, kept=dict.fromkeys(set(names) - {row.node}, ""))
        output = outputs(fake_quantised(graph, alone), judge.rows, graph.inputs)
        assert row.noise == pytest.approx(judge.noise(output), rel=1e-6)
    assert sensitivities(graph, quantisation, judge, only=names[:1]) == tuple(r for r in ranked if r.node == names[0])


def test_the_fewest_sites_stay_out_for_a_target() -> None:
    graph, quantisation, judge = made(Layers((1,)))
    ranked = sensitivities(graph, quantisation, judge)
    loud = ranked[0].node
    mixed, curve = mix(graph, quantisation, judge, ranked, Target(min_sqnr=30.0))
    assert list(mixed.kept) == [loud]
    by_kept = {point.kept: point.sqnr_db for point in curve}
    assert by_kept[0] is not None and by_kept[1] is not None and by_kept[0] < 30.0 <= by_kept[1]
    assert not mix(graph, quantisation, judge, ranked, Target(min_sqnr=1.0))[0].kept


@pytest.mark.parametrize(("wide", "places"), [((0,), {0}), ((5,), {5}), ((0, 5), {0, 5}), ((1,), set()), ((), set())])
def test_an_end_stays_out_where_it_is_louder_than_all_between(wide: tuple[int, ...], places: set[int]) -> None:
    graph, quantisation, judge = made(Layers(wide))
    names = list(sites(graph.module, INT8).found)
    kept = loud_ends(graph, quantisation, judge)
    assert set(kept) == {names[place] for place in places}
    assert all("alone leaves" in reason and "dB, all between" in reason for reason in kept.values())


@pytest.mark.parametrize("layers", [1, 2])
def test_a_network_of_ends_alone_keeps_them(layers: int) -> None:
    assert loud_ends(*made(Layers((0,), layers))) == {}
