"""TensorRT-RTX on a machine without a GPU: what it builds, what it refuses, and what a load checks first."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from mlpdeploy.artifact.lookup import folder_of
from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.backends.tensorrt import TensorRT, _polygraphy, _targets, parse
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.errors import ArtifactError, BuildError, InputError, MachineLacks, TunedElsewhere
from mlpdeploy.progress import Silent
from mlpdeploy.selection import Selection
from tests.engine.small_networks import emitted, graph_model, projections

BATCH = Batch(1, 2, 4)
GPU = nvidia.Gpu("Stand-in 4090", "sm89", "13.0")


def build(rtx: TensorRT, folder: Path, precision: str = "fp16", **more: Any) -> dict[str, Any]:
    return rtx.build(emitted(precision), BuildRequest(precision, BATCH, **more), folder, Silent()).facts


def test_gpus_are_compiled_for_and_recorded(rtx: TensorRT, tmp_path: Path) -> None:
    facts = build(rtx, tmp_path, gpus=("sm86", "sm120"))
    assert facts["gpus"] == ["sm86", "sm120"] and facts["executed"] == "HALF"
    hashes = {facts["engine_sha256"]}
    hashes.add(build(rtx, tmp_path, gpus=("sm86",))["engine_sha256"])
    hashes.add(build(rtx, tmp_path, gpus=("sm75",))["engine_sha256"])
    anywhere = build(rtx, tmp_path)
    assert anywhere["gpus"] == [] and len(hashes | {anywhere["engine_sha256"]}) == 4


@pytest.mark.parametrize("gpu", ["sm61", "86", "SM86", "none", "sm"])
def test_an_unknown_gpu_is_refused_with_the_known_ones(rtx: TensorRT, tmp_path: Path, gpu: str) -> None:
    with pytest.raises(InputError, match=f"cannot build for {gpu}; choose from: sm75, sm80, sm86, sm89, sm120"):
        build(rtx, tmp_path, gpus=("sm86", gpu))
    assert not list(tmp_path.iterdir())


def test_cpu_engines_take_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="drop --gpu"):
        request = BuildRequest("fp32", BATCH, gpus=("sm86",))
        backends()["onnxruntime"].build(emitted("fp32"), request, tmp_path, Silent())


def test_tf32_is_a_flag_on_an_fp32_network(rtx: TensorRT, tmp_path: Path) -> None:
    facts = build(rtx, tmp_path, "tf32")
    assert facts["executed"] == "FLOAT with TF32"
    assert set(facts["parsed"]["dtypes"]["MATRIX_MULTIPLY"]) == {"FLOAT"}
    tf32 = (tmp_path / "engine.plan").read_bytes()
    assert build(rtx, tmp_path, "fp32")["executed"] == "FLOAT"
    assert (tmp_path / "engine.plan").read_bytes() != tf32


def test_a_network_of_another_precision_fails_the_build(rtx: TensorRT, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="would not compute in bf16"):
        rtx.build(emitted("fp16"), BuildRequest("bf16", BATCH), tmp_path, Silent())
    assert not list(tmp_path.iterdir())


def test_the_plans_own_fp32_nodes_are_let_through(rtx: TensorRT, tmp_path: Path) -> None:
    wide = emitted("fp32")
    names = frozenset(node.name for node in wide.model.graph.node)
    request = BuildRequest("fp16", BATCH)
    rtx.build(Emitted(wide.model, wide.typed, names), request, tmp_path, Silent())
    with pytest.raises(BuildError, match=r"1 of .* would not compute in fp16"):
        rtx.build(Emitted(wide.model, wide.typed, names - {"node_conv2d"}), request, tmp_path, Silent())


@pytest.mark.parametrize("level", [0, 5])
def test_builder_levels(rtx: TensorRT, tmp_path: Path, level: int) -> None:
    assert build(rtx, tmp_path, level=level)["engine_bytes"] > 1000


def test_progress_counts_up_and_nothing_is_printed(
    rtx: TensorRT, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, int, int]] = []

    class Steps:
        def step(self, phase: str, done: int, total: int) -> None:
            seen.append((phase, done, total))

    rtx.build(emitted("fp16"), BuildRequest("fp16", BATCH), tmp_path, Steps())
    assert len({phase for phase, _, _ in seen}) > 3 and all(1 <= done <= total for _, done, total in seen)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the terminal went away")])
def test_an_interrupt_ends_the_build_and_comes_out_as_itself(
    rtx: TensorRT, tmp_path: Path, error: BaseException
) -> None:
    class Interrupts:
        calls = 0

        def step(self, phase: str, done: int, total: int) -> None:
            self.calls += 1
            raise error

    progress = Interrupts()
    with pytest.raises(type(error)) as raised:
        rtx.build(emitted("fp16"), BuildRequest("fp16", BATCH), tmp_path, progress)
    assert raised.value is error and progress.calls == 1 and not list(tmp_path.iterdir())


def test_there_is_one_logger_and_every_open_list_has_its_errors(rtx: TensorRT) -> None:
    trt = _polygraphy.bind("tensorrt-rtx")
    with _polygraphy.collected_errors(trt) as first:
        util = importlib.import_module("polygraphy.backend.trt.util")
        logger = util.TRT_LOGGER
        with _polygraphy.collected_errors(trt) as second:
            assert util.TRT_LOGGER is logger
            logger.log(trt.Logger.ERROR, "both\nlines")
            logger.log(trt.Logger.INFO, "no error")
        logger.log(trt.Logger.INTERNAL_ERROR, "one")
    logger.log(trt.Logger.ERROR, "none")
    assert (first, second) == (["both", "lines", "one"], ["both", "lines"])


@pytest.mark.parametrize(("capability", "served"), [("sm86", True), ("sm120", True), ("sm90", False)])
def test_a_gpu_that_tensorrt_rtx_does_not_serve_runs_nothing(
    rtx: TensorRT, capability: str, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("Stand-in", capability, "13.0"))
    reason = rtx.executable()
    assert (reason is None) == served and rtx.available() is None
    assert served or str(reason).endswith(f"and this machine's Stand-in is {capability}")


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("wheels", "driver", "served"),
    [
        (("cu13",), "13.0", True),
        (("cu13",), "12.9", False),
        (("cu12",), "12.2", True),
        (("cu12", "cu13"), "12.9", True),  # one of both is what is imported
        ((), "12.9", True),  # of another origin, it does not tell
    ],
)
def test_a_driver_that_is_too_old_runs_nothing(
    flavour: str, wheels: tuple[str, ...], driver: str, served: bool, rtx: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {f"{flavour}-{name}" for name in wheels}
    monkeypatch.setattr(_targets, "installed_version", lambda name: "1.0" if name in installed else None)
    reason = _targets.unserved(flavour, replace(GPU, driver=driver))
    assert (reason is None) == served
    too_old = f"the driver is too old: it is for CUDA {driver}, and {flavour} for CUDA 13; install a newer driver"
    assert served or reason == too_old


def test_a_library_that_is_there_and_cannot_be_imported_runs_nothing(
    rtx: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libcudart.so.13: cannot open shared object file\nat length")

    monkeypatch.setattr(_targets.importlib, "import_module", broken)
    said = "tensorrt-rtx cannot be imported: libcudart.so.13: cannot open shared object file"
    assert _targets.unserved("tensorrt-rtx", GPU) == said


@pytest.mark.parametrize(("capability", "served"), [("sm70", False), ("sm75", True), ("sm100", True)])
def test_tensorrt_runs_on_turing_and_later(capability: str, served: bool) -> None:
    reason = _targets.unserved("tensorrt", replace(GPU, capability=capability))
    said = f"tensorrt runs on sm75 and later, and this machine's {GPU.name} is {capability}"
    assert reason == (None if served else said)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_a_library_that_is_not_installed_runs_nothing(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "probe", lambda: GPU)
    monkeypatch.setattr("mlpdeploy.engine.backends.tensorrt.missing", lambda module, install: f"{module} is missing")
    module = flavour.replace("-", "_")
    assert backends()[flavour].executable() == backends()[flavour].available() == f"{module} is missing"


def test_what_the_builder_refuses_is_told_in_its_own_words(rtx: TensorRT, tmp_path: Path) -> None:
    ports = {"x": (TensorProto.FLOAT, ["n", 4]), "z": (TensorProto.FLOAT, [3, 4])}, {"y": (TensorProto.FLOAT, ["n", 4])}
    model = graph_model([helper.make_node("Add", ["x", "z"], ["y"], name="sum")], *ports)
    with pytest.raises(BuildError, match="TensorRT cannot build the network: ") as raised:
        rtx.build(Emitted(model, emitted("fp32").typed), BuildRequest("fp32", Batch(1, 2, 4)), tmp_path, Silent())
    assert "Invalid Engine" not in str(raised.value).splitlines()[0]


def test_local_functions_build_at_every_precision(rtx: TensorRT, tmp_path: Path) -> None:
    typed = emitted("fp16").typed
    facts = rtx.build(Emitted(projections(), typed), BuildRequest("fp16", BATCH), tmp_path, Silent()).facts
    assert [body["node"] for body in facts["parsed"]["bodies"]] == ["blocks.0/height", "blocks.1/height"]
    assert parse(projections()).facts() == facts["parsed"]


def load(rtx: TensorRT, folder: Path, facts: dict[str, Any]) -> None:
    with rtx.load(folder / "engine.plan", facts):
        pass


def test_another_gpu_is_refused_naming_both(rtx: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = build(rtx, tmp_path, gpus=("sm75", "sm86"))
    monkeypatch.setattr(nvidia, "probe", lambda: GPU)
    with pytest.raises(ArtifactError, match=r"built for sm75, sm86 and this machine's Stand-in 4090 is sm89") as raised:
        load(rtx, tmp_path, facts)
    assert "--gpu sm89" in str(raised.value)


@pytest.mark.parametrize("tuned", ["NVIDIA L4", GPU.name])
def test_an_engine_that_a_sister_of_this_gpu_was_tuned_on_is_warned_of(
    rtx: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned: str
) -> None:
    if rtx.executable() is None:
        pytest.skip("the engine can be loaded here")
    facts = build(rtx, tmp_path) | {"gpu": tuned, "gpus": ["sm89"]}
    monkeypatch.setattr(nvidia, "probe", lambda: GPU)
    with warnings.catch_warnings(record=True) as told, pytest.raises(ArtifactError, match="TensorRT cannot load"):
        warnings.simplefilter("always")
        load(rtx, tmp_path, facts)
    said = [str(one.message) for one in told if one.category is TunedElsewhere]
    assert [line.endswith("this machine has Stand-in 4090: build it again here to be fast") for line in said] == (
        [True] if tuned == "NVIDIA L4" else []
    )


@pytest.mark.parametrize(
    ("name", "gpus", "for_it"),
    [
        ("tensorrt", (), True),
        ("torch-tensorrt", (), True),
        ("tensorrt-rtx", ("sm86",), False),
        ("tensorrt-rtx", ("current",), True),
        ("inductor", (), False),
        ("inductor", ("current",), True),
        ("openvino", (), False),
    ],
)
def test_engines_for_one_gpu_lie_in_a_folder_of_its_name(
    name: str, gpus: tuple[str, ...], for_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "probe", lambda: GPU)
    backend = backends()[name]
    assert backend.gpu(gpus) == (GPU if for_it else None)
    behind = "@stand-in-4090" if for_it else "@sm86" if gpus else ""
    assert folder_of(Selection("vip_s", backend=name, gpus=gpus), backend).name == name + behind


def test_a_missing_library_is_what_the_machine_lacks(
    rtx: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = build(rtx, tmp_path)
    monkeypatch.setattr(TensorRT, "versions", lambda self: {"tensorrt_rtx": "none"})
    with pytest.raises(MachineLacks, match=r"needs tensorrt_rtx \d.*not installed"):
        load(rtx, tmp_path, facts)


def test_an_engine_that_tensorrt_refuses_is_no_crash(
    rtx: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if rtx.executable() is None:
        pytest.skip("the engine can be loaded here")
    facts = build(rtx, tmp_path)
    monkeypatch.setattr(nvidia, "probe", lambda: GPU)  # as if the driver were there: TensorRT itself must refuse
    with pytest.raises(ArtifactError, match=r"TensorRT cannot load .*engine.plan: "):
        load(rtx, tmp_path, facts)
    assert capfd.readouterr() == ("", "")
