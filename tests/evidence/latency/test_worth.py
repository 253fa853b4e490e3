"""What INT8 is worth: its rivals are built as the engine was asked for."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpdeploy.engine.backend import BuildRequest, Built
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.form import Prepared
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.evidence.latency import worth as module
from mlpdeploy.progress import Stages


class Backend:
    """Keeps what it was asked to build; it builds for `gpus`, or for this machine's CPU alone."""

    multiplied = ("int8",)

    def __init__(self, gpus: tuple[str, ...]) -> None:
        self.gpus, self.asked = gpus, list[BuildRequest]()

    def available(self) -> None: ...

    executable = available

    def beside(self, precision: str) -> str | None:
        return {"int8": "fp16"}.get(precision)

    def supports(self, precision: str, gpus: Any = ()) -> str | None:
        return None if set(gpus) <= set(self.gpus) else "not for these GPUs"

    def build(self, emitted: Emitted, request: BuildRequest, folder: Path, progress: Any) -> Built:
        self.asked.append(request)
        return Built(folder / "engine", Prepared(emitted.model), {})

    @contextmanager
    def load(self, engine: Path, facts: Any) -> Any:
        yield lambda inputs: inputs


def test_an_engine_that_does_not_multiply_the_codes_is_not_timed() -> None:
    backend: Any = Backend(())
    request = BuildRequest("fp8", Batch(1, 3, 8))
    found = module.worth(lambda *_: pytest.fail("made"), {"one": backend}, {"x": np.zeros(2)}, request, Stages())
    assert found["backends"] == {} and not backend.asked and not found["verdicts"]
    assert found["not_measured"] == {"one": "it multiplies what FP8 codes stand for, and gains nothing by them"}


@pytest.mark.parametrize("gpus", [("sm86",), ()])
def test_rivals_are_built_as_the_engine_was(gpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)
    backend: Any = Backend(gpus)
    request = BuildRequest("int8", Batch(1, 3, 8), ("sm86",), level=2, plugin="off")

    def make(precision: str, beside: str | None) -> Any:
        return Emitted(f"{precision} beside {beside}", None)  # type: ignore[arg-type]

    found = module.worth(make, {"one": backend}, {"x": np.zeros((2, 4), np.float32)}, request, Stages())
    assert found["batch"] == 3 and set(found["backends"]["one"]["median_ms"]) == {"int8", "fp16", "fp32"}
    assert [one.precision for one in backend.asked] == ["int8", "fp16", "fp32"]
    assert {(one.batch, one.gpus, one.level, one.plugin) for one in backend.asked} == {(Batch(3, 3, 3), gpus, 2, "off")}
