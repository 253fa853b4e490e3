"""Weights of INT4 in blocks: how they are made, what every engine makes of them, and what stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from mlpdeploy import pipeline
from mlpdeploy.engine.backend import BuildRequest, backends, pick
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.forms import fill_ranks, flatten_rows
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.errors import BuildError, InputError
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.precision.plan import plan, require_codes
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate, outputs
from mlpdeploy.graph.quantisation.codes import FP8, INT4, block_of, coded_blocks
from mlpdeploy.graph.quantisation.sites import sites
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.selection import Selection
from mlpdeploy.terminal.cli import main
from mlpdeploy.zoo.vip import VisionPermutator
from tests.engine.backends.test_coded import Silent, nodes

SHAPE = (3, 64, 64)


class Small(nn.Module):
    """A ViP block whose branches contract segments, token mixing from the left, a narrow product, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vip = VisionPermutator(
            layers=(1,), dims=(128,), segments=(16,), transitions=(False,), patch_size=4, image_size=64, in_chans=3,
            num_classes=64,
        )  # fmt: skip
        self.tokens, self.narrow, self.last = nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 32)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.tokens(x[:, 0].transpose(1, 2)).transpose(1, 2)
        logits: torch.Tensor = self.last(self.narrow(self.vip(x + mixed[:, None])))
        return logits


def rows(count: int = 6) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float32)}


