"""Trained networks on real images: what leaves the compiler in FP16 and BF16 reads digits as well as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.ladder import EMITTED, REWRITTEN, TYPED
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.evidence.proof.verify import verify
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.zoo.recipe import Budget, recipes
from tests.digits import accuracy, fixture, load

NAMES = ("vip_digits", "mixer_digits")
PRECISIONS = ("fp32", "fp16", "bf16")

Trained = tuple[nn.Module, np.ndarray, np.ndarray]


class Silent:
    def step(self, phase: str, done: int, total: int) -> None:
        assert done <= total


def compiled(network: nn.Module, precision: str) -> tuple[Rewritten, Emitted]:
    rewritten = rewrite(trace(network, [TensorSpec("input", (1, 8, 8), torch.float32)]))
    return rewritten, emit(apply(rewritten, plan(rewritten, precision)))


def budget(precision: str) -> Budget:
    return recipes()["vip_s7"].budgets[precision]


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest) -> Trained:
    return load(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_the_fixtures_are_small_and_read_digits_well(name: str) -> None:
    network, images, labels = load(name)
    assert fixture(name).stat().st_size < 400_000
    assert images.shape == (600, 1, 8, 8) and images.dtype == np.float32
    assert accuracy(network, images, labels) > 0.985
    # A network that ignored its input would score this on shuffled labels as well.
    assert accuracy(network, images, np.roll(labels, 1)) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_emitted_file_keeps_top1_within_a_fifth_of_a_point(trained: Trained, precision: str) -> None:
    network, images, labels = trained
    _, emitted = compiled(network, precision)
    logits = onnx_run(emitted.model, 1)({"input": images})["output"]
    assert abs(float((logits.argmax(1) == labels).mean()) - accuracy(network, images, labels)) <= 0.002


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_ladder_passes_on_real_images(trained: Trained, precision: str) -> None:
    network, images, labels = trained
    rewritten, emitted = compiled(network, precision)
    found = verify(
        network, rewritten, emitted.typed, emitted.model, None, "no engine in this test", Batch(1, 8, 33),
        budget(precision), {"input": images[:200]}, 0, Silent(), labels=labels[:200],
    )  # fmt: skip
    assert found.passed, found.verdict()
    stages = {stage.name: stage for stage in found.stages}
    error = stages[REWRITTEN].max_relative
    assert error is not None and error < 1e-12
    assert stages[TYPED].images is not None and stages[EMITTED].images is not None
