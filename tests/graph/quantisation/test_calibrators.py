"""Thresholds from histograms, and the exact rule that shares ranges between activation and weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof.runs import float64_run
from mlpdeploy.graph.quantisation.calibrate import calibrate, fake_quantised, outputs, sqnr_db
from mlpdeploy.graph.quantisation.calibrators import BINS, CALIBRATORS, Histogram, threshold
from mlpdeploy.graph.quantisation.codes import FP8, INT8, Codes
from mlpdeploy.graph.quantisation.equalise import Channels, equalise, factors
from mlpdeploy.graph.quantisation.sites import sites
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

SHAPE = (16, 24)


class Network(nn.Module):
    """A LayerNorm read by one product, a token-mixing product, and one behind a GELU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(24)
        self.up, self.tokens, self.down = nn.Linear(24, 32), nn.Linear(16, 16), nn.Linear(32, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.up(self.norm(x)))
        mixed: torch.Tensor = self.down(self.tokens(hidden.transpose(1, 2)).transpose(1, 2))
        return mixed


def graph(network: nn.Module, dtype: torch.dtype = torch.float32, disabled: tuple[str, ...] = ()) -> Rewritten:
    return rewrite(trace(network.to(dtype).eval(), [TensorSpec("input", SHAPE, dtype)]), disabled)


def rows(count: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)}


def histogram(values: np.ndarray) -> Histogram:
    magnitudes = np.abs(values)
    counts, _ = np.histogram(magnitudes, BINS, (0, magnitudes.max()))
    return Histogram(counts.astype(np.float64), float(magnitudes.max()))


def error(values: np.ndarray, limit: float, codes: Codes) -> float:
    """The mean squared error of codes up to `limit`."""
    step = limit / codes.largest
    return float(((values - codes.rounded(torch.from_numpy(values / step)).double().numpy() * step) ** 2).mean())


def test_max_saturates_nothing_and_percentile_a_ten_thousandth() -> None:
    values = np.random.default_rng(0).standard_normal(200_000)
    found = histogram(values)
    assert threshold("max", found, INT8) == np.abs(values).max()
    beyond = (np.abs(values) > threshold("percentile", found, INT8)).mean()
    assert 2e-5 < beyond <= 1e-4


@pytest.mark.parametrize("codes", [INT8, FP8], ids=["int8", "fp8"])
def test_mse_is_the_best_threshold_there_is(codes: Codes) -> None:
    values = np.random.default_rng(0).laplace(size=200_000)
    found = threshold("mse", histogram(values), codes)
    best = min(error(values, limit, codes) for limit in np.linspace(0.1, 1, 91) * np.abs(values).max())
    assert error(values, found, codes) <= 1.05 * best
    # Steps of FP8 grow with the value, so it loses little by a range that is too wide.
    gained = {INT8: 0.8, FP8: 1.0}[codes]
    assert error(values, found, codes) < gained * error(values, np.abs(values).max(), codes)


def test_entropy_cuts_off_a_lone_outlier_and_keeps_an_even_spread() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(200_000), 100.0)
    assert threshold("entropy", histogram(values), INT8) < 30
    even = np.random.default_rng(0).uniform(-1, 1, 200_000)
    assert threshold("entropy", histogram(even), INT8) > 0.9
    assert threshold("entropy", histogram(even), FP8) > 0.9


@pytest.mark.parametrize("name", list(CALIBRATORS))
@pytest.mark.parametrize("codes", [INT8, FP8], ids=["int8", "fp8"])
def test_an_activation_of_zeros_or_of_one_value_has_a_threshold(codes: Codes, name: str) -> None:
    assert threshold(name, Histogram(np.zeros(BINS), 0.0), codes) == 1.0
    assert 0 < threshold(name, histogram(np.full(100, 2.0)), codes) <= 2.0


def test_calibration_is_the_same_twice_and_keeps_the_best_calibrator() -> None:
    first, second = (calibrate(graph(Network()), rows()) for _ in range(2))
    assert first == second
    assert set(first.sqnr_db) == set(CALIBRATORS)
    assert first.sqnr_db[first.calibrator] == max(first.sqnr_db.values()) > 25


def test_bad_values_and_bad_names_are_refused() -> None:
    with pytest.raises(InputError, match="no calibrator is called 'median'"):
        calibrate(graph(Network()), rows(), "median")
    broken = rows()
    broken["input"][3, 0, 0] = np.inf
    with pytest.raises(InputError, match="not finite on the calibration data"):
        calibrate(graph(Network()), broken)


@pytest.mark.parametrize("disabled", [(), ("project_tokens", "propagate_layout")])
def test_equalising_is_exact_in_float64(disabled: tuple[str, ...]) -> None:
    wide = graph(Network(), torch.float64, disabled)
    rng = np.random.default_rng(0)
    given = {
        name: tuple(np.exp(rng.standard_normal(site.inputs))) for name, site in sites(wide.module, INT8).found.items()
    }
    assert len(given) == 3
    balanced = equalise(wide, given)
    data = {"input": rng.standard_normal((3, *SHAPE))}
    run, again = (float64_run(one.module, wide.inputs, ["y"]) for one in (wide, balanced))
    np.testing.assert_allclose(again(data)["y"], run(data)["y"], rtol=0, atol=1e-12)
    # The graph that was given is untouched, and the norm that one product reads took its factors in.
    assert len(list(balanced.module.graph.nodes)) > len(list(wide.module.graph.nodes))
    muls = [node for node in balanced.module.graph.nodes if node.target is torch.ops.aten.mul.Tensor]
    assert len(muls) == 2


def test_a_norm_that_others_read_keeps_its_scale() -> None:
    class Shared(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed = self.norm(x)
            return self.up(normed).sum(-1) + normed.sum(-1)

    wide = graph(Shared(), torch.float64)
    (name,) = sites(wide.module, INT8).found
    balanced = equalise(wide, {name: tuple(np.linspace(0.5, 2, 24))})
    data = {"input": np.random.default_rng(0).standard_normal((3, *SHAPE))}
    run, again = (float64_run(one.module, wide.inputs, ["y"]) for one in (wide, balanced))
    np.testing.assert_allclose(again(data)["y"], run(data)["y"], rtol=0, atol=1e-12)


def test_equalising_recovers_a_wide_channel_and_leaves_even_ones_alone() -> None:
    even, wide = Network(), Network()
    with torch.no_grad():
        wide.norm.weight[5] *= 50
        wide.norm.bias[5] *= 50
        wide.up.weight[:, 5] /= 50
    assert not calibrate(graph(even), rows(), "max").equalised
    for network, disabled in ((wide, ("fold_affine",)),):
        one = graph(network, disabled=disabled)
        expected = outputs(one.module, rows(), one.inputs)
        found = {}
        for equalising in (False, True):
            quantisation = calibrate(one, rows(), "max", equalising=equalising)
            balanced = equalise(one, quantisation.equalised)
            found[equalising] = sqnr_db(expected, outputs(fake_quantised(balanced, quantisation), rows(), one.inputs))
        assert found[True] > found[False] + 15 and found[True] > 30


def test_channels_that_are_zero_get_no_factor() -> None:
    (site, *_) = sites(graph(Network()).module, INT8).found.values()
    seen = Channels(np.array([0.0, 100.0, *np.ones(22)]), np.array([0.0, 1000.0, *np.ones(22)]))
    matrix = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))
    matrix[:, 1] /= 100
    found = factors(matrix, site, seen, INT8)
    assert found is not None and found[0] == 1 and np.isfinite(found).all() and found[1] == found.max()
    assert factors(matrix, site, replace(seen, largest=np.zeros(24)), INT8) is None
