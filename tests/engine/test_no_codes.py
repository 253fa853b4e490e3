"""Builds in 8 bits that would have none, or ranges of nothing: refused or warned of, with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlpdeploy import pipeline
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import InputError
from mlpdeploy.selection import Selection
from tests.engine.test_quantised_build import SHAPE, _example, npz, selection

__all__ = ["_example"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_engine_of_no_codes_is_refused_with_the_reason(precision: str, backend: str, tmp_path: Path) -> None:
    if (reason := backends()[backend].available()) is not None:
        pytest.skip(reason)
    (tmp_path / "narrow_example.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(8, 8)\n")
    given = Selection("narrow_example:net", precision, backend, "1:2:3", input_shape=(8,), calibration="random",
                      out=tmp_path / "out")  # fmt: skip
    told = (
        f"no product of this network takes {precision.upper()}: 8 input and 8 output channels, where codes pay from 16"
    )
    with pytest.raises(InputError, match=told):
        pipeline.build(given)
    with pytest.raises(InputError, match="it stays out by what it costs; build it in fp16"):
        pipeline.build(selection(tmp_path / "out", "random", precision, backend=backend, min_sqnr=200.0))


@pytest.mark.slow
def test_rows_that_are_all_the_same_are_warned_of(tmp_path: Path) -> None:
    path = npz(tmp_path / "zeros.npz", input=np.zeros((64, *SHAPE), np.float32))
    artifact = pipeline.build(selection(tmp_path / "out", path, "fp8", backend="onnxruntime"))
    assert "all the same" in artifact.manifest["quantised"]["warning"]
    notes = pipeline.verify(selection(tmp_path / "out", None, "fp8", backend="onnxruntime")).notes
    assert any("rows that were compared are the same" in note for note in notes)
    assert not any("head starts at zero" in note for note in notes)
