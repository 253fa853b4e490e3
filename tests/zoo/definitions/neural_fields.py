"""CAM (arXiv 2311.14993, equations 3 to 5) and the networks of FreSh (arXiv 2410.05779, section 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, relu, standardised

OMEGA, SIGMA = 30, 10


def outputs(name: str, keys: Keys, points: Tensor) -> Tensor:
    """Points (n, 1) or (n, 2) to values (n, 1) or colours (n, 3)."""
    if name.startswith("cam_image"):
        return _image(keys, points)
    if name.startswith("cam_1d"):
        return _line(keys, points)
    layers = (keys / "_net").each()
    kind = {"fresh_siren": _siren, "fresh_fourier": _fourier, "fresh_finer": _finer, "fresh_wire": _wire}[name]
    return kind(layers, points)


def _image(keys: Keys, points: Tensor) -> Tensor:
    angles = SIGMA * points @ (keys / "pos_enc")["proj"]
    h = torch.cat([torch.sin(angles), torch.cos(angles)], 1)
    for layer in (keys / f"FC_{index}" for index in range(3)):
        h = (layer / "linear").linear(h)
        if "affine" in layer:
            gamma, beta = (_between(grid, points) for grid in layer["affine"][0])
            h = gamma * standardised(h, 1, 1e-5) + beta
        h = relu(h)
    return torch.sigmoid((keys / "FC_final" / "linear").linear(h))


def _line(keys: Keys, points: Tensor) -> Tensor:
    h = points
    if "time_encoder" in keys:
        octaves = points * 2.0 ** torch.arange(16)
        h = torch.cat([points, torch.sin(octaves), torch.sin(octaves + math.pi / 2)], 1)
    place = torch.cat([torch.zeros_like(points), points], 1)
    for index, layer in enumerate((keys / "net").each()):
        h = layer.linear(h)
        if "affine" in keys:
            gamma, beta = (_between(grid, place) for grid in (keys / "affine")[str(index)][0])
            h = gamma * h + beta
    return (keys / "net_last").linear(h)


def _between(grid: Tensor, places: Tensor) -> Tensor:
    """Of a grid (h, w) at places (n, 2) in [0, 1], x along w: corners are nodes, between nodes it is bilinear."""
    weights = []
    for axis, size in ((1, grid.shape[0]), (0, grid.shape[1])):
        at = places[:, axis, None] * (size - 1)
        weights.append(relu(1 - (torch.arange(size) - at).abs()))
    return torch.einsum("nh,nw,hw->n", *weights, grid)[:, None]


def _siren(layers: list[Keys], h: Tensor) -> Tensor:
    for layer in layers[:-1]:
        h = torch.sin((layer / "linear").linear(OMEGA * h))
    return (layers[-1] / "linear").linear(OMEGA * h)


def _fourier(layers: list[Keys], points: Tensor) -> Tensor:
    angles = 2 * math.pi * points @ layers[0]["b"].mT
    h = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
    for layer in layers[1:-1]:
        h = relu(layer.linear(h))
    return layers[-1].linear(h)


def _finer(layers: list[Keys], h: Tensor) -> Tensor:
    for layer in layers[:-1]:
        u = (layer / "linear").linear(h)
        h = torch.sin(OMEGA * (u.abs() + 1) * u)
    return layers[-1].linear(h)


def _wire(layers: list[Keys], points: Tensor) -> Tensor:
    h = points.to(torch.complex128)
    for layer in layers[:-1]:
        linear = layer / "linear"
        u = h @ linear["weight"].to(h.dtype).mT + linear["bias"]
        h = torch.exp(1j * layer["omega_0"] * u - (layer["scale_0"] * u).abs().square())
    return (h @ layers[-1]["weight"].to(h.dtype).mT + layers[-1]["bias"]).real / 2 + 0.5