@pytest.fixture(scope="module")
def files() -> dict[str, Emitted]:
    """The file by the precision of what is no weight of INT4."""
    graph = rewrite(trace(Small().eval(), [TensorSpec("input", SHAPE, torch.float32)]))
    return {beside: emit(apply(graph, plan(graph, "int4", beside=beside))) for beside in ("fp32", "fp16")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("inputs", [128, 384, 192, 64])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_block_has_the_scale_that_loses_least(axis: int, inputs: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((24, inputs)) * np.exp(rng.standard_normal((24, 1)))
    matrix[3] = 0
    matrix[4, 0] = 30.0
    given = torch.from_numpy(matrix if axis == 1 else matrix.T)
    codes, scales = coded_blocks(given, axis, dtype)
    block = {128: 128, 384: 128, 192: 64, 64: 64}[inputs]
    assert codes.shape == given.shape and scales.shape[axis] == inputs // block and scales.dtype == dtype
    assert int(codes.min()) >= -7 and int(codes.max()) <= 7 and codes.is_contiguous()
    decoded = custom_ops.dequantise_blocks(codes, scales.double(), axis, block).numpy()
    errors = ((decoded if axis == 1 else decoded.T) - matrix).reshape(24, -1, block)
    wide = matrix.reshape(24, -1, block)
    for share in (1.0, 0.85, 0.7):
        step = np.maximum(share * np.abs(wide).max(-1, keepdims=True) / 7, 1e-30)
        plain = np.clip(np.round(wide / step), -7, 7) * step - wide
        assert ((errors**2).sum(-1) <= (plain**2).sum(-1) * (1 + 1e-2) + 1e-30).all()
    assert not errors[3].any()


def test_blocks_divide_what_they_are_of() -> None:
    assert [block_of(inputs) for inputs in (128, 256, 64, 192, 768, 196, 63, 32)] == [
        128, 128, 64, 64, 128, None, None, None
    ]  # fmt: skip


def test_what_takes_blocks_and_why_the_rest_does_not() -> None:
    graph = rewrite(trace(Small().eval(), [TensorSpec("input", SHAPE, torch.float32)]))
    found = sites(graph.module, INT4)
    assert len(found.found) >= 6 and all(site.activation == 0 for site in found.found.values())
    reasons = {found.modules[name]: reason for name, reason in found.refused.items()}
    assert (
        "left of the activation" in reasons["tokens"]
        and "input channels make no blocks of 128 or 64" in reasons["last"]
    )
    assert any("convolution" in reason for reason in reasons.values())
    planned = plan(graph, "int4", beside="fp16")
    assert planned.weights.keys() == found.found.keys() and not planned.quantised
    small = rewrite(trace(nn.Linear(32, 32).eval(), [TensorSpec("input", (32,), torch.float32)]))
    with pytest.raises(InputError, match="takes INT4: its 32 input channels make no blocks of 128 or 64; build"):
        require_codes(small, plan(small, "int4"))
    require_codes(small, plan(small, "fp16"))


class Rafts(nn.Module):
    """A RaftMLP's vertical mixing of (b, h, w, (r o)), which contracts h and r, and a product over channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rafts, self.channels = nn.Linear(2 * 64, 128), nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.rafts(x.unflatten(3, (2, 64)).permute(0, 2, 4, 3, 1).flatten(3))
        mixed = mixed.unflatten(3, (2, 64)).permute(0, 4, 1, 3, 2).flatten(3)
        logits: torch.Tensor = self.channels(x + mixed)
        return logits


def test_segments_in_front_of_a_trailing_axis_are_multiplied_from_the_left() -> None:
    """TensorRT-RTX 1.7 ends with a segmentation fault where such a weight lies in blocks."""
    graph = rewrite(trace(Rafts().eval(), [TensorSpec("input", (64, 5, 128), torch.float32)]))
    assert any(node.target is custom_ops.SEGMENT_GROUPED_PROJECTION for node in graph.module.graph.nodes)
    found = sites(graph.module, INT4)
    assert [site.module for site in found.found.values()] == ["channels"]
    (reason,) = found.refused.values()
    assert reason == "its weight lies left of the activation, of which TensorRT reads no blocks"
    assert len(sites(graph.module, FP8).found) == 2


@pytest.mark.parametrize("beside", ["fp32", "fp16"])
def test_the_file_holds_two_codes_in_a_byte(files: dict[str, Emitted], beside: str) -> None:
    model = files[beside].model
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    decoded = [node for node in nodes(model, "DequantizeLinear")]
    assert len(decoded) == len(files[beside].typed.quantised)
    for node in decoded:
        codes, scales = (tensors[name] for name in node.input)
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        axis, block = attributes["axis"], attributes["block_size"]
        assert codes.data_type == TensorProto.INT4 and len(codes.raw_data) == np.prod(codes.dims) // 2
        assert codes.dims[axis] == scales.dims[axis] * block and block in (64, 128)
    assert [one.version for one in model.opset_import if not one.domain] == [21]
    assert model.functions and all(one.opset_import[0].version == 21 for one in model.functions)
    made = {name for node in decoded for name in node.output}
    assert not any(made & set(node.input) for node in nodes(model, "Transpose"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_activations_stay_as_they_are_on_a_cpu(files: dict[str, Emitted], name: str, tmp_path: Path) -> None:
    """Both engines would make 8-bit codes of them, by themselves."""
    emitted, backend = files["fp32"], backends()[name]
    assert backend.beside("int4") == "fp32"
    built = backend.build(emitted, BuildRequest("int4", Batch(1, 2, 8), threads=1), tmp_path, Silent())
    expected = outputs(emitted.typed.module, rows(), emitted.typed.inputs)
    with backend.load(built.engine, built.facts) as run:
        found = run(rows())["output"]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    by_file = onnx_run(emitted.model, 1)(rows())["output"]
    assert np.abs(by_file - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_tensorrt_reads_the_weights(files: dict[str, Emitted], tmp_path: Path) -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    emitted = files["fp16"]
    count = len(emitted.typed.quantised)
    request = BuildRequest("int4", Batch(1, 2, 8))
    built = backend.build(emitted, request, tmp_path, Silent())
    assert built.facts["executed"].startswith(f"HALF, {count} of ") and built.facts["parsed"]["coded"] == count
    model = onnx.ModelProto()
    model.CopyFrom(emitted.model)
    decoder = nodes(model, "DequantizeLinear")[-1]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    shape = tuple(tensors[decoder.input[0]].dims)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float16), "whole"))
    for node in model.graph.node:
        node.input[:] = ["whole" if name == decoder.output[0] else name for name in node.input]
    model.graph.node.remove(decoder)
    broken = Emitted(model, emitted.typed, emitted.fp32_nodes, emitted.quantised_nodes)
    with pytest.raises(BuildError, match=f"1 of {count} products would not compute with INT4 codes"):
        backend.build(broken, request, tmp_path, Silent())


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_weight_that_several_products_read_is_held_once(precision: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.linear(self.linear(x).relu()).relu())

    torch.manual_seed(0)
    given = {"input": np.random.default_rng(0).standard_normal((3, 16, 64)).astype(np.float32)}
    graph = rewrite(trace(Tied().eval(), [TensorSpec("input", (16, 64), torch.float32)]))
    quantisation = calibrate(graph, given, "max", equalising=False) if precision == "int8" else None
    emitted = emit(apply(graph, plan(graph, precision, quantisation=quantisation, beside="fp32")))
    kinds = (TensorProto.INT8, TensorProto.INT4)
    held = [tensor for tensor in emitted.model.graph.initializer if tensor.data_type in kinds and len(tensor.dims) == 2]
    assert len(held) == 1 and len(emitted.typed.quantised) == 3
    expected = outputs(emitted.typed.module, given, emitted.typed.inputs)
    found = onnx_run(emitted.model, 1)(given)["output"].reshape(3, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beside", ["fp32", "fp16"])
def test_what_says_where_to_look_keeps_its_weights(beside: str) -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.where, self.head = nn.Linear(64, 32), nn.Linear(64, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            places = self.where(x.mean((2, 3))).reshape(-1, 4, 4, 2).tanh()
            seen = nn.functional.grid_sample(x, places, align_corners=False)
            logits: torch.Tensor = self.head(seen.mean((2, 3)))
            return logits

    torch.manual_seed(0)
    graph = rewrite(trace(Looking().eval(), [TensorSpec("input", (64, 8, 8), torch.float32)]))
    planned = plan(graph, "int4", beside=beside)
    assert [site.module for site in planned.weights.values()] == ["head"]


def test_rows_are_matrices_around_blocks_too() -> None:
    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

    torch.manual_seed(0)
    graph = rewrite(trace(Channels().eval(), [TensorSpec("input", (16, 64), torch.float32)]))
    model = emit(apply(graph, plan(graph, "int4", beside="fp32"))).model
    prepared = fill_ranks.rewrite(model)[0]
    flat, count = flatten_rows.rewrite(prepared)
    assert count == 2 and len(nodes(flat, "Reshape")) >= 2
    given = {"input": np.random.default_rng(0).standard_normal((3, 16, 64)).astype(np.float32)}
    (before,), (after,) = (onnx_run(one, 1)(given).values() for one in (model, flat))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_engine_of_int4_weights_is_built_proved_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, given = "tests.engine.backends.test_int4:Small", {"batch": "1:2:3", "input_shape": SHAPE}
    chosen = Selection(name, "int4", "openvino", out=tmp_path, **given)  # type: ignore[arg-type]
    artifact = pipeline.build(chosen)
    coded = artifact.manifest["coded_weights"]
    assert coded["blocks"] == [64, 128] and artifact.manifest["quantised"] is None
    assert 0.5 < coded["share_of_weights"] < 1 and coded["sites"] + len(coded["refused"]) == coded["of_products"]
    report = (artifact.folder / "report.md").read_text(encoding="utf-8")
    assert "## INT4" in report and "in blocks of 64 and 128; activations and all else FP32" in report
    verification = pipeline.verify(chosen)
    stages = {stage.name: stage for stage in verification.stages}
    assert [stage.status for stage in verification.stages] == ["passed"] * 8, verification.verdict()
    # What codes lose is allowed to the typed graph alone: behind it nothing may be lost.
    allowed = [stages[stage].budget.max_relative_error for stage in stages if stages[stage].budget]
    assert allowed[-3:] == [0.3, 1e-5, 1e-5]
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(artifact.folder), "--json"])
    assert not left.value.code
    assert json.loads(capsys.readouterr().out)["manifest"]["coded_weights"] == coded


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--calibration", "digits"], "--calibration is for --precision int8, fp8 and nvfp4, not for int4"),
     (["--backend", "inductor"], "backend inductor has no INT4")],
)  # fmt: skip
def test_int4_takes_no_calibration_and_not_every_engine(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["build", "mixer_s32", "--precision", "int4", *options])
    error = capsys.readouterr().err
    assert left.value.code == 2 and message in error and "Traceback" not in error
    assert pick("onnxruntime", "int4").beside("int4") == "fp32"
