"""MAXIM: arXiv 2201.02973, section 3, details after the authors' JAX code. In between, tokens are (b, h, w, c)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu_tanh, relu, standardised

STAGES = {"maxim_1s": 1, "maxim_2s": 2, "maxim_3s": 3}
SIZES = (16, 16, 8)
"""Rows and columns of the grid and of the blocks at each level."""


def outputs(name: str, keys: Keys, image: Tensor) -> list[Tensor]:
    """Images (b, 3, h, w) to restored images, stage by stage, of each the smallest first."""
    first = image.permute(0, 2, 3, 1)
    # Of each square the pixel right of and below its middle.
    scales = [first, first[:, 1::2, 1::2], first[:, 2::4, 2::4]]
    resamplers = (keys / f"UpSampleRatio_{number}" / "Conv_0" for number in itertools.count())
    encoded: list[Tensor] = []
    decoded: list[Tensor] = []
    handed: list[Tensor] = []
    results: list[Tensor] = []
    for stage in range(STAGES[name]):
        own, last = f"stage_{stage}_", stage == STAGES[name] - 1
        inputs = [_conv(keys / f"{own}input_conv_{level}", scales[level]) for level in range(3)]
        if stage:
            fused = [keys / f"{own}input_fuse_sam_{level}" for level in range(3)]
            inputs = [_crossed(fused[i], inputs[i], handed[i], SIZES[i], up=False)[0] for i in range(3)]
        x, found = inputs[0], []
        for level in range(3):
            block = keys / f"{own}encoder_block_{level}"
            bridge = _unet_block(block, x, inputs[level], SIZES[level])
            if stage:
                before = encoded[level] + decoded[level]
                bridge = _crossed(block / "cross_gating_block", bridge, before, SIZES[level], up=False)[0]
            found.append(bridge)
            x = _conv(block / "Conv_1", bridge, 2)
        encoded = found
        for number in range(2):
            x = _bottleneck(keys / f"{own}global_block_{number}", x)
        skips, signal = {}, x
        for level in (2, 1, 0):
            gathered = _gathered(resamplers, encoded, level)
            crossing = keys / f"{own}cross_gating_block_{level}"
            skips[level], signal = _crossed(crossing, gathered, signal, SIZES[level], up=True)
        decoded, handed, restored = [x] * 3, [x] * 3, [x] * 3
        for level in (2, 1, 0):
            gathered = _gathered(resamplers, [skips[2], skips[1], skips[0]], level)
            block = keys / f"{own}decoder_block_{level}"
            x = _unet_block(block / "UNetEncoderBlock_0", _grown(block / "ConvTranspose_0", x), gathered, SIZES[level])
            decoded[level] = x
            if last:
                restored[level] = _conv(keys / f"{own}output_conv_{level}", x) + scales[level]
                continue
            attention = keys / f"{own}supervised_attention_module_{level}"
            restored[level] = _conv(attention / "Conv_1", x) + scales[level]
            weights = torch.sigmoid(_conv(attention / "Conv_2", restored[level]))
            handed[level] = _conv(attention / "Conv_0", x) * weights + x
        results += [one.permute(0, 3, 1, 2) for one in reversed(restored)]
    return results


def _conv(at: Keys, x: Tensor, stride: int = 1) -> Tensor:
    side = at["weight"].shape[-1]
    return at.conv(x.permute(0, 3, 1, 2), stride, (side - 1) // 2).permute(0, 2, 3, 1)


def _norm(at: Keys, x: Tensor) -> Tensor:
    return standardised(x, -1, 1e-6) * at["gamma"] + at["beta"]


def _grown(at: Keys, x: Tensor) -> Tensor:
    """Every token becomes 2x2 of them."""
    b, h, w, _ = x.shape
    return torch.einsum("bhwi,iokl->bhkwlo", x, at["weight"]).reshape(b, 2 * h, 2 * w, -1) + at["bias"]


def _resized(x: Tensor, ratio: float) -> Tensor:
    """Linear interpolation between centres; on the way down with a triangle as wide as the step to either side."""
    for axis in (1, 2):
        size, wide = x.shape[axis], max(1.0, 1 / ratio)
        centres = (torch.arange(round(size * ratio), dtype=x.dtype) + 0.5) / ratio - 0.5
        weights = relu(1 - (torch.arange(size, dtype=x.dtype) - centres[:, None]).abs() / wide)
        weights = weights / weights.sum(1, keepdim=True)
        x = torch.movedim(torch.tensordot(weights, x, dims=([1], [axis])), 0, axis)
    return x


def _gathered(resamplers: Iterator[Keys], features: list[Tensor], level: int) -> Tensor:
    """Features of all levels at one, each projected by the next 1x1 convolution, one after another."""
    height = max(x.shape[1] for x in features) >> level
    return torch.cat([_conv(next(resamplers), _resized(x, height / x.shape[1])) for x in features], 3)


def _unet_block(at: Keys, x: Tensor, skip: Tensor, size: int) -> Tensor:
    x = start = _conv(at / "Conv_0", torch.cat([x, skip], 3))
    for number in range(2):
        x = _multi_axis(at / f"SplitHeadMultiAxisGmlpLayer_{number}", x, size)
        block = at / f"channel_attention_block_1{number}"
        z = _conv(block / "conv1", _norm(block / "LayerNorm", x))
        z = _conv(block / "conv2", torch.where(z > 0, z, 0.2 * z))
        x = x + _reweighted(block / "channel_attention", z)
    return x + start


def _bottleneck(at: Keys, x: Tensor) -> Tensor:
    x = start = _conv(at / "input_proj", x)
    for number in range(2):
        x = _multi_axis(at / f"SplitHeadMultiAxisGmlpLayer_{number}", x, 8)
        block = at / f"channel_attention_block_1_{number}"
        mixing = block / "channel_mixing"
        z = gelu_tanh((mixing / "Dense_0").linear(_norm(block / "LayerNorm", x)))
        x = x + _reweighted(block / "channel_attention", (mixing / "Dense_1").linear(z))
    return x + start


def _reweighted(at: Keys, x: Tensor) -> Tensor:
    hidden = relu((at / "Conv_0").linear(x.mean((1, 2), keepdim=True)))
    return x * torch.sigmoid((at / "Conv_1").linear(hidden))


def _multi_axis(at: Keys, x: Tensor, size: int) -> Tensor:
    z = gelu_tanh((at / "in_project").linear(_norm(at / "LayerNorm_in", x)))
    half = z.shape[3] // 2
    u = _gmlp(at / "GridGmlpLayer", "GridGatingUnit", z[..., :half], size, grid=True)
    v = _gmlp(at / "BlockGmlpLayer", "BlockGatingUnit", z[..., half:], size, grid=False)
    return x + (at / "out_project").linear(torch.cat([u, v], 3))


def _gmlp(at: Keys, unit: str, x: Tensor, size: int, grid: bool) -> Tensor:
    z = gelu_tanh((at / "in_project").linear(_norm(at / "LayerNorm", x)))
    u, v = z[..., : x.shape[3]], z[..., x.shape[3] :]
    gate = _norm(at / unit / "intermediate_layernorm", v)
    return x + (at / "out_project").linear(u * (_mixed(at / unit / "Dense_0", gate, size, grid) + 1))


def _mixed(at: Keys, x: Tensor, size: int, grid: bool) -> Tensor:
    """Tokens of a grid of size x size cells at the same place of each, or of blocks of size x size tokens."""
    b, h, w, c = x.shape
    if grid:
        parts = x.reshape(b, size, h // size, size, w // size, c).permute(0, 2, 4, 5, 1, 3)
        mixed = at.linear(parts.flatten(4)).unflatten(4, (size, size)).permute(0, 4, 1, 5, 2, 3)
    else:
        parts = x.reshape(b, h // size, size, w // size, size, c).permute(0, 1, 3, 5, 2, 4)
        mixed = at.linear(parts.flatten(4)).unflatten(4, (size, size)).permute(0, 1, 4, 2, 5, 3)
    return mixed.reshape(x.shape)


def _crossed(at: Keys, x: Tensor, y: Tensor, size: int, up: bool) -> tuple[Tensor, Tensor]:
    y = _grown(at / "ConvTranspose_0", y) if up else y
    x, y = _conv(at / "Conv_0", x), _conv(at / "Conv_1", y)
    z_x = gelu_tanh((at / "in_project_x").linear(_norm(at / "LayerNorm_x", x)))
    z_y = gelu_tanh((at / "in_project_y").linear(_norm(at / "LayerNorm_y", y)))
    gate_x = _gates(at / "SplitHeadMultiAxisGating_x", z_x, size)
    gate_y = _gates(at / "SplitHeadMultiAxisGating_y", z_y, size)
    y = y + (at / "out_project_y").linear(z_y * gate_x)
    return (at / "out_project_x").linear(z_x * gate_y) + y + x, y


def _gates(at: Keys, x: Tensor, size: int) -> Tensor:
    z = gelu_tanh((at / "in_project").linear(_norm(at / "LayerNorm_in", x)))
    half = x.shape[3]
    u = _mixed(at / "Dense_0", z[..., :half], size, grid=True)
    v = _mixed(at / "Dense_1", z[..., half:], size, grid=False)
    return (at / "out_project").linear(torch.cat([u, v], 3))
