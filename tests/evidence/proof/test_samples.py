"""Rows that a user gives: real images gate the classes, and what does not fit is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof.ladder import ENGINE
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace
from tests.evidence.proof.cases import Case, X, make_onnx, run_with


def images(count: int = 30) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, 6, 8), dtype=np.float32)}


def test_top1_is_gated_on_real_images_and_only_reported_on_random_rows(case: Case) -> None:
    constant = copy.deepcopy(case.network)
    # All classes tie but for a thousandth: within the relative budget, a flipped engine changes every top-1.
    constant.head.weight.data.zero_()
    constant.head.bias.data = torch.linspace(1, 1.001, 7)
    tied = replace(
        case,
        network=constant,
        rewritten=rewrite(trace(constant, [X])),
        typed=replace(case.typed, module=constant, precision="fp32"),  # type: ignore[arg-type]
        model=make_onnx(constant),
        engine=run_with(lambda x: constant(x).flip(1)),
    )
    assert tied.verify().passed
    found = tied.verify(samples=images())
    assert found.first_failed is not None and found.first_failed.name == ENGINE
    assert "0.00% of 30 images keep their top-1 class, the budget asks for 99.00%" in found.verdict()
    assert any("the same for every input" in note for note in found.notes)


def test_images_of_any_number_fill_whole_batches_and_give_accuracy(case: Case) -> None:
    sizes: set[int] = set()

    def engine(x: Tensor) -> Tensor:
        sizes.add(len(x))
        return case.typed.module(x)

    samples = images(30)
    with torch.inference_mode():
        labels = case.network(torch.from_numpy(samples["x"])).argmax(1).numpy()
    labels[:3] += 1
    found = replace(case, engine=run_with(engine)).verify(samples=samples, labels=labels)
    assert found.passed and found.inputs == "images" and found.reference_accuracy == 0.9
    last = found.stages[-1].images
    assert last is not None and last.agreement is not None and last.agreement.images == 30
    assert last.accuracy == pytest.approx(0.9, abs=0.04)
    assert sizes == {1, 4, 11, 6, 2}  # six rows: the extreme ones, two ordinary ones among them


def test_samples_that_do_not_fit_are_refused(case: Case) -> None:
    for name, shape in (("x", (3, 6, 9)), ("x", (0, 6, 8)), ("other", (3, 6, 8))):
        with pytest.raises(InputError, match="takes rows of shape"):
            case.verify(samples={name: np.zeros(shape, np.float32)})
