"""INT8 and FP8 of every recipe: planned, calibrated, emitted, and run again from its file."""

from __future__ import annotations

import pytest

from benchmarks import common
from benchmarks.round_trip import round_trip
from mlpdeploy.graph.quantisation.calibrate import calibrate
from mlpdeploy.graph.quantisation.codes import CODES
from mlpdeploy.graph.quantisation.sites import sites
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace
from mlpdeploy.precisions import EIGHT_BIT
from mlpdeploy.zoo.recipe import recipes

SMALL = {"mixer_s32", "dualmlp", "mint_wqk", "cam_1d_cam", "activator", "scaling_mlp_b_6_wi_512", "fresh_siren"}


@pytest.mark.parametrize("precision", EIGHT_BIT)
@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.large) for name in recipes()]
)
def test_the_file_computes_what_the_fake_quantised_graph_computes(name: str, precision: str) -> None:
    network, specs = common.load(name, seed=0)
    rewritten = rewrite(trace(network, specs))
    rows = common.inputs(specs, 3, seed=0, count=1)[0]
    found = round_trip(rewritten, calibrate(rewritten, rows, "max", precision), rows)
    assert found["same"], found
    assert sites(rewritten.module, CODES[precision]).found
