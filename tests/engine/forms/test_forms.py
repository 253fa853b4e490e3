"""Forms of the file: each computes the same, they run in their engine's order, and what it compiled is what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.commands.rulebook import FILE, rulebook
from mlpdeploy.engine import form
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.errors import InputError
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.progress import Stages
from mlpdeploy.selection.choice import EngineChoice
from tests.engine.small_networks import images

USED = [(backend.name, one) for backend in backends().values() for one in backend.forms]
CPU = ("openvino", "onnxruntime")


class Everything(nn.Module):
    """Something for every form: a grid moved, a mean over it times a vector, a padding that wraps, a norm of a map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.fc = nn.Conv2d(3, 8, 2, 2), nn.GroupNorm(1, 8), nn.Linear(8, 8)
        self.last, self.scale = nn.LayerNorm(8), nn.Parameter(torch.rand(8))

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.stem(nn.functional.pad(image, (1, 1, 0, 0), mode="circular")))
        x = x.permute(0, 2, 3, 1)
        x = x + self.fc(self.last(x))
        x = x + self.fc(self.last(x))
        return x.mean((1, 2)) * self.scale


def emitted(precision: str) -> Emitted:
    rewritten = rewrite(trace(Everything().eval(), [TensorSpec("image", (3, 8, 8), torch.float32)]))
    return emit(apply(rewritten, plan(rewritten, precision)))


def test_every_form_is_some_engines_and_every_engines_form_is_there() -> None:
    assert {one.name for _, one in USED} == set(form.names())
    names = set(form.names())
    assert not names & {row["name"] for row in rulebook() if row["rewrites"] != FILE}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("engine", "one"), USED, ids=lambda value: getattr(value, "name", value))
def test_a_form_computes_the_same_and_leaves_the_file_that_it_is_given(
    engine: str, one: form.Form, precision: str
) -> None:
    from mlpdeploy.evidence.proof.runs import onnx_run

    given = emitted(precision).model
    before = given.SerializeToString(deterministic=True)
    model, count = one.rewrite(given)
    assert given.SerializeToString(deterministic=True) == before
    assert (model is given) == (count == 0) or one.name == "fill_ranks"
    onnx.checker.check_model(model, full_check=True)
    x = {"image": images(3)[:, :, :8, :8].numpy()}
    first, second = (onnx_run(each, 1)(x)["output"] for each in (given, model))
    assert np.abs(first - second).max() <= (1e-6 if precision == "fp32" else 2e-3) * np.abs(first).max()


@pytest.mark.slow
@pytest.mark.parametrize("engine", CPU)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_file_that_is_kept_is_what_the_engine_compiled(engine: str, precision: str, tmp_path: Path) -> None:
    backend, given = backends()[engine], emitted(precision)
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    built = backend.build(given, BuildRequest(precision, Batch(1, 2, 3)), tmp_path, Stages())
    wanted = form.prepare(given.model, backend.forms, precision)
    assert built.prepared.model == wanted.model != given.model
    fired = {one.name: one.fired for one in built.prepared.forms}
    assert list(fired) == [one.name for one in backend.forms if not one.precisions or precision in one.precisions]
    if engine == "onnxruntime":
        assert built.engine.read_bytes() == wanted.model.SerializeToString()
        assert fired["round_results" if precision == "fp16" else "multiply_means"] > 0
    else:
        assert (fired["part_wraps"], fired["spread_norms"], fired["flatten_grids"]) == (1, 1, 1)


def test_what_is_disabled_does_not_run(tmp_path: Path) -> None:
    backend, given = backends()["onnxruntime"], emitted("fp16")
    request = EngineChoice("fp16", disabled_rules=("round_results", "fold_affine")).request(batch=Batch(1, 2, 3))
    assert request.disabled == ("round_results",)
    built = backend.build(given, request, tmp_path, Stages())
    assert built.prepared.model == given.model and "rounded" not in built.facts["executed"]
    assert "round_results" not in {one.name for one in built.prepared.forms}


def test_a_form_is_on_wherever_it_serves() -> None:
    with pytest.raises(InputError, match="only --disable-rule takes it"):
        EngineChoice(enabled_rules=("flatten_grids",))
    assert EngineChoice(disabled_rules=("flatten_grids", "pick_parts")).disabled_in_graph == ("pick_parts",)
    with pytest.raises(InputError, match="did you mean flatten_grids"):
        EngineChoice(disabled_rules=("flatten_grid",))


def test_forms_run_in_the_order_of_their_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Noted(form.Form):
        def rewrite(self, model: Any) -> tuple[Any, int]:
            seen.append(self.name)
            return model, 0

    given = [Noted("b"), Noted("a", ("int8",)), Noted("c", ("fp16", "int8"))]
    assert [one.name for one in form.prepare("model", given, "fp16", ("d",)).forms] == ["b", "c"] == seen  # type: ignore[arg-type]
    assert form.prepare("model", given, "int8", ("b", "c")).forms[0].name == "a"  # type: ignore[arg-type]
