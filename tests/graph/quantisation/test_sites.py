"""Where INT8 goes and how numbers are rounded to it, against float64; what must not be quantised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate, fake_quantised, outputs, sqnr_db
from mlpdeploy.graph.quantisation.codes import FP8, INT8, channel_scales, coded, storable
from mlpdeploy.graph.quantisation.sites import Quantisation, products, sites
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.zoo.vip import VisionPermutator


class Mixing(nn.Module):
    """One token-mixing and one channel-mixing product."""

    def __init__(self, tokens: int = 16, channels: int = 24) -> None:
        super().__init__()
        self.tokens = nn.Linear(tokens, 20)
        self.channels = nn.Linear(channels, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.channels(self.tokens(x.transpose(1, 2)).transpose(1, 2))
        return mixed


class Patches(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.proj = nn.Conv2d(16, 32, 4, 4, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches: torch.Tensor = self.proj(x)
        return patches


def rewritten(network: nn.Module, *shape: int) -> Rewritten:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return rewrite(trace(network.eval(), [TensorSpec("input", shape, torch.float32)]))


def vip() -> nn.Module:
    return VisionPermutator(
        layers=(1,),
        dims=(32,),
        segments=(8,),
        transitions=(False,),
        patch_size=4,
        image_size=32,
        in_chans=3,
        num_classes=20,
    )


def test_every_kind_of_product_is_found_with_its_own_axis() -> None:
    found = list(sites(rewritten(Mixing(), 16, 24).module, INT8).found.values())
    assert [(site.module, site.activation, site.weight, site.axis, site.channels) for site in found] == [
        ("tokens", 1, 0, 0, (-2,)),
        ("channels", 0, 1, 0, (-1,)),
    ]
    assert [(site.inputs, site.outputs, site.macs) for site in found] == [
        (16, 20, 16 * 20 * 24),
        (24, 32, 20 * 24 * 32),
    ]
    (patch,) = sites(rewritten(Patches(), 16, 8, 8).module, INT8).found.values()
    assert (patch.axis, patch.channels, patch.inputs, patch.macs) == (0, (1,), 256, 256 * 32 * 4)
    graph = sites(rewritten(vip(), 3, 32, 32).module, INT8)
    segments = [site for site in graph.found.values() if site.node.startswith("segment")]
    assert len(segments) == 2 and all((site.axis, site.channels) == (0, (1, 3)) for site in segments)
    # The three branches read one normalised activation, which is quantised once, in front of what rearranges it.
    branches = [site for site in graph.found.values() if site.module.endswith(("mlp_h", "mlp_w", "mlp_c"))]
    assert len(branches) == 3 and len({site.source for site in branches}) == 1


def test_products_that_8_bits_do_not_pay_for_are_refused_with_a_reason() -> None:
    assert list(sites(rewritten(Mixing(15, 24), 15, 24).module, INT8).refused.values()) == [
        "15 input and 20 output channels, where codes pay from 16 on"
    ]
    assert next(iter(sites(rewritten(Mixing(16, 15), 16, 15).module, INT8).found.values())).module == "tokens"
    assert list(sites(rewritten(Patches(groups=4), 16, 8, 8).module, INT8).refused.values()) == [
        "its convolution has groups"
    ]


@pytest.mark.parametrize(("kernel", "places"), [(1, 1), (5, 25), (6, 36), (16, 256)])
def test_convolutions_take_fp8_as_far_as_tensorrt_has_kernels(kernel: int, places: int) -> None:
    network = nn.Sequential(nn.Conv2d(16, 32, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv2d(32, 16, 1))
    graph = rewritten(network, 16, 24, 24).module
    assert [site.module for site in sites(graph, INT8).found.values()] == ["0", "2"]
    taking = sites(graph, FP8)
    assert [site.module for site in taking.found.values()] == (["0", "2"] if places <= 32 else ["2"])
    told = f"its kernel has {places} places, and TensorRT convolves FP8 with up to 32"
    assert list(taking.refused.values()) == ([] if places <= 32 else [told])


def test_what_is_over_sooner_than_its_codes_are_made_takes_none_wherever_it_lies() -> None:
    """Also where it makes the output; and the share is that of all products, those that take no codes too."""

    class Pooled(nn.Module):
        def __init__(self, groups: int) -> None:
            super().__init__()
            self.wide, self.head = nn.Conv2d(64, 64, 3, padding=1, groups=groups), nn.Linear(64, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.wide(x).mean((2, 3)))
            return logits

    for groups in (1, 2):
        found = sites(rewritten(Pooled(groups), 64, 32, 32).module, INT8)
        assert [site.module for site in found.found.values()] == ["wide"] * (groups == 1)
        assert "less than 0.01%" in found.refused[list(found.refused)[-1]]
    found = sites(rewritten(Pooled(1), 64, 6, 6).module, INT8)
    assert [site.module for site in found.found.values()] == ["wide", "head"]


def test_of_several_matrices_each_place_is_multiplied_by_one() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(4, 24, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    (site,) = products(rewritten(Heads(), 4, 16, 24).module).values()
    assert (site.inputs, site.outputs, site.macs) == (24, 32, 4 * 16 * 24 * 32)


def test_a_product_of_two_activations_is_no_site() -> None:
    class Gram(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.transpose(1, 2)

    found = sites(rewritten(Gram(), 16, 24).module, INT8)
    assert not found.found and not found.refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_coded_as_float64_says(dtype: torch.dtype, axis: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((24, 40)) * np.exp(2 * rng.standard_normal((24, 1)))
    matrix[3] = 0
    other = 1 - axis
    scales = channel_scales(torch.from_numpy(matrix).float(), axis, dtype, INT8)
    found = coded(torch.from_numpy(matrix).float(), scales, axis, INT8)
    assert found.dtype == torch.int8 and int(found.min()) >= -127
    step = np.expand_dims(scales.double().numpy(), other)
    largest = np.abs(matrix.astype(np.float32)).max(other, keepdims=True)
    # Never smaller than the exact scale, and larger by no more than the rounding of the dtype.
    assert (step * 127 >= largest * (1 - 1e-7)).all()
    assert (step <= np.maximum(largest / 127 * (1 + 2 * torch.finfo(dtype).eps), 2.0**-23)).all()
    expected = np.clip(np.round(matrix.astype(np.float32).astype(np.float64) / step), -127, 127)
    np.testing.assert_array_equal(found.numpy(), expected)
    decoded = custom_ops.dequantise(found, scales, axis).double().numpy()
    assert (np.abs(decoded - matrix) <= step * (0.5 + 1e-3)).all() or dtype is torch.float16


def test_a_scale_too_small_for_fp16_is_still_a_number_above_zero() -> None:
    tiny = storable(torch.tensor([0.0, 1e-12, 3.1e-8], dtype=torch.float64), torch.float16)
    assert (tiny > 0).all() and tiny.dtype == torch.float16
    assert float(storable(torch.tensor(1 / 3, dtype=torch.float64), torch.float16)) >= 1 / 3


def test_activations_round_to_even_and_saturate() -> None:
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 1e9, -1e9])
    assert custom_ops.quantise(values, torch.tensor(1.0), torch.int8).tolist() == [0, 2, 2, 0, -2, 126, 127, -128]


@pytest.mark.parametrize("side", ["left", "right"])
def test_scales_lie_along_the_output_channels_of_left_and_right_operands(side: str) -> None:
    """Output channels of very different size: with scales along the input channels the small ones would vanish."""
    torch.manual_seed(0)
    size = torch.logspace(0, 4, 32)[:, None]
    matrix = torch.randn(32, 24) * size

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(matrix.clone() if side == "left" else matrix.T.clone())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight @ x if side == "left" else x @ self.weight

    shape = (24, 18) if side == "left" else (18, 24)
    graph = rewrite(trace(Product().eval(), [TensorSpec("input", shape, torch.float32)]))
    rows = {"input": np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)}
    quantisation = calibrate(graph, rows, "max", equalising=False)
    expected = outputs(graph.module, rows, graph.inputs).reshape(4, *((32, 18) if side == "left" else (18, 32)))
    found = outputs(fake_quantised(graph, quantisation), rows, graph.inputs).reshape(expected.shape)
    axis = 1 if side == "left" else 2
    for channel in range(32):
        exact, coded = np.take(expected, channel, axis), np.take(found, channel, axis)
        assert sqnr_db(exact, coded) > 30


def quantised(graph: Rewritten, beside: str, kept: dict[str, str] | None = None) -> Quantisation:
    rows = {"input": np.random.default_rng(0).standard_normal((4, *graph.inputs[0].shape)).astype(np.float32)}
    found = calibrate(graph, rows, "max", equalising=False)
    return Quantisation("int8", found.calibrator, found.thresholds, {}, {}, "", 4, kept=kept or {})


@pytest.mark.parametrize("beside", ["fp32", "fp16"])
def test_the_typed_graph_has_codes_for_both_operands_and_nothing_else(beside: str) -> None:
    graph = rewritten(vip(), 3, 32, 32)
    typed = apply(graph, plan(graph, "int8", quantisation=quantised(graph, beside), beside=beside))
    found = sites(graph.module, INT8).found
    assert typed.precision == "int8" and typed.quantised == found.keys()
    nodes = {node.name: node for node in typed.module.graph.nodes}
    dtype = torch.float16 if beside == "fp16" else torch.float32
    for name, site in found.items():
        decoded = nodes[name].args[site.weight]
        assert decoded.target is custom_ops.DEQUANTISE and decoded.args[2] == site.axis
        assert decoded.args[0].meta["val"].dtype == torch.int8 and decoded.meta["val"].dtype == dtype
        assert nodes[name].meta["val"].dtype == dtype
    quantisers = [node for node in typed.module.graph.nodes if node.target is custom_ops.QUANTISE]
    assert len(quantisers) == len({site.source for site in found.values()})
    # A weight that is held as codes is held as nothing else.
    held = sum(tensor.numel() for tensor in typed.module.state_dict().values() if tensor.dtype != torch.int8)
    coded = sum(tensor.numel() for tensor in typed.module.state_dict().values() if tensor.dtype == torch.int8)
    assert coded == sum(site.inputs * site.outputs for site in found.values()) and held < coded


class Bottleneck(nn.Module):
    """Convolutions of which the second's output is added to what the first reads."""

    def __init__(self, between: nn.Module, last: type[nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.between, self.last = between, last()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        y = self.second(self.first(self.between(x)).relu())
        added: torch.Tensor = (x + self.last(y)).relu()
        return added


@pytest.mark.parametrize("beside", ["fp32", "fp16"])
def test_a_residual_addition_reads_the_codes_that_are_there_for_a_convolution(beside: str) -> None:
    graph = rewritten(Bottleneck(nn.Identity()), 16, 6, 6)
    planned = plan(graph, "int8", quantisation=quantised(graph, beside), beside=beside)
    ((name, (place, _)),) = planned.residuals.items()
    typed = apply(graph, planned).module.graph
    (addition,) = (node for node in typed.nodes if node.name == name)
    decoded = addition.args[place]
    assert decoded.target is custom_ops.DEQUANTISE and addition.args[1 - place].target not in (
        custom_ops.DEQUANTISE,
        custom_ops.QUANTISE,
    )
    # One quantisation serves both.
    (first,) = (node for node in typed.nodes if node.name == "conv2d_default_1" or node.name == "conv2d_padding_1")
    assert first.args[0] is decoded


@pytest.mark.parametrize(
    "network",
    [Bottleneck(nn.ReLU6()), Bottleneck(nn.Identity(), nn.Sigmoid)],
    ids=["the convolution reads something else", "something else is added"],
)
def test_other_additions_read_no_codes(network: nn.Module) -> None:
    graph = rewritten(network, 16, 6, 6)
    assert not plan(graph, "int8", quantisation=quantised(graph, "fp32"), beside="fp32").residuals


def test_an_addition_beside_what_was_kept_out_reads_no_codes() -> None:
    graph = rewritten(Bottleneck(nn.Identity()), 16, 6, 6)
    last = list(sites(graph.module, INT8).found)[-1]
    kept = quantised(graph, "fp32", {last: "too loud"})
    assert not plan(graph, "int8", quantisation=kept, beside="fp32").residuals


def test_what_is_kept_out_of_int8_has_no_codes() -> None:
    graph = rewritten(Mixing(), 16, 24)
    (first, second) = sites(graph.module, INT8).found
    planned = plan(graph, "int8", quantisation=quantised(graph, "fp32", {first: "measured"}), beside="fp32")
    assert list(planned.quantised) == [second]


def test_a_quantisation_survives_json() -> None:
    import json

    found = Quantisation(
        "int8", "mse", {"a": 1.5}, {"b": (1.0, 0.5)}, {"mse": 40.0}, "digits", 3, True, {"c": "measured"}
    )
    assert Quantisation.from_json(json.loads(json.dumps(found.to_json()))) == found
