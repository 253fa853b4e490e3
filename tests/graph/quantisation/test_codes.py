"""The numbers of 8 bits: against other implementations of them, at ties and ends."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.quantisation.codes import FP8, INT8, Codes, channel_scales, coded

EVERY = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
FINITE = np.unique(EVERY[np.isfinite(EVERY)])
TIES = (FINITE[1:] + FINITE[:-1]) / 2


def test_fp8_is_rounded_to_even_as_ml_dtypes_does_and_saturated_where_it_gives_no_number() -> None:
    given = np.concatenate([FINITE, TIES, np.random.default_rng(0).normal(0, 60, 10_000), [449.0, 1e9, -1e9]])
    found = FP8.rounded(torch.from_numpy(given)).double().numpy()
    assert np.array_equal(found, np.clip(given, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64))
    assert np.array_equal(found[: len(FINITE)], FINITE) and np.abs(found).max() == FP8.largest


def test_int8_has_as_many_codes_below_zero_as_above() -> None:
    found = INT8.rounded(torch.tensor([0.5, 1.5, -0.5, 126.5, 127.5, -127.5, -500.0], dtype=torch.float64))
    assert found.tolist() == [0, 2, 0, 126, 127, -127, -127]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("codes", [INT8, FP8], ids=["int8", "fp8"])
def test_an_activation_gets_the_codes_that_onnx_runtime_gives_it(codes: Codes, dtype: torch.dtype) -> None:
    number, code = helper.np_dtype_to_tensor_dtype(np.dtype(str(dtype)[6:])), _TENSOR[codes.name]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    scale = 2.0**-6  # a power of two, so that ties are exact
    tensors = [helper.make_tensor("scale", number, [], [scale]), helper.make_tensor("zero", code, [], [0])]
    ports = [helper.make_tensor_value_info(name, number, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    units = np.concatenate([FINITE, TIES, np.arange(-300, 300) / 2, [0.0, -0.0, 6e4, -6e4]])
    given = torch.from_numpy(units * scale).to(dtype)
    one = torch.tensor(scale, dtype=dtype)
    ours = custom_ops.dequantise(custom_ops.quantise(given, one, codes.dtype), one, 0)
    assert torch.equal(ours, torch.from_numpy(session.run(None, {"x": given.numpy()})[0]))


_TENSOR = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


@pytest.mark.parametrize("codes", [INT8, FP8], ids=["int8", "fp8"])
def test_the_error_of_a_code_is_what_equalisation_takes_it_for(codes: Codes) -> None:
    magnitudes = 2.0 ** np.random.default_rng(0).uniform(-4, np.log2(codes.largest), 200_000)
    errors = (codes.rounded(torch.from_numpy(magnitudes)).double().numpy() - magnitudes) ** 2
    found = (errors / magnitudes**2).mean() if codes.share else errors[magnitudes > 1].mean()
    assert found == pytest.approx(codes.share or codes.step**2 / 12, rel=0.03)
    smallest = np.random.default_rng(0).uniform(0, 6 * codes.step, 100_000)
    errors = (codes.rounded(torch.from_numpy(smallest)).double().numpy() - smallest) ** 2
    assert errors.mean() == pytest.approx(codes.step**2 / 12, rel=0.03)


@pytest.mark.parametrize("codes", [INT8, FP8], ids=["int8", "fp8"])
def test_levels_number_the_magnitudes_in_order(codes: Codes) -> None:
    for bins in (128, 129, 2048):
        found = codes.levels(bins)
        assert len(found) == bins and (np.diff(found) >= 0).all()
        assert found[0] <= 64 and found[-1] == (127 if codes is INT8 else 126)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("codes", [INT8, FP8], ids=["int8", "fp8"])
def test_a_weight_keeps_its_largest_number_of_each_channel(codes: Codes, dtype: torch.dtype) -> None:
    matrix = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 24)[:, None]
    matrix[5] = 0
    scales = channel_scales(matrix, 0, dtype, codes)
    found = coded(matrix, scales, 0, codes)
    assert found.dtype == codes.dtype and (scales > 0).all() and scales.isfinite().all()
    values = custom_ops.dequantise(found, scales.double(), 0)
    assert torch.equal(values[5], torch.zeros(16, dtype=torch.float64))
    kept = scales > 2.0**-14 if dtype is torch.float16 else scales > 0  # others are rounded up to coarse numbers
    rows = kept & (torch.arange(24) != 5)
    assert torch.allclose(values.abs().amax(1)[rows], matrix.double().abs().amax(1)[rows], rtol=2e-3)
