"""Features of TensorRT's engines: which backend has them, what the builder is asked for, and what loading takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backend import BuildRequest, backends, pick
from mlpdeploy.engine.backends.tensorrt import TensorRT, _features
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.features import FEATURES, HARDWARE, STREAMING, STRIPPED, VERSION
from mlpdeploy.errors import ArtifactError, InputError, MachineLacks
from mlpdeploy.precisions import CODED
from mlpdeploy.progress import Silent
from mlpdeploy.system.files import sha256
from tests.engine.small_networks import emitted

REQUEST = BuildRequest("fp16", Batch(1, 2, 4))
NAMED = SimpleNamespace(__name__="tensorrt", HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere"))


@pytest.mark.parametrize("name", sorted(set(backends()) - {"tensorrt", "tensorrt-rtx"}))
@pytest.mark.parametrize("feature", FEATURES)
def test_they_are_tensorrts(name: str, feature: str) -> None:
    assert backends()[name].lacking(feature, "fp16") == (
        f"backend {name} builds no {feature} engine, which are TensorRT's: drop --features"
    )


@pytest.mark.parametrize("feature", FEATURES)
def test_plain_tensorrt_has_all_of_them(feature: str) -> None:
    assert backends()["tensorrt"].lacking(feature, "fp16") is None


def test_rtx_says_which_it_lacks_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = backends()["tensorrt-rtx"]
    monkeypatch.setattr(nvidia, "probe", lambda: "no NVIDIA GPU")
    assert rtx.lacking(STREAMING, "fp16") is None
    for feature in (HARDWARE, VERSION):
        reason = rtx.lacking(feature, "fp16")
        assert reason is not None and reason.startswith(f"tensorrt-rtx builds no {feature} engine: it")
    with pytest.raises(MachineLacks, match="on a GPU alone, and here is none: no NVIDIA GPU"):
        rtx.lacking(STRIPPED, "fp16")
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("Stand-in", "sm89", "13.0"))
    assert rtx.lacking(STRIPPED, "fp16") is None


@pytest.mark.parametrize("precision", CODED)
def test_weights_that_are_codes_cannot_be_taken_from_the_file(precision: str) -> None:
    reason = backends()["tensorrt"].lacking(STRIPPED, precision)
    assert reason is not None and precision.upper() in reason


def test_a_wish_that_cannot_be_met_is_one_line() -> None:
    for request, said in (
        (replace(REQUEST, features=(VERSION,)), "backend openvino builds no version-compatible engine"),
        (replace(REQUEST, timing_cache=Path("a.cache")), "backend openvino times no kernels while it builds"),
    ):
        with pytest.raises(InputError, match=said):
            pick("openvino", "fp32", request=request)


def test_what_the_builder_is_asked_for() -> None:
    assert _features.options(NAMED, ()) == {}
    assert _features.options(NAMED, tuple(FEATURES)) == {
        "hardware_compatibility_level": "ampere", "version_compatible": True, "weight_streaming": True,
        "strip_plan": True, "refittable": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("built", "here", "fitting"),
    [
        ("11.1.0", "11.1.0", True), ("11.1.0", "11.4.0.106", True), ("11.4.0", "11.1.0", False),
        ("10.13.3", "11.4.0", False), ("11.4.0", "none", False), ("", "11.4.0", False),
    ],
)  # fmt: skip
def test_a_version_compatible_engine_runs_with_later_versions_of_its_major(
    built: str, here: str, fitting: bool
) -> None:
    assert _features.fits("tensorrt", built, here, (VERSION,)) == fitting
    assert _features.fits("tensorrt", built, here, (STREAMING,)) == (built == here)
    assert not _features.fits("polygraphy", "1", "2", (VERSION,))


@pytest.mark.parametrize(("capability", "runs"), [("sm75", False), ("sm86", True), ("sm120", True)])
def test_a_hardware_compatible_engine_runs_on_any_gpu_from_ampere_on(
    capability: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backends()["tensorrt"]
    assert isinstance(backend, TensorRT)
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("Other", capability, "13.0"))
    facts: dict[str, Any] = {"gpus": ["sm90"], "precision": "fp16", "features": [HARDWARE]}
    if runs:
        backend._check_gpu(Path("engine.plan"), facts)
    else:
        with pytest.raises(ArtifactError, match="was built for sm90"):
            backend._check_gpu(Path("engine.plan"), facts)
    with pytest.raises(ArtifactError, match="was built for sm90"):
        backend._check_gpu(Path("engine.plan"), {**facts, "features": []})


class Refitter:
    """An IRefitter, and an OnnxParserRefitter: what was asked of them, and what they answer."""

    def __init__(self, engine: Any, logger: Any) -> None:
        self.engine = engine

    def refit_from_file(self, path: str) -> bool:
        self.engine.engine.refitted = path
        return bool(self.engine.engine.reads)

    def refit_cuda_engine(self) -> bool:
        return bool(self.engine.takes)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("tensorrt_rtx", reason="Polygraphy's utilities need one of the flavours")
    from mlpdeploy.engine.backends.tensorrt import _polygraphy

    _polygraphy.bind("tensorrt-rtx")
    return SimpleNamespace(Refitter=Refitter, OnnxParserRefitter=Refitter, Runtime=lambda logger: SimpleNamespace())


def engine(**answers: Any) -> Any:
    return SimpleNamespace(reads=True, takes=True, get_weight_streaming_automatic_budget=lambda: 5, **answers)


def test_a_stripped_engine_takes_its_weights_from_the_file(trt: Any) -> None:
    made = engine()
    _features.prepare(trt, made, (STRIPPED,), Path("a/model.onnx"), [])
    assert made.refitted == "a/model.onnx" and not hasattr(made, "weight_streaming_budget_v2")
    for lacking in ("reads", "takes"):
        made = engine()
        setattr(made, lacking, False)
        with pytest.raises(ArtifactError, match=r"TensorRT cannot take the weights of a/model.onnx: its reason"):
            _features.prepare(trt, made, (STRIPPED,), Path("a/model.onnx"), ["its reason"])


def test_weights_are_streamed_as_far_as_tensorrt_finds_useful(trt: Any) -> None:
    made = engine()
    _features.prepare(trt, made, (STREAMING,), Path("a/model.onnx"), [])
    assert made.weight_streaming_budget_v2 == 5 and not hasattr(made, "refitted")
    untouched = engine()
    _features.prepare(trt, untouched, (), Path("a/model.onnx"), [])
    assert not {"refitted", "weight_streaming_budget_v2"} & vars(untouched).keys()


def test_only_a_version_compatible_engine_may_bring_its_runtime(trt: Any) -> None:
    assert _features.runtime(trt, (STRIPPED,)) is None
    assert _features.runtime(trt, (VERSION,)).engine_host_code_allowed


def changed(model: onnx.ModelProto, integers: bool) -> onnx.ModelProto:
    """The model with another number in one of its constants."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    tensor = next(
        one for one in other.graph.initializer if (one.data_type == onnx.TensorProto.INT64) == integers and one.raw_data
    )
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return other


