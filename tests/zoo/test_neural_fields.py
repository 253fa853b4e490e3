"""CAM's and FreSh's neural fields: the mathematics, the authors' checkpoints, what stays in FP32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.network import random_weights
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import load, rewrite_network, trace_network
from mlpdeploy.zoo import cam, fresh
from tests.zoo.official import official
from tests.zoo.proof import prove

FIELDS = (
    "cam_image_cam", "cam_image_ffn", "cam_1d_cam", "cam_1d_cam_pe", "cam_1d_pe", "cam_1d_noenc",
    "fresh_siren", "fresh_fourier", "fresh_finer", "fresh_wire",
)  # fmt: skip


def random(network: nn.Module) -> nn.Module:
    """In float64; a complex parameter stays complex64, which the networks read."""
    random_weights.randomise(network, 1)
    return network.double().eval()


def points(count: int, low: float, dims: int = 2) -> Tensor:
    drawn = torch.rand(count, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return low + (1 - low) * drawn


def bilinear(grid: Tensor, place: Tensor) -> Tensor:
    """Of a grid (h, w) at places (n, 2) in [0, 1], x along w: by hand, node by node."""
    h, w = grid.shape
    found = []
    for x, y in place.tolist():
        x, y = x * (w - 1), y * (h - 1)
        left, top = min(int(x), max(w - 2, 0)), min(int(y), max(h - 2, 0))
        right, bottom = min(left + 1, w - 1), min(top + 1, h - 1)
        above = grid[top, left] * (1 - (x - left)) + grid[top, right] * (x - left)
        below = grid[bottom, left] * (1 - (x - left)) + grid[bottom, right] * (x - left)
        found.append(above * (1 - (y - top)) + below * (y - top))
    return torch.stack(found)[:, None]


def test_modulated_image_is_its_equations() -> None:
    network = random(cam.cam_image_cam())
    assert isinstance(network, cam.ImageField)
    p = points(6, 0.0)
    angles = 10 * p @ network.pos_enc.proj
    h = torch.cat([angles.sin(), angles.cos()], 1)
    for layer in (network.FC_0, network.FC_1, network.FC_2):
        u = layer.linear(h)
        u = (u - u.mean(1, keepdim=True)) / (u.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        h = (bilinear(layer.affine[0, 0], p) * u + bilinear(layer.affine[0, 1], p)).clamp(min=0)
    torch.testing.assert_close(network(p), network.FC_final.linear(h).sigmoid(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("encoded", [False, True])
def test_modulated_line_is_its_equations(encoded: bool) -> None:
    network = random(cam.LineField(encoded))
    assert isinstance(network, cam.LineField)
    p = torch.cat([points(5, 0.0, 1), torch.tensor([[0.0], [1.0]], dtype=torch.float64)])
    octaves = 2.0 ** torch.arange(16)
    h = torch.cat([p, (p * octaves).sin(), (p * octaves).cos()], 1) if encoded else p
    place = torch.cat([torch.zeros_like(p), p], 1)
    for layer, affine in zip(network.net, network.affine, strict=True):
        h = bilinear(affine[0, 0], place) * layer(h) + bilinear(affine[0, 1], place)
    torch.testing.assert_close(network(p), network.net_last(h), rtol=1e-9, atol=1e-9)


def test_points_may_have_an_axis_more() -> None:
    """The authors decode an image as (1, points, 2)."""
    network, p = random(cam.cam_image_cam()), points(6, 0.0)
    torch.testing.assert_close(network(p[None])[0], network(p))


def test_siren_multiplies_what_goes_in() -> None:
    network = random(fresh.fresh_siren())
    h = points(5, -1.0)
    for index in range(5):
        weight, bias = (network.state_dict()[f"_net.{index}.linear.{part}"] for part in ("weight", "bias"))
        h = 30 * h @ weight.mT + bias
        h = h if index == 4 else h.sin()
    torch.testing.assert_close(network(points(5, -1.0)), h, rtol=1e-9, atol=1e-9)


def test_finer_is_its_equation() -> None:
    network = random(fresh.fresh_finer())
    h = points(5, -1.0)
    for index in range(4):
        weight, bias = (network.state_dict()[f"_net.{index}.linear.{part}"] for part in ("weight", "bias"))
        u = h @ weight.mT + bias
        h = (30 * (u.abs() + 1) * u).sin()
    expected = h @ network.state_dict()["_net.4.weight"].mT + network.state_dict()["_net.4.bias"]
    torch.testing.assert_close(network(points(5, -1.0)), expected, rtol=1e-9, atol=1e-9)


def test_fourier_features_are_cosines_first() -> None:
    encoding = fresh.GaussianEncoding().double()
    p = points(5, -1.0)
    angles = 2 * math.pi * torch.einsum("nd,fd->nf", p, encoding.b)
    torch.testing.assert_close(encoding(p), torch.cat([angles.cos(), angles.sin()], 1))


def test_wire_is_its_equation_in_complex_numbers() -> None:
    network = random(fresh.fresh_wire())
    state = network.state_dict()
    h = points(5, -1.0)
    for index in range(4):
        weight, bias = (state[f"_net.{index}.linear.{part}"] for part in ("weight", "bias"))
        u = h.to(torch.complex128) @ weight.to(torch.complex128).mT + bias
        omega, scale = state[f"_net.{index}.omega_0"], state[f"_net.{index}.scale_0"]
        h = torch.exp(1j * omega * u - (scale * u).abs().square())
    last = h @ state["_net.4.weight"].to(torch.complex128).mT + state["_net.4.bias"]
    torch.testing.assert_close(network(points(5, -1.0)), last.real / 2 + 0.5, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FIELDS)
def test_every_parameter_matters(name: str) -> None:
    network = random(getattr(cam if name.startswith("cam") else fresh, name)())
    trained = {key: p.requires_grad_() for key, p in network.named_parameters()}
    loss: Tensor = network(points(2000, 0.0, 1 if "1d" in name else 2)).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert not [key for key, p in trained.items() if p.grad is None or not bool(p.grad.any())]


@pytest.mark.parametrize("name", ["fresh_wire", "cam_1d_cam"])
def test_an_official_checkpoint_loads_from_a_file(name: str, tmp_path: Path) -> None:
    state = official(name).random()
    torch.save(state, tmp_path / "signal.pth")
    loaded = mlpdeploy.reference(name, checkpoint=tmp_path / "signal.pth").state_dict()
    assert all(torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in state.items())


@pytest.mark.parametrize(
    ("name", "products"),
    [("cam_image_cam", 1), ("cam_1d_cam_pe", 0), ("fresh_siren", 1), ("fresh_fourier", 1)],
)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_large_angles_and_places_stay_in_fp32(name: str, products: int, precision: str) -> None:
    selection = Selection(name)
    source = load(selection, Stages())
    rewritten = rewrite_network(trace_network(source, Stages()), selection, Stages())
    kept = {found.node for found in plan(rewritten, precision).kept}
    called = [node for node in rewritten.module.graph.nodes if node.op == "call_function"]
    exact = {"aten::grid_sampler"}
    assert all(node.name in kept for node in called if node.target._schema.name in exact)
    contracting = [node for node in called if node.target._schema.name in ("aten::linear", "aten::matmul", "aten::mm")]
    # Of the products only the one that makes the angles of the points.
    assert [node.name in kept for node in contracting].count(True) == products
    assert len(contracting) >= 4


@pytest.mark.parametrize("name", ["cam_image_cam", "cam_1d_cam", "fresh_siren", "fresh_wire"])
def test_proof(name: str) -> None:
    prove(name)


@pytest.mark.large
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", FIELDS)
def test_proof_of_every_field_in_every_precision(name: str, precision: str) -> None:
    prove(name, precision)


@pytest.mark.parametrize("name", ["fresh_siren", "fresh_wire"])
def test_fresh_checkpoints_hold_the_network_as_a_part(tmp_path: Path, name: str) -> None:
    theirs = official(name).random()
    torch.save({"state_dict": {f"net.{key}": value for key, value in theirs.items()}}, tmp_path / "last.ckpt")
    found = mlpdeploy.reference(name, tmp_path / "last.ckpt").state_dict()
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[key], value) for key, value in theirs.items())
