"""What is particular to the CPU engines: what they executed, their input and output dtypes, their threads."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from mlpdeploy.engine import nvidia, programs
from mlpdeploy.engine.backend import Backend, BuildRequest, Built, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.errors import ArtifactError, BuildError, MachineLacks
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.engine.small_networks import emitted, graph_model, images

GPU = nvidia.Gpu("NVIDIA L4", "sm89", "13.0")


class Silent:
    def step(self, phase: str, done: int, total: int) -> None: ...


def engine(
    name: str, given: Emitted, precision: str, folder: Path, threads: int | None = None
) -> tuple[Backend, Built]:
    backend = backends()[name]
    if backend.available() is not None:
        pytest.skip(f"{name}: {backend.available()}")
    return backend, backend.build(given, BuildRequest(precision, Batch(1, 2, 8), threads=threads), folder, Silent())


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x + x * 0.5,)


def low_ends(dtype: torch.dtype) -> Emitted:
    """y = x + x / 2 with inputs and outputs of a low precision."""
    kind = {torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16}[dtype]
    half = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", kind, [], [0.5]))
    nodes = [half, helper.make_node("Mul", ["x", "c"], ["h"]), helper.make_node("Add", ["x", "h"], ["y"])]
    model = graph_model(nodes, {"x": (kind, ["n", 6])}, {"y": (kind, ["n", 6])})
    batch = torch.export.Dim("batch", min=1, max=64)
    sample = torch.zeros(2, 6, dtype=dtype)
    module = torch.export.export(Double(), (sample,), dynamic_shapes=({0: batch},)).module()
    precision = "fp16" if dtype is torch.float16 else "bf16"
    specs = (TensorSpec("x", (6,), dtype),), (TensorSpec("y", (6,), dtype),)
    return Emitted(model, Typed(module, precision, *specs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "inductor"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inputs_and_outputs_of_low_precision(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    given = low_ends(dtype)
    backend, built = engine(name, given, given.typed.precision, tmp_path)
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype is torch.bfloat16 else np.float16)
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(numpy_dtype)
    with backend.load(built.engine, built.facts) as run:
        y = run({"x": x})["y"]
    assert y.dtype == numpy_dtype
    step = float(ml_dtypes.finfo(numpy_dtype).eps)
    assert np.allclose(y.astype(np.float64), x.astype(np.float64) * 1.5, rtol=2 * step, atol=0)


def test_openvino_never_runs_an_fp32_network_in_less(tmp_path: Path) -> None:
    _, built = engine("openvino", emitted("fp32"), "fp32", tmp_path)
    assert built.facts["executed"] == "f32"
    assert "FullyConnected" in built.facts["executed_by_type"]


@pytest.mark.slow
def test_openvino_says_what_it_ran_for_the_low_precisions(tmp_path: Path) -> None:
    for precision, allowed in (("fp16", {"f32", "f16"}), ("bf16", {"f32", "bf16"})):
        _, built = engine("openvino", emitted(precision), precision, tmp_path)
        assert set(built.facts["executed_by_type"]["FullyConnected"]) <= allowed
        assert set(built.facts["executed"].split("+")) <= allowed


def test_openvino_refuses_a_blob_of_another_cpu(tmp_path: Path) -> None:
    backend, built = engine("openvino", emitted("fp32"), "fp32", tmp_path)
    with pytest.raises(ArtifactError, match="compiled for the CPU Z80 and this one is"):
        with backend.load(built.engine, {**built.facts, "cpu": "Z80"}):
            pass


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_model_that_the_engine_does_not_know_is_one_line_and_no_file(name: str, tmp_path: Path) -> None:
    model = graph_model(
        [helper.make_node("Relu", ["x"], ["y"], name="odd")],
        {"x": (TensorProto.FLOAT, ["n"])},
        {"y": (TensorProto.FLOAT, ["n"])},
    )
    model.graph.node[0].op_type = "NoSuchOperation"
    with pytest.raises(BuildError) as raised:
        engine(name, Emitted(model, emitted("fp32").typed), "fp32", tmp_path)
    assert "NoSuchOperation" in str(raised.value).splitlines()[0] and not list(tmp_path.iterdir())


def test_the_onnxruntime_engine_is_a_portable_onnx_file(tmp_path: Path) -> None:
    for precision in ("fp32", "fp16", "bf16"):
        _, built = engine("onnxruntime", emitted(precision), precision, tmp_path)
        onnx.checker.check_model(onnx.load(built.engine), full_check=True)
        assert ("every result rounded" in built.facts["executed"]) == (precision != "fp32")


class Ids(torch.nn.Module):
    """Ids of two fields, which have rows of their own in one table: integers are added."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(8, 3)
        self.register_buffer("first", torch.tensor([0, 5]))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.table(ids + self.first).flatten(1))
        return found


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_integers_are_added_in_an_fp32_engine(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Ids().eval().requires_grad_(False)
    rewritten = rewrite(trace(network, [TensorSpec("ids", (2,), torch.int64, 0, 4)]))
    given = emit(apply(rewritten, plan(rewritten, "fp32")))
    backend, built = engine(name, given, "fp32", tmp_path)
    ids = np.array([[0, 1], [3, 2], [1, 3]])
    with backend.load(built.engine, built.facts) as run:
        (found,) = run({"ids": ids}).values()
    assert np.allclose(found, network(torch.from_numpy(ids)).numpy(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_inductor_gives_pytorchs_threads_back(tmp_path: Path) -> None:
    given = low_ends(torch.float16)
    backend, built = engine("inductor", given, "fp16", tmp_path, threads=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with backend.load(built.engine, built.facts) as run:
            run({"x": np.ones((2, 6), np.float16)})
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_inductor_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    reason = backends()["inductor"].available()
    assert reason is not None and "install g++" in reason and backends()["inductor"].executable() is None


def test_inductor_builds_for_the_gpu_that_is_here_or_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends()["inductor"]
    assert "not for sm86: --gpu current" in (backend.supports("fp16", ("sm86",)) or "")
    monkeypatch.setattr(nvidia, "probe", lambda: "no NVIDIA GPU")
    with pytest.raises(MachineLacks, match=r"^--gpu current means this machine's GPU: no NVIDIA GPU$"):
        backend.supports("fp16", ("current",))
    monkeypatch.setattr(nvidia, "probe", lambda: GPU)
    monkeypatch.setattr(programs, "unserved", lambda gpu: None)
    assert backend.supports("fp16", ("current",)) is None and backend.without_gpu() is None
    assert "no INT8" in (backend.supports("int8", ("current",)) or "")


@pytest.mark.parametrize(
    ("cuda", "gpu", "said"),
    [
        ("13.0", GPU, None),
        (None, GPU, "was built without CUDA"),
        ("13.0", replace(GPU, driver="12.8"), "the driver is too old: it is for CUDA 12.8, and PyTorch"),
        ("12.8", replace(GPU, driver="12.4"), None),  # of one major version each driver serves
        ("13.0", replace(GPU, capability="sm70"), "has code for sm75, sm80, sm100a, and this machine"),
        ("13.0", replace(GPU, capability="sm90"), "sm90"),
        ("13.0", replace(GPU, capability="sm103"), None),
    ],
)
def test_a_gpu_that_pytorch_does_not_serve_is_what_the_machine_lacks(
    cuda: str | None, gpu: nvidia.Gpu, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_100a", "compute_100"])
    monkeypatch.setattr(nvidia, "probe", lambda: gpu)
    backend = backends()["inductor"]
    reason = backend.without_gpu()
    assert (reason is None) == (said is None) and (said or "") in (reason or "")
    assert backend.executable() is None and backend.supports("fp16") is None  # on the CPU
    if reason is None:
        assert backend.supports("fp16", ("current",)) is None
        return
    with pytest.raises(MachineLacks, match="--gpu current means this machine's GPU: ") as raised:
        backend.supports("fp16", ("current",))
    assert reason in str(raised.value)
    with pytest.raises(MachineLacks, match="was compiled for a GPU: ") as raised:
        next(backend._load(tmp_path / "engine.pt2", None, {"device": "cuda"}).gen)  # type: ignore[attr-defined, arg-type]
    assert reason in str(raised.value)


@pytest.mark.parametrize(("gpus", "moved"), [((), None), (("current",), "cuda:0")])
def test_inductor_moves_the_graph_to_the_gpu_that_was_asked_for(
    gpus: tuple[str, ...], moved: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def move(program: object, device: str) -> object:
        seen.append(device)
        return program

    monkeypatch.setattr("torch.export.passes.move_to_device_pass", move)
    monkeypatch.setattr(programs, "tune", lambda module, batch: seen.append(f"tuned for {batch}"))

    def compiled(program: object, package_path: str, **options: object) -> None:
        warnings.warn("Inductor uses what is deprecated", FutureWarning, stacklevel=1)  # as torch 2.11's does
        Path(package_path).write_bytes(b"package")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compiled)
    monkeypatch.setattr(nvidia, "probe", lambda: GPU)
    monkeypatch.setattr(programs, "unserved", lambda gpu: None)
    given = low_ends(torch.float16)
    built = backends()["inductor"].build(given, BuildRequest("fp16", Batch(1, 2, 4), gpus), tmp_path, Silent())
    assert seen == ([] if moved is None else ["tuned for 2", moved])
    assert built.facts["device"] == ("cuda" if moved else "cpu")


@pytest.mark.slow
def test_inductor_compiles_our_own_operation(tmp_path: Path) -> None:
    from mlpdeploy.graph import custom_ops

    class Projects(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (custom_ops.segment_grouped_projection(x, self.weight, 4).relu(),)

    network, x = Projects(), torch.randn(3, 4, 5, 2)
    batch = torch.export.Dim("batch", min=1, max=64)
    module = torch.export.export(network, (x,), dynamic_shapes=({0: batch},)).module()
    specs = (TensorSpec("x", (4, 5, 2), torch.float32),), (TensorSpec("y", (4, 5, 2), torch.float32),)
    given = Emitted(emitted("fp32").model, Typed(module, "fp32", *specs))
    backend, built = engine("inductor", given, "fp32", tmp_path)
    with backend.load(built.engine, built.facts) as run, torch.no_grad():
        assert np.allclose(run({"x": x.numpy()})["y"], network(x)[0].numpy(), atol=1e-5)


def test_rows_of_a_batch_are_computed_alone(tmp_path: Path) -> None:
    backend, built = engine("onnxruntime", emitted("fp32"), "fp32", tmp_path, threads=2)
    with backend.load(built.engine, built.facts) as run:
        rows = run({"image": images(5).numpy()})["logits"]
        alone = np.concatenate([run({"image": images(5)[i : i + 1].numpy()})["logits"] for i in range(5)])
    assert np.allclose(rows, alone, atol=1e-5)