def test_a_stripped_engine_is_that_of_a_graph_and_not_of_its_weights(tmp_path: Path) -> None:
    model, facts = emitted("fp16").model, ({"tensorrt": "11.4"}, "Stand-in")
    wanted = _features.structure(model, REQUEST, *facts)
    assert _features.structure(changed(model, integers=False), REQUEST, *facts) == wanted
    nodes = onnx.ModelProto()
    nodes.CopyFrom(model)
    nodes.graph.node[0].name += "x"
    others = {
        _features.structure(changed(model, integers=True), REQUEST, *facts),
        _features.structure(nodes, REQUEST, *facts),
        _features.structure(model, replace(REQUEST, batch=Batch(1, 2, 5)), *facts),
        _features.structure(model, replace(REQUEST, level=3), *facts),
        _features.structure(model, REQUEST, {"tensorrt": "11.5"}, "Stand-in"),
        _features.structure(model, REQUEST, {"tensorrt": "11.4"}, "Another"),
        wanted,
    }
    assert len(others) == 7

    (tmp_path / "engine.plan").write_bytes(b"plan")
    manifest = tmp_path / "manifest.json"
    known = {"structure": wanted, "engine_sha256": sha256(tmp_path / "engine.plan")}
    manifest.write_text(json.dumps({"facts": known}))
    assert _features.kept(tmp_path, "engine.plan", wanted) == b"plan"
    assert _features.kept(tmp_path, "engine.plan", "another") is None
    assert _features.kept(None, "engine.plan", wanted) is None
    (tmp_path / "engine.plan").write_bytes(b"altered")
    assert _features.kept(tmp_path, "engine.plan", wanted) is None
    for broken in ("{", "[]", "{}", '{"facts": 1}'):
        manifest.write_text(broken)
        assert _features.kept(tmp_path, "engine.plan", wanted) is None


def test_streamed_weights_are_asked_for_and_remembered(tmp_path: Path, rtx: TensorRT) -> None:
    facts = rtx.build(emitted("fp16"), replace(REQUEST, features=(STREAMING,)), tmp_path, Silent()).facts
    assert facts["features"] == [STREAMING] and "structure" not in facts
