"""The blocks of papers without code: their mathematics, what the compiler makes of them, and their engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlpdeploy import pipeline
from mlpdeploy.engine.backend import backends
from mlpdeploy.evidence.proof.ladder import ENGINE
from mlpdeploy.selection import Selection
from tests.graph import proof as graph
from tests.zoo import unpublished

SHAPE = (3, 16, 16)
TRANSPOSES = {"hourglass": 0, "spectrum": 1, "kan": 0}
"""A convolution gives channels first, and the blocks of the spectrum mixer take them last."""


def test_cosines_are_orthonormal() -> None:
    for n in (1, 2, 7, 14):
        torch.testing.assert_close(unpublished.cosines(n) @ unpublished.cosines(n).mT, torch.eye(n).double())


def test_spectrum_with_equal_weights_is_the_identity() -> None:
    mixer = unpublished.SpectrumMixer(3, 5, 8, 4).double()
    torch.nn.init.zeros_(mixer.fc2.weight)
    torch.nn.init.zeros_(mixer.fc2.bias)
    mixer.along_h, mixer.along_w = unpublished.cosines(3), unpublished.cosines(5)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), x)


def test_spectrum_weighs_every_band_of_every_group() -> None:
    mixer = unpublished.SpectrumMixer(3, 5, 8, 4).double()
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    weights = mixer.fc2(torch.nn.functional.gelu(mixer.fc1(x.mean((1, 2))))).reshape(2, 15, 4).softmax(1) * 15
    d_h, d_w = mixer.along_h, mixer.along_w
    spectrum = torch.einsum("uh,vw,bhwc->buvc", d_h, d_w, x) * weights.reshape(2, 3, 5, 4).repeat_interleave(2, 3)
    torch.testing.assert_close(mixer(x), torch.einsum("uh,vw,buvc->bhwc", d_h, d_w, spectrum))


def test_kan_is_a_sum_over_bases() -> None:
    layer = unpublished.PrunedKan(3, 2).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    a, b, c = x.unbind(1)
    gaussians = torch.stack([(-((a - centre) ** 2)).exp() for centre in layer.centres], 1)
    chebyshev = torch.stack([(k * b.tanh().acos()).cos() for k in range(4)], 1)
    fourier = torch.stack([c.cos(), c.sin(), (2 * c).cos(), (2 * c).sin()], 1)
    expanded = torch.stack([gaussians, chebyshev, fourier], 1)
    torch.testing.assert_close(layer(x), torch.einsum("bik,oik->bo", expanded, layer.coefficients))


@pytest.mark.parametrize("name", TRANSPOSES)
def test_rewritten_it_is_the_same_at_every_batch(name: str) -> None:
    result = graph.prove(getattr(unpublished, name)(), SHAPE)
    assert graph.moves(result) == TRANSPOSES[name]


def test_the_cosine_transforms_are_token_projections() -> None:
    result = graph.prove(unpublished.spectrum(), SHAPE)
    # Along height and width, there and back, in two blocks.
    assert graph.fired(result)["project_tokens"] == 8


@pytest.mark.parametrize("name", TRANSPOSES)
def test_an_engine_is_built(name: str, tmp_path: Path) -> None:
    reason = backends()["tensorrt-rtx"].available()
    if reason is not None:
        pytest.skip(reason)
    selection = Selection(
        f"tests.zoo.unpublished:{name}", backend="tensorrt-rtx", batch="1:2:5", input_shape=SHAPE, out=tmp_path
    )
    built = pipeline.build(selection)
    assert built.manifest["facts"]["parsed"]["outside"]["transposes"] == TRANSPOSES[name]
    assert set(built.manifest["facts"]["parsed"]["dtypes"]["MATRIX_MULTIPLY"]) == {"HALF"}
    verification = pipeline.verify(selection)
    assert verification.passed, verification.verdict()
    assert verification.stages[-1].name == ENGINE
