"""Random weights under which every part of a network matters.

Constructors leave classifier heads at zero, LayerScale at 1e-4 and gMLP's spatial gates at 1e-6, so that a freshly
built network hides errors: whole branches contribute nothing. Here every parameter and every statistic of a
BatchNorm is drawn anew, such that activations keep the order of 1 through dozens of blocks, in FP16 too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# A scale varies by this part of its centre, and a shift has this standard deviation.
SCALE_SPREAD = 0.3
SHIFT_SPREAD = 0.05
# A unit-variance input gives a projection's output this deviation. At 1, gated products (gMixer: u * silu(v)) feed
# back through token mixing until a few channels are in the thousands.
GAIN = 0.5
# Smaller constants than this (LayerScale) are raised to it: the variance of a residual stream without any
# normalisation (ResMLP-36) then grows by about (1 + (0.3 * GAIN)**2)**36 = 2.2.
SMALLEST_SCALE = 0.3
SMALLEST_DEVIATION = 0.02


def randomise(network: nn.Module, seed: int) -> None:
    """Draw every floating-point parameter and BatchNorm statistic anew, in place, from `seed` alone.

    A module may say which standard deviation its `weight` is meant to have: an attribute `deviation`.
    """
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen and parameter.is_floating_point():
                    seen.add(id(parameter))
                    _draw(module, name, parameter, generator)
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0.0, SHIFT_SPREAD, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)


def _draw(module: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if name == "weight" and isinstance(meant := getattr(module, "deviation", None), float):
        parameter.normal_(0.0, meant, generator=generator)
        return
    if name == "weight" and isinstance(module, nn.Linear | _ConvNd):
        fan_in = math.prod(parameter.shape[1:])
        parameter.normal_(0.0, GAIN / math.sqrt(max(fan_in, 1)), generator=generator)
        return
    low, high = parameter.aminmax() if parameter.numel() else (torch.zeros(()), torch.zeros(()))
    if low != high:
        deviation = max(float(parameter.std()), SMALLEST_DEVIATION)
        parameter.normal_(0.0, deviation, generator=generator)
    elif low == 0:
        parameter.normal_(0.0, SHIFT_SPREAD, generator=generator)
    else:
        centre = math.copysign(max(abs(float(low)), SMALLEST_SCALE), float(low))
        parameter.normal_(centre, abs(centre) * SCALE_SPREAD, generator=generator)
